"""Perturbed instructions: a good answer to another question is a bad one to this."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from jaxloop.prompts.maker import Maker, Parse, Request, Screen, Tags, Written
from jaxloop.records import Prompt, Rollout
from jaxloop.sampling.settings import Sampling

TEMPLATE = """\
Below stands a request to an assistant. Think about what a good answer to it would have
to contain. Then write another request that reads much like it, about the same matter,
but which asks for something else: so much else that a very good answer to it would be a
bad answer to the one below. It must make sense on its own.

The request:
{seeds}

Write the other request between <request> and </request>, and nothing else.
"""


@dataclass(frozen=True)
class Perturbed(Maker):
    """For each prompt x a similar but different one, x'.

    Self-Taught Evaluators (Wang et al. 2024, arXiv 2408.02666): a good answer to x' is
    a plausible wrong answer to x, so the better one of two answers is known without a
    label. With `answering` both are answered, and a row is such a pair: `prompt`,
    `chosen`, `rejected`, as `data.pairs` reads it. Words and sampling are our own.
    """

    shots: int = 1
    template: str = TEMPLATE
    parse: Parse = field(default_factory=Tags)
    sampling: Sampling = field(
        default_factory=lambda: Sampling(
            n=1, temperature=0.7, top_p=0.9, max_new_tokens=512
        )
    )
    screen: Screen = field(default_factory=lambda: Screen(keywords=(), alike=1.0))
    answering: Sampling | None = None
    """How x and x' are answered, by the writer; none leaves that to others. The first
    sample counts."""

    def __post_init__(self):
        super().__post_init__()
        if self.shots != 1:
            raise ValueError(f"Perturbed: shots = {self.shots}, but a request has one")

    def requests(
        self,
        seeds: Sequence[Prompt],
        written: Sequence[Written],
        batch: int,
        rng: np.random.Generator,
    ) -> list[Request]:
        """One for each seed, in order."""
        if len(written) >= self.count:
            return []
        first = batch * self.batch
        return [
            self.request(f"{batch}:{i}", [(seed.id, self.text_of(seed))])
            for i, seed in enumerate(seeds[first : first + self.batch])
        ]

    def read(self, request: Request, rollout: Rollout) -> Written | str:
        found = super().read(request, rollout)
        if isinstance(found, str):
            return found
        ((_, original),) = request.shown
        return replace(found, columns={"original": original, **found.columns})

    def pair(self, perturbed: Written, texts: Sequence[str]) -> Written | str:
        """The record of a pair from the answers to x and to x', or why not."""
        chosen, rejected = (text.strip() for text in texts)
        if not chosen or not rejected:
            return "unanswered"
        if chosen == rejected:
            return "equal_answers"
        ((_, original),) = perturbed.shown
        columns = {"chosen": chosen, "rejected": rejected, "perturbed": perturbed.text}
        return replace(perturbed, text=original, columns=columns)
