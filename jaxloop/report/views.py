"""Single records as the page shows them: plain data for JSON, cut to a size.

The page's script turns their texts into text nodes.
"""

import json
from typing import Any

from jaxloop.records import Labelled, Pair, Prompt, Rollout, Score
from jaxloop.report.folder import evenly
from jaxloop.report.tokens import Decode, encode_logps, piece_lengths

TEXT = 6_000  # characters of a completion
COLUMN_TEXT = 300  # characters of a data column


def scored_view(record, decode: Decode | None) -> dict[str, Any]:
    """A Scored or Group record as the page shows it."""
    advantages = getattr(record, "advantages", None) or [None] * len(record.rollouts)
    rollouts = [
        rollout_view(rollout, decode) | score_view(score) | given(adv=advantage)
        for rollout, score, advantage in zip(
            record.rollouts, record.scores, advantages, strict=True
        )
    ]
    return prompt_view(record.prompt) | {"rollouts": rollouts}


def prompt_view(prompt: Prompt) -> dict[str, Any]:
    columns = {}
    for name, value in prompt.columns.items():
        text = (
            value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        )
        columns[name] = text[:COLUMN_TEXT] + ("…" if len(text) > COLUMN_TEXT else "")
    return {"id": prompt.id, "text": prompt.text[:TEXT], "columns": columns}


def rollout_view(
    rollout: Rollout, decode: Decode | None, most: int = TEXT
) -> dict[str, Any]:
    """At most `most` characters of text, and a log-probability level a token; `len` are
    the tokens' characters."""
    text = rollout.text[:most]
    lengths = piece_lengths(rollout, decode)
    tokens = len(rollout.logps)
    if len(text) < len(rollout.text):
        tokens = _tokens_within(lengths, most, tokens)
    view = {
        "i": rollout.index,
        "text": text,
        "stop": rollout.stop,
        "n": len(rollout.token_ids),
        "logp": round(sum(rollout.logps), 3),
        "q": encode_logps(rollout.logps[:tokens]),
    }
    if lengths is None and tokens:
        view["loose"] = True
    elif lengths:
        view["len"] = lengths[:tokens]
    cut = len(rollout.text) - len(text)
    return view | given(cut=cut or None, extra=rollout.extra or None)


def score_view(score: Score) -> dict[str, Any]:
    status = score.status if score.status != "scored" else None
    parts = dict(score.components) or None
    return given(
        value=score.value,
        status=status,
        answer=None if score.answer is None else score.answer[:COLUMN_TEXT],
        votes=score.votes,
        parts=parts,
    )


def pair_view(pair: Pair, decode: Decode | None) -> dict[str, Any]:
    return {
        **prompt_view(pair.prompt),
        "chosen": rollout_view(pair.chosen, decode) | {"value": pair.chosen_score},
        "rejected": rollout_view(pair.rejected, decode)
        | {"value": pair.rejected_score},
        "weight": pair.weight,
        "reason": pair.reason,
    }


def labelled_view(row: Labelled, decode: Decode | None) -> dict[str, Any]:
    """`steps`: (label, tokens up to its end) of each labelled step."""
    steps = [[label, end] for end, label in row.steps]
    return {
        **prompt_view(row.prompt),
        "out": rollout_view(row.rollout, decode) | {"value": row.label},
        "weight": row.weight,
        **given(steps=steps or None),
    }


def fit(items: list[dict], budget: int) -> list[dict]:
    """Evenly chosen items whose JSON stays within about `budget` bytes."""
    return [items[i] for i in fitting(items, budget)]


def fitting(items: list[dict], budget: int) -> list[int]:
    """The indices of such items."""
    sizes = [json_bytes(item) for item in items]
    count = len(items)
    chosen = list(range(count))
    while len(chosen) > 1 and (size := sum(sizes[i] for i in chosen)) > budget:
        smaller = min(int(len(chosen) * budget / size), len(chosen) - 1)
        chosen = evenly(count, max(smaller, 1))
    return chosen


def json_bytes(item: Any) -> int:
    """How long an item's JSON is in UTF-8."""
    return len(json.dumps(item, ensure_ascii=False).encode("utf-8", "replace"))


def given(**values: Any) -> dict[str, Any]:
    """Those that are not None."""
    return {name: value for name, value in values.items() if value is not None}


def _tokens_within(lengths: list[int] | None, characters: int, tokens: int) -> int:
    if lengths is None or not lengths:
        return min(characters, tokens)
    total = 0
    for index, length in enumerate(lengths):
        total += length
        if total > characters:
            return index
    return tokens
