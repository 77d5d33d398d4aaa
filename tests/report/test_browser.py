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
from jaxloop.report.folder import read_run
from jaxloop.report.tables import read_sets, rollout_sets

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
def look(browser, finished, judged, tmp_path_factory):
    """look("#q=text") is the page's DOM after its script ran; `judge=True`: that of a
    run with judges."""
    pages = [build_report(run).as_uri() for run in (finished, judged)]

    def dump(fragment="", *flags, judge=False):
        address = pages[judge]
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


@pytest.fixture(scope="module")
def judgements(look):
    return look("#open=all", judge=True)


def kinds(part):
    """The numbers on the buttons above the judgements, by kind."""
    found = re.findall(r'class="flip (\w+)"[^>]*><b>(\d+)</b>', part)
    return {kind: int(number) for kind, number in found}


def test_judgements_are_counted_by_what_is_wrong_with_them(look, judgements, judged):
    last = rollout_sets(read_sets(read_run(judged)), None)[-1]
    cases = [case for p in last["prompts"] for case in p.get("judged", ())]
    part = view(judgements, "judgements")
    assert kinds(part) == {
        "orders": sum(case.get("agree") is False for case in cases),
        "invalid": sum(case["invalid"] > 0 for case in cases),
        "wrong": sum(case.get("wrong", False) for case in cases),
        "spread": sum(case["spread"] > 0 for case in cases),
    }
    assert count(part) == f"{len(cases)} of {len(cases)} cases"
    assert "What the judge read" in part
    only = view(look("#jshow=orders&open=all", judge=True), "judgements")
    assert count(only).split()[0] == str(kinds(part)["orders"])
    rows = only.split("the two orders disagree</span>")
    assert len(rows) - 2 == min(kinds(part)["orders"], 12)  # one is the button


def test_each_answer_has_its_judgements_beside_it(look):
    part = view(look("#q=tides-0&open=all", judge=True), "rollouts")
    assert part.count('class="judged"') == 4
    assert part.count("judge against #") == 12
    assert "invalid" in view(look("#q=meta&open=all", judge=True), "rollouts")


def test_hostile_judgements_are_shown_as_text(look, hostile):
    dom = look("#jq=hostile&q=hostile&open=all", judge=True)
    assert dom.count("<script") == 2
    assert "<img" not in dom
    shown = unescape(view(dom, "judgements"))
    for text in hostile[:3]:
        assert text in shown


def test_what_was_left_out_is_listed_with_reasons(look):
    part = view(look("#pshow=left", judge=True), "pairs")
    assert count(part) == "3 of 3 prompts in this file that gave none"
    assert "filter 0 RIP" in part


def test_labelled_completions_can_be_filtered(look):
    part = view(look("#lshow=avoid", judge=True), "labelled")
    assert count(part) == "1 of 2 completions"


@pytest.mark.parametrize("size", ["1280,900", "390,844"], ids=["laptop", "phone"])
def test_a_picture_of_judges_is_taken(look, tmp_path, size):
    path = tmp_path / "page.png"
    flags = (f"--window-size={size}", f"--screenshot={path}")
    look("#open=all", *flags, judge=True)
    assert path.stat().st_size > 10_000
