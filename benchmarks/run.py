"""Sampling, a DPO step and a GRPO step of a 39M-parameter model on this machine's CPU.

    python benchmarks/run.py [--peer trl] [--peer tunix] [--only sampling,dpo,grpo]

Prints tokens/s and seconds a step, without compilation (median of three), beside what
this machine's own matrix product would allow. `--peer` runs the same shapes in the
peer's own environment right after (made at the first call) and prints the ratios.
"""

import argparse
import json
import os
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version

import peers
import workload as w


@dataclass(frozen=True)
class NoText:
    """A tokenizer for ids that mean nothing: no text, no end of sequence."""

    size: int = w.VOCAB
    pad_id: int = 0
    eos_ids: tuple[int, ...] = ()
    bos_ids: tuple[int, ...] = ()

    def decode(self, ids) -> str:
        return ""


def matmul_rate() -> float:
    """float32 GFLOP/s of XLA's product of two square matrices on this machine."""
    import jax
    import jax.numpy as jnp

    n = 2048
    x_NN = jax.random.normal(jax.random.key(0), (n, n))
    product = jax.jit(jnp.matmul)
    times = w.seconds(lambda: product(x_NN, x_NN).block_until_ready())
    return 2 * n**3 / min(times) / 1e9


def build():
    """(model, its mesh, parameters, an engine)."""
    import jax
    import jax.numpy as jnp

    from jaxloop.loop.workbench import new_params
    from jaxloop.mesh import MeshShape, make_mesh
    from jaxloop.models.decoder import Decoder, ModelShape
    from jaxloop.sampling.engine import Engine

    shape = ModelShape(
        vocab=w.VOCAB,
        width=w.WIDTH,
        ffn=w.FFN,
        layers=w.LAYERS,
        heads=w.HEADS,
        kv_heads=w.KV_HEADS,
        head_dim=w.HEAD_DIM,
    )
    model = Decoder(shape, jnp.dtype("float32"))
    mesh = make_mesh(MeshShape(1, 1, 1), jax.devices()[:1])
    engine = Engine(model, NoText(), mesh)  # pyright: ignore[reportArgumentType]
    return model, mesh, new_params(model, mesh, 0, "float32"), engine


def prompts(count: int, length: int):
    from jaxloop.records import Prompt

    rows = w.token_ids(count, length, seed=0)
    return [Prompt(f"p{i}", "", tuple(ids)) for i, ids in enumerate(rows)]


def time_sampling() -> list[float]:
    """Seconds to sample the workload's tokens."""
    import jax

    from jaxloop.sampling.settings import Sampling

    _, mesh, params, engine = build()
    n = w.SAMPLE_PROMPTS
    settings = Sampling(
        n=1, max_new_tokens=w.SAMPLE_NEW_TOKENS, rows=n, prefill_rows=n, chunk=32
    )
    asked = prompts(n, w.SAMPLE_PROMPT_TOKENS)

    def once():
        # Weights that change every time, as in training: their copy is part of it.
        engine.release()
        with jax.set_mesh(mesh):
            done = engine.sample(params, asked, settings, key=jax.random.key(0))
        assert all(len(g[0].token_ids) == w.SAMPLE_NEW_TOKENS for g in done)

    return w.seconds(once)


class Trainer:
    """A train state and its step, as the loop uses them."""

    def __init__(self, objective, start: int):
        import jax

        from jaxloop.training.optimizer import Optimizer
        from jaxloop.training.step import (
            fresh_state,
            make_train_step,
            state_shardings,
        )

        self.model, self.mesh, params, self.engine = build()
        optimizer = Optimizer(learning_rate=1e-6)
        shardings = state_shardings(self.model, optimizer, self.mesh)
        self.reference = jax.tree.map(lambda x: x.copy(), params)
        self.state = fresh_state(params, optimizer, shardings)
        self.step = make_train_step(
            self.model, objective, optimizer, self.mesh, start=start
        )

    def update(self, batch) -> None:
        """One update, waited for."""
        import jax
        import numpy as np

        from jaxloop.training.batches import micro_batches

        with jax.set_mesh(self.mesh):
            batch = micro_batches(batch, 1)
            self.state, metrics = self.step(self.state, batch, np.float32(1e-6))
        jax.block_until_ready((self.state, metrics))


def time_dpo() -> list[float]:
    """Seconds a DPO step, the reference's pass and the optimiser included."""
    import jax
    import numpy as np

    from jaxloop.losses.objectives import Pairwise
    from jaxloop.records import Pair, Rollout
    from jaxloop.training.batches import Layout, example_batch, example_rows
    from jaxloop.training.step import make_scorer

    layout = Layout(w.DPO_PROMPT_TOKENS, w.DPO_COMPLETION_TOKENS)
    trainer = Trainer(Pairwise(beta=0.1), start=layout.start)
    score = make_scorer(trainer.model, trainer.mesh, start=layout.start)
    asked = prompts(w.DPO_PAIRS, w.DPO_PROMPT_TOKENS)
    answers = w.token_ids(2 * w.DPO_PAIRS, w.DPO_COMPLETION_TOKENS, seed=100)

    def rollout(prompt, index: int, ids: list[int]):
        return Rollout(prompt.id, index, tuple(ids), "", (), (), "length")

    pairs = [
        Pair(p, rollout(p, 0, answers[2 * i]), rollout(p, 1, answers[2 * i + 1]), 1, 0)
        for i, p in enumerate(asked)
    ]
    batch = example_batch(
        pairs, example_rows(pairs), layout, 0, w.DPO_PAIRS, {}, kind="pairs"
    )

    def once():
        with jax.set_mesh(trainer.mesh):
            logp_BC = np.asarray(score(trainer.reference, batch))
        trainer.update(batch | {"reference_logp_BC": logp_BC})

    return w.seconds(once)


