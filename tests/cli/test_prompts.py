"""`jaxloop prompts`: from words to the station."""

import sys
from types import ModuleType

import pytest


@pytest.fixture
def station(called, monkeypatch):
    module = ModuleType("jaxloop.loop.writing")
    monkeypatch.setitem(sys.modules, module.__name__, module)

    def write_prompts(config, *, argv):
        called.append((config, argv))
        return config.code

    vars(module)["write_prompts"] = write_prompts
    return called


def test_the_station_gets_the_overridden_config(cli, station, config_file):
    words = ["prompts", config_file, "steps=3", "code=7"]
    code, _, err = cli(*words)
    assert code == 7
    ((config, argv),) = station
    assert config.steps == 3
    assert argv == ["jaxloop", *words]
    assert "steps  1 -> 3" in err


def test_help_and_problems_start_nothing(cli, station, config_file):
    code, out, _ = cli("prompts", "--help")
    assert code == 0
    assert "OUT/prompts.jsonl" in out
    code, out, _ = cli("prompts", config_file, "--help")
    assert code == 0
    assert "part.rate: float = 0.5" in out
    assert cli("prompts")[0] == 2
    code, _, err = cli("prompts", config_file, "stops=3")
    assert code == 2
    assert "did you mean steps?" in err
    assert not station
