"""docs/methods.md and docs/claims.md: what they name is there, and all is named."""

import re
import sys
from pathlib import Path

import pytest

from jaxloop.config import load_config
from jaxloop.sampling.settings import Sampling

ROOT = Path(__file__).parents[2]
METHODS = (ROOT / "docs" / "methods.md").read_text()
CLAIMS = (ROOT / "docs" / "claims.md").read_text()
NO_METHODS = {"judging", "judge_pairs"}  # they measure a judge, and train nothing
SCRIPTS = sorted((ROOT / "experiments").glob("*.py"))


def test_every_config_is_in_the_table_and_every_link_leads_somewhere():
    links = re.findall(r"\]\(([^)h][^)]*)\)", METHODS)
    files = [link.partition("#")[0] for link in links]
    assert [file for file in files if not (ROOT / "docs" / file).exists()] == []
    named = {Path(link).stem for link in links if link.startswith("../configs/")}
    there = {path.stem for path in (ROOT / "configs").glob("[a-z]*.py")}
    assert named == there


def test_the_claim_of_a_method_is_a_heading_of_that_page():
    headings = re.findall(r"^## (.*)$", CLAIMS, re.M)
    there = [
        re.sub(r"[^\w -]", "", name.lower()).replace(" ", "-") for name in headings
    ]
    linked = re.findall(r"\]\(claims\.md#([^)]*)\)", METHODS)
    assert sorted(linked) == sorted(there)


def test_every_test_that_it_names_is_there():
    named = re.findall(r"`(tests/\S+?)`", METHODS)
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []


def sampled(name: str) -> Sampling | None:
    config = load_config(str(ROOT / "configs" / f"{name}.py"))
    if config.recipe is not None:
        return config.recipe.sampling
    return None if config.prompts is None else config.prompts.maker.sampling


def test_each_method_samples_as_its_row_says_and_is_run_by_a_test():
    section = METHODS.partition("## What they sample")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| \[(\w+)\].*$", section, re.M)
    tables = METHODS.partition("## The model itself")[0]
    assert set(rows) == set(re.findall(r"\.\./configs/(\w+)", tables)) - NO_METHODS
    for line in section.splitlines():
        if not line.startswith("| ["):
            continue
        name, _, sampling, _, test = line[2:-2].split(" | ")
        name = name[1:].partition("]")[0]
        found = sampled(name)
        if found is None:
            assert sampling == "none"
        else:
            numbers = f"{found.n}, {found.temperature:g}, {found.top_p:g}"
            assert re.match(rf"{re.escape(numbers)}(;|$)", sampling), name
        files = re.findall(r"\]\(\.\./(\S+?)\)", test)
        assert any(name in (ROOT / file).read_text() for file in files), name


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_every_claim_has_its_table(script, monkeypatch):
    if script.stem == "claim":
        return
    monkeypatch.syspath_prepend(str(script.parent))
    monkeypatch.setitem(sys.modules, "claim", None)
    del sys.modules["claim"]
    space: dict = {"__name__": "a_claim"}
    exec(compile(script.read_text(), str(script), "exec"), space)
    claim = space["CLAIM"]
    assert f"\n## {claim.name}\n" in CLAIMS
    assert f"python experiments/{script.name} " in CLAIMS
    for arm in claim.arms:
        assert (ROOT / "configs" / arm.spec.partition(":")[0]).exists(), arm
        assert f"| {arm.name} |" in CLAIMS
