"""Self-Instruct: requests like those shown, of which some were written before."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from jaxloop.prompts.maker import Maker, Parse, Shown, Tags
from jaxloop.sampling.settings import Sampling

TEMPLATE = """\
Here are requests that people sent to an assistant. Write one more that could stand
among them. Let it be about something else and of another form than those shown, clear
without anything beside it, and such that a text can answer it. Write it between
<request> and </request>, and nothing else.

{seeds}Request {number}:
"""


@dataclass(frozen=True)
class SelfInstruct(Maker):
    """k shots, of which some are the model's own: the pool grows away from its seeds.

    Wang et al. 2022 (arXiv 2212.10560): six seeds and two written ones, ROUGE-L below
    0.7 with all before, filters by words and length. Temperature 0.6 and top-p 0.9 are
    those of Self-Rewarding (arXiv 2401.10020; recalled, not checked against the paper).
    A model that only continues text sees the pattern, and stops behind the tag.
    """

    shots: int = 8
    own_shots: int = 2
    """How many of the shots are written ones, once there are so many."""
    template: str = TEMPLATE
    example: str = "Request {number}:\n<request>{text}</request>\n\n"
    parse: Parse = field(default_factory=Tags)
    sampling: Sampling = field(
        default_factory=lambda: Sampling(
            n=1,
            temperature=0.6,
            top_p=0.9,
            max_new_tokens=256,
            stop=("</request>",),
        )
    )

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.own_shots < self.shots:
            raise ValueError(
                f"SelfInstruct: own_shots = {self.own_shots} must be at least 0 and "
                f"below shots = {self.shots}"
            )

    def picked(
        self,
        seeds: Sequence[Shown],
        written: Sequence[Shown],
        rng: np.random.Generator,
    ) -> list[Shown]:
        own = self.own_shots if len(written) >= self.own_shots else 0
        shown = super().picked(seeds, written, rng)[: self.shots - own]
        shown += [written[i] for i in rng.permutation(len(written))[:own]]
        return [shown[i] for i in rng.permutation(len(shown))]
