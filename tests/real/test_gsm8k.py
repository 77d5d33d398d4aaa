"""The whole line on GSM8K's own files, by the command line alone, to transformers.

A random two-layer Qwen2 (`make_model.py`) goes through supervised fine-tuning, two
rounds of IRPO and 20 steps of GRPO. Each stage starts from the Hugging Face directory
that `jaxloop convert` made of the one before, and the last is loaded in transformers.
It does not learn to solve GSM8K: the reward is mostly one of form (`form.py`). Some
four minutes on two cores.
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxloop.mesh import make_mesh
from jaxloop.models.decoder import Decoder, unembedding
from jaxloop.models.huggingface import load_params, read_shape
from jaxloop.records import Scored, from_json

pytestmark = [pytest.mark.full, pytest.mark.parity]

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data" / "gsm8k"
TEMPLATE = "{question}\n"
LENGTH = 64
PROMPTS = 64
COMMON = [
    f"data.train={DATA}/train.jsonl",
    f"data.test={DATA}/test.jsonl",
    f"data.template={TEMPLATE}",
    "model.dtype=float32",
    "model.remat=none",
    f"evaluation.prompts={PROMPTS}",
    f"evaluation.sampling.max_new_tokens={LENGTH}",
    "evaluation.sampling.rows=64",
]
SFT = [
    "sft.steps=200",
    "sft.batch_size=4",
    "sft.row_tokens=640",
    "sft.accumulation=1",
    "sft.optimizer.learning_rate=3e-3",
]
SAMPLING = [
    "data.max_prompt_tokens=128",
    "data.on_long=filter",
    "recipe.sampling.n=8",
    f"recipe.sampling.max_new_tokens={LENGTH}",
    "recipe.sampling.rows=64",
    "recipe.schedule.accumulation=1",
]
IRPO = [
    *SAMPLING,
    "recipe.schedule.rounds=2",
    "recipe.schedule.prompts=64",
    "recipe.schedule.batch_size=8",
    "recipe.selector.pairs=2",
    "recipe.optimizer.learning_rate=1e-4",
]
GRPO = [
    *SAMPLING,
    "recipe.schedule.steps=20",
    "recipe.schedule.prompts=16",
    "recipe.optimizer.learning_rate=5e-4",
]
STAGES = [
    ("sft", "configs/sft.py", SFT),
    ("irpo", "tests/real/form.py:irpo", IRPO),
    ("grpo", "tests/real/form.py:grpo", GRPO),
]


@dataclass
class Story:
    """What was run, in which folder, and how long each command took."""

    folder: Path
    seconds: dict[str, float] = field(default_factory=dict)

    def command(self, name: str, *words: str) -> str:
        """Standard output of `python WORDS` in one process with one device."""
        env = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")]),
            "XLA_FLAGS": "",
            "JAX_PLATFORMS": "cpu",
        }
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, *words], cwd=ROOT, env=env, capture_output=True, text=True
        )
        self.seconds[name] = round(time.perf_counter() - began, 1)
        print(f"== {name}, {self.seconds[name]} s\n{done.stdout}")
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def metrics(self, stage: str) -> list[dict]:
        lines = (self.folder / stage / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def values(self, stage: str, name: str) -> list[float]:
        return [line[name] for line in self.metrics(stage) if name in line]

    @property
    def result(self) -> Path:
        return self.folder / "grpo-hf"


@pytest.fixture(scope="module")
def story(tmp_path_factory) -> Story:
    for needed in ("torch", "transformers"):
        pytest.importorskip(needed, reason="parity tests need torch and transformers")
    if not (DATA / "train.jsonl").exists():
        pytest.skip("GSM8K's train.jsonl and test.jsonl are not there")
    told = Story(tmp_path_factory.mktemp("gsm8k"))
    model = told.folder / "random-hf"
    maker = "tests/real/make_model.py"
    told.command("make", maker, str(model), f"{DATA}/train.jsonl")
    for stage, config, settings in STAGES:
        out = told.folder / stage
        words = [config, f"model.path={model}", f"out={out}", *COMMON, *settings]
        told.command(stage, "-m", "jaxloop", "run", *words)
        model = told.folder / f"{stage}-hf"
        latest = str(out / "checkpoints" / "latest")
        told.command(f"convert {stage}", "-m", "jaxloop", "convert", latest, str(model))
    return told


@pytest.fixture(scope="module")
def greedy(story) -> tuple[dict, list[Scored]]:
    """What `jaxloop eval` prints of the result, and the greedy rollouts it keeps."""
    out = story.folder / "greedy"
    words = [f"model.path={story.result}", f"out={out}", *COMMON, *SAMPLING]
    config = "tests/real/form.py:grpo"
    printed = story.command("eval", "-m", "jaxloop", "eval", config, *words)
    (records,) = Path(f"{out}-eval").glob("records/eval/*.jsonl")
    lines = records.read_text(encoding="utf-8").splitlines()
    return json.loads(printed), [from_json(Scored, line) for line in lines]


@pytest.fixture(scope="module")
def theirs(story):
    """The result in transformers: (model, tokenizer)."""
    import transformers

    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        story.result, output_loading_info=True
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(story.result)
    return model.float().eval(), tokenizer


def test_each_stage_learns(story):
    losses = story.values("sft", "loss")
    assert np.mean(losses[-10:]) < losses[0] - 2.5
    scores = {stage: story.values(stage, "eval/accuracy") for stage, _, _ in STAGES}
    assert len(scores["irpo"]) == 3
    assert len(scores["grpo"]) == 2
    # The same weights, by way of a Hugging Face directory.
    assert scores["irpo"][-1] == pytest.approx(scores["grpo"][0], abs=0.02)
    assert min(story.values("irpo", "pairs/count")) >= 16
    rewards = story.values("grpo", "reward")
    assert len(rewards) == 20
    assert np.mean(rewards[-5:]) > np.mean(rewards[:5]) + 0.05
    print(story.seconds, scores, rewards, sep="\n")


def test_sampler_and_trainer_agree(story):
    """Up to the rounding of float32: by it alone transformers' own log-probabilities of
    the result are up to 1.7e-5 from those that it computes in float64."""
    gap = "sampling/sampling_logp_difference"
    for stage, count in (("irpo", 2), ("grpo", 20)):
        assert len(story.values(stage, f"{gap}/max")) == count
        assert max(story.values(stage, f"{gap}/max")) <= 3e-5
        assert max(story.values(stage, f"{gap}/mean")) <= 1e-6


def test_transformers_computes_the_same_logits(story, theirs, greedy):
    import torch

    model, tokenizer = theirs
    lines = (DATA / "test.jsonl").read_text(encoding="utf-8").splitlines()[:8]
    rows = [json.loads(line) for line in lines]
    texts = [
        tokenizer(TEMPLATE.format(**row) + row["answer"])["input_ids"] for row in rows
    ]
    texts += [s.prompt.token_ids + s.rollouts[0].token_ids for s in greedy[1][:8]]
    length = min(map(len, texts))
    tokens_BT = np.array([ids[:length] for ids in texts])
    with torch.no_grad():
        expected = model(torch.tensor(tokens_BT)).logits.numpy()
    actual = our_logits(story.result, tokens_BT)
    apart = np.abs(actual - expected).max()
    print(f"logits {expected.shape}, largest difference {apart:.2e}")
    assert apart <= 1e-4


def our_logits(directory: Path, tokens_BT: np.ndarray) -> np.ndarray:
    """(B, T, V) float32."""
    shape, mesh = read_shape(directory), make_mesh(devices=jax.devices()[:1])
    params = load_params(directory, shape, mesh)
    positions_BT = np.broadcast_to(np.arange(tokens_BT.shape[1]), tokens_BT.shape)
    with jax.set_mesh(mesh):
        hidden_BTD, _ = Decoder(shape).apply(
            {"params": params}, jnp.asarray(tokens_BT), jnp.asarray(positions_BT)
        )
        return np.asarray(hidden_BTD @ unembedding(params).T)


def test_transformers_continues_with_the_same_tokens(theirs, greedy):
    """All held-out prompts, unless two logits are too close for a choice."""
    import torch

    model, _ = theirs
    metrics, scored = greedy
    values = [row.scores[0].value for row in scored]
    assert metrics["eval/accuracy"] == pytest.approx(np.mean(values))
    assert len(scored) == PROMPTS
    for row in scored:
        prompt, ours = list(row.prompt.token_ids), list(row.rollouts[0].token_ids)
        with torch.no_grad():
            logits_TV = model(torch.tensor([prompt + ours])).logits[0]
        # Greedy up to t and the same choice at t, for each t: greedy as a whole. The
        # embedding has more rows than the tokenizer has tokens; we never draw those.
        logits_TV = logits_TV[len(prompt) - 1 : -1, : model.config.vocab_size]
        best = logits_TV.max(dim=-1).values
        chosen = logits_TV[torch.arange(len(ours)), torch.tensor(ours)]
        assert float((best - chosen).max()) <= 1e-4
        assert len(ours) == LENGTH or ours[-1] == model.config.eos_token_id


def test_generate_and_the_sample_command_write_the_same(story, theirs, greedy):
    import torch

    model, tokenizer = theirs
    row = greedy[1][0]
    printed = story.command(
        "sample",
        *("-m", "jaxloop", "sample", str(story.result), row.prompt.text),
        *("temperature=0", f"max_new_tokens={LENGTH}"),
    )
    prompt = torch.tensor([row.prompt.token_ids])
    made = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=LENGTH,
        do_sample=False,
    )[0, prompt.shape[1] :]
    assert tuple(made.tolist()) == row.rollouts[0].token_ids
    assert printed == tokenizer.decode(made, skip_special_tokens=True) + "\n"


def test_each_stage_leaves_a_report(story):
    for stage, _, _ in STAGES:
        page = (story.folder / stage / "report.html").read_text(encoding="utf-8")
        assert "Finished" in page
        assert str(story.folder / stage) in page
