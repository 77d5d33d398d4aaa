"""Judges: a language model reads completions and says what they are worth.

A judgement is a rollout of a judge prompt: it comes from the same sampler as answers
do, is kept beside the score (`Scored.judgements`), and can be trained on like any other
rollout. What a judge is shown together is said by a function of the number of different
completions, which gives the places of each request, in the order shown: `each`,
`both_orders`, `one_order`, `against_first`, `all_at_once`, or your own.

Completions that look the same to the judge are judged once, and share the score.
"""

import functools
import hashlib
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from jaxloop.records import Judgement, Prompt, Rollout, Score, Scored
from jaxloop.sampling.settings import Sampling
from jaxloop.scoring import scorer as scorers
from jaxloop.scoring.answers import Extractor, WholeText
from jaxloop.scoring.endpoint import Endpoint
from jaxloop.scoring.guard import fenced, neutralised
from jaxloop.scoring.ratings import Verdict, round_robin_mean
from jaxloop.scoring.rubric import filled, load_template, template_problems
from jaxloop.scoring.scorer import Groups, Models, OfModels, Scorer, column
from jaxloop.scoring.verdicts import Parser, Points
from jaxloop.scoring.writer import By

Places = tuple[int, ...]
Show = Callable[[int], list[Places]]
Combine = Callable[[Iterable[Verdict], int], np.ndarray]


def each(count: int) -> list[Places]:
    """One completion at a time."""
    return [(place,) for place in range(count)]


def both_orders(count: int) -> list[Places]:
    """Every pair, each completion first once: a round robin."""
    return [(i, j) for i in range(count) for j in range(count) if i != j]


def one_order(count: int) -> list[Places]:
    """Every pair once, first places dealt out evenly: half the cost, but what a judge
    gives to a place stays in the score."""
    return [(i, j) if (i + j) % 2 else (j, i) for j in range(count) for i in range(j)]


def against_first(count: int) -> list[Places]:
    """Every other completion against the first one, in both orders: as many requests as
    completions, where a round robin wants their square."""
    others = range(1, count)
    return [pair for other in others for pair in ((0, other), (other, 0))]


def all_at_once(count: int) -> list[Places]:
    """All completions in one request, in order and in reverse."""
    if not count:
        return []
    whole = tuple(range(count))
    return [whole, whole[::-1]] if count > 1 else [whole]


