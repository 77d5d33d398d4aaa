import base64
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from jaxloop.metrics import MetricsWriter
from jaxloop.report.build import build_report, script_json
from jaxloop.report.figure import accuracies, write_figure
from tests.report.conftest import write_lines
from tests.report.judged_run import judgement, scored

VOID = {"meta", "br", "hr", "input", "link", "img"}


class Page(HTMLParser):
    """Tags, attributes, text and raw scripts of a page; checks that elements nest."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.raw, self.words = [], [], {}, []
        self._open = []
        self.feed(text)
        self.close()
        assert not self._open, self._open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self._open.append((tag, dict(attrs)))

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self._open.pop()[0] == tag

    def handle_data(self, data):
        tag, attributes = self._open[-1] if self._open else ("", {})
        if tag in ("script", "style"):
            self.raw[attributes.get("type", tag)] = data
        else:
            self.words.append(data)

    @property
    def text(self):
        return " ".join(self.words)


@pytest.fixture(scope="module")
def html(finished):
    return build_report(finished).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


@pytest.fixture(scope="module")
def data(page):
    return json.loads(page.raw["application/json"])


def test_there_is_one_script_one_style_and_nothing_from_elsewhere(html, page):
    assert page.tags.count("script") == 2  # the data and the program
    assert page.tags.count("style") == 1
    assert not {"img", "link", "iframe", "object", "base", "form"} & set(page.tags)
    for _tag, name, value in page.attributes:
        assert not name.startswith("on")
        assert name not in ("src", "style", "action", "srcset")
        if name == "href":
            assert value.startswith("#")
    assert "http:" not in html
    assert "https:" not in html
    assert "url(" not in page.raw["style"]
    assert "@import" not in page.raw["style"]


def test_the_policy_allows_exactly_what_is_there(page):
    policy = next(v for t, n, v in page.attributes if n == "content" and "-src" in v)
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for kind in ("script", "style"):
        digest = hashlib.sha256(page.raw[kind].encode()).digest()
        assert f"{kind}-src 'sha256-{base64.b64encode(digest).decode()}'" in policy


def test_the_script_never_makes_markup_of_data(page):
    script = page.raw["script"]
    forbidden = (
        r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|Function\("
    )
    assert not re.search(forbidden, script)
    assert "fetch" not in script
    assert "XMLHttp" not in script


def test_hostile_text_arrives_as_data_only(html, data, hostile):
    assert "<script>alert" not in html
    assert "onerror=alert" in html  # as JSON text
    assert "<img" not in html
    prompts = {p["id"]: p for one in data["sets"] for p in one["prompts"]}
    for i, text in enumerate(hostile):
        text = text.replace("\ud800", "")
        prompt = prompts[f"hostile-{i}"]
        assert prompt["text"] == text[:6000]
        assert prompt["rollouts"][0]["text"] == text[:6000]


@pytest.mark.parametrize("index", range(8))
def test_json_cannot_end_its_element(hostile, index):
    text = script_json({hostile[index]: [hostile[index]]})
    assert not set("<>&\u2028\u2029") & set(text)
    text.encode("utf-8")
    assert json.loads(text) == {hostile[index]: [hostile[index]]}


def test_json_has_no_nan():
    assert json.loads(script_json({"x": [float("nan"), (float("inf"), 1.5)]})) == {
        "x": [None, [None, 1.5]]
    }


def test_secrets_are_blanked(html):
    assert "hunter2" not in html
    assert "hf_aaaa" not in html
    assert "&lt;redacted&gt;" in html


def test_the_big_picture_comes_first(page):
    text = re.sub(r"\s+", " ", page.text)
    places = [text.index(word) for word in ("sums", "points", "Curves", "Rollouts")]
    assert places == sorted(places)
    for fact in (
        "Pairwise(dpo, beta=0.1, nll=1)",
        "3 rounds of 256 prompts × 8 samples",
    ):
        assert fact in text
    for fact in ("0123456789 with uncommitted changes", "jax 0.10.2", "cpu"):
        assert fact in text


def test_headline_numbers_are_those_of_the_evaluations(finished, page):
    summary = json.loads((finished / "summary.json").read_text())["accuracy"]
    first, last = (f"{100 * x:.3g}%" for x in (summary[0], summary[-1]))
    assert first in page.text
    assert last in page.text
    assert accuracies(finished) == pytest.approx(summary)


def test_every_picture_has_its_values_and_is_told_in_words(page, data):
    drawn = [value for _, name, value in page.attributes if name == "data-chart"]
    assert sorted(drawn) == sorted(data["charts"])
    assert len(drawn) > 10
    labels = [
        v for tag, name, v in page.attributes if (tag, name) == ("svg", "aria-label")
    ]
    assert len(labels) >= len(drawn)
    assert any(label.startswith("Loss: ") and "lowest" in label for label in labels)


def test_timings_are_added_up(page):
    text = re.sub(r"\s+", " ", page.text)
    assert re.search(r"Supervised stage training: 3.6 s 3.6 s", text)
    assert re.search(
        r"Round 1 sampling: 4.1 s scoring: 0.3 s training: 3.2 s 7.6 s", text
    )


def test_what_was_left_out_is_shown_with_reasons(page):
    text = re.sub(r"\s+", " ", page.text)
    assert "Left out" in text
    assert "MinimumVotes" in text


def test_the_page_is_the_same_each_time(finished, html):
    assert build_report(finished).read_text(encoding="utf-8") == html
    assert not list(finished.glob("*.partial"))


def test_after_a_crash_the_report_tells_what_there_is(finished, tmp_path):
    out = tmp_path / "crashed"
    shutil.copytree(finished, out)
    for name in ("summary.json", "run.json", "records/round_002/pairs.jsonl"):
        (out / name).unlink()
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9')
    text = Page(build_report(out).read_text()).text
    assert "Not finished: last event at step 240" in text
    assert "run.json is missing" in text


@pytest.mark.parametrize("metrics", ["", '{"step": 1, "phase": "sft", "loss": 2.0}\n'])
def test_a_run_that_just_began_has_a_report(tmp_path, metrics):
    (tmp_path / "metrics.jsonl").write_text(metrics)
    (tmp_path / "config.json").write_text('{"name": "fresh"}')
    assert "No held-out evaluation" in Page(build_report(tmp_path).read_text()).text


def test_records_alone_give_the_accuracy(finished, tmp_path):
    out = tmp_path / "records only"
    shutil.copytree(finished, out)
    (out / "metrics.jsonl").write_text("")
    known = json.loads((finished / "summary.json").read_text())["accuracy"]
    assert accuracies(out) == pytest.approx(known)


@pytest.mark.parametrize(
    ("values", "title", "big"),
    [
        ((0.2, 0.5), "Held-out accuracy", "20% → 50%"),
        ((0.9, 3.25), "Held-out score", "0.9 → 3.25"),
    ],
)
def test_points_of_a_judge_are_no_accuracy(tmp_path, values, title, big):
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        for number, value in enumerate(values):
            writer.write(number, {"eval/accuracy": value}, phase="eval", round=number)
    words = Page(build_report(tmp_path).read_text(encoding="utf-8")).text
    assert big in " ".join(words.split())
    titles = {"Held-out accuracy", "Held-out score"}
    assert {name for name in titles if name in words} == {title}


def test_where_no_judgement_can_be_read_there_is_no_0(tmp_path):
    row = scored(["an answer"], [judgement((0,), None)])
    write_lines(tmp_path / "records/eval/round_000.jsonl", [row])
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        writer.write(0, {"eval/judge/invalid_frac": 1.0}, phase="eval", round=0)
    page = Page(build_report(tmp_path).read_text(encoding="utf-8"))
    assert "Not one held-out completion could be judged." in page.text
    with pytest.raises(ValueError, match="no held-out evaluation"):
        accuracies(tmp_path)


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no run"):
        build_report(tmp_path)


def test_the_readme_picture_is_valid_and_says_what_it_shows(tmp_path):
    variants = {
        "IRPO <b>": [[0.3, 0.8], [0.4, 0.9]],
        "control": [[0.3, 0.3], [0.4, 0.4]],
    }
    path = write_figure(tmp_path / "docs" / "curve.svg", variants)
    root = ElementTree.fromstring(path.read_text())
    text = " ".join(root.itertext())
    assert "IRPO <b>: 35% → 85%" in text
    assert "mean of 2 seeds" in text
    space = "{http://www.w3.org/2000/svg}"
    assert len(root.findall(f"{space}path")) == 2  # the bands
    heights = [float(e.attrib["y"]) for e in root.iter(f"{space}text")][-2:]
    assert abs(heights[0] - heights[1]) >= 20


def test_seeds_of_a_variant_must_agree_in_length(tmp_path):
    with pytest.raises(ValueError, match="'a'"):
        write_figure(tmp_path / "x.svg", {"a": [[0.1], [0.2, 0.3]]})


def test_online_runs_tell_their_updates(online):
    text = re.sub(r"\s+", " ", Page(build_report(online).read_text()).text)
    assert "over 30 updates" in text
    assert "after 30 updates" in text
    assert "Before and after" in text
    assert "Rounds compared" not in text
