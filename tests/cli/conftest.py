"""The command line with a stand-in for the experiment: no JAX, no model."""

import sys
from dataclasses import dataclass, field
from types import FunctionType, ModuleType

import pytest

from jaxloop.cli.main import main


@dataclass(frozen=True)
class Part:
    rate: float = 0.5
    """How fast."""


@dataclass(frozen=True)
class Config:
    part: Part = field(default_factory=Part)
    steps: int = 1
    out: str = "runs/x"
    code: int = 0
    """Exit code of the run."""

    @property
    def folder(self):
        return self.out

    def validate(self):
        found = [] if self.steps > 0 else [f"steps = {self.steps} must be positive"]
        return found + ([] if self.part.rate <= 1 else ["part.rate is above 1"])


@dataclass(frozen=True)
class Sampling:
    n: int = 8
    """Samples of each prompt."""
    temperature: float = 1.0


@pytest.fixture
def called(monkeypatch):
    """Puts the commands' targets in place; what they were called with, in order."""
    calls = []

    def module(name, **content):
        made = ModuleType(name)
        vars(made).update(content)
        monkeypatch.setitem(sys.modules, name, made)

    def run(config, *, argv, profiled):
        calls.append(("run", config, argv, profiled))
        return config.code

    def dry_run(config):
        return f"dry {config.steps}"

    def evaluate(config):
        calls.append(("evaluate", config))
        return {"eval/accuracy": 0.5}

    def sample_text(path, prompt, sampling, seed, chat):
        calls.append((path, prompt, sampling, seed, chat))
        return (f"answer {i}" for i in range(sampling.n))

    def convert_checkpoint(source, target):
        if not source.exists():
            raise ValueError(f"no checkpoint {source}")
        return target

    def build_report(out):
        return out / "report.html"

    # `raise` in the stand-ins must look like jaxloop's own.
    scope = {"__name__": "jaxloop.loop.serve", "__builtins__": __builtins__}
    convert = FunctionType(convert_checkpoint.__code__, scope)
    module("jaxloop.experiment", Config=Config)
    module("jaxloop.loop.run", run=run, dry_run=dry_run, evaluate=evaluate)
    module("jaxloop.loop.serve", sample_text=sample_text, convert_checkpoint=convert)
    module("jaxloop.sampling.settings", Sampling=Sampling)
    module("jaxloop.report", build_report=build_report)
    return calls


@pytest.fixture
def config_file(called, tmp_path, monkeypatch):
    """A config file of the stand-in `Config`; variant `bad` is not one of ours."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    file = tmp_path / "experiments" / "x.py"
    file.parent.mkdir()
    file.write_text(
        "from jaxloop.experiment import Config\n"
        "from dataclasses import dataclass\n"
        "@dataclass\n"
        "class Other:\n    x: int = 1\n"
        "def get_config(variant=None):\n"
        "    return Other() if variant == 'bad' else Config()\n"
    )
    return str(file)


@pytest.fixture
def cli(capsys):
    """cli("run", ...) -> (exit code, standard output, standard error)."""

    def call(*argv):
        code = main([str(word) for word in argv])
        return code, *capsys.readouterr()

    return call
