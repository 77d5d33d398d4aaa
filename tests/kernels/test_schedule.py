"""The reader of the TPU compiler's schedule.

Its parts against what is known: a schedule written by hand, kernels whose shares follow
from their masks, and programs whose matrix products can be counted.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tpu_entries
import tpu_schedule
import tpu_targets
from jax.experimental import pallas as pl
from jax.experimental.compilation_cache import compilation_cache
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel,
    splash_attention_mask,
)

from jaxloop_kernels.schedule import Cost, Kernel, UnknownCount, measure
from jaxloop_kernels.schedule.bundles import Loop, Span, parse
from jaxloop_kernels.schedule.cost import counted, weigh
from jaxloop_kernels.schedule.steps import Call, pallas_calls

# A grid of 6 steps (8 trips); before its step the pipeline copies a block; the step
# holds a part of 3 bundles, one of 13, which are two loops of 5 and 7 trips (by twos to
# 13) without a gap between them, and a copy of the pipeline's own.
SCHEDULE = """\
     0   :  { %s1 = smov.u32 0 }
   0x1 LB: > { %8 = sbr.rel (%p0) target = $region5 } /* Start region 40 */
   0x2   : > { %v0 = vld  ;;  %7 = vst }
   0x3 PF: > { %9 = sbr.rel (%p1) target = $region30  ;;  %s1 = sadd.s32 1, %s0
a second line of this bundle } /* Start/End empty region 5 */
   0x4   : > { %10 = sbr.rel (%p2) target = $region10 }
   0x5   : > { %v1 = vmul }
   0x6   :  {}
   0x7   : > { %v1 = vmul }
   0x8 PF: > { %11 = sbr.rel (%p3) target = $region20 } /* Start/End empty region 10 */
   0x9   : > { %v1 = vadd }
   0xa LB: >> { %v2 = vadd  ;;  %s9 = sadd.s32 1, %s99 ;;  %p9 = scmp.ge.s32.totalorder %s9, 5 /* loop exit test */ } /* Start region 50 :: Start region 51 */
   0xb   : >> { %12 = sbr.rel (!%p9) target = $region50 }
   0xc   : >> { %v2 = vadd }
   0xd   :  {}
   0xe   :  {}
   0xf   : >> { %s3 = nop } /* End region 50 :: End region 51 */
  0x10 LB: >> { %s8 = sadd.s32 2, %s98 ;;  %p8 = scmp.ge.s32.totalorder %s8, 13 /* phi :: loop exit test */ } /* Start region 60 */
  0x11   : > { %13 = sbr.rel (!%p8) target = $region60 }
  0x12   : >> { %v2 = vadd }
  0x13   :  {}
  0x14   :  {}
  0x15   :  {} /* End region 60 */
  0x16 PF: > { %14 = sbr.rel (%p4) target = $region25 } /* Start/End empty region 20 */
  0x17   : > { %v3 = vld  ;;  %15 = vst }
  0x18 PF: > { %s2 = nop } /* Start/End empty region 25 :: Start region 27 */
  0x19 PF: > { %p7 = scmp.ge.s32.totalorder %s1, 8 /* loop exit test */ } /* Start/End empty region 30 */
  0x1a   : > { %16 = sbr.rel (!%p7) target = $region40 }
  0x1b   :  {}
  0x1c   :  {}
  0x1d   :  {}
  0x1e   :  {}
  0x1f   :  { %s3 = sfence }
