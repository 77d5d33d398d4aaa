"""Score against length: a picture for each round, and how the two go together.

Completions of like length and score are one disc, whose area says how many they are;
where the truth is known, right and wrong ones have discs of their own. The line is the
mean score by length.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxloop.report.charts import Frame, grid, nice_ticks, short
from jaxloop.report.folder import evenly
from jaxloop.report.html import Html, el, join
from jaxloop.report.tables import RecordSet
from jaxloop.scoring.judge_metrics import length_correlation

CHARTS = 6  # rounds, at most
COLUMNS, ROWS = 36, 20  # of the raster, where there are more lengths or scores
MOST_LENGTHS = 0.99  # of the completions; the few longer ones stand at the edge
RADIUS = 9
KINDS = ("wrong", "right", "")  # drawn in this order; "": the truth is not known


@dataclass(frozen=True)
class Cloud:
    """The scored completions of a round: lengths in tokens, scores, truths (NaN: not
    known) and which prompt each belongs to, all (N,)."""

    label: str
    length_N: np.ndarray
    score_N: np.ndarray
    truth_N: np.ndarray
    prompt_N: np.ndarray

    @property
    def correlation(self) -> float:
        """Of score and length within prompts; NaN where one of them does not vary."""
        return self._with_length(self.score_N)

    @property
    def truth_correlation(self) -> float:
        return self._with_length(self.truth_N)

    def _with_length(self, value_N: np.ndarray) -> float:
        ends = np.flatnonzero(np.diff(self.prompt_N)) + 1
        groups = zip(
            np.split(value_N, ends), np.split(self.length_N, ends), strict=True
        )
        return length_correlation(groups)


def clouds(sets: Sequence[RecordSet]) -> list[Cloud]:
    """Of the rounds (or steps) sampled from; none unless scores and lengths vary."""
    sampled = [one for one in sets if not one.kind]
    chosen = sampled or [one for one in sets if one.kind == "Held out"]
    found = [_cloud(chosen[i]) for i in evenly(len(chosen), CHARTS)]
    found = [cloud for cloud in found if len(cloud.score_N)]
    scores = {x for cloud in found for x in cloud.score_N.tolist()}
    lengths = {x for cloud in found for x in cloud.length_N.tolist()}
    return found if len(scores) > 1 and len(lengths) > 1 else []


def _cloud(one: RecordSet) -> Cloud:
    rows = [
        (len(rollout.token_ids), score.value, _truth(score), place)
        for place, record in enumerate(one.records)
        for rollout, score in zip(record.rollouts, record.scores, strict=True)
        if score.value is not None
    ]
    length_N, score_N, truth_N, prompt_N = np.array(rows, float).reshape(-1, 4).T
    return Cloud(one.file.label, length_N, score_N, truth_N, prompt_N)


def _truth(score) -> float:
    named = (v for name, v in score.components.items() if name.endswith("_truth"))
    return next(named, np.nan)


def score_length_section(found: Sequence[Cloud]) -> Html | None:
    """The pictures on common axes; None where there is nothing to see."""
    if not found:
        return None
    lengths = np.concatenate([cloud.length_N for cloud in found])
    longest = float(np.quantile(lengths, MOST_LENGTHS, method="higher"))
    low = min(float(cloud.score_N.min()) for cloud in found)
    high = max(float(cloud.score_N.max()) for cloud in found)
    figures = [_figure(cloud, longest, low, high) for cloud in found]
    known = any(np.isfinite(cloud.truth_N).any() for cloud in found)
    legend = None
    if known:
        legend = el(
            "p",
            el("span", el("i", class_="disc-key right"), "right by the truth"),
            el("span", el("i", class_="disc-key wrong"), "wrong by the truth"),
            class_="legend",
        )
    hint = (
        "A disc is completions of like length and score, the larger the more; the line "
        "is their mean score by length. r is the correlation of the two within prompts."
    )
    return join(
        el("p", hint, class_="lead"),
        legend,
        el("div", figures, class_="grid-charts"),
    )


def _figure(cloud: Cloud, longest: float, low: float, high: float) -> Html:
    r, truth = cloud.correlation, cloud.truth_correlation
    told = f"r = {short(r)}" if np.isfinite(r) else "r is not defined"
    own = f"of the truth {short(truth)}" if np.isfinite(truth) else ""
    label = f"{cloud.label}: score against length, {told}"
    return el(
        "figure",
        el(
            "figcaption",
            el("span", cloud.label, class_="panel-title"),
            el("span", told, " ", el("small", own), class_="panel-latest"),
        ),
        _drawing(cloud, longest, low, high, f"{label} {own}".strip()),
        class_="panel",
    )


def _drawing(cloud: Cloud, longest, low, high, label: str) -> Html:
    width, height = 320, 190
    if low == high:
        low, high = low - 0.5, high + 0.5
    ticks = tuple(t for t in nice_ticks(low, high, 4) if low <= t <= high)
    wide = max(len(short(tick)) for tick in ticks)
    frame = Frame(
        width=width,
        height=height,
        left=10 + 6.3 * wide,
        right=width - 12,
        top=RADIUS + 6,
        bottom=height - 34,
        x0=0.0,
        x1=max(longest * 1.03, 1.0),
        y0=low,
        y1=high,
        ticks=ticks,
    )
    more = " or more" if cloud.length_N.max() > longest else ""
    text = [
        el("text", "0", class_="tick", x=round(frame.left, 1), y=height - 6),
        el(
            "text",
            f"{longest:,.0f} tokens{more}",
            class_="tick end",
            x=frame.right,
            y=height - 6,
        ),
    ]
    return el(
        "svg",
        el("title", label),
        grid(frame, short),
        _discs(cloud, frame, longest),
        _mean_line(cloud, frame, longest),
        text,
        viewBox=f"0 0 {width} {height}",
        role="img",
        aria_label=label,
    )


def _discs(cloud: Cloud, frame: Frame, longest: float) -> Html:
    x_N = _raster(np.minimum(cloud.length_N, longest), longest, 0.0, COLUMNS)
    y_N = _raster(cloud.score_N, frame.y1, frame.y0, ROWS)
    kinds = [
        "" if np.isnan(truth) else "right" if truth > 0.5 else "wrong"
        for truth in cloud.truth_N
    ]
    counts = Counter(zip(x_N.tolist(), y_N.tolist(), kinds, strict=True))
    most = max(counts.values())
    discs = []
    for (x, y, kind), count in sorted(
        counts.items(), key=lambda item: (-item[1], KINDS.index(item[0][2]), item[0])
    ):
        told = f"{short(x)} tokens, score {short(y)}: {count:,} {kind}".rstrip()
        disc = el(
            "circle",
            el("title", told),
            class_=f"disc {kind}".rstrip(),
            cx=round(frame.px(x), 1),
            cy=round(frame.py(y), 1),
            r=round(max(RADIUS * (count / most) ** 0.5, 1.2), 1),
        )
        discs.append(disc)
    return join(discs)


def _mean_line(cloud: Cloud, frame: Frame, longest: float) -> Html | None:
    """The mean score of each stretch of lengths with enough completions in it."""
    length_N = np.minimum(cloud.length_N, longest)
    x_N = _raster(length_N, longest, 0.0, COLUMNS // 3)
    points = []
    for x in np.unique(x_N):
        scores = cloud.score_N[x_N == x]
        if len(scores) >= 5:
            at = length_N[x_N == x].mean()
            points.append((frame.px(at), frame.py(scores.mean())))
    if len(points) < 2:
        return None
    d = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return el("path", class_="mean-line", d=f"M{d}")


def _raster(value_N: np.ndarray, high: float, low: float, cells: int) -> np.ndarray:
    """Each value, or the middle of its cell where there are more values than cells."""
    if len(np.unique(value_N)) <= cells:
        return value_N
    size = (high - low) / cells
    return low + (np.minimum((value_N - low) // size, cells - 1) + 0.5) * size
