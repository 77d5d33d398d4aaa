"""What a scorer is made of: the judges in it, however deep."""

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from jaxloop.config.fields import is_part
from jaxloop.sampling.settings import Sampling
from jaxloop.scoring.scorer import Bound, OfModels, Scorer
from jaxloop.scoring.writer import Placed


def parts(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every dataclass in `value`, itself first, and the name that the command line has
    for it: `recipe.scorer`, `recipe.scorer.scorers.0`, ..."""
    if isinstance(value, Bound):  # what it is bound to is no part of it
        value = value.scorer
    inside: list[tuple[str, Any]] = []
    if isinstance(value, tuple):
        inside = [(str(place), part) for place, part in enumerate(value)]
    elif is_part(value):
        yield path, value
        inside = [(f.name, getattr(value, f.name)) for f in fields(value) if f.init]
    for name, part in inside:
        yield from parts(part, f"{path}.{name}")


def writers(scorer: Scorer | None, path: str) -> list[tuple[str, Any]]:
    """The parts that a model of this run writes for: those with a `sampling`, and `by`
    whom it is done."""
    return [
        (name, part)
        for name, part in parts(scorer, path)
        if isinstance(getattr(part, "sampling", None), Sampling)
        and isinstance(getattr(part, "by", None), str | Placed)
    ]


def named(scorer: Scorer) -> dict[str, OfModels]:
    """The parts that ask models, by the name of their scores."""
    asking = [part for _, part in parts(scorer) if isinstance(part, OfModels)]
    found = {getattr(part, "name", ""): part for part in asking}
    return {name: part for name, part in found.items() if name}