def time_grpo() -> list[float]:
    """Seconds a GRPO step: sampling, advantages, one update."""
    import jax
    import numpy as np

    from jaxloop.losses.objectives import Policy
    from jaxloop.records import Group
    from jaxloop.sampling.settings import Sampling
    from jaxloop.selection import group_advantages
    from jaxloop.training.batches import Layout, group_batch

    layout = Layout(w.GRPO_PROMPT_TOKENS, w.GRPO_NEW_TOKENS)
    trainer = Trainer(Policy(), start=layout.start)
    rows = w.GRPO_PROMPTS * w.GRPO_SAMPLES
    settings = Sampling(
        n=w.GRPO_SAMPLES,
        max_new_tokens=w.GRPO_NEW_TOKENS,
        rows=rows,
        prefill_rows=w.GRPO_PROMPTS,
        chunk=32,
    )
    asked = prompts(w.GRPO_PROMPTS, w.GRPO_PROMPT_TOKENS)
    draw = np.random.default_rng(0)
    step = 0

    def once():
        nonlocal step
        step += 1
        with jax.set_mesh(trainer.mesh):
            sampled = trainer.engine.sample(
                trainer.state.params, asked, settings, key=jax.random.key(step)
            )
        rewards = draw.random((w.GRPO_PROMPTS, w.GRPO_SAMPLES))
        advantages = group_advantages(rewards)
        groups = [
            Group(prompt, rollouts, (), tuple(map(float, row)))
            for prompt, rollouts, row in zip(asked, sampled, advantages, strict=True)
        ]
        trainer.update(group_batch(groups, layout, 0, rows))

    return w.seconds(once)


TIMERS: dict[str, Callable[[], list[float]]] = {
    "sampling": time_sampling,
    "dpo": time_dpo,
    "grpo": time_grpo,
}


def limits(gflops: float) -> dict[str, float]:
    """What the matrix products alone would take at that rate: a bound, not a goal."""
    attention = w.WIDTH * w.HEAD_DIM * (2 * w.HEADS + 2 * w.KV_HEADS)
    body = w.LAYERS * (attention + 3 * w.WIDTH * w.FFN)
    head = w.VOCAB * w.WIDTH
    rate = gflops * 1e9
    new = w.SAMPLE_PROMPTS * w.SAMPLE_NEW_TOKENS
    sampling = 2 * (
        new * (body + head) + w.SAMPLE_PROMPTS * w.SAMPLE_PROMPT_TOKENS * body
    )
    rows = 2 * w.DPO_PAIRS
    length = w.DPO_PROMPT_TOKENS + w.DPO_COMPLETION_TOKENS
    once = 2 * rows * (length * body + w.DPO_COMPLETION_TOKENS * head)
    rows = w.GRPO_PROMPTS * w.GRPO_SAMPLES
    length = w.GRPO_PROMPT_TOKENS + w.GRPO_NEW_TOKENS
    update = 3 * 2 * rows * (length * body + w.GRPO_NEW_TOKENS * head)
    drawing = 2 * rows * w.GRPO_NEW_TOKENS * (body + head)
    return {
        "sampling_tokens_per_s": new / (sampling / rate),
        "dpo_step_s": 4 * once / rate,  # the reference's pass, forward, twice backward
        "grpo_step_s": (update + drawing) / rate,
    }


ROWS = {
    "sampling_tokens_per_s": ("sampling, tokens/s", False),
    "dpo_step_s": ("DPO step, s", True),
    "grpo_step_s": ("GRPO step, s", True),
}


def table(ours: dict, bound: dict, others: dict[str, dict]) -> str:
    """Markdown: ours, the bound, each peer and how many times faster we are."""
    names = list(others)
    lines = ["| | jaxloop | bound | " + " | ".join(f"{n} | ratio" for n in names)]
    lines[0] = lines[0].rstrip(" |") + " |"
    lines.append("|---" * (3 + 2 * len(names)) + "|")
    for key, (label, less_is_better) in ROWS.items():
        if ours[key] is None:
            continue
        cells = [label, f"{ours[key]:.4g}", f"{bound[key]:.4g}"]
        for name in names:
            theirs = others[name][key]
            ratio = theirs / ours[key] if less_is_better else ours[key] / theirs
            cells += [f"{theirs:.4g}", f"{ratio:.2f}x"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", action="append", default=[], choices=peers.PEERS)
    parser.add_argument("--only", default="sampling,dpo,grpo")
    options = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    w.use_two_cores()
    gflops = matmul_rate()
    print(f"matrix product: {gflops:.0f} GFLOP/s in float32", flush=True)
    times = {}
    for name in options.only.split(","):
        times[name] = TIMERS[name]()
        spread = ", ".join(f"{t:.2f}" for t in times[name])
        print(f"{name}: {spread} s", flush=True)
    median = statistics.median
    ours: dict[str, float | None] = dict.fromkeys(ROWS)
    if "sampling" in times:
        new = w.SAMPLE_PROMPTS * w.SAMPLE_NEW_TOKENS
        ours["sampling_tokens_per_s"] = new / median(times["sampling"])
    for name in ("dpo", "grpo"):
        if name in times:
            ours[f"{name}_step_s"] = median(times[name])
    others = {name: peers.measure(name) for name in options.peer}
    print(table(ours, limits(gflops), others))
    versions = {"jaxloop": {"jax": version("jax")}} | {
        name: result["versions"] for name, result in others.items()
    }
    print(json.dumps(versions))


if __name__ == "__main__":
    main()
