"""How the judges of a run fare: a verdict each, and small curves with what they mean.

A judge that cannot be read, ties, follows length or a place, or drifts from the truth
spoils what is trained on its word long before a held-out figure shows it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from jaxloop.report.charts import Chart, Series, line_chart, percent_text, short
from jaxloop.report.curves import series_of, title_of
from jaxloop.report.folder import RunRecords
from jaxloop.report.html import Html, el, join
from jaxloop.report.signals import ANY, CANARY, SIGNALS, Range, Signal

SLACK = 0.15  # that a judge may follow length further than the truth does
STATES = {
    "good": ("●", "healthy"),
    "warn": ("▲", "look at it"),
    "bad": ("■", "wrong"),
    "": ("", ""),
}


@dataclass(frozen=True)
class Reading:
    """A signal of one judge: its curves, in training and held out, and their ends."""

    signal: Signal
    series: tuple[Series, ...]

    @property
    def last(self) -> list[float]:
        """The last value of each curve; of a long one the mean of its last twelfth."""
        return [_end(one, -1) for one in self.series]

    @property
    def fell(self) -> bool:
        """Whether a curve lost more since its start than it may."""
        return any(self._lost(one) > self.signal.fall for one in self.series)

    @staticmethod
    def _lost(curve: Series) -> float:
        return _end(curve, 1) - _end(curve, -1)

    @property
    def state(self) -> str:
        """The worst of the last values: "good", "warn", "bad", or "" without a rule."""
        if self.signal.healthy == ANY:
            return ""
        if not all(_within(value, self.signal.bearable) for value in self.last):
            return "bad"
        well = all(_within(value, self.signal.healthy) for value in self.last)
        return "good" if well and not self.fell else "warn"

    @property
    def telling(self) -> int:
        """Which curve fares worst, the first of equals."""

        def trouble(index: int) -> tuple[bool, bool, bool]:
            value, curve = self.last[index], self.series[index]
            bearable = _within(value, self.signal.bearable)
            healthy = _within(value, self.signal.healthy)
            return not bearable, not healthy, self._lost(curve) > self.signal.fall

        return max(range(len(self.series)), key=trouble)

    @property
    def text(self) -> str:
        return self.spelled(self.last[self.telling])

    def spelled(self, value: float) -> str:
        return (percent_text if self.signal.percent else short)(value)


def judge_readings(
    run: RunRecords, truth_corr: float | None = None
) -> dict[str, list[Reading]]:
    """What is known of each judge. `truth_corr`: how the truth itself goes with length;
    a judge that follows it no further than that is not led by length."""
    in_training = series_of([x for x in run.metrics if x.get("phase") != "eval"])
    held_out = series_of([x for x in run.metrics if x.get("phase") == "eval"])
    found: dict[str, list[Reading]] = {}
    for judge in run.judges:
        for signal in _signals(judge, [*in_training, *held_out]):
            pair = (
                _named(in_training.get(f"{judge}/{signal.name}"), "in training"),
                _named(held_out.get(f"eval/{judge}/{signal.name}"), "held out"),
            )
            series = tuple(one for one in pair if one is not None)
            if series:
                reading = Reading(_allowing(signal, truth_corr), series)
                found.setdefault(judge, []).append(reading)
        of_judge = [s for n, s in held_out.items() if n.startswith(f"{judge}/canary/")]
        if any(one.finite() for one in of_judge):
            found.setdefault(judge, []).append(_canaries(of_judge))
    return found


def _signals(judge: str, metrics: list[str]) -> list[Signal]:
    """Those that we know of, and any other metric of the judge by its name."""
    names = [name.removeprefix("eval/") for name in metrics]
    own = [n.removeprefix(f"{judge}/") for n in names if n.startswith(f"{judge}/")]
    known = {signal.name for signal in SIGNALS}
    new = [n for n in own if n not in known and not n.startswith("canary/")]
    return [*SIGNALS, *(Signal(n, title_of(n), "") for n in dict.fromkeys(new))]


def _canaries(of_judge: list[Series]) -> Reading:
    """The best liked canary of each evaluation, and which it was last."""
    best: dict[float, tuple[float, str]] = {}
    for one in of_judge:
        for x, y in one.finite():
            best[x] = max(best.get(x, (y, "")), (y, one.name.rpartition("/")[2]))
    steps = sorted(best)
    last = best[steps[-1]][1].replace("_", " ")
    signal = replace(CANARY, told=f"{CANARY.told} Best liked at the end: {last}.")
    values = tuple(best[x][0] for x in steps)
    return Reading(signal, (Series("held out", tuple(steps), values),))


def judge_state(found: list[Reading]) -> tuple[str, str]:
    """The worst state of its signals, and in words."""
    flagged = [reading for reading in found if reading.state in ("warn", "bad")]
    if not flagged:
        return "good", "healthy"
    worst = "bad" if any(r.state == "bad" for r in flagged) else "warn"
    count = sum(reading.state != "" for reading in found)
    return worst, f"look at {len(flagged)} of {count}"


def judges_title(judges: Mapping[str, list[Reading]]) -> str:
    return "The judge" if len(judges) < 2 else "The judges"


def judges_note(judges: Mapping[str, list[Reading]]) -> Html | None:
    """In a word, for the top of the page."""
    if not judges:
        return None
    words = []
    for judge, found in judges.items():
        state, text = judge_state(found)
        told = "Judge" if len(judges) == 1 else judge
        link = el("a", f"{told}: {text}", href="#judge", class_=f"state {state}")
        words.append(el("span", _mark(state), link))
    return join(words)


def health_section(
    run: RunRecords, judges: Mapping[str, list[Reading]], charts: dict[str, Any]
) -> Html | None:
    """A verdict and curves for each judge; None without one."""
    if not judges:
        return None
    hint = (
        "Marks go by the last values, and by what was lost since the start. Green "
        "bands are where values should lie, by rule of thumb: read some judgements "
        "before you believe a mark."
    )
    parts = [
        _judge(run, judge, found, charts, f"judge-{index}")
        for index, (judge, found) in enumerate(judges.items())
    ]
    return join(el("p", hint, class_="lead"), parts)


def _judge(
    run: RunRecords,
    judge: str,
    found: list[Reading],
    charts: dict[str, Any],
    name: str,
) -> Html:
    state, words = judge_state(found)
    cards = []
    labels = _round_labels(run)
    for index, reading in enumerate(found):
        chart = _chart(reading, labels, run.online)
        charts[f"{name}-{index}"] = chart.data
        cards.append(_card(reading, chart, f"{name}-{index}"))
    heading = el(
        "h3", el("code", judge), " ", _mark(state), el("span", words, class_=state)
    )
    return el(
        "div",
        heading,
        el("p", list(_findings(found)), class_="findings"),
        el("div", cards, class_="grid-charts"),
        class_="group judge",
    )


def _findings(found: list[Reading]) -> Iterator[Html]:
    """What stands out, in a line; or the figures that say that nothing does."""
    flagged = [reading for reading in found if reading.state in ("bad", "warn")]
    flagged.sort(key=lambda reading: reading.state)
    lead = "Stands out: " if flagged else "Nothing stands out: "
    yield Html(lead)
    shown = flagged or [reading for reading in found if reading.state][:4]
    for index, reading in enumerate(shown):
        title = reading.signal.title
        title = title[:1].lower() + title[1:]
        yield join("; " if index else "", title, " ")
        yield el("b", reading.text, class_=reading.state if flagged else "")
        telling = reading.series[reading.telling]
        if reading.fell:
            yield join(" after ", reading.spelled(_end(telling, 1)))
        if flagged and len(reading.series) > 1:
            yield join(" ", telling.name)
    yield Html(".")


def _card(reading: Reading, chart: Chart, chart_id: str) -> Html:
    names = [one.name for one in reading.series]
    keys = [
        el("span", el("i", class_=f"key series-{i}"), name)
        for i, name in enumerate(names)
    ]
    return el(
        "figure",
        el(
            "figcaption",
            el("span", reading.signal.title, class_="panel-title"),
            el(
                "span",
                _mark(reading.state),
                reading.text,
                class_=f"panel-latest {reading.state}",
            ),
        ),
        el("p", keys, class_="legend") if len(names) > 1 else None,
        chart.svg,
        el("p", reading.signal.told, class_="told") if reading.signal.told else None,
        class_="panel",
        data_chart=chart_id,
    )


def _mark(state: str) -> Html | None:
    sign, words = STATES[state]
    if not sign:
        return None
    # The shape says it too: not everybody tells these colours apart.
    return el("span", sign, role="img", aria_label=words, class_=f"sign {state}")


def _chart(reading: Reading, labels: Mapping[float, str], online: bool) -> Chart:
    signal = reading.signal
    steps = sorted({x for one in reading.series for x in one.x})
    named = [(x, labels[x]) for x in steps if x in labels]
    few = not online and len(named) == len(steps) <= 6
    ends = [y for _, y in reading.series[reading.telling].finite()]
    return line_chart(
        reading.series,
        label=f"{signal.title}: {reading.spelled(ends[0])} → {reading.text}",
        percent=signal.percent,
        x_labels=named if few else None,
        dots=few and len(reading.series) == 1,
        bounds=signal.axis,
        zone=None if signal.healthy == ANY else signal.healthy,
    )


def _round_labels(run: RunRecords) -> dict[float, str]:
    """What happened at a step: a round began, or the last evaluation took place."""
    labels: dict[float, str] = {}
    for line in run.metrics:
        number, step = line.get("round"), line.get("step", 0)
        if not isinstance(number, int):
            continue
        if line.get("phase") == "round":
            labels[step] = f"Round {number - run.first_round + 1}"
        elif line.get("phase") == "eval":
            labels.setdefault(step, f"After {number}" if number else "Before")
    return labels


def _allowing(signal: Signal, truth_corr: float | None) -> Signal:
    """Length may count as far as it does for the truth."""
    if signal.name != "length_corr" or truth_corr is None:
        return signal
    (low, high), (least, most) = signal.healthy, signal.bearable
    return replace(
        signal,
        told=f"{signal.told} Of the truth itself it is {short(truth_corr)}.",
        healthy=(min(low, truth_corr - SLACK), max(high, truth_corr + SLACK)),
        bearable=(min(least, truth_corr - SLACK), max(most, truth_corr + SLACK)),
    )


def _named(series: Series | None, name: str) -> Series | None:
    if series is None or not series.finite():
        return None
    return Series(name, series.x, series.y)


def _end(series: Series, side: int) -> float:
    """The mean of the first (side 1) or last (-1) twelfth, of one value at least."""
    values = [y for _, y in series.finite()][::side]
    count = max(len(values) // 12, 1)
    return sum(values[:count]) / count


def _within(value: float, allowed: Range) -> bool:
    return allowed[0] <= value <= allowed[1]
