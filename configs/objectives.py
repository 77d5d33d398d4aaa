"""Every objective by its name, on the quickstart's sums. CPU, about a minute each.

    ./launch/local.sh configs/objectives.py:ipo
    jaxloop run configs/objectives.py:gspo recipe.schedule.steps=80

docs/objectives.md lists them with formula, paper, when to use, and their names in other
codebases. All start from the quickstart's supervised stage and learn from gold answers:
pairs of a right and a wrong answer, answers with labels, or groups with advantages. The
settings are our own, chosen so that each learns something in a few updates; they are no
comparison of objectives.

An objective of your own is a function in your config file:

    def logistic_hinge(pairs, *, beta, margin=1.0):
        reward_P2 = beta * pairs.log_ratio_P2
        return jax.nn.softplus(margin - (reward_P2[:, 0] - reward_P2[:, 1])), {}

    objective=Pairwise(logistic_hinge, beta=0.1, margin=2.0)
"""

from dataclasses import replace

from configs import quickstart
from jaxloop.config import unknown_variant
from jaxloop.experiment import Config
from jaxloop.loop.recipe import Contrast, Recipe, Rounds, Teacher
from jaxloop.losses import (
    distillation,
    divergence,
    kl,
    nash,
    off_policy,
    pair_terms,
    policy,
    reference_free,
    reward_model,
    sft,
    unpaired,
)
from jaxloop.losses import preference as p
from jaxloop.losses.objectives import (
    GAE,
    Distill,
    GroupPairs,
    Mixture,
    OffPolicy,
    Pairwise,
    Policy,
    RewardModel,
    Supervised,
    Unpaired,
    Value,
)
from jaxloop.selection import (
    GDPO,
    OPO,
    AllCorrect,
    GroupAdvantage,
    Labels,
    LeaveOneOut,
    MaxRL,
    NegativeOffset,
    Overlong,
    PassAtK,
    ReinforcePlusPlus,
)

