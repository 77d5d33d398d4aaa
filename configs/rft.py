"""Rejection fine-tuning in rounds: STaR (Zelikman et al. 2022, arXiv 2203.14465) with
the sampling of RFT (Yuan et al. 2023, arXiv 2308.01825).

Each round the newest model samples solutions, those that reach the gold answer are kept
(different ones, at most four a question), and the model that the run began with is
fine-tuned on them, together with the data's own solutions. It shows how far imitation
of one's own successes goes without any use of the failures: the baseline of the
preference methods.

    jaxloop run configs/rft.py model.path=DIR \\
        data.train=train.jsonl data.test=test.jsonl
    jaxloop run configs/rft.py:tiny    the quickstart's sums, on a CPU in seconds

Expected, not yet measured: a gain over `configs/sft.py`, smaller than that of
`configs/irpo.py` from the same model. Tiny: fewer direct guesses and a higher greedy
accuracy on held-out sums.

Recalled, not checked against the papers: that STaR begins each round from the first
model, and that RFT adds its samples to the data's solutions. All numbers are ours. Tiny
leaves the data's solutions out (`recipe.schedule.rehearse=true` brings them back): most
of them are guesses, and keep guessing alive.

Not supported: STaR's rationalisation, a second try with the answer given as a hint.
"""

from dataclasses import replace

from configs import quickstart, sft
from jaxloop.config import unknown_variant
from jaxloop.experiment import Config
from jaxloop.loop.recipe import Recipe, Rounds
from jaxloop.losses.objectives import Supervised
from jaxloop.selection import AllCorrect

RECIPE = Recipe(
    sampling=sft.SAMPLING,
    scorer=sft.GOLD,
    selector=AllCorrect(maximum=4),
    objective=Supervised(),
    schedule=Rounds(
        3,
        epochs=3,
        batch_size=sft.STAGE.batch_size,
        accumulation=sft.STAGE.accumulation,
        start="seed",
        rehearse=True,
        row_tokens=1536,
    ),
    optimizer=sft.STAGE.optimizer,
)
TINY = replace(
    RECIPE,
    sampling=quickstart.SAMPLING,
    scorer=quickstart.GOLD,
    schedule=Rounds(
        2, prompts=256, epochs=4, batch_size=16, start="seed", row_tokens=64
    ),
    optimizer=replace(quickstart.ADAM, learning_rate=1e-3),
)


def get_config(variant: str | None = None) -> Config:
    if variant == "tiny":
        return replace(sft.tiny("rft"), recipe=TINY)
    if variant is not None:
        raise unknown_variant(variant, ["tiny"])
    return replace(sft.get_config(), name="rft", sft=None, recipe=RECIPE)
