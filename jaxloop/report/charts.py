"""Line charts as inline SVG: no library, no style attribute, readable by itself.

Colours come from the page's CSS (`series-0`, ...): one picture for light and dark.
Units are pixels of the drawing; the page scales it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jaxloop.report.html import Html, el, join

POINTS = 240  # of a curve, in the file; more would not be seen


@dataclass(frozen=True)
class Series:
    """A named curve. None in `y` (not finite when measured) breaks the line."""

    name: str
    x: tuple[float, ...]
    y: tuple[float | None, ...]

    def finite(self) -> list[tuple[float, float]]:
        return [(x, y) for x, y in zip(self.x, self.y, strict=True) if y is not None]


@dataclass(frozen=True)
class Frame:
    """Where the data lies in the drawing: data ranges and the pixels they map to."""

    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float
    x0: float
    x1: float
    y0: float
    y1: float
    ticks: tuple[float, ...]
    single: float | None = None

    @property
    def first(self) -> float:
        """The lowest x of the data: a single one lies in the middle of the range."""
        return self.x0 if self.single is None else self.single

    @property
    def last(self) -> float:
        return self.x1 if self.single is None else self.single

    def px(self, x: float) -> float:
        return self.left + (x - self.x0) / (self.x1 - self.x0) * (
            self.right - self.left
        )

    def py(self, y: float) -> float:
        part = (y - self.y0) / (self.y1 - self.y0)
        return self.bottom - part * (self.bottom - self.top)


@dataclass(frozen=True)
class Chart:
    """A drawing and what the page needs to show values under the pointer."""

    svg: Html
    data: dict


def line_chart(
    series: Sequence[Series],
    *,
    label: str,
    size: tuple[int, int] = (320, 150),
    percent: bool = False,
    x_name: str = "step",
    x_labels: Sequence[tuple[float, str]] | None = None,
    marks: Sequence[float] = (),
    dots: bool = False,
    bounds: tuple[float, float] | None = None,
    zone: tuple[float, float] | None = None,
) -> Chart:
    """Curves over common axes. `label` is read aloud; `marks` are x of vertical lines
    (where a round begins); `x_labels` replace the first and last x; `dots` draws each
    point with its value; `bounds` are y values that the axis must hold; `zone` is the
    range of y where values are as one wants them.

    ValueError when no series has a finite point.
    """
    series = [thin(s, POINTS) for s in series]
    frame = _frame(series, size, bounds, percent, dots)
    text = percent_text if percent else short
    parts = [_zone(frame, zone), grid(frame, text), _marks(frame, marks)]
    for index, one in enumerate(series):
        parts.append(_curve(frame, one, index, dots, text))
    parts.append(_x_axis(frame, x_name, x_labels))
    parts.append(_cursor(len(series)))
    svg = el(
        "svg",
        el("title", label),
        join(*parts),
        viewBox=f"0 0 {size[0]} {size[1]}",
        role="img",
        aria_label=label,
        tabindex="0",
    )
    data = {
        "frame": [frame.left, frame.right, frame.top, frame.bottom],
        "domain": [frame.x0, frame.x1, frame.y0, frame.y1],
        "percent": percent,
        "xName": x_name,
        "xLabels": {short(x): name for x, name in x_labels or ()},
        "series": [
            {
                "name": s.name,
                "x": [_cut(x) for x in s.x],
                "y": [y if y is None else _cut(y) for y in s.y],
            }
            for s in series
        ],
    }
    return Chart(svg, data)


def thin(series: Series, limit: int) -> Series:
    """At most about `limit` points: of each stretch its lowest and highest, in order,
    so that no spike is lost."""
    count = len(series.x)
    if count <= limit:
        return series
    keep = {0, count - 1}
    stretches = limit // 2
    for part in range(stretches):
        indices = range(part * count // stretches, (part + 1) * count // stretches)
        known = [i for i in indices if series.y[i] is not None]
        values = {i: series.y[i] or 0.0 for i in known}
        keep |= {min(known, key=values.__getitem__)} if known else {indices[0]}
        keep |= {max(known, key=values.__getitem__)} if known else set()
    chosen = sorted(keep)
    x, y = tuple(series.x[i] for i in chosen), tuple(series.y[i] for i in chosen)
    return Series(series.name, x, y)


def running_mean(y: Sequence[float | None], window: int) -> list[float | None]:
    """Centred mean over `window` points; None is left out of it and stays None."""
    half = window // 2
    means: list[float | None] = []
    for i, value in enumerate(y):
        near = [v for v in y[max(0, i - half) : i + half + 1] if v is not None]
        means.append(None if value is None else sum(near) / len(near))
    return means


def nice_ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers from at most `low` to at least `high`, about `most` of them."""
    low, high = _opened(low, high)
    rough = (high - low) / max(most - 1, 1)
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(m * unit for m in (1, 2, 2.5, 5, 10) if m * unit >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def short(value: float) -> str:
    """Three significant digits at most, without needless zeros."""
    if value == 0:
        return "0"
    if abs(value) >= 1e4 or abs(value) < 1e-3:
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        mantissa = mantissa.rstrip("0").rstrip(".")
        if 4 <= int(exponent) < 6:
            return f"{value / 1000:.3g}k"
        return f"{mantissa}e{int(exponent)}"
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}"


