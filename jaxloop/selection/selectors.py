"""Scored rollouts -> what is learnt from: pairs, labelled completions, demonstrations.

A selector is called with the scored prompts and a numpy Generator, the only source of
chance; `produces` says what comes out: "pairs" (a list of Pair), "labelled" (a list of
Labelled) or "demonstrations" (a list of (Prompt, Rollout)). Unscored rollouts are never
selected.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import numpy as np

from jaxloop.records import Labelled, Pair, Prompt, Rollout, Score, Scored

Produces = Literal["pairs", "labelled", "demonstrations"]
Candidate = tuple[Rollout, Score]
CORRECT = 0.5  # a verifier's score above this is a correct answer


class PairSelector(Protocol):
    produces: ClassVar[Produces]

    def __call__(
        self, scored: Sequence[Scored], rng: np.random.Generator
    ) -> list[Pair]: ...


@dataclass(frozen=True)
class BestWorst:
    """The highest against the lowest score of a prompt (Yuan et al. 2024).

    Of equal scores the earliest sample; a prompt whose scores are all equal gives none.
    """

    gap: float = 0.0
    """By how much the best must be above the worst; 0 takes any difference."""
    produces: ClassVar[Produces] = "pairs"

    def __call__(
        self, scored: Sequence[Scored], rng: np.random.Generator
    ) -> list[Pair]:
        pairs = []
        for row in scored:
            candidates = known(row)
            if not candidates:
                continue
            best = max(candidates, key=lambda candidate: value_of(candidate[1]))
            worst = min(candidates, key=lambda candidate: value_of(candidate[1]))
            high, low = value_of(best[1]), value_of(worst[1])
            if high > low and high - low >= self.gap:
                reason = (
                    f"best of {len(candidates)} ({high:.4g}) against worst ({low:.4g})"
                )
                pairs.append(pair_of(row.prompt, best, worst, reason))
        return pairs


@dataclass(frozen=True)
class CorrectIncorrect:
    """`pairs` different (correct, incorrect) combinations a prompt, drawn at random
    without replacement, fewer where there are fewer (IRPO, Pang et al. 2024).

    Identical texts count once. Correct is a score above `threshold`. `extra` samples
    are only ever the incorrect ones.
    """

    pairs: int = 1
    threshold: float = CORRECT
    spares_extra: ClassVar[bool] = True
    produces: ClassVar[Produces] = "pairs"

    def __post_init__(self):
        if self.pairs < 1:
            raise ValueError(f"CorrectIncorrect: pairs={self.pairs} must be at least 1")

    def __call__(
        self, scored: Sequence[Scored], rng: np.random.Generator
    ) -> list[Pair]:
        pairs = []
        for row in scored:
            candidates = _distinct(known(row))
            right = [c for c in candidates if value_of(c[1]) > self.threshold]
            right = [c for c in right if not c[0].extra]
            wrong = [c for c in candidates if value_of(c[1]) <= self.threshold]
            total = len(right) * len(wrong)
            if not total:
                continue
            for number in rng.choice(total, min(self.pairs, total), replace=False):
                chosen = right[number // len(wrong)]
                rejected = wrong[number % len(wrong)]
                reason = f"{_told(chosen[1])} is correct, {_told(rejected[1])} is not"
                pairs.append(pair_of(row.prompt, chosen, rejected, reason))
        return pairs


@dataclass(frozen=True)
class VoteClusters:
    """A random member of the most voted answer against one of the least voted (ScPO,
    Prasad et al. 2024, section 2). Among clusters of equal votes one is drawn; a prompt
    whose answers all have equally many votes gives none. Needs a scorer that votes.

    `extra` samples are only ever rejected; an answer that no other sample gives has no
    vote, and so is among the least voted.
    """

    spares_extra: ClassVar[bool] = True
    produces: ClassVar[Produces] = "pairs"

    def __call__(
        self, scored: Sequence[Scored], rng: np.random.Generator
    ) -> list[Pair]:
        pairs = []
        for row in scored:
            # In order of appearance; the votes are in the key because the shuffled
            # control deals them out without regard to answers.
            clusters: dict[tuple[int, str], list[Candidate]] = {}
            for candidate in known(row):
                key = votes_of(row.prompt, candidate[1])
                clusters.setdefault(key, []).append(candidate)
            voting = {
                key: ordinary
                for key, members in clusters.items()
                if (ordinary := [each for each in members if not each[0].extra])
            }
            most = max((votes for votes, _ in voting), default=0)
            least = min((votes for votes, _ in clusters), default=0)
            if most <= least:
                continue
            chosen = _member(voting, most, rng)
            rejected = _member(clusters, least, rng)
            of = voters(row)
            reason = (
                f"{_told(chosen[1])} has {most} of {of} votes, "
                f"{_told(rejected[1])} has {least}"
            )
            pairs.append(pair_of(row.prompt, chosen, rejected, reason))
        return pairs


@dataclass(frozen=True)
class TopOne:
    """The highest scored rollout of each prompt, the earliest among equals; none where
    it scores below `minimum`. Rejection fine-tuning keeps one."""

    minimum: float | None = None
    produces: ClassVar[Produces] = "demonstrations"

    def __call__(
        self, scored: Sequence[Scored], rng: np.random.Generator
    ) -> list[tuple[Prompt, Rollout]]:
        kept = []
        for row in scored:
            candidates = known(row)
            if not candidates:
                continue
            rollout, score = max(candidates, key=lambda each: value_of(each[1]))
            if self.minimum is None or value_of(score) >= self.minimum:
                kept.append((row.prompt, rollout))
        return kept


@dataclass(frozen=True)
class AllCorrect:
    """Every correct rollout of different text, at most `maximum` a prompt, drawn at
    random where there are more (RFT, Yuan et al. 2023). Correct is a score above
    `threshold`."""

    maximum: int = 4
    threshold: float = CORRECT
    produces: ClassVar[Produces] = "demonstrations"

    def __post_init__(self):
        if self.maximum < 1:
            raise ValueError(f"AllCorrect: maximum={self.maximum} must be at least 1")

    def __call__(
        self, scored: Sequence[Scored], rng: np.random.Generator
    ) -> list[tuple[Prompt, Rollout]]:
        kept = []
        for row in scored:
            candidates = _distinct(known(row))
            right = [r for r, score in candidates if value_of(score) > self.threshold]
            if len(right) > self.maximum:
                drawn = rng.choice(len(right), self.maximum, replace=False)
                right = [right[number] for number in sorted(drawn)]
            kept += [(row.prompt, rollout) for rollout in right]
        return kept


@dataclass(frozen=True)
class Labels:
    """Every scored rollout of different text by itself: desirable where its score is
    above `threshold` (KTO, BCO), or labelled with the score as it is (`graded`)."""

    threshold: float = CORRECT
    graded: bool = False
    by_token: bool = False
    """Give each token the label as well, as process reward models read it: is the
    completion right in the end?"""
    produces: ClassVar[Produces] = "labelled"

    def __call__(
        self, scored: Sequence[Scored], rng: np.random.Generator
    ) -> list[Labelled]:
        return [
            self._labelled(row.prompt, rollout, value_of(score))
            for row in scored
            for rollout, score in _distinct(known(row))
        ]

    def _labelled(self, prompt: Prompt, rollout: Rollout, value: float) -> Labelled:
        label = value if self.graded else float(value > self.threshold)
        ends = range(1, len(rollout.token_ids) + 1) if self.by_token else ()
        steps = tuple((end, label) for end in ends)
        return Labelled(prompt, rollout, label, steps=steps)


def votes_of(prompt: Prompt, score: Score) -> tuple[int, str]:
    """A score's votes and answer; ValueError if the scorer does not vote."""
    if score.votes is None or score.answer is None:
        raise ValueError(
            f"prompt {prompt.id!r}: its scores carry no votes; this part needs a "
            "scorer that votes, such as MajorityVote()"
        )
    return score.votes, score.answer


