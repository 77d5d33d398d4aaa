"""The report in headless Chromium: it runs, shows its rows, and obeys the address.

JAXLOOP_REQUIRE_BROWSER=1 makes a missing browser a failure instead of a skip.
"""

import os
import re
import shutil
import subprocess
from html import unescape

import pytest

from jaxloop.report.build import build_report

pytestmark = pytest.mark.browser

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--virtual-time-budget=4000",
)


@pytest.fixture(scope="module")
def browser():
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        reason = "no Chromium found (Debian: apt-get install chromium)"
        if os.environ.get("JAXLOOP_REQUIRE_BROWSER") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return found


@pytest.fixture(scope="module")
def look(browser, finished, tmp_path_factory):
    """look("#q=text") is the page's DOM after its script ran."""
    address = build_report(finished).as_uri()

    def dump(fragment="", *flags):
        profile = tmp_path_factory.mktemp("profile")
        done = subprocess.run(
            [
                browser,
                *FLAGS,
                f"--user-data-dir={profile}",
                "--dump-dom",
                *flags,
                address + fragment,
            ],
            capture_output=True,
            timeout=120,
        )
        dom = done.stdout.decode()
        assert 'data-ready="yes"' in dom, done.stderr.decode()[-2000:]
        assert "data-error" not in dom.partition("<body>")[0]
        return dom

    return dump


@pytest.fixture(scope="module")
def opened(look):
    return look("#open=all")


def view(dom, name):
    """The part of the DOM that belongs to one table."""
    start = dom.index(f'data-view="{name}"')
    return dom[start : dom.index("<section", start)]


def count(part):
    return re.search(r'class="result"[^>]*>([^<]*)<', part)[1]


def test_the_script_runs_and_rows_are_there(look):
    dom = look()
    assert count(view(dom, "rollouts")) == "32 of 32 prompts, 224 completions"
    assert view(dom, "rollouts").count('<details class="row"') == 20
    assert "Show 12 more of 12" in view(dom, "rollouts")
    assert view(dom, "compare").count('<details class="row"') == 12
    assert view(dom, "pairs").count('<article class="pair"') == 8


def test_hostile_text_is_shown_as_text(look, hostile):
    dom = look("#q=hostile&open=all")
    assert dom.count("<script") == 2
    assert "<img" not in dom
    shown = unescape(view(dom, "rollouts"))
    for text in hostile[:3]:
        assert text in shown


def test_text_is_shaded_by_probability(opened):
    spans = re.findall(r'class="t k(\d)[^"]*" data-tip="p ≈ ([\d.e-]+)%', opened)
    assert len(spans) > 100
    by_level = {}
    for level, p in spans:
        by_level.setdefault(int(level), []).append(float(p))
    means = [sum(ps) / len(ps) for _, ps in sorted(by_level.items())]
    assert means == sorted(means, reverse=True)


def test_the_address_searches(look):
    part = view(look("#q=HOSTILE-3"), "rollouts")
    assert count(part).startswith("1 of 32 prompts")
    assert part.count('<details class="row"') == 1
    nothing = view(look("#q=nowhere-to-be-found"), "rollouts")
    assert count(nothing).startswith("0 of 32 prompts")
    assert "No prompt matches." in nothing


def test_the_address_filters_by_outcome_and_round(look):
    part = view(look("#set=round_000&show=mixed"), "rollouts")
    found = int(count(part).split()[0])
    shown = re.findall(r'class="count" title="[^"]*">(\d+)/(\d+)<', part)
    assert 0 < found < 32
    assert all(0 < int(right) < int(all_) for right, all_ in shown)


def test_flips_are_counted_between_any_two_evaluations(look):
    part = view(look("#from=1&to=2&flip=broken"), "compare")
    numbers = [int(n) for n in re.findall(r"<b>(\d+)</b><span>", part)]
    assert sum(numbers) <= 30
    assert count(part).split()[0] == str(numbers[1])
    assert 'class="flip broken" aria-pressed="true"' in part
    rows = part.split('<details class="row"')[1:]
    for row in rows:
        marks = re.findall(r'class="mark (\w+)"', row)
        assert marks[1:3] == ["good", "bad"]


@pytest.mark.parametrize("size", ["1280,900", "390,844"], ids=["laptop", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_picture_is_taken(look, tmp_path, size, scheme):
    """Also for people to look at: what it holds only eyes can judge."""
    path = tmp_path / "page.png"
    dark = ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    look("", f"--window-size={size}", f"--screenshot={path}", *dark)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size > 10_000
