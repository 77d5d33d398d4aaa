"""A configuration with one field of every kind, as a user would write it."""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest


@dataclass(frozen=True)
class Sampling:
    temperature: float = 1.0
    """Divides the logits."""
    max_new_tokens: int = 8
    stop: tuple[str, ...] = ()
    """Texts that end
    a sample."""


@dataclass(frozen=True)
class Filter:
    """Drops prompts."""

    minimum: float = 0.0
    """Least share of votes."""
    maximum: float = 1.0

    def __post_init__(self):
        if self.minimum > self.maximum:
            raise ValueError(f"minimum {self.minimum} > maximum {self.maximum}")


@dataclass(frozen=True)
class Scaling:
    factor: float = 8.0


@dataclass(frozen=True)
class Base:
    inherited: int = 1
    """From the base class."""


@dataclass(frozen=True)
class Recipe(Base):
    sampling: Sampling = field(default_factory=Sampling)
    """How answers are drawn."""
    filters: tuple[Any, ...] = ()
    loss: Callable = math.sqrt
    """What is minimised."""
    optimizer: Literal["adam", "sgd"] = "adam"
    scaling: Scaling | None = None
    limit: int | None = None
    out: Path = Path("runs")
    sizes: tuple[int, int] = (1, 2)
    chatty: bool = False
    api_key: str = ""


@dataclass(frozen=True)
class Config:
    recipe: Recipe
    seed: int = 0


@pytest.fixture
def config():
    return Config(Recipe(filters=(Filter(), Filter(minimum=0.25))))


@pytest.fixture(autouse=True)
def _imports_stay_here(monkeypatch):
    """Loading a config file changes `sys.path` and `sys.modules`: undone here."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith(("experiments", "jaxloop_config_")):
            del sys.modules[name]
