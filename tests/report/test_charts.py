import itertools
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxloop.report.charts import (
    Series,
    line_chart,
    nice_ticks,
    percent_text,
    running_mean,
    short,
    thin,
)
from jaxloop.report.html import Html, el, escape

finite = st.floats(-1e300, 1e300)


def series(y, name="loss"):
    return Series(name, tuple(float(x) for x in range(len(y))), tuple(y))


@given(st.lists(st.none() | finite, min_size=1, max_size=40), st.booleans())
def test_every_point_lies_inside_the_drawing(y, dots):
    if all(value is None for value in y):
        y = [*y, 0.0]
    chart = line_chart([series(y)], label="loss", size=(320, 150), dots=dots)
    for d in re.findall(r'class="curve[^"]*" d="([^"]*)"', chart.svg):
        for x, height in re.findall(r"[ML](\S+?) ([^ML]+)", d):
            assert -1 <= float(x) <= 321
            assert -1 <= float(height) <= 151
    assert "nan" not in chart.svg
    assert "inf" not in chart.svg


@given(finite, finite, st.integers(2, 8))
def test_ticks_are_even_and_enclose_the_range(a, b, most):
    low, high = min(a, b), max(a, b)
    if high - low < 1e-9 * max(abs(low), abs(high)):
        return  # ticks have twelve digits
    ticks = nice_ticks(low, high, most)
    slack = 1e-6 * (high - low)
    assert ticks[0] <= low + slack
    assert ticks[-1] >= high - slack
    assert 2 <= len(ticks) <= 2 * most + 2
    steps = [y - x for x, y in itertools.pairwise(ticks)]
    assert max(steps) - min(steps) <= slack


@given(st.lists(st.none() | st.floats(-1e6, 1e6), min_size=1, max_size=2000))
def test_thinning_keeps_ends_extremes_and_order(y):
    full, cut = series(y), thin(series(y), 60)
    assert len(cut.x) <= max(62, min(len(y), 60))
    assert set(zip(cut.x, cut.y, strict=True)) <= set(zip(full.x, full.y, strict=True))
    assert list(cut.x) == sorted(cut.x)
    assert (cut.x[0], cut.x[-1]) == (full.x[0], full.x[-1])
    known = [value for _, value in full.finite()]
    if known:
        left = [value for _, value in cut.finite()]
        assert (min(left), max(left)) == (min(known), max(known))


def test_a_gap_breaks_the_line_and_is_marked():
    chart = line_chart([series([1.0, 2.0, None, 3.0])], label="loss")
    (d,) = re.findall(r'class="curve series-0" d="([^"]*)"', chart.svg)
    assert d.count("M") == 2
    assert chart.svg.count('class="nonfinite"') == 1
    assert chart.data["series"][0]["y"] == [1, 2, None, 3]


def test_nothing_finite_is_refused():
    with pytest.raises(ValueError, match="at least one finite point"):
        line_chart([series([None, None])], label="loss")


def test_the_running_mean_of_a_line_is_the_line():
    line = [float(i) for i in range(20)]
    assert running_mean(line, 5)[3:-3] == line[3:-3]
    assert running_mean([1.0, None, 3.0], 3) == [1.0, None, 3.0]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.12345, "0.123"), (1234.4, "1234"), (25_000, "25k"), (1e-6, "1e-6")],
)
def test_short_numbers(value, text):
    assert short(value) == text


@given(st.floats(-1e300, 1e300).filter(lambda x: abs(x) > 1e-300))
def test_short_numbers_are_near(value):
    text = short(value)
    number = float(text[:-1]) * 1000 if text.endswith("k") else float(text)
    assert math.isclose(number, value, rel_tol=0.0051)
    assert len(text) <= 10


def test_percentages():
    assert [percent_text(x) for x in (0, 0.5, 0.3916, 1)] == [
        "0%",
        "50%",
        "39.2%",
        "100%",
    ]


def test_text_is_escaped_and_markup_is_not_twice():
    assert (
        el("b", "<i>", el("i", "&"), title='"')
        == '<b title="&quot;">&lt;i&gt;<i>&amp;</i></b>'
    )
    assert escape(Html("<b>")) == "<b>"
    assert (
        el("a", None, False, ["x", ["y"]], hidden=True, id=None) == "<a hidden>xy</a>"
    )


@pytest.mark.parametrize("name", ["onclick", "style"])
def test_what_the_policy_forbids_cannot_be_written(name):
    with pytest.raises(AssertionError):
        el("a", **{name: "x"})
