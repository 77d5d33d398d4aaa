"""Times the ops on a GPU, beside PyTorch's where it is installed.

    python kernels/benchmarks/gpu.py                                  everything
    python kernels/benchmarks/gpu.py --ops mta,attention --times 2048,8192

A row of the table is an op, who does it, a length T, and forward or training (forward
and backward): milliseconds (the median of several), the rate and its share of the
card's peak, and the memory that the program takes. Rates count the products that plain
attention or the plain output layer would do, whoever does more; decoding counts the
bytes of the cache. On a CPU it runs too and says nothing about kernels.

Shapes: B batch, T time, N heads, H head size, M rows of hidden states, D width, V
vocabulary; A query taps, C key taps.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch wants some
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax
import jax.numpy as jnp

from jaxloop_kernels.attention import attention
from jaxloop_kernels.lm_head import lm_head
from jaxloop_kernels.multi_token_attention import identity, multi_token_attention
from jaxloop_kernels.paged_attention import paged_attention

PEAKS = {
    "H100": (989e12, 3.35e12),
    "H200": (989e12, 4.8e12),
    "B200": (2250e12, 8.0e12),
    "A100": (312e12, 2.04e12),
    "L40S": (362e12, 0.864e12),
    "4090": (165e12, 1.01e12),
}
"""Dense bfloat16 FLOP/s and bytes/s of cards, by their makers."""


class Sizes(NamedTuple):
    times: tuple[int, ...] = (2048, 8192, 32768)
    heads: int = 16
    head_size: int = 128
    width: int = 2048
    vocab: int = 151_936
    batch: int = 64
    """Rows that are decoded at once."""
    page: int = 64
    repeats: int = 10


TINY = Sizes((32,), 2, 16, 16, 64, batch=2, page=8, repeats=1)
"""For a test."""


class Case(NamedTuple):
    op: str
    who: str
    T: int
    kind: str
    """forward, train or decode."""
    build: Callable[[], "Program"]
    work: float
    """FLOP, or bytes of decoding."""


class Program(NamedTuple):
    run: Callable[[], Any]
    """Returns when it is done."""
    memory: Callable[[], int]
    """Bytes, once it has run."""


class Row(NamedTuple):
    case: Case
    ms: float | None
    memory: int
    why: str = ""
    """It did not run."""


def jax_program(fn: Callable, shapes: tuple) -> Program:
    """shapes: trees of ShapeDtypeStruct; floats are drawn, integers are themselves."""
    compiled = jax.jit(fn).lower(*shapes).compile()
    leaves, tree = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    args = [
        jax.random.normal(key, x.shape, x.dtype)
        if jnp.issubdtype(x.dtype, jnp.floating)
        else jnp.zeros(x.shape, x.dtype)
        for key, x in zip(keys, leaves, strict=True)
    ]
    args = jax.tree.unflatten(tree, args)
    plan = compiled.memory_analysis()
    assert plan is not None
    memory = plan.argument_size_in_bytes + plan.output_size_in_bytes
    return Program(
        lambda: jax.block_until_ready(compiled(*args)),
        lambda: memory + plan.temp_size_in_bytes,
    )


def trained(fn: Callable) -> Callable:
    """Gradients in all arguments."""

    def total(args):
        return fn(*args).astype(jnp.float32).sum()

    return lambda *args: jax.grad(total, allow_int=True)(args)


def attention_cases(sizes: Sizes) -> Iterator[Case]:
    N, H = sizes.heads, sizes.head_size
    for T in sizes.times:
        x = jax.ShapeDtypeStruct((1, T, N, H), jnp.bfloat16)
        ours = {
            f"ours, {name}": partial(attention, implementation=name)
            for name in ("xla", "cudnn")
        }
        plain = partial(
            jax.nn.dot_product_attention, is_causal=True, implementation="cudnn"
        )
        for who, fn in (ours | {"jax, cudnn": plain}).items():
            yield from both("attention", who, T, fn, (x, x, x), 2 * N * T * T * H, 3.5)
        yield from torch_cases("attention", "PyTorch, sdpa", T, sizes, torch_sdpa)


def mta_cases(sizes: Sizes) -> Iterator[Case]:
    N, H = sizes.heads, sizes.head_size
    stacks = {
        "mta, before": ({"pre": (6, 11)}, ("reference", "xla", "pallas_gpu")),
        "mta, full": (
            {"pre": (6, 11), "post": (6, 11), "pre_group": N, "post_group": N},
            ("reference", "xla"),
        ),
    }
    for T in sizes.times:
        x = jax.ShapeDtypeStruct((1, T, N, H), jnp.bfloat16)
        for op, (parts, names) in stacks.items():
            mta = jax.eval_shape(partial(identity, N, H, **({"post": None} | parts)))
            for who in names:
                fn = partial(multi_token_attention, implementation=who)
                work = 2 * N * T * T * H
                yield from both(op, f"ours, {who}", T, fn, (x, x, x, mta), work, 3.5)
        yield from torch_cases("mta, full", "PyTorch, dense", T, sizes, torch_mta)


def lm_head_cases(sizes: Sizes) -> Iterator[Case]:
    D, V = sizes.width, sizes.vocab
    for T in sizes.times:
        shapes = (
            jax.ShapeDtypeStruct((1, T, D), jnp.bfloat16),
            jax.ShapeDtypeStruct((V, D), jnp.bfloat16),
            jax.ShapeDtypeStruct((1, T), jnp.int32),
        )

        def logp(*args):
            return lm_head(*args, implementation="xla").logp_BT

        yield from both("lm_head", "ours, xla", T, logp, shapes, 2 * T * D * V, 3)


def decode_cases(sizes: Sizes) -> Iterator[Case]:
    """A new token a row; rows have T tokens cached, in pages that all share one."""
    B, N, H, S = sizes.batch, sizes.heads, sizes.head_size, sizes.page
    K = max(1, N // 4)
    for T in sizes.times:
        pages = B * (T // S)
        pool = jax.ShapeDtypeStruct((pages, K, S, H), jnp.bfloat16)
        table = jnp.arange(pages, dtype=jnp.int32).reshape(B, T // S)

        def step(q, k_pages, v_pages, table=table, T=T):
            length_B = jnp.full(table.shape[:1], T, jnp.int32)
            return paged_attention(
                q, k_pages, v_pages, table, length_B, implementation="xla"
            )

        q = jax.ShapeDtypeStruct((B, 1, N, H), jnp.bfloat16)
        build = partial(jax_program, step, (q, pool, pool))
        work = 2 * 2 * B * T * K * H
        yield Case("decode", "ours, xla", T, "decode", build, work)


def both(op, who, T, fn, shapes, flops: float, train: float) -> Iterator[Case]:
    """Forward, and training of `train` times its FLOP."""
    yield Case(op, who, T, "forward", partial(jax_program, fn, shapes), flops)
    build = partial(jax_program, trained(fn), shapes)
    yield Case(op, who, T, "train", build, train * flops)


def torch_cases(op, who, T, sizes: Sizes, fn) -> Iterator[Case]:
    work = 2 * sizes.heads * T * T * sizes.head_size
    for kind, more in (("forward", 1.0), ("train", 3.5)):
        build = partial(torch_program, fn, T, sizes, kind == "train")
        yield Case(op, who, T, kind, build, more * work)


def torch_program(fn, T: int, sizes: Sizes, train: bool) -> Program:
    import torch  # pyright: ignore[reportMissingImports]

    device = "cuda" if torch.cuda.is_available() else "cpu"
    how = {"device": device, "dtype": torch.bfloat16, "requires_grad": train}
    N = sizes.heads
    q, k, v = (torch.randn(1, N, T, sizes.head_size, **how) for _ in range(3))
    kernel = torch.randn(N, 6, 11, **how)
    mix = torch.randn(N, N, **how)

    def run():
        out = fn(q, k, v, kernel, mix, kernel, mix)
        if train:
            leaves = [x for x in (q, k, v, kernel, mix) if x.requires_grad]
            torch.autograd.grad(out.float().sum(), leaves, allow_unused=True)
        if device == "cuda":
            torch.cuda.synchronize()

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return Program(run, torch.cuda.max_memory_allocated)
    return Program(run, lambda: 0)


def torch_sdpa(q, k, v, *_):
    from torch.nn.functional import (  # pyright: ignore[reportMissingImports]
        scaled_dot_product_attention,
    )

    return scaled_dot_product_attention(q, k, v, is_causal=True)


def torch_mta(q, k, v, pre, pre_mix, post, post_mix):
    """Steps 1 to 8 of arXiv 2504.00927 with all scores in memory; (B, N, T, H).

    pre, post: (N, A, C). pre_mix: (N, N) [out, in]; post_mix: [in, out].
    """
    import torch  # pyright: ignore[reportMissingImports]
    from torch.nn import functional  # pyright: ignore[reportMissingImports]

    def convolve(x, kernel):
        N, A, C = kernel.shape
        x = functional.pad(x, (C // 2, C // 2, A - 1, 0))
        return functional.conv2d(x, kernel[:, None], groups=N)

    T = q.shape[2]
    hidden = torch.ones(T, T, dtype=torch.bool, device=q.device).triu(1)
    score = q @ k.mT * q.shape[-1] ** -0.5
    score = convolve(score.masked_fill(hidden, 0.0), pre)
    score = torch.einsum("gh,bhij->bgij", pre_mix, score)
    score = score.float().masked_fill(hidden, float("-inf"))
    prob = convolve(score.softmax(dim=-1).to(q.dtype), post).masked_fill(hidden, 0.0)
    return torch.einsum("bgij,gm->bmij", prob, post_mix) @ v


OPS = {
    "attention": attention_cases,
    "mta": mta_cases,
    "lm_head": lm_head_cases,
    "decode": decode_cases,
}


def measure(case: Case, repeats: int) -> Row:
    try:
        program = case.build()
        program.run()
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            program.run()
            times.append(time.perf_counter() - start)
    except ModuleNotFoundError as error:
        return Row(case, None, 0, f"{error.name} is not installed")
    except Exception as error:  # out of memory, or not on this device: into the table
        lines = str(error).strip().splitlines() or [""]
        return Row(case, None, 0, f"{type(error).__name__}: {lines[0][:90]}")
    return Row(case, 1e3 * statistics.median(times), program.memory())


def line(row: Row, peak: tuple[float, float] | None) -> str:
    case = row.case
    start = f"{case.op:<12}{case.who:<18}{case.T:>6} {case.kind:<8}"
    if row.ms is None:
        return f"{start}{row.why}"
    decodes = case.kind == "decode"
    rate = case.work / row.ms * 1e3
    unit = f"{rate / 1e9:>8.0f} GB/s  " if decodes else f"{rate / 1e12:>8.2f} TFLOP/s"
    share = f"{rate / peak[decodes]:>6.1%}" if peak else "      "
    return f"{start}{row.ms:>10.2f} ms{unit} {share}{row.memory / 2**30:>9.2f} GiB"


def main(argv: list[str] | None = None, sizes: Sizes | None = None) -> list[Row]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ops", default=",".join(OPS), help="of attention, mta, ...")
    parser.add_argument("--times", default="", help="lengths, e.g. 2048,8192")
    args = parser.parse_args(argv)
    sizes = sizes or Sizes()
    if args.times:
        sizes = sizes._replace(times=tuple(map(int, args.times.split(","))))
    card = jax.devices()[0].device_kind
    peak = next((PEAKS[name] for name in PEAKS if name in card), None)
    print(f"{card}, jax {jax.__version__}")
    rows = []
    for op in args.ops.split(","):
        for case in OPS[op](sizes):
            rows.append(measure(case, sizes.repeats))
            print(line(rows[-1], peak), flush=True)
    return rows


if __name__ == "__main__":
    main()
