"""The records that the page embeds: chosen evenly, cut, and small enough to open.

Everything here is plain data for JSON; the page's script turns it into text nodes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxloop.records import Group, Scored
from jaxloop.report.folder import (
    RecordFile,
    RunRecords,
    choose_files,
    count_lines,
    evenly,
    holds_judgements,
    left_out,
    read_records,
)
from jaxloop.report.judgements import embed_texts, judged_cases
from jaxloop.report.tokens import Decode
from jaxloop.report.views import (
    fit,
    fitting,
    given,
    labelled_view,
    pair_view,
    prompt_view,
    rollout_view,
    score_view,
    scored_view,
)

PROMPTS = 200  # of a round, at most
PAIRS = 60  # of a round, at most
COMPARED = 200  # held-out prompts, at most
SETS = 12  # rounds (or online steps), at most
COLUMNS = 6  # evaluations side by side, at most
JUDGED = 2  # evaluations by a judge among the rollouts, at most

ROLLOUT_BYTES = 2_300_000
COMPARE_BYTES = 900_000
JUDGEMENT_BYTES = 1_500_000
PAIR_BYTES = 600_000

RIGHT = 0.5  # from this mean score on, a held-out prompt counts as solved


@dataclass(frozen=True)
class RecordSet:
    """Some records of a file, evenly chosen of `total`; `left_out`: why a prompt gave
    nothing to train on, by id."""

    file: RecordFile
    total: int
    records: Sequence[Scored | Group]
    left_out: Mapping[str, str]

    @property
    def kind(self) -> str:
        """ "Held out", "Canaries", or "" for what was sampled to train on."""
        kinds = {"eval": "Held out", "canaries": "Canaries"}
        return kinds.get(self.file.path.parent.name, "")


def read_sets(run: RunRecords) -> list[RecordSet]:
    """What was sampled in each round (or online step), after what judges said of the
    last canaries and in held-out evaluations."""
    judged = [file for file in run.evaluations if holds_judgements(file)]
    files = [
        *run.canaries[-1:],
        *choose_files(judged, JUDGED),
        *choose_files(run.rollouts, SETS),
    ]
    return [
        RecordSet(
            file,
            *read_records(file, "scored", PROMPTS, run.notes),
            left_out(file, run.notes),
        )
        for file in files
    ]


def rollout_sets(
    sets: Sequence[RecordSet], decode: Decode | None
) -> list[dict[str, Any]]:
    """A set a round (or online step): its prompts with all rollouts, scores and what
    judges said of them."""
    share = max(len(sets), 1)
    return [_rollout_set(one, decode, share) for one in sets]


def _rollout_set(one: RecordSet, decode: Decode | None, share: int) -> dict[str, Any]:
    cases = [judged_cases(record) for record in one.records]
    prompts = []
    for record, of_record in zip(one.records, cases, strict=True):
        reason = why_left_out(record, one.left_out.get(record.prompt.id))
        more = given(left=reason, judged=[case.view() for case in of_record] or None)
        prompts.append(scored_view(record, decode) | more)
    chosen = fitting(prompts, ROLLOUT_BYTES // share)
    prompts, cases = [prompts[i] for i in chosen], [cases[i] for i in chosen]
    texts = embed_texts(prompts, cases, JUDGEMENT_BYTES // share)
    key, label = one.file.name, one.file.label
    if one.kind:
        key = f"{one.file.path.parent.name}_{key}"
        label = f"{one.kind}, {label[:1].lower()}{label[1:]}"
    return {
        "key": key,
        "label": label,
        "total": one.total,
        "prompts": prompts,
        "cases": sum(map(len, cases)),
        "texts": texts,
        **_scale([s.value for record in one.records for s in record.scores]),
    }


def why_left_out(record: Scored | Group, reason: str | None) -> str | None:
    """The reason, and what the scores say of it."""
    if reason is None:
        return None
    values = {score.value for score in record.scores} - {None}
    if not values:
        return f"{reason}: nothing was scored"
    return f"{reason}: all scores are equal" if len(values) == 1 else reason


def _scale(values: Sequence[float | None]) -> dict[str, Any]:
    """`unit`: whether the scores lie in [0, 1], where 1 is right and 0 wrong; `middle`:
    from where on a score counts as good."""
    known = [value for value in values if value is not None]
    if all(0 <= value <= 1 for value in known):
        return {"unit": True, "middle": RIGHT}
    return {"unit": False, "middle": (min(known) + max(known)) / 2}


def pair_sets(run: RunRecords, decode: Decode | None) -> list[dict[str, Any]]:
    """The pairs of each round, with scores, weight and reason."""
    files = choose_files(run.pairs, SETS)
    sets = []
    for file in files:
        total, records = read_records(file, "pair", PAIRS, run.notes)
        pairs = fit([pair_view(p, decode) for p in records], PAIR_BYTES // len(files))
        values = [x for p in records for x in (p.chosen_score, p.rejected_score)]
        one = {"key": file.name, "label": file.label, "total": total, "pairs": pairs}
        sets.append(one | _scale(values))
    return sets


def labelled_sets(run: RunRecords, decode: Decode | None) -> list[dict[str, Any]]:
    """The labelled completions of each round."""
    files = choose_files(run.labelled, SETS)
    sets = []
    for file in files:
        total, records = read_records(file, "labelled", PAIRS, run.notes)
        rows = fit(
            [labelled_view(r, decode) for r in records], PAIR_BYTES // len(files)
        )
        one = {"key": file.name, "label": file.label, "total": total, "rows": rows}
        sets.append(one | _scale([record.label for record in records]))
    return sets


def comparison(run: RunRecords, decode: Decode | None) -> dict[str, Any] | None:
    """The same held-out prompts at each evaluation; None with fewer than two.

    `verdicts` has a string for every prompt, a character for each evaluation: 1 solved
    (its mean score is at least `middle`), 0 not, - unknown. `shown` are the prompts
    whose texts are embedded; `index` is their place in `verdicts`.
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
    scores = [s for table in tables for row in table.values() for s in row.scores]
    scale = _scale([score.value for score in scores])
    verdicts = [
        "".join(_verdict(table.get(id), scale["middle"]) for table in tables)
        for id in ids
    ]
    chosen = _from_each_class([v[0] + v[-1] for v in verdicts], COMPARED)
    shown = [_compared(ids[i], i, tables, decode) for i in chosen]
    return {
        "labels": [file.label for file in files],
        "total": len(ids),
        "verdicts": verdicts,
        "shown": fit(shown, COMPARE_BYTES),
        **scale,
    }


def solved_share(records: Sequence[Scored]) -> float | None:
    """Mean score over prompts; unscored rollouts count as 0, prompts of which a judge
    says nothing not at all. None without prompts."""
    found = [(_mean_value(record), record.judgements) for record in records]
    means = [mean or 0.0 for mean, told in found if mean is not None or not told]
    return sum(means) / len(means) if means else None


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


def _verdict(record: Scored | None, middle: float) -> str:
    mean = None if record is None else _mean_value(record)
    return "-" if mean is None else "1" if mean >= middle else "0"


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