"""  # noqa: E501
NAMES = "MATMUL, MATPUSH, XLU, VALU, VPOP, EUP, VLOAD, VLOAD:FILL, VSTORE, VSTORE:SPILL"
VALU = {5: 4, 7: 4, 9: 2, 10: 4, 12: 1, 18: 3}


def usage(trailing=0):
    rows = np.zeros((32 + trailing, 10), int)
    rows[list(VALU), 3] = list(VALU.values())
    rows[[2, 23], 6] = rows[[2, 23], 8] = 1
    text = "\n".join(" ".join(map(str, row)) for row in rows)
    return f"== CAPACTIY:\n{NAMES}\n2 2 2 4 2 1 3 3 2 2\n== UTILIZATION:\n{text}"


def test_a_schedule_written_by_hand():
    memory = "space=vmem, size = 0x400, space=vmem, size = 0x10"
    program = parse("k", SCHEDULE, usage(), memory)
    assert (program.bundles, program.vmem) == (32, 1040)
    assert program.loops == (
        Loop(Span(1, 31), 1, 8),
        Loop(Span(10, 16), 2, 5),
        Loop(Span(16, 22), 2, 7),
    )
    copy, step, *inside = program.regions
    assert (copy, step) == (Span(2, 3), Span(4, 25))
    assert inside == [Span(5, 8), Span(9, 22), Span(23, 24)]
    kernel = weigh(program, Call("k", (2, 3), (0.5, 0.25)))
    # Outside 2, the loop 8 trips of 9 bundles; its step 6 times: two parts, a copy and
    # four bundles around them.
    parts = 6 * 0.5 * 3 + 6 * 0.25 * (1 + 5 * 6 + 7 * 6)
    assert kernel.cycles == pytest.approx(2 + 8 * 9 + parts + 6 * (1 + 4))
    assert [part.share for part in kernel.parts] == [0.5, 0.25]
    # Of four conditions two are branches yet: counted at the dearest.
    more = weigh(program, Call("k", (2, 3), (0.5, 0.01, 0.25, 0.02)))
    assert [part.share for part in more.parts] == [0.5, 0.25, 0.02]
    issued = 6 * 0.5 * 8 + 6 * 0.25 * (2 + 5 * (4 + 1) + 7 * 3)
    assert kernel.slots["VALU"] == pytest.approx(issued / 4 / kernel.cycles)


def test_what_is_not_known_is_an_error():
    program = parse("k", SCHEDULE, usage())
    call = Call("k", (2, 3), (0.5, 0.25))
    for shares in [(0.5,), (0.5, None), (0.5, 0.25, None, 1.0)]:
        with pytest.raises(UnknownCount, match="share of steps"):
            weigh(program, call._replace(shares=shares))
    with pytest.raises(UnknownCount, match="no loop has the 15 steps"):
        weigh(program, Call("k", (5, 3), (0.5, 0.25)))
    traced = parse("k", SCHEDULE.replace("%s9, 5 /*", "%s9, %s8 /*"), usage())
    with pytest.raises(UnknownCount, match="loop at bundles 10"):
        weigh(traced, call)
    assert weigh(counted(traced, (5,)), call) == weigh(program, call)
    with pytest.raises(ValueError, match="32 bundles"):
        parse("k", SCHEDULE, usage(trailing=1))
    with pytest.raises(ValueError, match="loops begin at"):
        parse("k", SCHEDULE.replace("$region60", "$region61"), usage())


MASKS = {
    "causal": lambda T: splash_attention_mask.CausalMask((T, T)),
    "window": lambda T: splash_attention_mask.LocalMask((T, T), (199, 0), 0),
    "full": lambda T: splash_attention_mask.FullMask((T, T)),
}


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize(("block_q", "block_k"), [(128, 128), (128, 256)])
def test_shares_are_those_of_the_mask(name, block_q, block_k):
    """Of splash: the blocks that run are those with an entry that is visible."""
    T, N = 768, 2
    mask = MASKS[name](T)
    sizes = splash_attention_kernel.BlockSizes(block_q=block_q, block_kv=block_k)
    kernel = splash_attention_kernel.make_splash_mha(
        splash_attention_mask.MultiHeadMask([mask] * N),
        head_shards=1,
        q_seq_shards=1,
        block_sizes=sizes,
    )
    q = jax.ShapeDtypeStruct((3, N, T, 64), jnp.bfloat16)
    (call,) = pallas_calls(jax.vmap(kernel), q, q, q)
    blocks = mask[:, :].reshape(T // block_q, block_q, T // block_k, block_k)
    steps = int(np.prod(call.grid)) / (3 * N)
    runs = blocks.any(axis=(1, 3)).sum()
    first, body, last = call.shares
    assert body == pytest.approx(runs / steps)
    assert first == last == pytest.approx(T // block_q / steps)


def triangle(i, j, table):
    """A kernel over pairs of blocks, of which it does those that the table names."""

    def kernel(table_ref, x_ref, o_ref):
        row, column = pl.program_id(0), pl.program_id(1)

        @pl.when(column == 0)
        def _():
            o_ref[...] = jnp.ones_like(o_ref)

        @pl.when((table_ref[row] > column) & (row + column < 5))
        def _():
            o_ref[...] = o_ref[...] @ x_ref[...] + 1.0

            @pl.when(column % 2 == 1)
            def _():
                o_ref[...] = jnp.exp(o_ref[...] @ x_ref[...])

    def run(x, steps=table):
        grid = pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(i, j),
            in_specs=[pl.BlockSpec((256, 256), lambda i, j, _: (j, 0))],
            out_specs=pl.BlockSpec((256, 256), lambda i, j, _: (i, 0)),
        )
        out = jax.ShapeDtypeStruct((256 * i, 256), jnp.float32)
        call = pl.pallas_call(kernel, grid_spec=grid, out_shape=out, name="tri")
        return call(steps, x)

    return run


X = jax.ShapeDtypeStruct((1024, 256), jnp.float32)


def test_shares_of_tables_and_of_parts_inside_parts():
    table = np.array([1, 4, 2])
    (call,) = pallas_calls(triangle(3, 4, jnp.asarray(table)), X)
    runs = [(i, j) for i, j in np.ndindex(3, 4) if table[i] > j and i + j < 5]
    inner = [(i, j) for i, j in runs if j % 2]
    assert call == Call("tri", (3, 4), (3 / 12, len(runs) / 12, len(inner) / 12))
    # A table that comes as an argument is not known.
    ids = jax.ShapeDtypeStruct((3,), jnp.int32)
    (call,) = pallas_calls(triangle(3, 4, None), X, ids)
    assert call.shares == (3 / 12, None, None)


def test_a_kernel_without_a_name_has_that_of_its_function():
    """As in libtpu's dump."""

    def copy(x_ref, o_ref):
        o_ref[...] = x_ref[...]

    @jax.jit
    def mine(x):
        return pl.pallas_call(copy, out_shape=x, grid=(1,))(x)

    (call,) = pallas_calls(lambda x: mine(x) + 1, X)
    assert call.name == "mine"


