"""The sections that the page's script fills from the embedded records."""

from collections.abc import Mapping
from typing import Any

from jaxloop.report.charts import short
from jaxloop.report.folder import RunRecords
from jaxloop.report.html import Html, el, join


def compare_title(run: RunRecords) -> str:
    """Online runs have no rounds."""
    return "Before and after" if run.online else "Rounds compared"


def compare_section(compared: Mapping[str, Any] | None) -> Html | None:
    """Held-out prompts side by side at each evaluation."""
    if compared is None:
        return None
    solved = "solved or not"
    if not compared["unit"]:
        solved = f"{short(compared['middle'])} or more, or less"
    return join(
        el(
            "p",
            f"The same {compared['total']:,} held-out prompts at each evaluation: "
            f"{solved}, and how the answer changed.",
            _embedded(len(compared["shown"]), compared["total"]),
            class_="lead",
        ),
        el("div", class_="mount", data_view="compare"),
        _needs_script(),
    )


def rollouts_section(sets: list[dict[str, Any]]) -> Html | None:
    """All that was sampled, by prompt, with what judges said beside it."""
    if not any(one["prompts"] for one in sets):
        return None
    return join(
        el(
            "p",
            "What the model wrote, by prompt. The stronger a token is shaded, the less "
            "likely it was.",
            _embedded(
                sum(len(s["prompts"]) for s in sets), sum(s["total"] for s in sets)
            ),
            class_="lead",
        ),
        el("div", class_="mount", data_view="rollouts"),
        _needs_script(),
    )


def judgements_section(sets: list[dict[str, Any]]) -> Html | None:
    """What the judges wrote, the most disputed first."""
    total = sum(one["cases"] for one in sets)
    if not total:
        return None
    texts = sum(one["texts"] for one in sets)
    partly = ""
    if texts < total:
        partly = f" Of {total:,} cases {texts:,} have their texts in this file."
    return join(
        el(
            "p",
            "What the judges said of the same answers, most disputed cases first: the "
            "two orders name different winners, a judgement cannot be read, or the "
            "truth is another.",
            partly,
            class_="lead",
        ),
        el("div", class_="mount", data_view="judgements"),
        _needs_script(),
    )


def pairs_section(
    run: RunRecords, pairs: list[dict[str, Any]], sets: list[dict[str, Any]]
) -> Html | None:
    """What was learnt from, and the prompts that gave nothing, with the reasons."""
    dropped = _dropped(run)
    count = sum(len(one["pairs"]) for one in pairs)
    left = sum("left" in prompt for one in sets for prompt in one["prompts"])
    if not count and not left:
        return dropped
    return join(
        el(
            "p",
            "What was learnt from: the chosen completion against the rejected one, and "
            "why they were paired."
            if count
            else "",
            _embedded(count, sum(one["total"] for one in pairs), "pairs"),
            " Prompts that gave nothing can be looked at too." if left else "",
            class_="lead",
        ),
        dropped,
        el("div", class_="mount", data_view="pairs"),
        _needs_script(),
    )


def labelled_section(sets: list[dict[str, Any]]) -> Html | None:
    """Completions that were trained on one by one."""
    count = sum(len(one["rows"]) for one in sets)
    if not count:
        return None
    return join(
        el(
            "p",
            "What was learnt from, one completion at a time: ✓ is one to write, ✗ one "
            "to avoid.",
            _embedded(count, sum(one["total"] for one in sets), "completions"),
            class_="lead",
        ),
        el("div", class_="mount", data_view="labelled"),
        _needs_script(),
    )


def _dropped(run: RunRecords) -> Html | None:
    """What was left out, and why: reasons by round."""
    tables = [(label, counts) for label, counts in run.dropped if any(counts.values())]
    if not tables:
        return None
    reasons = dict.fromkeys(r for _, counts in tables for r, n in counts.items() if n)
    head = [el("th", label, scope="col", class_="number") for label, _ in tables]
    rows = [
        el(
            "tr",
            el("th", reason, scope="row"),
            [
                el("td", f"{counts.get(reason, 0):,}", class_="number")
                for _, counts in tables
            ],
        )
        for reason in reasons
    ]
    top = el("thead", el("tr", el("th", "Left out", scope="col"), head))
    table = el("table", top, el("tbody", rows), class_="dropped")
    return el("div", table, class_="scroll")


def _embedded(shown: int, total: int, noun: str = "prompts") -> str:
    if shown >= total:
        return ""
    return f" {shown:,} of {total:,} {noun} are in this file, evenly chosen."


def _needs_script() -> Html:
    return el("noscript", el("p", "This table needs JavaScript.", class_="note"))
