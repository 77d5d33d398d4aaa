"""What judges wrote of a prompt's answers, as the page shows it.

A case is what was shown together, in whatever orders: an answer, a pair of answers, or,
where a meta-judge read them, a pair of judgements. Values are embedded of every case,
texts of the most disputed ones, as far as the budget goes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, zip_longest
from typing import Any

import numpy as np

from jaxloop.records import Group, Judgement, Rollout, Scored
from jaxloop.report.views import given, json_bytes, rollout_view
from jaxloop.scoring.ratings import swap_agreement

CASES = 40  # of a prompt and judge, at most: the most disputed
TOLD = 4  # judgements of a request with their texts, at most
JUDGEMENT_TEXT = 2_000  # characters of a judgement
REQUEST_TEXT = 4_000  # characters of what the judge read


@dataclass(frozen=True)
class Case:
    """Judgements of the same things, in each order that they were shown in.

    `about` is set where judgements were judged: the judgement whose answers they are.
    `scores` and `truths` are of the prompt's rollouts, None where not known.
    """

    judge: str
    orders: tuple[Judgement, ...]
    scores: tuple[float | None, ...]
    truths: tuple[float | None, ...]
    about: Judgement | None = None

    @cached_property
    def means(self) -> list[dict[int, float] | None]:
        """For each order: the mean valid value of each thing shown."""
        return [_means(judgement) for judgement in self.orders]

    @cached_property
    def agree(self) -> bool | None:
        """Whether both orders rank the things alike; None without two valid orders."""
        known = [means for means in self.means if means is not None]
        if len(known) < 2 or len(known[0]) < 2:
            return None
        one, other = known[:2]
        pairs = [
            ((one[i], one[j]), (other[j], other[i]))
            for i, j in combinations(self.orders[0].of, 2)
        ]
        return swap_agreement(pairs) == 1.0

    @cached_property
    def wrong(self) -> bool:
        """Whether it says something else than the truth: of one answer by its score, of
        several by their order."""
        known = [means for means in self.means if means is not None]
        if not known or self.about is not None:
            return False
        if len(self.orders[0].of) == 1:
            return self._on_the_wrong_side(self.orders[0].of[0])
        means = {i: sum(m[i] for m in known) for i in known[0]}
        return any(
            _reversed(self.truths[i], self.truths[j], means[i], means[j])
            for i, j in combinations(means, 2)
        )

    def _on_the_wrong_side(self, i: int) -> bool:
        """Of 1/2 where scores lie in [0, 1], else of another answer's score."""
        score, truth = self.scores[i], self.truths[i]
        if score is None or truth is None:
            return False
        if all(0 <= s <= 1 for s in self.scores if s is not None):
            return score != 0.5 and (score > 0.5) != (truth > 0.5)
        others = zip(self.truths, self.scores, strict=True)
        return any(_reversed(truth, t, score, s) for t, s in others)

    @cached_property
    def invalid(self) -> int:
        return sum(values is None for j in self.orders for values in j.values)

    @cached_property
    def spread(self) -> float:
        return sum(judgement.disagreement for judgement in self.orders)

    @cached_property
    def interest(self) -> str:
        """The first that holds of what one looks for."""
        if self.agree is False:
            return "orders"
        if self.invalid:
            return "invalid"
        if self.wrong:
            return "wrong"
        return "spread" if self.spread > 0 else "plain"

    def view(self, *, texts: bool = False) -> dict[str, Any]:
        """For JSON; with `texts`, what the judge read and wrote."""
        about = None if self.about is None else self.about.of[0]
        shown = None
        if texts and self.about is not None:
            rollouts = self.about.rollouts
            shown = [_cut(rollouts[k].text, JUDGEMENT_TEXT) for k in self.orders[0].of]
        orders = zip(self.orders, self.means, strict=True)
        return {
            "judge": self.judge,
            "interest": self.interest,
            "spread": round(self.spread, 4),
            "invalid": self.invalid,
            "orders": [_order_view(one, means, texts) for one, means in orders],
            **given(about=about, shown=shown, agree=self.agree),
            **given(wrong=self.wrong or None),
        }


