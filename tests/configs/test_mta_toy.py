"""Multi-Token Attention's toy: with it a small model finds blocks, without it not."""

from pathlib import Path

import pytest

from jaxloop.metrics import read_metrics
from tests.configs import test_tiny_runs

CONFIG = Path(__file__).parents[2] / "configs" / "mta_toy.py"
jaxloop = test_tiny_runs.jaxloop  # the fixture: the command, in a process of its own


@pytest.mark.full
def test_blocks_are_found_by_convolved_scores_alone(jaxloop, tmp_path):
    """1,500 updates of the variant's 5,000: enough to tell them apart."""
    accuracy = {}
    for attention in ("with", "without"):
        out = tmp_path / attention
        words = [f"out={out}", "tensorboard=false", "sft.steps=1500"]
        if attention == "without":
            words.append("model.shape.mta=none")
        jaxloop("run", f"{CONFIG}:tiny", *words)
        lines = read_metrics(out / "metrics.jsonl")
        accuracy[attention] = [line for line in lines if line["phase"] == "eval"][-1]
    found = {name: line["eval/accuracy"] for name, line in accuracy.items()}
    assert found["with"] > found["without"] + 0.2
    assert found["without"] < 0.2