PAIRS = {
    "sigmoid": Pairwise(p.sigmoid),
    "sigmoid_norm": Pairwise(p.sigmoid_norm, beta=2.0),
    "cdpo": Pairwise(p.cdpo, smoothing=0.1),
    "robust": Pairwise(p.robust, smoothing=0.1),
    "soft": Pairwise(p.soft),
    "odpo": Pairwise(p.odpo),
    "hinge": Pairwise(p.hinge),
    "ipo": Pairwise(p.ipo, beta=0.5),
    "ipo_sum": Pairwise(p.ipo_sum),
    "exo_pair": Pairwise(p.exo_pair, smoothing=1e-3),
    "discopop": Pairwise(p.discopop),
    "nca_pair": Pairwise(p.nca_pair),
    "bco_pair": Pairwise(p.bco_pair),
    "sppo_hard": Pairwise(p.sppo_hard),
    "apo_zero": Pairwise(p.apo_zero),
    "apo_down": Pairwise(p.apo_down),
    "aot": Pairwise(p.aot),
    "aot_unpaired": Pairwise(p.aot_unpaired),
    "sppo": Pairwise(nash.sppo),
    "inpo": Pairwise(nash.inpo, eta=0.1, tau=0.05),
    "simpo": Pairwise(reference_free.simpo, beta=2.0, margin=0.5),
    "cpo": Pairwise(reference_free.cpo, sft=1.0),
    "alpha_po": Pairwise(reference_free.alpha_po, beta=2.0, margin=0.5, alpha=0.25),
    "orpo": Pairwise(reference_free.orpo, sft=1.0),
    "rf_nll": Pairwise(reference_free.rf_nll),
    "margin_ranking": Pairwise(reference_free.margin_ranking),
    "sft": Pairwise(reference_free.none, sft=1.0),
    "forward_kl": Pairwise(divergence=divergence.forward_kl),
    "js_divergence": Pairwise(divergence=divergence.js_divergence),
    "alpha_divergence": Pairwise(divergence=divergence.alpha_divergence),
    "dpo_nll": Pairwise(nll=1.0),
    "rpo": Pairwise(sft=1.0),
    "ld_dpo": Pairwise(ld_alpha=0.5),
    "edit_dpo": Pairwise(edit_alpha=0.25),
    "wpo": Pairwise(wpo=pair_terms.wpo),
    "t_reg": Pairwise(token_regulariser=1.0),
    "selm": Pairwise(optimism=0.01),
    "mpo": Mixture((Pairwise(), Pairwise(p.bco_pair, sft=1.0)), (0.8, 0.2)),
    "bradley_terry": RewardModel(reward_model.bradley_terry, centring=0.01),
}
CONTRAST = Contrast(better="#{answer};", worse="#0;")
LABELLED = {
    "kto": Unpaired(unpaired.kto),
    "apo_zero_unpaired": Unpaired(unpaired.apo_zero_unpaired),
    "bco": Unpaired(unpaired.bco),
    "regression": RewardModel(reward_model.regression),
    "ordinal": RewardModel(reward_model.ordinal),
    "process": RewardModel(reward_model.process),
}
GROUP, CENTRED = GroupAdvantage(), GroupAdvantage("none")
GROUPS = {
    "grpo": (Policy(aggregation="sequence", kl=0.01), GROUP),
    "bnpo": (Policy(), GROUP),  # TRL's, see `Policy.aggregation`
    "dapo": (Policy(clip_high=0.28), Overlong(GROUP, longest=24, cache=8)),
    "dr_grpo": (Policy(aggregation="constant", max_completion_length=24), CENTRED),
    "batch_std": (Policy(), GroupAdvantage("batch")),
    "two_sided": (Policy(policy.two_sided, delta=4.0), GROUP),
    "dual_clip": (Policy(policy.dual_clip), GROUP),
    "gspo": (Policy(policy.gspo), GROUP),
    "luspo": (Policy(policy.gspo, aggregation="sum"), GROUP),
    "gmpo": (Policy(policy.gmpo), GROUP),
    "rloo": (Policy(policy.rloo), LeaveOneOut()),
    "cispo": (Policy(policy.cispo), GROUP),
    "sapo": (Policy(policy.sapo), GROUP),
    "vespo": (Policy(policy.vespo), GROUP),
    "topr": (Policy(policy.topr), CENTRED),
    "dppo": (Policy(policy.dppo), GROUP),
    "reinforce_plus_plus": (
        Policy(kl=0.01, kl_estimator=kl.k2, kl_bias_correction=False),
        ReinforcePlusPlus(),
    ),
    "max_rl": (Policy(), MaxRL()),
    "pass_at_k": (Policy(), PassAtK(k=2)),
    "opo": (Policy(), OPO()),
    "gdpo": (Policy(), Overlong(GDPO(("numeric", "overlong")), longest=24, cache=8)),
    "restrain": (Policy(), NegativeOffset(GROUP, minimum=0.25, offset=0.5)),
    "entropy_bonus": (Policy(entropy=0.01), GROUP),
    "adaptive_entropy": (Policy(entropy_target=0.2), GROUP),
    "top_entropy": (Policy(top_entropy=0.2), GROUP),
    "tis": (Policy(off_policy=OffPolicy(off_policy.token_truncate, most=2.0)), GROUP),
    "icepop": (Policy(off_policy=OffPolicy(off_policy.token_mask)), GROUP),
    "sequence_mask": (Policy(off_policy=OffPolicy(off_policy.sequence_mask)), GROUP),
    "group_dpo": (GroupPairs(), None),
    "group_dpo_grpo": (Mixture((GroupPairs(), Policy()), (1.0, 0.01)), GROUP),
    "ppo": (Mixture((Policy(), Value()), (1.0, 0.5)), GAE()),
}
IMITATION = {
    "nll": Supervised(sft.nll),
    "dft": Supervised(sft.dft),
}
TEACHER = Teacher(context="#{answer};", k=16)
DISTILLATION = {
    "distill_forward_kl": Distill(distillation.forward_kl),
    "distill_reverse_kl": Distill(distillation.reverse_kl),
    "distill_js": Distill(distillation.jensen_shannon, beta=0.5),
}
SCORERS = {"restrain": quickstart.VOTE}
NAMES = [*PAIRS, *LABELLED, *GROUPS, *IMITATION, *DISTILLATION]


def recipe(name: str) -> Recipe:
    """The quickstart's recipe of that kind with the objective of that name."""
    online = quickstart.GRPO
    if name in GROUPS:
        objective, advantage = GROUPS[name]
        scorer = SCORERS.get(name, online.scorer)
        return replace(online, objective=objective, advantage=advantage, scorer=scorer)
    if name in DISTILLATION:
        objective = DISTILLATION[name]
        return replace(online, objective=objective, advantage=None, teacher=TEACHER)
    rounds = quickstart.IRPO
    if "previous" in getattr(PAIRS.get(name), "needs", ()):  # it has two references
        rounds = replace(rounds, schedule=replace(rounds.schedule, reference="seed"))
    if name in PAIRS:
        contrast = CONTRAST if "token_reward" in PAIRS[name].needs else None
        return replace(rounds, objective=PAIRS[name], contrast=contrast)
    if name in LABELLED:
        by_token, graded = name == "process", name in ("regression", "ordinal")
        selector = Labels(by_token=by_token, graded=graded)
        return replace(rounds, objective=LABELLED[name], selector=selector)
    return replace(
        rounds,
        objective=IMITATION[name],
        selector=AllCorrect(maximum=4),
        schedule=Rounds(2, prompts=256, epochs=4, batch_size=16, row_tokens=64),
    )


def get_config(variant: str | None = None) -> Config:
    """`variant`: a name of `NAMES`; none is "sigmoid", DPO."""
    name = variant or "sigmoid"
    if name not in NAMES:
        raise unknown_variant(name, NAMES)
    base = quickstart.get_config()
    made = recipe(name)
    head = 1 if "head" in made.objective.needs else 0
    model = replace(base.model, outputs=head)
    return replace(base, name=f"objectives-{name}", model=model, recipe=made)