def judged_cases(record: Scored | Group) -> list[Case]:
    """The cases of a prompt, those of a judge together, most disputed ones first where
    there are too many."""
    judgements = record.judgements if isinstance(record, Scored) else ()
    about = next((j for j in judgements if j.scores), None)
    scored_by = {name for score in record.scores for name in score.components}
    grouped: dict[str, dict[frozenset[int], list[Judgement]]] = {}
    for judgement in judgements:
        of_judge = grouped.setdefault(judgement.judge, {})
        of_judge.setdefault(frozenset(judgement.of), []).append(judgement)
    cases = []
    for judge, orders_of in grouped.items():
        # A meta-judge gives no answer a score, and stands beside a judge who did.
        meta = about is not None and judge not in {about.judge, *scored_by}
        columns = (_column(record, judge), _column(record, f"{judge}_truth"))
        found = [
            Case(judge, tuple(orders), *columns, about if meta else None)
            for orders in orders_of.values()
        ]
        keep = {id(case) for case in by_interest(found)[:CASES]}
        cases += [case for case in found if id(case) in keep]
    return cases


def by_interest(cases: Sequence[Case]) -> list[Case]:
    """First the most disputed of each kind in turn, then the next ones."""
    kinds: dict[str, list[Case]] = {
        kind: [] for kind in ("orders", "invalid", "wrong", "spread", "plain")
    }
    for case in sorted(cases, key=lambda case: -case.spread):
        kinds[case.interest].append(case)
    *disputed, plain = kinds.values()
    turns = zip_longest(*disputed)
    return [case for turn in turns for case in turn if case is not None] + plain


def embed_texts(
    prompts: Sequence[dict[str, Any]], cases: Sequence[Sequence[Case]], budget: int
) -> int:
    """Give the views of cases in `prompts` (their "judged") their texts, within about
    `budget` bytes of JSON; how many got them."""
    places = {
        id(case): (prompt["judged"], n)
        for prompt, of_prompt in zip(prompts, cases, strict=True)
        for n, case in enumerate(of_prompt)
    }
    done = 0
    for case in by_interest([case for of_prompt in cases for case in of_prompt]):
        view = case.view(texts=True)
        budget -= json_bytes(view)
        if budget < 0:
            break
        views, n = places[id(case)]
        views[n] = view
        done += 1
    return done


def _order_view(judgement: Judgement, means, texts: bool) -> dict[str, Any]:
    """What was told, equal texts once; `k` are the numbers of the judgements."""
    told = list(_told(judgement))
    with_text = set(_worth_reading([values for _, values, _, _ in told]))
    views = []
    for place, (rollout, values, meta, numbers) in enumerate(told):
        view = {"k": numbers, "values": values} | given(meta=meta)
        if texts and place in with_text:
            view |= rollout_view(rollout, None, JUDGEMENT_TEXT)
        views.append(view)
    request = _cut(judgement.prompt.text, REQUEST_TEXT) if texts else None
    mean = None if means is None else [round(means[i], 4) for i in judgement.of]
    return {"of": judgement.of, "told": views} | given(mean=mean, request=request)


def _told(judgement: Judgement) -> Iterator[tuple[Rollout, Any, float | None, list]]:
    scores = judgement.scores or (None,) * len(judgement.rollouts)
    seen: dict[tuple, list[int]] = {}
    answers = zip(judgement.rollouts, judgement.values, scores, strict=True)
    for k, (rollout, values, score) in enumerate(answers):
        seen.setdefault((rollout.text, values, score), []).append(k)
    for (_, values, score), numbers in seen.items():
        yield judgement.rollouts[numbers[0]], values, score, numbers


def _worth_reading(values: Sequence[Sequence[float] | None]) -> list[int]:
    """An invalid one, the lowest, the highest, then those that come first."""
    valid = sorted((v, i) for i, v in enumerate(values) if v is not None)
    first = [i for i, v in enumerate(values) if v is None][:1]
    ends = [i for _, i in (*valid[:1], *valid[-1:])]
    return list(dict.fromkeys([*first, *ends, *range(len(values))]))[:TOLD]


def _means(judgement: Judgement) -> dict[int, float] | None:
    valid = [values for values in judgement.values if values is not None]
    if not valid:
        return None
    means = np.mean(valid, axis=0)
    return dict(zip(judgement.of, map(float, means), strict=True))


def _column(record: Scored | Group, name: str) -> tuple[float | None, ...]:
    return tuple(score.components.get(name) for score in record.scores)


def _reversed(truth_i, truth_j, score_i, score_j) -> bool:
    if None in (truth_i, truth_j, score_i, score_j):
        return False
    return (truth_i - truth_j) * (score_i - score_j) < 0


def _cut(text: str, most: int) -> str:
    """The middle is left out: what was asked, and in which form, stand at the ends."""
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]}\n … {len(text) - 2 * half:,} characters …\n{text[-half:]}"
