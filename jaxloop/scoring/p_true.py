"""P(True): how likely a judge is to say yes, read from its log-probabilities."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from jaxloop.records import Prompt, Rollout
from jaxloop.sampling.settings import Sampling
from jaxloop.scoring.endpoint import Endpoint
from jaxloop.scoring.judge import Judge
from jaxloop.scoring.scorer import Models
from jaxloop.scoring.verdicts import Parser


def read_share(text: str, shown: int) -> tuple[float, ...] | None:
    """The number at the end of what `PTrue` puts down (`yes 0.83`); None for NaN."""
    if shown != 1:
        raise ValueError(f"PTrue speaks of 1 rollout, and the judge is shown {shown}")
    share = float(text.rpartition(" ")[2] or "nan")
    return (share,) if np.isfinite(share) else None


@dataclass(frozen=True)
class PTrue(Judge):
    """A judge that writes nothing: its score is the probability of the word for yes,
    against that for no, right after the request. `by` must have the policy's tokens.

    P(True) of Kadavath et al. 2022 (arXiv 2207.05221; recalled, not checked against the
    paper): it costs no sampling and never fails to parse. The words are read at
    temperature 1; of several tokens the log-probabilities add up.
    """

    template: str = "p_true"
    parse: Parser = read_share
    sampling: Sampling = field(default_factory=lambda: Sampling(n=1, max_new_tokens=1))
    """Of no effect: nothing is drawn."""
    words: tuple[str, str] = ("yes", "no")
    """What a judge that says yes writes first, and one that says no; with the space in
    front where its tokens want one."""
    name: str = "p_true"
    """What the score is called in records and metrics."""

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.by, Endpoint):
            raise ValueError(
                "PTrue: an endpoint tells no log-probabilities; by must be a model here"
            )
        if "" in self.words or self.words[0] == self.words[1]:
            raise ValueError(f"PTrue: words={self.words} must be two different ones")

    def answers(
        self, models: Models, requests: Sequence[Prompt]
    ) -> list[tuple[Rollout, ...]]:
        """For each request the word for yes and its share, as a text to be read; () to
        one that leaves no room for the words."""
        said = [
            Rollout("", i, models.tokens(word), word, (), (), "length")
            for i, word in enumerate(self.words)
        ]
        longest = max(len(word.token_ids) for word in said)
        room = replace(self.sampling, max_new_tokens=longest)
        fitting = models.fitting(requests, room, by=self.by)
        items = [(request, word) for request in fitting for word in said]
        assert isinstance(self.by, str)
        logp_N2 = models.logps(items, by=self.by).reshape(-1, 2)
        share_N = np.exp(-np.logaddexp(0.0, logp_N2[:, 1] - logp_N2[:, 0]))
        told = {
            r.id: Rollout(r.id, 0, (), f"{self.words[0]} {share!r}", (), (), "length")
            for r, share in zip(fitting, share_N.tolist(), strict=True)
        }
        return [(told[r.id],) if r.id in told else () for r in requests]
