"""report.html: one file, no network, safe against markup in what the model wrote.

Text meets the page in two ways only: through `html.el`, which escapes, or as JSON that
the script turns into text nodes. A content security policy allows one style sheet and
one script, by their hashes, and no other source of anything.
"""

import base64
import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from jaxloop.report.curves import PHASES, Panel, panel_html, panels
from jaxloop.report.folder import RunRecords, read_run
from jaxloop.report.headline import about, header, headline, run_name
from jaxloop.report.health import (
    health_section,
    judge_readings,
    judges_note,
    judges_title,
)
from jaxloop.report.html import Html, el, escape, join
from jaxloop.report.listings import (
    compare_section,
    compare_title,
    judgements_section,
    labelled_section,
    pairs_section,
    rollouts_section,
)
from jaxloop.report.score_length import clouds, score_length_section
from jaxloop.report.tables import (
    comparison,
    labelled_sets,
    pair_sets,
    read_sets,
    rollout_sets,
)
from jaxloop.report.timing import timing_section
from jaxloop.report.tokens import LEVELS, Decode, find_decoder

SCRIPTS = (
    "dom.js",
    "charts.js",
    "rollouts.js",
    "judgements.js",
    "compare.js",
    "pairs.js",
    "main.js",
)


def build_report(out: Path, *, decode: Decode | None = None) -> Path:
    """Write OUT/report.html from what lies in the run folder `out`; returns its path.

    Works at any moment of a run, after a crash too. `decode` (token ids to text) lets
    the page shade words by their probability; without it OUT/model/tokenizer
    is used if it is there, else texts are shaded only where a token is one character.
    FileNotFoundError if `out` holds no run.
    """
    out = Path(out)
    page = render(read_run(out), find_decoder(out, decode))
    path = out / "report.html"
    beside = path.with_name(path.name + ".partial")
    beside.write_text(page, encoding="utf-8")
    os.replace(beside, path)
    return path


def render(run: RunRecords, decode: Decode | None) -> Html:
    """The whole page."""
    records = read_sets(run)
    sets, pairs = rollout_sets(records, decode), pair_sets(run, decode)
    labelled = labelled_sets(run, decode)
    compared = comparison(run, decode)
    found = clouds(records)
    charts: dict[str, Any] = {}
    top, hero = headline(run)
    if hero is not None:
        charts["accuracy"] = hero.data
    judges = judge_readings(run, found[-1].truth_correlation if found else None)
    sections = {
        "judge": (judges_title(judges), health_section(run, judges, charts)),
        "curves": ("Curves", _curves(run, charts)),
        "compare": (compare_title(run), compare_section(compared)),
        "lengths": ("Score against length", score_length_section(found)),
        "judgements": ("Judgements", judgements_section(sets)),
        "rollouts": ("Rollouts", rollouts_section(sets)),
        "pairs": ("Pairs", pairs_section(run, pairs, sets)),
        "labelled": ("Labelled completions", labelled_section(labelled)),
        "time": ("Time", timing_section(run)),
        "about": ("About this run", about(run)),
        "config": ("Configuration", _configuration(run)),
    }
    shown = {key: both for key, both in sections.items() if both[1]}
    links = [el("a", title, href=f"#{key}") for key, (title, _) in shown.items()]
    body = join(
        header(run, judges_note(judges)),
        _notes(run),
        top,
        el("nav", links, aria_label="Sections") if links else None,
        [
            el("section", el("h2", title), content, id=key)
            for key, (title, content) in shown.items()
        ],
        el("footer", "Made by jaxloop from the files of the run; nothing is loaded."),
    )
    data = {
        "levels": LEVELS,
        "charts": charts,
        "sets": sets,
        "pairs": pairs,
        "labelled": labelled,
        "compare": compared,
    }
    return _page(run_name(run), body, data)


