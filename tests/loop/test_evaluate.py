"""`evaluate`: what training would need is not asked for."""

import json
import os
import signal
from dataclasses import replace

from jaxloop.cli.main import main
from jaxloop.exit_codes import PREEMPTED
from jaxloop.loop import run
from jaxloop.loop.run import evaluate
from jaxloop.mesh import MeshShape
from jaxloop.prompts.dataset import JsonlData
from tests.distributed import small
from tests.loop import tiny_config


def test_an_evaluation_needs_the_held_out_prompts_only(tmp_path):
    rows = [{"prompt": f"{a}+{a}=", "answer": str(2 * a)} for a in range(10, 14)]
    path = tmp_path / "test.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = replace(
        tiny_config.config("dpo", str(tmp_path / "out"), mesh=MeshShape(8, 1, 1)),
        data=JsonlData(test=str(path)),
    )
    assert any("data.train" in problem for problem in config.validate())
    metrics = evaluate(config)
    assert 0 <= metrics["eval/accuracy"] <= 1
    (records,) = (tmp_path / "out-eval").glob("records/eval/*.jsonl")
    assert len(records.read_text().splitlines()) == len(rows)


def test_sigterm_ends_it_with_the_code_of_a_preemption(tmp_path, monkeypatch, capfd):
    look = run.look

    def terminated(*arguments, **named):
        os.kill(os.getpid(), signal.SIGTERM)
        return look(*arguments, **named)

    monkeypatch.setattr(run, "look", terminated)
    words = ["eval", f"{small.__file__}:dpo", f"out={tmp_path / 'out'}"]
    assert main(words) == PREEMPTED
    assert "Traceback" not in capfd.readouterr().err