def percent_text(value: float) -> str:
    return f"{100 * value:.3g}%" if abs(value) < 0.9995 else f"{100 * value:.0f}%"


def _opened(low: float, high: float) -> tuple[float, float]:
    """The range, widened if it is too narrow to divide by."""
    if high - low > max(1e-9 * abs(low), 1e-290):
        return low, high
    pad = 0.1 * abs(low) if abs(low) > 1e-280 else 1.0
    return low - pad, high + pad


def _frame(series, size, bounds, percent: bool, dots: bool) -> Frame:
    points = [point for s in series for point in s.finite()]
    if not points:
        raise ValueError("a chart needs at least one finite point")
    xs, ys = [x for x, _ in points], [y for _, y in points]
    ys += list(bounds or ())
    big = size[1] >= 200
    low, high = _opened(min(ys), max(ys))
    ticks: tuple[float, ...] = ()
    for most in (5, 7) if big else (3, 4, 6):
        if len(ticks) < 2:
            near = nice_ticks(low, high, most)
            slack = 1e-9 * (high - low)
            ticks = tuple(t for t in near if low - slack <= t <= high + slack)
    low, high = min(low, *ticks), max(high, *ticks)
    x0, x1 = min(xs), max(xs)
    single = x0 if x0 == x1 else None
    if single is not None:
        x0, x1 = x0 - 0.5, x1 + 0.5
    wide = max(len((percent_text if percent else short)(tick)) for tick in ticks)
    return Frame(
        width=size[0],
        height=size[1],
        left=10 + (7.6 if big else 6.3) * wide,
        right=size[0] - 14,
        top=24 if dots else 10,
        bottom=size[1] - (30 if big else 38 if dots else 26),
        x0=x0,
        x1=x1,
        y0=low,
        y1=high,
        ticks=ticks,
        single=single,
    )


def _zone(frame: Frame, zone: tuple[float, float] | None) -> Html | None:
    if zone is None:
        return None
    low, high = max(zone[0], frame.y0), min(zone[1], frame.y1)
    if low >= high:
        return None
    return el(
        "rect",
        class_="zone",
        x=_cut(frame.left),
        y=_cut(frame.py(high)),
        width=_cut(frame.right - frame.left),
        height=_cut(frame.py(low) - frame.py(high)),
    )


def grid(frame: Frame, text: Callable[[float], str]) -> Html:
    """Horizontal lines with their values, spelled by `text`."""
    rows = []
    for tick in frame.ticks:
        y = _cut(frame.py(tick))
        line = el(
            "line", class_="grid", x1=_cut(frame.left), x2=frame.right, y1=y, y2=y
        )
        name = el(
            "text", text(tick), class_="tick end", x=_cut(frame.left - 6), y=y + 4
        )
        rows += [line, name]
    return join(rows)