def script_json(data: Any) -> Html:
    """JSON that cannot end its script element, whatever strings it holds."""
    text = json.dumps(
        _finite(data), ensure_ascii=False, separators=(",", ":"), allow_nan=False
    )
    # Lone surrogates too: they are no UTF-8.
    return Html(
        re.sub("[<>&\u2028\u2029\ud800-\udfff]", lambda m: f"\\u{ord(m[0]):04x}", text)
    )


def _finite(data: Any) -> Any:
    """NaN and infinities, which JSON does not have and our writers refuse, as null."""
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, dict):
        return {str(key): _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return data


def _page(title: str, body: Html, data: Any) -> Html:
    style = _template("page.css")
    script = "\n".join(_template(name) for name in SCRIPTS)
    assert "</" not in style + script, "would end its element"
    policy = (
        "default-src 'none'; base-uri 'none'; form-action 'none'; "
        f"style-src {_hash(style)}; script-src {_hash(script)}"
    )
    slots = {
        "title": escape(title),
        "policy": policy,
        "style": style,
        "body": body,
        "data": script_json(data),
        "script": script,
    }
    # One pass: what is filled in is never looked at again.
    page = re.sub(r"\{\{(\w+)\}\}", lambda m: slots[m[1]], _template("page.html"))
    return Html(page)


def _template(name: str) -> str:
    return (resources.files("jaxloop.report") / "template" / name).read_text("utf-8")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _notes(run: RunRecords) -> Html | None:
    notes = [el("li", note) for note in dict.fromkeys(run.notes)]
    return el("ul", notes, class_="notes") if notes else None


def _curves(run: RunRecords, charts: dict[str, Any]) -> Html | None:
    groups = []
    for phase, found in panels(run).items():
        first = [panel for panel in found if not panel.aside]
        aside = [panel for panel in found if panel.aside]
        name = f"chart-{len(groups)}"
        more = None
        if aside and first:
            grid = _grid(aside, f"{name}-aside", charts)
            more = el("details", el("summary", f"{len(aside)} more"), grid)
        grid = _grid(first or aside, name, charts)
        title = PHASES.get(phase, phase.replace("_", " ").capitalize())
        groups.append(el("div", el("h3", title), grid, more, class_="group"))
    if not groups:
        return None
    hint = (
        "By update; dotted lines begin a round. Noisy curves show their running mean."
    )
    return join(el("p", hint, class_="lead"), groups)


def _grid(found: list[Panel], name: str, charts: dict[str, Any]) -> Html:
    figures = []
    for index, panel in enumerate(found):
        charts[f"{name}-{index}"] = panel.chart.data
        figures.append(panel_html(panel, f"{name}-{index}"))
    return el("div", figures, class_="grid-charts")


def _configuration(run: RunRecords) -> Html | None:
    parts = []
    if run.summary:
        parts.append(_folded("Summary", run.summary))
    for key, value in run.config.items():
        if isinstance(value, dict):
            parts.append(_folded(key, value))
    plain = {k: v for k, v in run.config.items() if not isinstance(v, dict)}
    if plain:
        parts.insert(1 if run.summary else 0, _folded("run", plain))
    if run.run:
        parts.append(_folded("Circumstances", run.run))
    return join(parts) if parts else None


def _folded(title: str, values: Mapping[str, Any]) -> Html:
    rows = [
        el("tr", el("th", name, scope="row"), el("td", value))
        for name, value in _flat(values)
    ]
    table = el("table", el("tbody", rows), class_="config")
    count = el("small", f"{len(rows)} values")
    body = el("div", table, class_="scroll")
    return el("details", el("summary", title, " ", count), body)


def _flat(values: Mapping[str, Any], prefix: str = ""):
    """Dotted names and their values as text, as the command line spells them."""
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{name}.")
        elif isinstance(value, list) and any(isinstance(v, Mapping) for v in value):
            yield from _flat({str(i): v for i, v in enumerate(value)}, f"{name}.")
        else:
            yield name, json.dumps(value, ensure_ascii=False)
