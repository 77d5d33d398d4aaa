"""The tiny variants from the command line: a whole folder, and a better model.

One supervised run serves all methods: its model is converted, and they start from that
directory, as they would from a real one.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from configs import sft
from jaxloop.metrics import read_metrics

CONFIGS = Path(sft.__file__).parent
DERIVED = """\
from dataclasses import replace

from configs import {name} as method
from jaxloop.experiment import ModelTokenizer


def get_config(variant=None):
    base = method.get_config(variant)
    model = replace(base.model, path={path!r}, shape=None)
    return replace(base, model=model, tokenizer=ModelTokenizer(), sft=None)
"""


@pytest.fixture(scope="module")
def jaxloop(tmp_path_factory):
    """jaxloop("run", ...): the command in a process with one CPU device."""
    cache = tmp_path_factory.mktemp("compiled")
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }

    def command(*words) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "jaxloop", *map(str, words)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    return command


@pytest.fixture(scope="module")
def warm(jaxloop, tmp_path_factory) -> tuple[Path, Path]:
    """(folder of the supervised run, Hugging Face directory of its model)."""
    out = tmp_path_factory.mktemp("sft") / "run"
    words = [f"out={out}", "sft.steps=240", "evaluation.prompts=128"]
    jaxloop("run", CONFIGS / "sft.py:tiny", *words)
    directory = out.parent / "model"
    jaxloop("convert", out / "checkpoints" / "latest", directory)
    return out, directory


def is_complete(out: Path, records: str) -> None:
    for name in ("config.json", "run.json", "metrics.jsonl", "summary.json"):
        assert (out / name).stat().st_size > 0, name
    assert "<html" in (out / "report.html").read_text()[:200]
    assert list((out / "checkpoints").iterdir())
    assert list((out / "records").rglob(records))


def test_sft_learns_the_form(warm):
    out, directory = warm
    is_complete(out, "round_000.jsonl")
    lines = read_metrics(out / "metrics.jsonl")
    losses = [line["loss"] for line in lines if line["phase"] == "sft"]
    assert np.mean(losses[-20:]) < 0.5 * np.mean(losses[:20])
    assert lines[-1]["eval/completions/clipped_ratio"] < 0.1
    assert json.loads((directory / "config.json").read_text())["vocab_size"] == 16


FULL = pytest.mark.full


@pytest.mark.parametrize(
    ("name", "variant", "records", "staleness"),
    [
        ("irpo", "tiny", "pairs.jsonl", None),
        ("gsm8k_grpo", "tiny", "*.jsonl", 0),
        pytest.param("scpo", "tiny", "pairs.jsonl", None, marks=FULL),
        pytest.param("rft", "tiny", "demonstrations.jsonl", None, marks=FULL),
        pytest.param("online_dpo", "tiny", "*.jsonl", 0, marks=FULL),
        pytest.param("online_dpo", "tiny-grpo", "*.jsonl", 0, marks=FULL),
        pytest.param("online_dpo", "tiny-semi", "*.jsonl", 9, marks=FULL),
        pytest.param("online_dpo", "tiny-offline", "*.jsonl", 29, marks=FULL),
    ],
)
def test_a_method_improves_the_model(
    jaxloop, warm, tmp_path, name, variant, records, staleness
):
    file, out = tmp_path / "derived" / f"{name}_from_warm.py", tmp_path / "run"
    file.parent.mkdir()
    file.write_text(DERIVED.format(name=name, path=str(warm[1])))
    jaxloop("run", f"{file}:{variant}", f"out={out}", "tensorboard=false")
    is_complete(out, records)
    accuracy = list(json.loads((out / "summary.json").read_text())["accuracy"].values())
    assert accuracy[-1] > accuracy[0] + 0.1, accuracy
    lines = read_metrics(out / "metrics.jsonl")
    stale = [
        line["sample/staleness_mean"] for line in lines if line["phase"] == "online"
    ]
    assert max(stale, default=None) == staleness


@pytest.mark.full
@pytest.mark.parametrize(
    ("variant", "gains"),
    [("tiny", True), ("tiny-frozen", True), ("tiny-random", False)],
)
def test_a_model_improves_by_its_own_verdicts(jaxloop, tmp_path, variant, gains):
    out = tmp_path / "run"
    words = [f"out={out}", "tensorboard=false", "evaluation.prompts=0"]
    jaxloop("run", CONFIGS / f"self_rewarding.py:{variant}", *words)
    is_complete(out, "pairs.jsonl")
    lines = read_metrics(out / "metrics.jsonl")
    looks = [line for line in lines if line["phase"] == "eval"]
    first, last = looks[0], looks[-1]
    assert (last["eval/accuracy"] > first["eval/accuracy"] + 0.3) == gains
    # DPO on answers alone leaves the judge about where it was.
    assert last["eval/verdicts/accuracy"] > first["eval/verdicts/accuracy"] - 0.1
    rounds = [line for line in lines if line["phase"] == "round"]
    assert all(line["judge/invalid_frac"] < 0.1 for line in rounds)
    if variant != "tiny-random":
        assert all(line["judge/agreement"] > 0.7 for line in rounds)


@pytest.mark.full
def test_answers_and_judgements_are_trained_on_together(jaxloop, tmp_path):
    out = tmp_path / "run"
    jaxloop(
        "run", CONFIGS / "meta_rewarding.py:tiny", f"out={out}", "tensorboard=false"
    )
    is_complete(out, "pairs.jsonl")
    lines = read_metrics(out / "metrics.jsonl")
    looks = [line["eval/accuracy"] for line in lines if line["phase"] == "eval"]
    assert looks[-1] > looks[0] + 0.3
    rounds = [line for line in lines if line["phase"] == "round"]
    for name in ("BestWorst", "JudgePairs"):
        assert all(line[f"pairs/{name}/count"] > 20 for line in rounds)
    assert all(0 < line["pairs/kept_frac"] <= 1 for line in rounds)
    assert all(abs(line["meta_judge/first_bias"]) < 0.3 for line in rounds)
