"""Length-instruction fine-tuning, LIFT-DPO (Yuan et al. 2024, arXiv 2406.17744).

DPO on a file of preferences, in which every pair gets a copy whose prompt begins with
"Answer in at most L words." There keeping to L comes first: where exactly one of the
two answers is longer, the other one is chosen, whatever the order was; where none is,
the order stays; where both are, there is no copy. The pairs themselves stay in the mix.
It shows that a model learns to keep to a length without losing elsewhere.

    jaxloop run configs/lift_dpo.py model.path=DIR \\
        data.pairs=pairs.jsonl data.test=held_out.jsonl
    jaxloop run configs/lift_dpo.py:plain ...   control: DPO on the pairs alone
    jaxloop run configs/lift_dpo.py:tiny        sums, on a CPU in a minute; also
        tiny-plain

Rows of pairs are {prompt, chosen, rejected}. Held-out rows are {prompt, limit}, with
words of their own for the limit in the prompt, as AlpacaEval-LI and MT-Bench-LI have
them; `eval/violations` is the share of answers with more than `limit` words. A row
without a limit never counts as one; a field `set` measures rows by themselves.

Expected: the paper reports that violations fall several-fold at no loss elsewhere. Here
no model of that size has been run, and tiny does not reproduce it. In one run (seed 0,
256 sums without a limit, 256 with one) violations went from 54 % to 34, with plain DPO
to 56; accuracy without a limit from 100 % to 94.5, with plain DPO to 98.8. The model
heeds a limit of 2, says too little at 3 and heeds no 4. These settings were picked by
such figures out of 17, in four forms of the world, so the figures flatter; they were
run with no other seed. The others moved nothing, or cost more accuracy.

Of the settings, the rule for pairs is recalled, not checked against the paper, which
may use pairs of two violations too. Ours: the words of the instruction, how L is drawn
(half of the time between the two lengths, half of the time from the longer one to twice
that), beta, rate, batch, one pass. The paper counts a violating answer as lost; here
quality (a judge's, by the first model) and violations are measured apart.
"""

from dataclasses import replace

from configs import offline, quickstart
from jaxloop.config import unknown_variant
from jaxloop.experiment import Characters, Config
from jaxloop.loop.recipe import Evaluation
from jaxloop.losses.objectives import Pairwise
from jaxloop.models.decoder import ModelShape
from jaxloop.prompts import limited_arithmetic
from jaxloop.prompts.dataset import JsonlData
from jaxloop.prompts.length_limits import LimitedPairs, violations
from jaxloop.prompts.limited_arithmetic import LimitedArithmetic
from jaxloop.sampling.settings import Sampling
from jaxloop.scoring import Judge, Numeric, Regex

DATA = {
    None: LimitedPairs(on_long="filter"),
    "plain": JsonlData(on_long="filter"),
    "tiny": LimitedArithmetic(),
    "tiny-plain": LimitedArithmetic(augmented=False),
}
EVALUATION = Evaluation(
    scorer=Judge(by="first"),
    sampling=Sampling(n=1, temperature=0.0, max_new_tokens=1024, rows=128),
    measures=(violations,),
)
TINY_EVALUATION = Evaluation(
    scorer=Numeric(extract=Regex(r"#(\d+)")),
    sampling=replace(quickstart.SAMPLING, n=1, temperature=0.0, max_new_tokens=40),
    measures=(limited_arithmetic.violations,),
)
TINY_STAGE = replace(
    offline.STAGE,
    objective=Pairwise(beta=0.5),
    epochs=4,
    accumulation=1,
    max_completion_tokens=40,
    optimizer=replace(quickstart.ADAM, schedule="linear"),
)


def get_config(variant: str | None = None) -> Config:
    if variant not in DATA:
        raise unknown_variant(variant or "", [name for name in DATA if name])
    name = "-".join(["lift_dpo", *filter(None, [variant])])
    base = offline.get_config()
    if "tiny" not in name:
        return replace(base, name=name, data=DATA[variant], evaluation=EVALUATION)
    base, world = quickstart.get_config(), DATA[variant]
    return replace(
        base,
        name=name,
        data=world,
        tokenizer=Characters(world.alphabet),
        model=replace(base.model, shape=ModelShape(vocab=32)),
        sft=replace(quickstart.SFT, steps=1200),
        recipe=None,
        offline=TINY_STAGE,
        evaluation=TINY_EVALUATION,
    )
