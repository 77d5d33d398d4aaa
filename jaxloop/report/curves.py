"""metrics.jsonl to small multiples: which metric goes with which, in which order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxloop.metrics import FIXED, is_timing
from jaxloop.report.charts import Chart, Series, line_chart, percent_text, short
from jaxloop.report.folder import RunRecords, evaluation_label, read_records
from jaxloop.report.html import Html, el, join
from jaxloop.report.tables import solved_share

PHASES = {
    "eval": "Held-out evaluation",
    "round": "Rounds",
    "train": "Training in rounds",
    "online": "Online training",
    "sft": "Supervised stage",
}

# Curves that are read together; the first gives the panel its place.
FAMILIES = (
    ("completions/mean_length", "completions/min_length", "completions/max_length"),
    (
        "completions/mean_terminated_length",
        "completions/min_terminated_length",
        "completions/max_terminated_length",
    ),
    ("rewards/chosen", "rewards/rejected"),
    ("logps/chosen", "logps/rejected"),
    ("logits/chosen", "logits/rejected"),
    ("clip_ratio/low_mean", "clip_ratio/high_mean"),
    ("sampling/sampling_logp_difference/mean", "sampling/sampling_logp_difference/max"),
)

TITLES = {
    "eval/accuracy": "Held-out accuracy",
    "eval/completions/mean_length": "Held-out completion length",
    "eval/completions/clipped_ratio": "Held-out cut at the limit",
    "reward": "Reward",
    "reward_std": "Reward spread within groups",
    "frac_reward_zero_std": "Groups without spread",
    "loss": "Loss",
    "completions/mean_length": "Completion length",
    "completions/clipped_ratio": "Cut at the token limit",
    "entropy": "Entropy",
    "kl": "KL to the reference",
    "rewards/accuracies": "Chosen above rejected",
    "rewards/margins": "Implicit reward margin",
    "rewards/chosen": "Implicit rewards",
    "logps/chosen": "Log-probabilities of completions",
    "logits/chosen": "Mean logits",
    "nll_loss": "Likelihood loss of chosen",
    "grad_norm": "Gradient norm",
    "learning_rate": "Learning rate",
    "mean_token_accuracy": "Token accuracy",
    "clip_ratio/low_mean": "Clipped ratios",
    "sampling/sampling_logp_difference/mean": "Sampler against trainer",
    "pairs/count": "Pairs",
    "pairs/kept_frac": "Prompts that gave a pair",
    "pairs/score_gap": "Score gap of pairs",
    "num_tokens": "Tokens an update",
}
UNITS = {
    "completions/mean_length": "tokens",
    "eval/completions/mean_length": "tokens",
    "entropy": "nats",
    "kl": "nats",
    "logps/chosen": "nats",
    "sampling/sampling_logp_difference/mean": "nats",
}
FIRST = tuple(TITLES)  # what is looked at first, in this order; the rest by name
MOST = 12  # panels of a phase that are shown at once
ASIDE = ("scores/", "num_tokens", "learning_rate", "skipped", "logits/", "epoch")
SHARES = (
    "accuracy",
    "accuracies",
    "frac",
    "_ratio",
    "clip_ratio",
    "rate",
    "pass@",
    "maj@",
)
DRAWABLE = 1e300  # beyond it, differences overflow: drawn as not finite


@dataclass(frozen=True)
class Panel:
    """One small chart: its heading, last value, drawing."""

    name: str
    title: str
    unit: str
    latest: str
    chart: Chart
    aside: bool


def accuracy_by_round(run: RunRecords) -> Series | None:
    """Held-out accuracy before and after each round (or by step, for online runs): from
    the metrics, else from the records. None where nothing was evaluated."""
    found = run.loop_evaluations
    if found:
        by_round = is_by_round(run)
        values: dict[int, float] = {}
        for line in found:
            # Evaluations inside a round carry its number too, but come after this one.
            place = line.get("round") if by_round else line["step"]
            if isinstance(place, int):
                values.setdefault(place, line["eval/accuracy"])
        keys = tuple(sorted(values))
        return Series("accuracy", keys, tuple(values[key] for key in keys))
    points = []
    for file in run.evaluations:
        if file.name.startswith("round_"):
            _, records = read_records(file, "scored", 10**9, run.notes)
            points.append((float(len(points)), solved_share(records)))
    points = [(x, y) for x, y in points if y is not None]
    return (
        Series("accuracy", *map(tuple, zip(*points, strict=True))) if points else None
    )


def is_by_round(run: RunRecords) -> bool:
    """Whether the x of `accuracy_by_round` counts rounds."""
    found = run.loop_evaluations
    rounds = {line["round"] for line in found if isinstance(line.get("round"), int)}
    return not run.online and (len(rounds) > 1 or not found)


def held_out_title(series: Series) -> str:
    """Of the series of `accuracy_by_round`: a judge's points, or a reward, are no
    accuracy."""
    values = [y for _, y in series.finite()]
    return "Held-out accuracy" if _in_unit(values) else "Held-out score"


def accuracy_chart(run: RunRecords, series: Series) -> Chart:
    """The large picture at the top."""
    values = [y for y in series.y if y is not None]
    labels, x_name = None, "step"
    if not is_by_round(run) and len(series.x) > 1:
        last = f"after {series.x[-1] - series.x[0]:,.0f} updates"
        labels = [(series.x[0], "Before"), (series.x[-1], last)]
    elif is_by_round(run):
        names = [evaluation_label(f"round_{int(x)}") for x in series.x]
        names = [name.removeprefix("After ").capitalize() for name in names]
        if len(names) > 5:
            names = [str(int(x)) if x else "Before" for x in series.x]
        labels, x_name = list(zip(series.x, names, strict=True)), "after round"
    text = percent_text if _in_unit(values) else short
    told = f"{held_out_title(series)}: {', '.join(text(v) for v in values)}"
    high = 1.0 if max(values) > 0.4 else max(values)
    return line_chart(
        [series],
        label=told,
        size=(460, 250),
        percent=_in_unit(values),
        x_name=x_name,
        x_labels=labels,
        dots=len(values) <= 12,
        bounds=(0.0, high) if _in_unit(values) else None,
    )


def panels(run: RunRecords) -> dict[str, list[Panel]]:
    """Small charts by phase, for every metric with at least two finite values; what is
    known of judges has a place of its own."""
    phases = dict.fromkeys([*PHASES, *(str(line.get("phase")) for line in run.metrics)])
    top = accuracy_by_round(run)
    of_judges = tuple(f"{at}{name}/" for name in run.judges for at in ("", "eval/"))
    found = {}
    for phase in phases:
        lines = [line for line in run.metrics if str(line.get("phase")) == phase]
        charts = _panels_of(lines, of_judges)
        if top is not None and sum("eval/accuracy" in x for x in lines) <= len(top.x):
            # Evaluations inside rounds would add something; else it is drawn above.
            charts = [panel for panel in charts if panel.name != "eval/accuracy"]
        if charts:
            found[phase] = charts
    return found


def _panels_of(
    lines: Sequence[Mapping[str, Any]], elsewhere: tuple[str, ...]
) -> list[Panel]:
    """But for metrics that begin like one of `elsewhere`."""
    table = {
        name: s
        for name, s in series_of(lines).items()
        if len(s.finite()) > 1 and not name.startswith(elsewhere)
    }
    marks = _round_marks(lines)
    made, seen = [], set()
    for name in sorted(table, key=_rank):
        family = next((f for f in FAMILIES if name in f), (name,))
        together = [table[n] for n in family if n in table]
        if together[0].name != name:
            continue
        values = {y for one in together for y in one.y}
        # Flat, or another metric by a second name: nothing to look at first.
        dull = len(values) == 1 or together[0].y in seen
        seen.add(together[0].y)
        aside = dull or name.startswith(ASIDE) or len(made) >= MOST
        made.append(_panel(name, together, marks, aside))
    return made


def _panel(
    name: str, series: Sequence[Series], marks: Sequence[float], aside: bool
) -> Panel:
    title = TITLES.get(name) or title_of(name)
    points = series[0].finite()
    latest = points[-1][1]
    values = [y for s in series for _, y in s.finite()]
    percent = _in_unit(values) and any(part in name for part in SHARES)
    text = percent_text if percent else short
    low, high = min(y for _, y in points), max(y for _, y in points)
    label = (
        f"{title}: {text(points[0][1])} at step {points[0][0]:,}, {text(latest)} at "
        f"step {points[-1][0]:,}; lowest {text(low)}, highest {text(high)}"
    )
    short_names = [_last_word(s.name, name) for s in series]
    named = [Series(n, s.x, s.y) for n, s in zip(short_names, series, strict=True)]
    few = max(len(s.x) for s in series) <= 12
    chart = line_chart(
        named,
        label=label,
        percent=percent,
        marks=marks,
        dots=few and len(series) == 1,
        bounds=(0.0, 1.0) if percent and min(values) == max(values) else None,
    )
    return Panel(name, title, UNITS.get(name, ""), text(latest), chart, aside)


def panel_html(panel: Panel, chart_id: str) -> Html:
    """A figure: heading with the latest value, a legend for several curves."""
    names = [series["name"] for series in panel.chart.data["series"]]
    legend = None
    if len(names) > 1:
        keys = [
            el("span", el("i", class_=f"key series-{i}"), name)
            for i, name in enumerate(names)
        ]
        legend = el("p", join(*keys), class_="legend")
    unit = el("small", panel.unit) if panel.unit else None
    return el(
        "figure",
        el(
            "figcaption",
            el("span", panel.title, class_="panel-title", title=panel.name),
            el("span", panel.latest, " ", unit, class_="panel-latest"),
        ),
        legend,
        panel.chart.svg,
        class_="panel",
        data_chart=chart_id,
    )


def series_of(lines: Sequence[Mapping[str, Any]]) -> dict[str, Series]:
    """Every metric of the lines, by step."""
    table: dict[str, list[tuple[float, float | None]]] = {}
    for line in lines:
        broken = line.get("nonfinite") or ()
        for name, value in line.items():
            if name in FIXED or name == "nonfinite" or is_timing(name):
                continue
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if number and abs(value) > DRAWABLE:
                value = None
            if number or (value is None and name in broken):
                table.setdefault(name, []).append((line.get("step", 0), value))
    return {
        name: Series(name, *map(tuple, zip(*points, strict=True)))
        for name, points in table.items()
    }


def _round_marks(lines: Sequence[Mapping[str, Any]]) -> list[float]:
    """The first step of every round but the first."""
    starts: dict[Any, float] = {}
    for line in lines:
        if line.get("round") is not None:
            starts.setdefault(line["round"], line.get("step", 0))
    return sorted(starts.values())[1:]


def _rank(name: str) -> tuple:
    aside = name.startswith(ASIDE)
    place = FIRST.index(name) if name in FIRST else len(FIRST)
    return (aside, place, name)


def title_of(name: str) -> str:
    """The name of a metric as words."""
    if name.startswith("eval/"):
        return f"Held-out {title_of(name.removeprefix('eval/')).lower()}"
    words = name.replace("_", " ").replace("/", ", ")
    return words[:1].upper() + words[1:]


def _last_word(name: str, first: str) -> str:
    if name == first and "/" not in name:
        return name
    word = name.rpartition("/")[2]
    return word.replace("_length", "").replace("_mean", "")


def _in_unit(values: Sequence[float]) -> bool:
    return all(0.0 <= value <= 1.0 for value in values)
