"""The top of the page: what the run was, and what came of it."""

import datetime
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from jaxloop.report.charts import Chart, Series, percent_text, short
from jaxloop.report.curves import (
    accuracy_by_round,
    accuracy_chart,
    held_out_title,
    is_by_round,
)
from jaxloop.report.folder import RunRecords
from jaxloop.report.html import Html, el, join
from jaxloop.report.timing import seconds_text

TILES = (
    ("reward", "Reward"),
    ("completions/mean_length", "Completion length"),
    ("eval/completions/mean_length", "Held-out length"),
    ("pairs/kept_frac", "Prompts with a pair"),
    ("frac_reward_zero_std", "Groups without spread"),
    ("entropy", "Entropy"),
    ("kl", "KL to the reference"),
)


def run_name(run: RunRecords) -> str:
    return str(run.config.get("name") or run.path.resolve().name)


def status(run: RunRecords) -> tuple[str, bool]:
    """In words, and whether the run finished (it then wrote its summary)."""
    if run.summary is not None:
        return "Finished", True
    last = run.metrics[-1] if run.metrics else None
    if last is None:
        return "Not finished: nothing was measured yet", False
    return f"Not finished: last event at step {last.get('step'):,}", False


def header(run: RunRecords, judges: Html | None = None) -> Html:
    """Name, state, and in a line what was done; `judges`: how those fare, if any."""
    words, done = status(run)
    facts = facts_of(run)
    known = [facts[name] for name in ("Method", "Schedule", "Model") if name in facts]
    state = el("span", words, class_="state " + ("good" if done else "warn"))
    return el(
        "header",
        el("p", "jaxloop run report", class_="overline"),
        el("h1", run_name(run)),
        el("p", state, judges, [el("span", fact) for fact in known], class_="byline"),
        class_="top",
    )


def about(run: RunRecords) -> Html | None:
    """What the run was, in full, and the command that makes it again."""
    facts = facts_of(run)
    rows = [el("div", el("dt", name), el("dd", value)) for name, value in facts.items()]
    command = run.run.get("command")
    shown = shlex.join(map(str, command)) if isinstance(command, list) else command
    if not rows and not shown:
        return None
    pre = el("pre", "$ ", str(shown), class_="command") if shown else None
    return join(el("dl", rows, class_="facts"), pre)


def facts_of(run: RunRecords) -> dict[str, Any]:
    """What the run was, from its config and circumstances; only what is known."""
    config = run.config
    recipe = config.get("recipe") or {}
    times = [
        t for t in (x.get("time") for x in run.metrics) if isinstance(t, int | float)
    ]
    versions = run.run.get("versions") or {}
    packages = ("jaxloop", "jax", "flax")
    facts = {
        "Method": describe(recipe.get("objective")),
        "Schedule": _schedule(recipe),
        "Scored by": describe(recipe.get("scorer")),
        "Selected by": describe(recipe.get("selector") or recipe.get("advantage")),
        "Model": _model(config.get("model")),
        "Devices": _devices(run.run.get("devices")),
        "Started": _date(times[0]) if times else None,
        "First to last event": seconds_text(times[-1] - times[0]) if times else None,
        "Seed": config.get("seed"),
        "Commit": _commit(run.run),
        "Versions": ", ".join(
            f"{p} {versions[p]}" for p in packages if versions.get(p)
        ),
    }
    return {name: value for name, value in facts.items() if value not in (None, "")}


def describe(node: Any) -> str | None:
    """A component as one would write it: `Pairwise(dpo, beta=0.1)`."""
    if not isinstance(node, Mapping):
        return None
    name = str(node.get("_type", "")).rpartition(":")[2]
    if not name:
        return None
    words = []
    for key, value in node.items():
        if isinstance(value, Mapping) and "_function" in value:
            words.append(str(value["_function"]).rpartition(":")[2])
        elif isinstance(value, int | float) and not isinstance(value, bool):
            words.append(f"{key}={short(value) if isinstance(value, float) else value}")
        elif isinstance(value, str) and key != "_type" and 0 < len(value) <= 24:
            words.append(f"{key}={value}")
    return f"{name}({', '.join(words[:5])})" if words else name