@dataclass(frozen=True)
class Judge(OfModels):
    """Scores by judgements: requests from a template, `sampling.n` answers to each, a
    parser, and what becomes of its numbers.

    An answer that cannot be parsed is invalid: it is left out and counted, never 0. A
    completion without one valid judgement is unscored. Additive 5-point judge of
    Self-Rewarding (Yuan et al. 2024, arXiv 2401.10020) as it stands.
    """

    template: str = "additive"
    """The name of a template that comes along, the path of a text file, or the text
    itself. Fields: {question}, {answer} (of a pair {answer_A} and {answer_B}, of more
    {answers}), and those of `columns`."""
    parse: Parser = field(default_factory=Points)
    """From a judgement to a number for each completion shown, or None."""
    show: Show = each
    """What is shown together."""
    combine: Combine = round_robin_mean
    """From the verdicts on a prompt's completions to scores: a function of
    `jaxloop.scoring.ratings`, `BradleyTerry()`, or your own."""
    sampling: Sampling = field(
        default_factory=lambda: Sampling(n=3, temperature=0.7, max_new_tokens=512)
    )
    """How judgements are drawn."""
    by: By = "policy"
    """Who judges: the "policy" in training, the "first" model, which the recipe started
    from (in a supervised stage before it: the weights of the moment), a directory (or
    hub id) with a model and its tokenizer, the same `Placed` on a mesh of its own, or
    an `Endpoint`."""
    sees: Extractor = field(default_factory=WholeText)
    """What of a completion is shown; where that is nothing, it stays unscored."""
    question: str = ""
    """The row's field that is shown as the question; empty is the prompt's text."""
    columns: tuple[tuple[str, str], ...] = ()
    """Further fields of the template, and the row's fields that fill them, such as
    ("reference", "answer")."""
    shown_as: str = "answer"
    """What the template calls that which is judged."""
    guarded: bool = True
    """Keep completions from speaking as the judge: special tokens, role names and
    verdicts in them are defused, and random marks are put around them."""
    longest: int = 20_000
    """Characters of a completion that are shown at most, where it is guarded."""
    truth: Scorer | None = None
    """A verifier that the judge is measured against; it never enters the score."""
    name: str = "judge"
    """What the score is called in records and metrics; two in one `Sum` want two."""

    def __post_init__(self):
        problems = template_problems(self.text, self.template_fields())
        if problems:
            found = "; ".join(problems)
            raise ValueError(f"Judge: template {self.template!r}: {found}")
        for size in {len(places) for places in self.show(3)}:
            self.parse("", size)  # a parser that speaks of other numbers refuses

    @functools.cached_property
    def text(self) -> str:
        """The template itself."""
        return self.template if "{" in self.template else load_template(self.template)

    def template_fields(self) -> set[str]:
        """The names that the template may and must have for what is shown together."""
        size, name = min(len(places) for places in self.show(3)), self.shown_as
        shown = {1: {name}, 2: {f"{name}_A", f"{name}_B"}}.get(size, {f"{name}s"})
        return shown | {"question"} | {field for field, _ in self.columns}

    def check(self, prompts: Sequence[Prompt]) -> None:
        if isinstance(self.by, Endpoint):
            self.by.check()
        for prompt in prompts:
            for name in filter(None, (self.question, *(c for _, c in self.columns))):
                column(prompt, name)
        if self.truth is not None:
            scorers.check(self.truth, prompts)

    def close(self) -> None:
        if self.truth is not None:
            scorers.close(self.truth)

    def score(
        self, models: Models, prompts: Sequence[Prompt], rollouts: Groups
    ) -> list[Scored]:
        groups = zip(prompts, rollouts, strict=True)
        rows = [_Row.of(prompt, group, self.sees) for prompt, group in groups]
        special = models.special_tokens(by=self.by) if self.guarded else ()
        asked = [
            (row, places, self.request(row.prompt, row.shown(places), special))
            for row in rows
            for places in self.show(len(row.texts))
        ]
        ids = [
            f"{self.name}:{self.by}:{row.prompt.id}:"
            f"{'-'.join(map(str, row.indices(places)))}:"
            + hashlib.sha256(text.encode()).hexdigest()[:8]
            for row, places, text in asked
        ]
        texts = dict(zip(ids, (text for *_, text in asked), strict=True))
        requests = models.prompts(texts, by=self.by)
        told = self.answers(models, requests)
        judged = zip(asked, requests, told, strict=True)
        for (row, places, _), request, answers in judged:
            values = tuple(self.parse(a.text, len(places)) for a in answers)
            of = row.indices(places)
            judgement = Judgement(request, of, answers, values, judge=self.name)
            row.judged.append((places, judgement))
        truths = None if self.truth is None else self.truth(prompts, rollouts)
        return [
            self._scored(row, None if truths is None else truths[i].scores)
            for i, row in enumerate(rows)
        ]

    def answers(
        self, models: Models, requests: Sequence[Prompt]
    ) -> list[tuple[Rollout, ...]]:
        """What the judge says to each request."""
        return models.write(requests, self.sampling, by=self.by)

    def request(
        self, prompt: Prompt, texts: Sequence[str], special: Collection[str] = ()
    ) -> str:
        """What the judge reads: the completions are shown in that order. `special`: the
        tokens of its tokenizer that no text may spell."""
        own = (getattr(self.parse, name, "") for name in ("label", "tag"))
        words = [word for word in own if word]

        def guarded(name: str, text: str, *, judged: bool = False) -> str:
            if not self.guarded:
                return text
            most = self.longest if judged else max(len(text), 1)
            calm = neutralised(text, special=special, most=most, words=words)
            # By the text itself, so that no text can hold its own code.
            return fenced(calm, f"{prompt.id}:{name}:{calm}")

        question = column(prompt, self.question) if self.question else prompt.text
        fields = {"question": guarded("question", str(question))}
        for field_name, name in self.columns:
            fields[field_name] = guarded(field_name, str(column(prompt, name)))
        shown = [guarded(str(i), t, judged=True) for i, t in enumerate(texts)]
        name = self.shown_as
        if len(shown) == 1:
            fields[name] = shown[0]
        elif len(shown) == 2:
            fields[f"{name}_A"], fields[f"{name}_B"] = shown
        numbered = (f"{name.title()} {i}:\n{t}" for i, t in enumerate(shown, 1))
        fields[f"{name}s"] = "\n\n".join(numbered)
        return filled(self.text, fields)

    def _scored(self, row: "_Row", truths: Sequence[Score] | None) -> Scored:
        verdicts = [
            (places, values)
            for places, judgement in row.judged
            for values in judgement.values
        ]
        count = len(row.texts)
        combined = self.combine(verdicts, count) if count else np.zeros(0)
        spoken_of = {place for places, values in verdicts if values for place in places}
        scores = []
        for index, place in enumerate(row.place_of):
            value = float(combined[place]) if place in spoken_of else None
            if value is not None and not np.isfinite(value):
                value = None
            truth = None if truths is None else truths[index].value
            parts = {self.name: value, f"{self.name}_truth": truth}
            known = {name: part for name, part in parts.items() if part is not None}
            status = "unscored" if value is None else "scored"
            scores.append(Score(value, status, components=known))
        judgements = tuple(judgement for _, judgement in row.judged)
        return Scored(row.prompt, row.rollouts, tuple(scores), judgements)


@dataclass(frozen=True)
class _Row:
    """A prompt's completions as the judge sees them."""

    prompt: Prompt
    rollouts: tuple[Rollout, ...]
    texts: tuple[str, ...]
    """The different texts, in the order of their first appearance."""
    first: tuple[int, ...]
    """Which rollout each comes from."""
    place_of: tuple[int | None, ...]
    """Of each rollout, the place of its text."""
    judged: list[tuple[Places, Judgement]] = field(default_factory=list)

    @classmethod
    def of(cls, prompt: Prompt, group: tuple[Rollout, ...], sees: Extractor) -> "_Row":
        seen = [sees(rollout.text) for rollout in group]
        first: dict[str, int] = {}
        for index, text in enumerate(seen):
            if text is not None:
                first.setdefault(text, index)
        places = {text: place for place, text in enumerate(first)}
        place_of = tuple(None if text is None else places[text] for text in seen)
        return cls(prompt, group, tuple(first), tuple(first.values()), place_of)

    def shown(self, places: Places) -> list[str]:
        return [self.texts[place] for place in places]

    def indices(self, places: Places) -> tuple[int, ...]:
        return tuple(self.first[place] for place in places)
