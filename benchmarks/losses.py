"""What each objective costs beside plain supervised training on the same tokens.

    python benchmarks/losses.py [--only sigmoid,grpo,...]

For every objective of `configs/objectives.py`: seconds a train step, the bytes that the
compiled step holds beyond its arguments, and what the compiler counts of operations and
of bytes read and written (the body of a loop once), all as ratios to those of
supervised training (`nll`) on the same rows. Steps of the two take turns, and the
median of the ratios counts, so that other work on the machine touches both alike; the
counts it does not touch at all. Forward passes that an objective needs besides (a
reference, old values, a teacher) happen outside of the step and are listed by name;
`forward` says what one costs. The logits of the whole batch would take `logits`.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"

import sys

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `configs`

from configs import objectives as named
from jaxloop.loop.workbench import new_params
from jaxloop.losses.objective import memory_of
from jaxloop.mesh import MeshShape, make_mesh
from jaxloop.models.decoder import Decoder, ModelShape
from jaxloop.training.batches import micro_batches
from jaxloop.training.optimizer import Optimizer
from jaxloop.training.step import (
    fresh_state,
    make_scorer,
    make_train_step,
    state_shardings,
)

ROWS, PROMPT, COMPLETION, CHOICES = 8, 128, 128, 16
SHAPE = ModelShape(
    vocab=32_000, width=256, ffn=704, layers=4, heads=4, kv_heads=2, head_dim=64
)
RUNS = 5


def batch() -> dict[str, np.ndarray]:
    """Everything that some objective asks for; the rest is left out by the compiler."""
    rng = np.random.default_rng(0)
    B, C, T = ROWS, COMPLETION, PROMPT + COMPLETION

    def normal(*size):
        return rng.normal(size=size).astype(np.float32)

    logp_BC = -np.abs(normal(B, C))
    positions_BT = np.broadcast_to(np.arange(T, dtype=np.int32), (B, T))
    ids_BCK = np.stack([rng.permutation(SHAPE.vocab)[:CHOICES] for _ in range(B * C)])
    made = {
        "tokens_BT": rng.integers(0, SHAPE.vocab, (B, T)).astype(np.int32),
        "positions_BT": positions_BT,
        "segments_BT": np.ones((B, T), np.int32),
        "mask_BC": np.ones((B, C), np.float32),
        "valid_B": np.ones(B, np.float32),
        "weight_B": np.ones(B, np.float32),
        "target_B": np.repeat(np.array([1, 0.6, 0, 0.8], np.float32), 2),
        "margin_B": np.ones(B, np.float32),
        "label_B": np.repeat(np.array([1, 0, 1, 0], np.float32), 2),
        "edited_BC": (normal(B, C) > 1).astype(np.float32),
        "step_BC": (normal(B, C) > 0).astype(np.float32),
        "reward_B": np.tile(np.array([1, 0], np.float32), B // 2),
        "group_B": np.repeat(np.arange(2, dtype=np.int32), B // 2),
        "advantage_B": np.tile(np.array([1, -1], np.float32), B // 2),
        "truncated_B": np.zeros(B, np.float32),
        "token_reward_BC": normal(B, C),
        "value_BC": normal(B, C),
        "return_BC": normal(B, C),
        "teacher_ids_BCK": ids_BCK.reshape(B, C, CHOICES).astype(np.int32),
        "teacher_logp_BCK": np.full((B, C, CHOICES), -4.0, np.float32),
    }
    for name in ("reference", "previous", "old", "sampler", "drawn"):
        made[f"{name}_logp_BC"] = logp_BC
    return made


class Bench:
    """The model, its batch, and what supervised training costs on it."""

    def __init__(self):
        self.mesh = make_mesh(MeshShape(1, 1, 1), jax.devices()[:1])
        self.batch = batch()

    def model(self, outputs: int) -> Decoder:
        return Decoder(replace(SHAPE, outputs=outputs), jnp.dtype("float32"))

    def step(self, objective) -> "Step":
        """One compiled train step."""
        model = self.model(1 if "head" in objective.needs else 0)
        optimizer, memory = Optimizer(learning_rate=1e-6), memory_of(objective)
        shardings = state_shardings(model, optimizer, self.mesh, memory)
        given = dict(self.batch)
        if "teacher" not in objective.needs:
            del given["teacher_ids_BCK"], given["teacher_logp_BCK"]
        train = make_train_step(model, objective, optimizer, self.mesh, start=PROMPT)
        with jax.set_mesh(self.mesh):
            params = new_params(model, self.mesh, 0, "float32")
            state = fresh_state(params, optimizer, shardings, memory)
            parts = micro_batches(given, 1)
            compiled = train.lower(state, parts, np.float32(1e-6)).compile()
        return Step(compiled, state, parts)

    def forward(self) -> Callable:
        """A pass that only reads log-probabilities."""
        model = self.model(0)
        score = make_scorer(model, self.mesh, start=PROMPT)
        names = ("tokens_BT", "positions_BT", "segments_BT")
        with jax.set_mesh(self.mesh):
            params = new_params(model, self.mesh, 0, "float32")
            return partial(score, params, {name: self.batch[name] for name in names})


class Step:
    """A compiled step with its state; a call makes the next update."""

    def __init__(self, compiled, state, parts):
        self.compiled, self.state, self.parts = compiled, state, parts
        self.bytes = compiled.memory_analysis().temp_size_in_bytes
        cost = compiled.cost_analysis()
        self.flops, self.traffic = cost["flops"], cost["bytes accessed"]

    def __call__(self):
        self.state, figures = self.compiled(self.state, self.parts, np.float32(1e-6))
        return self.state, figures


def seconds(call: Callable) -> float:
    began = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - began


def ratio(one: Callable, other: Callable) -> float:
    """Median of the times of `one` over those of `other`, taken in turns."""
    ratios = [seconds(one) / seconds(other) for _ in range(RUNS + 1)]
    return statistics.median(ratios[1:])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(named.NAMES), help="names, by comma")
    names = parser.parse_args().only.split(",")
    unknown = sorted(set(names) - set(named.NAMES))
    if unknown:
        parser.error(f"no objectives {unknown}; there are {', '.join(named.NAMES)}")
    bench = Bench()
    base = bench.step(named.IMITATION["nll"])
    logits = ROWS * COMPLETION * SHAPE.vocab * 4
    with jax.set_mesh(bench.mesh):
        passes = ratio(bench.forward(), base)
        step_s = statistics.median(seconds(base) for _ in range(RUNS))
    print(f"nll: {step_s:.3f} s a step, {base.bytes / 1e6:.0f} MB")
    print(f"forward: {passes:.2f} of it; logits: {logits / 1e6:.0f} MB")
    print("\n| objective | time | memory | operations | traffic | besides |")
    print("|---|---|---|---|---|---|")
    for name in names:
        objective = named.recipe(name).objective
        step = bench.step(objective)
        with jax.set_mesh(bench.mesh):
            time_ratio = ratio(step, base)
        besides = ", ".join(sorted(objective.needs - {"advantage"})) or "-"
        counts = step.bytes / base.bytes, step.flops / base.flops
        ratios = (time_ratio, *counts, step.traffic / base.traffic)
        shown = " | ".join(f"{x:.2f}x" for x in ratios)
        print(f"| {name} | {shown} | {besides} |", flush=True)


if __name__ == "__main__":
    main()