def _marks(frame: Frame, marks: Sequence[float]) -> Html:
    inside = [x for x in marks if frame.x0 < x < frame.x1]
    xs = [_cut(frame.px(x)) for x in inside]
    return join(
        [
            el("line", class_="mark", x1=x, x2=x, y1=frame.top, y2=frame.bottom)
            for x in xs
        ]
    )


def _curve(frame: Frame, series: Series, index: int, dots: bool, text) -> Html:
    colour = f"series-{index % 5}"
    count = len(series.finite())
    noisy = count > 40 and not dots
    parts = [_path(frame, series, f"curve {colour}" + (" raw" if noisy else ""))]
    if noisy:
        mean = running_mean(series.y, max(count // 12, 3) | 1)
        smooth = Series(series.name, series.x, tuple(mean))
        parts.append(_path(frame, smooth, f"curve {colour}"))
    parts += [
        el("path", class_="nonfinite", d=_cross(frame.px(x), frame.bottom))
        for x, y in zip(series.x, series.y, strict=True)
        if y is None
    ]
    finite = series.finite()
    for n, (x, y) in enumerate(finite):
        px, py = _cut(frame.px(x)), _cut(frame.py(y))
        if dots or count == 1:
            parts.append(el("circle", class_=f"dot {colour}", cx=px, cy=py, r=4))
        if dots and count <= 12:
            # Below the point where the curve leaves it upwards from a low.
            before, after = finite[max(n - 1, 0)][1], finite[min(n + 1, count - 1)][1]
            below = y < before or (n == 0 and y < after)
            place = py + (17 if below and py + 36 < frame.height else -10)
            side = (
                "start" if n == 0 and count > 1 else "end" if n == count - 1 else "mid"
            )
            name = el("text", text(y), class_=f"value {side}", x=px, y=place)
            parts.append(name)
    return join(parts)


def _path(frame: Frame, series: Series, kind: str) -> Html:
    words, pen = [], "M"
    for x, y in zip(series.x, series.y, strict=True):
        if y is None:
            pen = "M"
            continue
        words.append(f"{pen}{_cut(frame.px(x))} {_cut(frame.py(y))}")
        pen = "L"
    return el("path", class_=kind, d="".join(words))


def _cross(x: float, y: float) -> str:
    x, y = _cut(x), _cut(y)
    return f"M{x - 3} {y - 3}l6 6m0 -6l-6 6"


def _x_axis(frame: Frame, name: str, labels) -> Html:
    y = frame.height - 6
    if labels is None:
        first, last = f"{name} {short_int(frame.first)}", short_int(frame.last)
        if frame.first == frame.last:
            return el(
                "text", first, class_="tick mid", x=_cut(frame.px(frame.first)), y=y
            )
        return join(
            el("text", first, class_="tick", x=_cut(frame.left), y=y),
            el("text", last, class_="tick end", x=frame.right, y=y),
        )
    texts = []
    for i, (x, text) in enumerate(labels):
        side = "start" if i == 0 else "end" if i == len(labels) - 1 else "mid"
        if len(labels) == 1:
            side = "mid"
        texts.append(el("text", text, class_=f"tick {side}", x=_cut(frame.px(x)), y=y))
    return join(texts)


def short_int(value: float) -> str:
    return f"{int(value):,}" if float(value).is_integer() else short(value)


def _cursor(count: int) -> Html:
    """What the script moves under the pointer; invisible until then."""
    dots = [el("circle", class_=f"dot series-{i % 5}", r=3.5) for i in range(count)]
    return el("g", el("line", class_="cursor-line"), dots, class_="cursor")


def _cut(value: float) -> float:
    """Five significant digits are more than a screen or a reader can tell apart."""
    value = float(f"{value:.5g}")
    return int(value) if value.is_integer() else value
