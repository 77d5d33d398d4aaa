"""What flows between the stations, and its JSONL form.

Prompts become rollouts, rollouts get scores, scores become pairs or groups. Everything
here is a frozen value on the host; token ids go from sampler to loss untouched.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from statistics import pvariance
from typing import Any, Literal

Stop = Literal["eos", "stop", "length"]
Status = Literal["scored", "unscored", "nan", "error", "timeout"]


@dataclass(frozen=True)
class Prompt:
    """A question in the tokens that the model will see.

    `columns` holds every other field of the data row (`answer`, ...): scorers get them
    as keyword arguments.
    """

    id: str
    text: str
    token_ids: tuple[int, ...]
    columns: Mapping[str, Any] = field(default_factory=dict)
    messages: tuple[Mapping[str, Any], ...] | None = None


@dataclass(frozen=True)
class Rollout:
    """One sampled completion.

    `token_ids` ends with the end-of-sequence token where there is one (it belongs to
    the completion and is trained on); what follows a stop string is cut from ids and
    text alike. `logps` are nats per token of the untruncated distribution at the
    sampling temperature, `drawn_logps` those of the distribution drawn from (tempered,
    truncated, renormalised). `version` counts the updates of the weights that sampled
    it. `extra`: drawn by the `extra` sampling of a recipe, so it may be rejected but is
    never chosen, and has no vote. `masked`: [start, end) of the tokens that nothing is
    learnt from, such as what a tool wrote between the model's own turns.
    """

    prompt_id: str
    index: int
    token_ids: tuple[int, ...]
    text: str
    logps: tuple[float, ...]
    drawn_logps: tuple[float, ...]
    stop: Stop
    version: int = 0
    extra: bool = False
    masked: tuple[tuple[int, int], ...] = ()

    @property
    def mask(self) -> tuple[int, ...]:
        """1 on the tokens that are trained on, 0 on the others."""
        kept = [1] * len(self.token_ids)
        for start, end in self.masked:
            kept[start:end] = [0] * (end - start)
        return tuple(kept)


@dataclass(frozen=True)
class Score:
    """What a scorer says of one rollout. `value` is None unless `status` is "scored".

    `answer` is the canonical final answer where the scorer extracts one, `votes` how
    many samples of the prompt share it, `components` further named numbers (all are
    logged).
    """

    value: float | None
    status: Status = "scored"
    answer: str | None = None
    votes: int | None = None
    components: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Judgement:
    """What a judge wrote of the rollouts `of` (their indices, in the order shown).

    `prompt` is what the judge read, `rollouts` its n answers; none where it has no room
    for so long a prompt. `values` has for each of these a number for each rollout
    shown; None where it could not be parsed: invalid, never 0. `scores`: what a
    meta-judge says of the answers, one each, or (). `judge`: the name of the scorer
    that asked.
    """

    prompt: Prompt
    of: tuple[int, ...]
    rollouts: tuple[Rollout, ...]
    values: tuple[tuple[float, ...] | None, ...]
    scores: tuple[float | None, ...] = ()
    judge: str = "judge"

    def __post_init__(self):
        assert len(self.values) == len(self.rollouts), "values for each judgement"
        assert len(self.scores) in (0, len(self.rollouts)), "one score a judgement"

    @property
    def disagreement(self) -> float:
        """The variance of the valid values, summed over the rollouts shown."""
        valid = [values for values in self.values if values is not None]
        return sum(pvariance(of_one) for of_one in zip(*valid, strict=True))


@dataclass(frozen=True)
class Scored:
    """A prompt with its rollouts and their scores in the same order (none yet: ()),
    and the judgements that they come from, where a judge gave them."""

    prompt: Prompt
    rollouts: tuple[Rollout, ...]
    scores: tuple[Score, ...]
    judgements: tuple[Judgement, ...] = ()

    def __post_init__(self):
        assert len(self.scores) in (0, len(self.rollouts)), "one score a rollout"


def without_extra(row: Scored) -> Scored:
    """The prompt with the rollouts that have a vote and may be chosen."""
    kept = [i for i, rollout in enumerate(row.rollouts) if not rollout.extra]
    if len(kept) == len(row.rollouts):
        return row
    rollouts = tuple(row.rollouts[i] for i in kept)
    scores = tuple(row.scores[i] for i in kept if row.scores)
    return replace(row, rollouts=rollouts, scores=scores)


@dataclass(frozen=True)
class Pair:
    """Two completions of a prompt, the better one first, and why they were paired."""

    prompt: Prompt
    chosen: Rollout
    rejected: Rollout
    chosen_score: float
    rejected_score: float
    weight: float = 1.0
    reason: str = ""


@dataclass(frozen=True)
class Group:
    """A prompt's rollouts with an advantage each (0 where unscored).

    `opposed`, where advantages are sums over several labels: how much of pushes up and
    down cancels in each (`jaxloop.selection.grouping`).
    """

    prompt: Prompt
    rollouts: tuple[Rollout, ...]
    scores: tuple[Score, ...]
    advantages: tuple[float, ...]
    opposed: tuple[float, ...] = ()


@dataclass(frozen=True)
class Labelled:
    """One completion and what is known of it, for objectives that want no pairs.

    `label` is 1 for a desirable completion and 0 for another, or a number to predict.
    `steps`, where its steps are labelled: (tokens up to a step's end, the step's label)
    each.
    """

    prompt: Prompt
    rollout: Rollout
    label: float
    weight: float = 1.0
    steps: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Demonstration:
    """A sequence to imitate; `mask` is 1 on the tokens that are trained on.

    `token_weights`, by token, multiply `weight`; a token whose weight is below 0 is
    avoided instead. `repeats`: how many tokens back the same token of a repeated
    sentence stands, 0 where there is none. Empty: 1 and 0 everywhere.
    """

    id: str
    token_ids: tuple[int, ...]
    mask: tuple[int, ...]
    weight: float = 1.0
    token_weights: tuple[float, ...] = ()
    repeats: tuple[int, ...] = ()

    def __post_init__(self):
        for by_token in (self.token_weights, self.repeats):
            assert len(by_token) in (0, len(self.token_ids)), "one a token"


RECORDS = (
    Prompt,
    Rollout,
    Score,
    Judgement,
    Scored,
    Pair,
    Group,
    Labelled,
    Demonstration,
)


def to_json(record) -> str:
    """One line of strict JSON (no NaN); floats survive the round trip bit for bit."""
    return json.dumps(dataclasses.asdict(record), ensure_ascii=False, allow_nan=False)


def from_json(kind, line: str):
    """The record of type `kind` that `to_json` wrote."""
    return _build(kind, json.loads(line))


_NESTED = {
    ("Scored", "prompt"): Prompt,
    ("Pair", "prompt"): Prompt,
    ("Group", "prompt"): Prompt,
    ("Pair", "chosen"): Rollout,
    ("Pair", "rejected"): Rollout,
    ("Judgement", "prompt"): Prompt,
    ("Labelled", "prompt"): Prompt,
    ("Labelled", "rollout"): Rollout,
}
_NESTED_LISTS = {
    ("Scored", "rollouts"): Rollout,
    ("Scored", "scores"): Score,
    ("Scored", "judgements"): Judgement,
    ("Group", "rollouts"): Rollout,
    ("Group", "scores"): Score,
    ("Judgement", "rollouts"): Rollout,
}


def _build(kind, data: dict):
    values = {}
    for f in dataclasses.fields(kind):
        if f.name not in data and f.default is not dataclasses.MISSING:
            continue  # written before the field was there
        value = data[f.name]
        if (kind.__name__, f.name) in _NESTED:
            value = _build(_NESTED[kind.__name__, f.name], value)
        elif (kind.__name__, f.name) in _NESTED_LISTS:
            inner = _NESTED_LISTS[kind.__name__, f.name]
            value = tuple(_build(inner, item) for item in value)
        elif isinstance(value, list):
            value = _tuples(value)
        values[f.name] = value
    return kind(**values)


def _tuples(value):
    """Lists as tuples, at any depth."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
