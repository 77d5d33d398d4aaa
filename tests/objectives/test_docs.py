"""docs/objectives.md: what the docstrings say, all of it, as of now."""

import inspect
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def made():
    sys.path.insert(0, str(DOCS))
    try:
        import make_objectives
    finally:
        sys.path.remove(str(DOCS))
    return make_objectives


def test_the_page_is_up_to_date(made):
    assert made.TARGET.read_text() == made.text(), "run python docs/make_objectives.py"


def test_every_entry_says_when_to_use_it_and_what_others_call_it(made):
    for _, _, sources in made.SECTIONS:
        for item in (item for source in sources for item in made.entries(source)):
            if inspect.isclass(item) and "Use:" not in (inspect.getdoc(item) or ""):
                continue  # the dataclasses that hold the functions
            text = inspect.getdoc(item) or ""
            assert "Names:" in text, item.__name__


def test_every_name_to_try_leads_to_an_entry(made):
    page = made.text()
    missing = [name for name in made.named.NAMES if f"`{name}`" not in page]
    assert not missing