def test_loops_whose_count_is_given(libtpu):
    """Twice the trips, twice the products."""

    def kernel(count_ref, x_ref, o_ref):
        def step(_, x):
            return jnp.dot(x, x_ref[...])

        o_ref[...] = jax.lax.fori_loop(0, count_ref[0], step, x_ref[...])

    def run(count, x):
        return pl.pallas_call(
            kernel,
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=1,
                grid=(1,),
                in_specs=[pl.BlockSpec((256, 256), lambda i, _: (0, 0))],
                out_specs=pl.BlockSpec((256, 256), lambda i, _: (0, 0)),
            ),
            out_shape=x,
            name="counted",
        )(count, x)

    args = jax.ShapeDtypeStruct((1,), jnp.int32), jax.ShapeDtypeStruct((256, 256), "f4")
    with pytest.raises(UnknownCount, match="trip count"):
        measure("v6e", lambda *x: run(*x), *args)
    shares = {"counted": (1.0,)}
    # A function each: one is compiled, and its schedule written, only once.

    def kernel_of(trips):
        found = measure("v6e", lambda *x: run(*x), *args, shares=shares, trips=(trips,))
        return found.kernels[-1]

    five, ten = kernel_of(5), kernel_of(10)
    products = [k.slots["MATMUL"] * k.cycles for k in (five, ten)]
    assert products[1] == pytest.approx(2 * products[0])