def voters(row: Scored) -> int:
    """k: the samples of the prompt, without those that a recipe draws as `extra`."""
    return sum(not rollout.extra for rollout in row.rollouts)


def known(row: Scored) -> list[Candidate]:
    """The rollouts that have a score, with it."""
    pairs = zip(row.rollouts, row.scores, strict=True)
    return [(rollout, score) for rollout, score in pairs if score.value is not None]


def value_of(score: Score) -> float:
    assert score.value is not None
    return score.value


def _distinct(candidates: list[Candidate]) -> list[Candidate]:
    """The first of each text, in order."""
    first: dict[str, Candidate] = {}
    for candidate in candidates:
        first.setdefault(candidate[0].text, candidate)
    return list(first.values())


def _member(
    clusters: dict[tuple[int, str], list[Candidate]],
    votes: int,
    rng: np.random.Generator,
) -> Candidate:
    tied = [members for key, members in clusters.items() if key[0] == votes]
    members = tied[rng.integers(len(tied))]
    return members[rng.integers(len(members))]


def _told(score: Score) -> str:
    return (
        f"score {value_of(score):.4g}" if score.answer is None else repr(score.answer)
    )


def pair_of(prompt: Prompt, better: Candidate, worse: Candidate, reason: str) -> Pair:
    return Pair(
        prompt=prompt,
        chosen=better[0],
        rejected=worse[0],
        chosen_score=value_of(better[1]),
        rejected_score=value_of(worse[1]),
        reason=reason,
    )
