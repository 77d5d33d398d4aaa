"""The records that the page embeds: chosen evenly, cut, and small enough to open.

Everything here is plain data for JSON; the page's script turns it into text nodes.
"""

import json
from collections.abc import Sequence
from typing import Any

from jaxloop.records import Pair, Prompt, Rollout, Score, Scored
from jaxloop.report.folder import (
    RunRecords,
    choose_files,
    count_lines,
    evenly,
    read_records,
)
from jaxloop.report.tokens import Decode, encode_logps, piece_lengths

PROMPTS = 200  # of a round, at most
PAIRS = 60  # of a round, at most
COMPARED = 200  # held-out prompts, at most
SETS = 12  # rounds (or online steps), at most
COLUMNS = 6  # evaluations side by side, at most
TEXT = 6_000  # characters of a completion
COLUMN_TEXT = 300  # characters of a data column

ROLLOUT_BYTES = 2_300_000
COMPARE_BYTES = 900_000
PAIR_BYTES = 600_000

RIGHT = 0.5  # from this mean score on, a held-out prompt counts as solved


def rollout_sets(run: RunRecords, decode: Decode | None) -> list[dict[str, Any]]:
    """A set a round (or online step): its prompts with all rollouts and scores."""
    files = choose_files(run.rollouts, SETS)
    sets = []
    for file in files:
        total, records = read_records(file, "scored", PROMPTS, run.notes)
        prompts = [scored_view(record, decode) for record in records]
        prompts = fit(prompts, ROLLOUT_BYTES // len(files))
        sets.append(
            {"key": file.name, "label": file.label, "total": total, "prompts": prompts}
        )
    return sets


def pair_sets(run: RunRecords, decode: Decode | None) -> list[dict[str, Any]]:
    """The pairs of each round, with scores, weight and reason."""
    files = choose_files(run.pairs, SETS)
    sets = []
    for file in files:
        total, records = read_records(file, "pair", PAIRS, run.notes)
        pairs = fit([pair_view(p, decode) for p in records], PAIR_BYTES // len(files))
        sets.append(
            {"key": file.name, "label": file.label, "total": total, "pairs": pairs}
        )
    return sets


def comparison(run: RunRecords, decode: Decode | None) -> dict[str, Any] | None:
    """The same held-out prompts at each evaluation; None with fewer than two.

    `verdicts` has a string for every prompt, a character for each evaluation: 1 solved,
    0 not, - unknown. `shown` are the prompts whose texts are embedded; `index` is their
    place in `verdicts`.
    """
    started = {line["step"] for line in run.loop_evaluations}
    files = [
        file
        for file in run.evaluations
        if file.name.startswith("round_") or (run.online and file.order[1] in started)
    ]
    files = choose_files(files, COLUMNS)
    if len(files) < 2:
        return None
    tables: list[dict[str, Any]] = []
    for file in files:
        _, records = read_records(file, "scored", count_lines(file.path), run.notes)
        tables.append({record.prompt.id: record for record in records})
    ids = list(dict.fromkeys(id for table in tables for id in table))
    verdicts = ["".join(_verdict(table.get(id)) for table in tables) for id in ids]
    chosen = _from_each_class([v[0] + v[-1] for v in verdicts], COMPARED)
    shown = [_compared(ids[i], i, tables, decode) for i in chosen]
    return {
        "labels": [file.label for file in files],
        "total": len(ids),
        "verdicts": verdicts,
        "shown": fit(shown, COMPARE_BYTES),
    }


def solved_share(records: Sequence[Scored]) -> float | None:
    """Mean score over prompts; unscored rollouts count as 0. None without prompts."""
    means = [_mean_value(record) or 0.0 for record in records]
    return sum(means) / len(means) if means else None


def scored_view(record, decode: Decode | None) -> dict[str, Any]:
    """A Scored or Group record as the page shows it."""
    advantages = getattr(record, "advantages", None) or [None] * len(record.rollouts)
    rollouts = [
        rollout_view(rollout, decode) | score_view(score) | _given(adv=advantage)
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


def rollout_view(rollout: Rollout, decode: Decode | None) -> dict[str, Any]:
    """Text, and a log-probability level a token; `len` are the tokens' characters."""
    text = rollout.text[:TEXT]
    lengths = piece_lengths(rollout, decode)
    tokens = len(rollout.logps)
    if len(text) < len(rollout.text):
        tokens = _tokens_within(lengths, TEXT, tokens)
    view = {
        "i": rollout.index,
        "text": text,
        "stop": rollout.stop,
        "n": len(rollout.token_ids),
        "logp": round(sum(rollout.logps), 3),
        "q": encode_logps(rollout.logps[:tokens]),
    }
    if lengths is None:
        view["loose"] = True
    elif lengths:
        view["len"] = lengths[:tokens]
    return view | _given(cut=len(rollout.text) - len(text) or None)


def score_view(score: Score) -> dict[str, Any]:
    status = score.status if score.status != "scored" else None
    parts = dict(score.components) or None
    return _given(
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


def fit(items: list[dict], budget: int) -> list[dict]:
    """Evenly chosen items whose JSON stays within about `budget` bytes."""
    sizes = [
        len(json.dumps(item, ensure_ascii=False).encode("utf-8", "replace"))
        for item in items
    ]
    count = len(items)
    chosen = list(range(count))
    while len(chosen) > 1 and (size := sum(sizes[i] for i in chosen)) > budget:
        smaller = min(int(len(chosen) * budget / size), len(chosen) - 1)
        chosen = evenly(count, max(smaller, 1))
    return [items[i] for i in chosen]


def _compared(id: str, index: int, tables, decode: Decode | None) -> dict[str, Any]:
    """One held-out prompt with its first completion at each evaluation."""
    found = [table.get(id) for table in tables]
    outs = []
    for record in found:
        if record is None or not record.rollouts:
            outs.append(None)
            continue
        view = rollout_view(record.rollouts[0], decode) | score_view(record.scores[0])
        samples = len(record.rollouts)
        if samples > 1:
            view["share"] = [_mean_value(record) or 0.0, samples]
        outs.append(view)
    first = next(record for record in found if record is not None)
    return prompt_view(first.prompt) | {"index": index, "outs": outs}


def _mean_value(record: Scored) -> float | None:
    values = [score.value for score in record.scores]
    if all(value is None for value in values):
        return None
    return sum(value or 0.0 for value in values) / len(values)


def _verdict(record: Scored | None) -> str:
    mean = None if record is None else _mean_value(record)
    return "-" if mean is None else "1" if mean >= RIGHT else "0"


def _from_each_class(classes: Sequence[str], most: int) -> list[int]:
    """At most `most` indices, as many of each class as of any other where it has them:
    the few prompts that turned wrong are what one wants to read."""
    members: dict[str, list[int]] = {}
    for index, name in enumerate(classes):
        members.setdefault(name, []).append(index)
    chosen: list[int] = []
    waiting = sorted(members.values(), key=len)
    for done, indices in enumerate(waiting):
        share = (most - len(chosen)) // (len(waiting) - done)
        chosen += [indices[i] for i in evenly(len(indices), share)]
    return sorted(chosen)


def _tokens_within(lengths: list[int] | None, characters: int, tokens: int) -> int:
    if lengths is None or not lengths:
        return min(characters, tokens)
    total = 0
    for index, length in enumerate(lengths):
        total += length
        if total > characters:
            return index
    return tokens


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