def test_matrix_products_are_counted(libtpu, tmp_path):
    """All of a plain matrix product, and of a kernel those of the steps that run."""
    table = jnp.array([1, 4, 2])
    cost = measure("v6e", triangle(3, 4, table), X, cache=tmp_path)
    (kernel,) = (k for k in cost.kernels if k.pallas)
    products = kernel.slots["MATMUL"] * kernel.cycles
    every = measure("v6e", triangle(3, 4, table), X, shares={"tri": (1, 1, 1)})
    (whole,) = (k for k in every.kernels if k.pallas)
    # 7 of 12 steps run the product, and 3 a second one; 12 and 12 would be all.
    part = products / (whole.slots["MATMUL"] * whole.cycles)
    assert part == pytest.approx((7 + 3) / (12 + 12), rel=0.02)
    assert measure("v6e", triangle(3, 4, table), X, cache=tmp_path) == cost
    assert len(list(tmp_path.iterdir())) == 1

    a = jax.ShapeDtypeStruct((2048, 2048), jnp.bfloat16)
    plain = measure("v6e", jnp.matmul, a, a)
    # 918 TFLOP/s at 1.75 GHz are 2^18 products a cycle; so small a one has half of it.
    least = 2048**3 / 2**18
    assert least <= plain.cycles <= 2 * least
    assert plain.flops == pytest.approx(2 * 2048**3, rel=0.01)


def test_jaxs_persistent_cache_is_left_alone(libtpu, tmp_path):
    """It goes on for the CPU, and what is compiled for a TPU is not in it."""
    keep = {
        "jax_compilation_cache_dir": str(tmp_path),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in keep}
    table = jnp.array([1, 4, 2])

    def stored_one(x):
        return x + 1

    for name, value in keep.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    try:
        first, second = (measure("v6e", triangle(3, 4, table), X) for _ in range(2))
        assert first == second
        assert not list(tmp_path.glob("jit_run-*"))
        jax.jit(stored_one)(1)
        assert list(tmp_path.glob("jit_stored_one-*"))
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


def test_a_table_with_ratios_and_profile(libtpu, capsys, monkeypatch, tmp_path):
    small = {"tiny": tpu_entries.Heads(1, 256, 1, 1, 128)}
    blocks = ({"block_q": 128, "block_k": 128}, {"block_q": 100, "block_k": 128})
    splash = tpu_entries.OPS["splash"]._replace(shapes=small, blocks=blocks)
    mine = splash._replace(baseline="splash")
    for module in (tpu_entries, tpu_schedule):
        monkeypatch.setattr(module, "OPS", {"splash": splash, "mine": mine})
    found = {
        job: tpu_schedule.run(job, tmp_path)
        for name in ("splash", "mine")
        for job in tpu_entries.jobs_of(name, "tiny", "v5e", {}, sweep=True)
    }
    monkeypatch.setattr(tpu_schedule, "run_all", lambda *_: found)
    tpu_schedule.main(["--ops", "mine", "--chips", "v5e", "--sweep", "--profile"])
    _, row, *profile = capsys.readouterr().out.splitlines()
    assert row.split()[:4] == ["mine", "tiny", "v5e", "k=128,q=128"]
    assert " 1.00 " in row
    assert any("part 1" in line and "75.0% of steps" in line for line in profile)
    (failure,) = {x for x in found.values() if isinstance(x, tpu_schedule.Failure)}
    assert "ValueError" in failure.why


def test_targets_are_told_from_the_best_baseline():
    def cost(cycles):
        kernel = Kernel("k", 1, cycles, {}, 0, 0, (), (), pallas=True)
        return Cost((kernel,), (), 0.0, 3e9, 2**31, 700.0)

    wanted = tpu_targets.jobs()
    assert len(set(wanted)) >= 100
    found = {}
    for job in wanted:
        op, shape, chip, blocks = job
        fastest = dict(blocks) == tpu_entries.OPS["splash"].blocks[1]
        if (op, shape, chip) == ("mta_pre", "8k", "v5p"):
            found[job] = tpu_schedule.Failure("too large")
        else:
            found[job] = cost({"splash": 150.0 - 50 * fastest}.get(op, 210.0))
    rows = tpu_targets.table(found).splitlines()
    cells = [cell.strip() for cell in rows[3].split("|")[1:-1]]
    name, shape, v5e, v5p, v6e, _ = cells
    assert (name, shape) == ("convolution before, exact", "8k")
    assert (v5e, v5p, v6e) == ("2.10 (2.2)", "-", "2.10 (1.6) *")
    (without_aim,) = (row for row in rows if "16 heads, backward" in row)
    assert without_aim.endswith("| 2k16 | 1.00 | 1.00 | 1.00 | 1.00 |")
    assert "7; 3 GB moved, 2.0 GiB kept" in rows[-1]
