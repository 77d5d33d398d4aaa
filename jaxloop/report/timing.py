"""Where the time went: bars of `timing_s/*`, a row a round or stage."""

from collections.abc import Mapping
from typing import Any

from jaxloop.loop.attempts import Account, add_up, read_attempts
from jaxloop.report.curves import PHASES
from jaxloop.report.folder import RunRecords
from jaxloop.report.html import Html, el, join

NAMES = {
    "gen": "sampling",
    "score": "scoring",
    "logprob": "reference",
    "reference": "reference",
    "train": "training",
    "step": "training",
    "sync": "syncing",
    "eval": "evaluating",
    "save": "saving",
}
SPENT = {
    "productive": "productive",
    "compiling": "compiling",
    "waiting": "devices waiting for the host",
    "checkpoint": "saving",
    "loading": "loading",
    "repeated": "done again after a stop",
    "down": "down between attempts",
}
ORDER = ("sampling", "scoring", "reference", "training", "evaluating")


def timing_table(run: RunRecords) -> dict[str, dict[str, float]]:
    """Seconds by row (stage or round) and activity.

    `timing_s/step` is all of a step: training is what its other parts leave of it. (An
    online step's parts may be of the step beside it; only the sums are right.)
    """
    rows: dict[str, dict[str, float]] = {}
    for line in run.metrics:
        parts = {
            name.removeprefix("timing_s/"): value
            for name, value in line.items()
            if name.startswith("timing_s/") and isinstance(value, int | float)
        }
        if "step" in parts:
            parts["step"] -= sum(parts.values()) - parts["step"]
        if not parts:
            continue
        row = rows.setdefault(_row(line, run.first_round), {})
        for name, seconds in parts.items():
            activity = NAMES.get(name, name.replace("_", " "))
            row[activity] = row.get(activity, 0.0) + seconds
    return {
        name: {activity: max(seconds, 0.0) for activity, seconds in row.items()}
        for name, row in rows.items()
    }


def timing_section(run: RunRecords) -> Html | None:
    """What the hours went into, and bars of the stages on a common scale with their
    seconds; None where nothing was timed."""
    rows = timing_table(run)
    account = add_up(read_attempts(run.path))
    spent = el("p", _spent(account), class_="lead") if account.attempts else None
    if not rows:
        return spent
    named = dict.fromkeys(name for row in rows.values() for name in row)
    activities = sorted(named, key=lambda a: (ORDER.index(a) if a in ORDER else 9, a))
    longest = max(sum(row.values()) for row in rows.values()) or 1.0
    legend = [
        el("span", el("i", class_=f"key series-{i % 5}"), name)
        for i, name in enumerate(activities)
    ]
    body = []
    for name, row in rows.items():
        bar = _bar(row, activities, longest)
        total = seconds_text(sum(row.values()))
        cells = [el("th", name, scope="row"), el("td", bar, class_="bar")]
        body.append(el("tr", cells, el("td", total, class_="number")))
    sums = {a: sum(row.get(a, 0.0) for row in rows.values()) for a in activities}
    total = sum(sums.values()) or 1.0
    shares = ", ".join(f"{a} {100 * s / total:.0f}%" for a, s in sums.items())
    return join(
        spent,
        el("p", f"{seconds_text(total)} were timed: {shares}.", class_="lead"),
        el("p", join(*legend), class_="legend"),
        el("table", el("tbody", body), class_="timing"),
    )


def _spent(account: Account) -> str:
    """Wall time of the whole run, as one sentence."""
    total = sum(account.seconds.values())
    parts = [
        f"{SPENT.get(name, name)} {100 * seconds / (total or 1):.0f}%"
        for name, seconds in sorted(account.seconds.items(), key=lambda item: -item[1])
        if seconds
    ]
    tries = f"{account.attempts} attempts" if account.attempts > 1 else "one attempt"
    return f"{seconds_text(total)} in {tries}: {', '.join(parts)}."


def seconds_text(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def _row(line: Mapping[str, Any], first_round: int) -> str:
    phase = str(line.get("phase"))
    if phase in ("round", "train") and isinstance(line.get("round"), int):
        return f"Round {line['round'] - first_round + 1}"
    return PHASES.get(phase, phase)


def _bar(row: Mapping[str, float], activities, longest: float) -> Html:
    x, parts = 0.0, []
    for index, name in enumerate(activities):
        if not (seconds := row.get(name, 0.0)):
            continue
        width = 100 * seconds / longest
        rect = el(
            "rect",
            el("title", f"{name}: {seconds_text(seconds)}"),
            class_=f"fill series-{index % 5}",
            x=round(x, 3),
            y=0,
            width=round(max(width - 0.25, 0.1), 3),
            height=10,
        )
        parts.append(rect)
        x += width
    told = ", ".join(f"{n} {seconds_text(s)}" for n, s in row.items())
    return el(
        "svg",
        parts,
        viewBox="0 0 100 10",
        preserveAspectRatio="none",
        role="img",
        aria_label=told,
    )
