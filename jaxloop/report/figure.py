"""A picture of finished runs for a README: held-out accuracy by round, in variants.

A stand-alone SVG with its own colours for light and dark; no font, no script.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxloop.report.charts import Frame, nice_ticks, percent_text
from jaxloop.report.curves import accuracy_by_round
from jaxloop.report.folder import read_run
from jaxloop.report.html import Html, el, join

WIDTH, HEIGHT = 760, 420
LETTER = 7.6  # pixels, of the names right of the curves

STYLE = """
text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
.card { fill: #faf9f6; } .ink { fill: #1f1d1a; } .soft { fill: #6b655b; }
.grid { stroke: #e5e1d8; } .halo { stroke: #faf9f6; }
.c0 { --c: #2b6a99; } .c1 { --c: #c2593f; } .c2 { --c: #4f7f52; } .c3 { --c: #84649a; }
.c4 { --c: #a07d10; } .c5 { --c: #6b655b; }
.line { fill: none; stroke: var(--c); stroke-width: 2.6; stroke-linejoin: round; }
.band { fill: var(--c); opacity: 0.13; } .dot, .name { fill: var(--c); }
@media (prefers-color-scheme: dark) {
  .card { fill: #1a1916; } .ink { fill: #ebe7df; } .soft { fill: #a39d92; }
  .grid { stroke: #34312b; } .halo { stroke: #1a1916; }
  .c0 { --c: #74b3de; } .c1 { --c: #ec8c74; } .c2 { --c: #8fc08f; }
  .c3 { --c: #c0a1d8; } .c4 { --c: #d8b74e; } .c5 { --c: #a39d92; }
}
"""


def accuracies(out: Path) -> list[float]:
    """Held-out accuracy of the run in `out` before and after each of its rounds.

    ValueError where it was not evaluated.
    """
    series = accuracy_by_round(read_run(out))
    if series is None:
        raise ValueError(
            f"{out} has no held-out evaluation: no eval/accuracy was logged"
        )
    return [y for y in series.y if y is not None]


def write_figure(
    path: Path,
    variants: Mapping[str, Sequence[Sequence[float]]],
    *,
    title: str = "Held-out accuracy after each round",
    x_name: str = "round",
) -> Path:
    """Write an SVG of `variants` to `path`: name to one list of accuracies a seed, each
    from before the first round on. Lines are means over seeds, bands reach from the
    lowest to the highest. ValueError if seeds of a variant differ in length.
    """
    for name, runs in variants.items():
        lengths = sorted({len(run) for run in runs})
        if len(lengths) != 1 or not lengths[0]:
            raise ValueError(
                f"{name!r}: seeds have {lengths or 'no'} points, not the same"
            )
    if not variants:
        raise ValueError("a figure needs at least one variant")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render(variants, title, x_name) + "\n", encoding="utf-8")
    return path


def render(
    variants: Mapping[str, Sequence[Sequence[float]]], title: str, x_name: str
) -> Html:
    """The text of the SVG."""
    longest = max(len(runs[0]) for runs in variants.values())
    names = LETTER * (max(map(len, variants)) + len("99.9% ")) + 30
    frame = Frame(
        width=WIDTH,
        height=HEIGHT,
        left=64,
        right=WIDTH - names,
        top=84,
        bottom=HEIGHT - 54,
        x0=0.0,
        x1=max(longest - 1, 1),
        y0=0.0,
        y1=1.0,
        ticks=tuple(nice_ticks(0.0, 1.0, 5)),
    )
    means = {
        name: [sum(values) / len(values) for values in zip(*runs, strict=True)]
        for name, runs in variants.items()
    }
    seeds = sorted({len(runs) for runs in variants.values()})
    told = (
        "one seed" if seeds == [1] else f"mean of {seeds[-1]} seeds, band: all of them"
    )
    if len(seeds) > 1:
        told = "mean over seeds, band: all of them"
    bands = [_band(frame, runs, i) for i, runs in enumerate(variants.values())]
    lines = [_line(frame, mean, i) for i, mean in enumerate(means.values())]
    return el(
        "svg",
        el("title", title),
        el("desc", "; ".join(f"{n}: {_told(mean)}" for n, mean in means.items())),
        el("style", Html(STYLE)),
        el("rect", class_="card", width=WIDTH, height=HEIGHT, rx=12),
        el("text", title, class_="ink", x=28, y=40, font_size=19, font_weight=600),
        el("text", told, class_="soft", x=28, y=62, font_size=13),
        _axes(frame, longest, x_name),
        bands,
        lines,
        _names(frame, means),
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
    )


def _told(mean: Sequence[float]) -> str:
    return " → ".join(f"{100 * value:.0f}%" for value in mean)


def _axes(frame: Frame, points: int, x_name: str) -> Html:
    parts = []
    for tick in frame.ticks:
        y = round(frame.py(tick), 1)
        x1, x2 = frame.left, frame.right
        parts.append(el("line", class_="grid", x1=x1, x2=x2, y1=y, y2=y))
        text = percent_text(tick)
        parts.append(_text(text, frame.left - 10, y + 4, "end"))
    for i in range(points):
        text = "before" if i == 0 else f"{x_name} {i}" if points <= 6 else str(i)
        parts.append(_text(text, frame.px(i), frame.bottom + 26, "middle"))
    return join(parts)


def _text(text: str, x: float, y: float, anchor: str) -> Html:
    return el(
        "text",
        text,
        class_="soft",
        x=round(x, 1),
        y=round(y, 1),
        font_size=13,
        text_anchor=anchor,
    )


def _band(frame: Frame, runs: Sequence[Sequence[float]], index: int) -> Html | None:
    if len(runs) < 2:
        return None
    columns = list(zip(*runs, strict=True))
    upper = [(i, max(values)) for i, values in enumerate(columns)]
    lower = [(i, min(values)) for i, values in enumerate(columns)]
    d = _points(frame, upper + lower[::-1])
    return el("path", class_=f"band c{index % 6}", d=f"M{d}Z")


def _line(frame: Frame, mean: Sequence[float], index: int) -> Html:
    points = list(enumerate(mean))
    dots = [
        el(
            "circle",
            class_="dot halo",
            cx=round(frame.px(x), 1),
            cy=round(frame.py(y), 1),
            r=4.5,
            stroke_width=1.5,
        )
        for x, y in points
    ]
    path = el("path", class_="line", d=f"M{_points(frame, points)}")
    return el("g", path, dots, class_=f"c{index % 6}")


def _points(frame: Frame, points: Sequence[tuple[float, float]]) -> str:
    return "L".join(f"{frame.px(x):.1f} {frame.py(y):.1f}" for x, y in points)


def _names(frame: Frame, means: Mapping[str, Sequence[float]]) -> Html:
    """Each curve's name at its end, pushed apart where they would overlap."""
    order = sorted(enumerate(means.items()), key=lambda item: -item[1][1][-1])
    heights, gap = [frame.py(mean[-1]) + 5 for _, (_, mean) in order], 20.0
    for i in range(1, len(heights)):
        heights[i] = max(heights[i], heights[i - 1] + gap)
    if heights and (over := heights[-1] - (frame.bottom + 5)) > 0:
        heights[-1] -= over
        for i in range(len(heights) - 2, -1, -1):
            heights[i] = min(heights[i], heights[i + 1] - gap)
    texts = []
    for y, (index, (name, mean)) in zip(heights, order, strict=True):
        x = frame.px(len(mean) - 1) if len(mean) - 1 == frame.x1 else frame.right
        number = el("tspan", percent_text(round(mean[-1], 3)), font_weight=600)
        label = el(
            "text",
            number,
            f" {name}",
            class_=f"name c{index % 6}",
            x=round(x + 14, 1),
            y=round(y, 1),
            font_size=14,
        )
        texts.append(label)
    return join(texts)