def headline(run: RunRecords) -> tuple[Html, Chart | None]:
    """The big picture, and the chart whose values the page shows under the pointer."""
    series = accuracy_by_round(run)
    tiles = _tiles(run)
    if series is None or not series.finite():
        text = "No held-out evaluation was recorded."
        if run.evaluations:
            text = "Not one held-out completion could be judged."
        content = join(el("p", text, class_="lead"), tiles)
        return el("section", content, class_="headline", id="result"), None
    chart = accuracy_chart(run, series)
    words = el("div", _before_after(run, series), tiles, class_="headline-words")
    picture = el(
        "figure",
        el("figcaption", el("span", held_out_title(series), class_="panel-title")),
        chart.svg,
        class_="panel hero",
        data_chart="accuracy",
    )
    return el("section", words, picture, class_="headline", id="result"), chart


def _before_after(run: RunRecords, series: Series) -> Html:
    values = [y for _, y in series.finite()]
    first, last = values[0], values[-1]
    shares = all(0 <= value <= 1 for value in values)
    text = percent_text if shares else short
    if len(values) == 1:
        return join(
            el("p", held_out_title(series), class_="overline"),
            el("p", el("b", text(last)), class_="big"),
        )
    gain = 100 * (last - first) if shares else last - first
    unit = " points" if shares else ""
    kind = "good" if gain > 0 else "bad" if gain < 0 else ""
    sign = "+" if gain > 0 else "−" if gain < 0 else "±"
    by_round = is_by_round(run)
    count = len(values) - 1 if by_round else int(series.x[-1] - series.x[0])
    noun = "round" if by_round else "update"
    over = f" over {count:,} {noun}{'s' if count > 1 else ''}"
    best = max(values)
    peak = None
    if best > last:
        peak = el("p", f"The best on the way was {text(best)}.", class_="note")
    return join(
        el("p", held_out_title(series), class_="overline"),
        el(
            "p",
            el("span", text(first), class_="from"),
            el("span", " → ", class_="arrow"),
            el("b", text(last)),
            class_="big",
        ),
        el(
            "p",
            el("span", f"{sign}{abs(gain):.3g}{unit}", class_=f"gain {kind}"),
            over,
            class_="under",
        ),
        peak,
    )


def _tiles(run: RunRecords) -> Html:
    """First and last value of what one asks next."""
    tiles = []
    for name, title in TILES:
        lines = [
            x for x in run.metrics if x.get("phase") in ("eval", "round", "online")
        ]
        values = [x[name] for x in lines if isinstance(x.get(name), int | float)]
        if len(values) < 2 or len(tiles) == 4:
            continue
        text = percent_text if "frac" in name else short
        change = join(
            text(values[0]), el("span", " → ", class_="arrow"), text(values[-1])
        )
        tiles.append(el("div", el("dt", title), el("dd", change)))
    return el("dl", tiles, class_="tiles") if tiles else Html("")


def _schedule(recipe: Mapping[str, Any]) -> str | None:
    schedule, sampling = recipe.get("schedule") or {}, recipe.get("sampling") or {}
    prompts = schedule.get("prompts")
    each = f"{prompts:,} prompts" if prompts else "all prompts"
    samples = f" × {sampling['n']} samples" if sampling.get("n") else ""
    if schedule.get("rounds"):
        several = "s" if schedule["rounds"] > 1 else ""
        return f"{schedule['rounds']} round{several} of {each}{samples}"
    if schedule.get("steps"):
        return f"{schedule['steps']:,} steps of {each}{samples}"
    return describe(schedule)


def _model(model: Any) -> str | None:
    if not isinstance(model, Mapping):
        return None
    if model.get("path"):
        return str(model["path"])
    shape = model.get("shape") or {}
    if not shape.get("layers"):
        return None
    return f"new: {shape['layers']} layers, width {shape.get('width')}"


def _devices(devices: Any) -> str | None:
    if not isinstance(devices, Sequence) or isinstance(devices, str):
        return devices
    counts = {str(d): devices.count(d) for d in devices}
    return ", ".join(f"{n} × {name}" if n > 1 else name for name, n in counts.items())


def _commit(circumstances: Mapping[str, Any]) -> str | None:
    commit = circumstances.get("commit")
    if not commit:
        return None
    changed = (
        " with uncommitted changes" if circumstances.get("uncommitted_changes") else ""
    )
    return f"{str(commit)[:10]}{changed}"


def _date(seconds: float) -> str:
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return moment.strftime("%Y-%m-%d %H:%M UTC")
