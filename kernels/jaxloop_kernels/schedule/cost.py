"""What one run of a program costs on a chip, by the schedule of its compiler.

A bundle takes one cycle if nothing stalls, so

    cycles >= sum over bundles of how often each runs,

and how often follows from the loops' trip counts and, inside a Pallas kernel's grid,
from the share of steps in which each condition holds (`steps`). Not in it: waiting for
memory, and what happens outside the TensorCore. One core's work is counted: a grid that
is split over two cores costs half.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable
from importlib.metadata import version
from itertools import combinations
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxloop_kernels.schedule import bundles, compiler, steps
from jaxloop_kernels.schedule.bundles import Program, Span

_COMPUTING = ("MATMUL", "MATPUSH", "XLU", "VALU", "EUP")
_VECTOR = (*_COMPUTING, "VLOAD", "VSTORE")
_TRANSFORMS = re.compile(r"^((transpose|jvp|vmap|checkpoint|rematted_computation)_)+")
_ESTIMATE = re.compile(r'"estimated_cycles":"(\d+)"')


class UnknownCount(ValueError):
    """How often a part runs cannot be told: its cycles would mean nothing."""


class Part(NamedTuple):
    """A conditional part of a kernel's grid step."""

    bundles: int
    share: float
    """Of the grid's steps."""
    cycles: float
    spills: int
    """Registers stored to or loaded from memory, for lack of them, in one run."""


class Kernel(NamedTuple):
    """One Pallas kernel, or a fusion of XLA's own."""

    name: str
    bundles: int
    cycles: float
    slots: dict[str, float]
    """Mean use of each kind of slot, of what a bundle can hold."""
    spills: int
    vmem: int
    """Bytes of vector memory."""
    grid: tuple[int, ...]
    parts: tuple[Part, ...]
    pallas: bool


class Cost(NamedTuple):
    """All that one compiled function runs."""

    kernels: tuple[Kernel, ...]
    unknown: tuple[str, ...]
    """XLA's own programs whose loops have no known count; they are not in the sums."""
    flops: float
    """As the compiler estimates; it does not see into Pallas kernels."""
    bytes_accessed: float
    """To and from memory, the same."""
    temporary: int
    """Bytes of memory for what lives between the kernels."""
    estimate: float
    """Cycles of XLA's own programs as its cost model sees them, memory included; the
    body of a loop once."""

    @property
    def cycles(self) -> float:
        """Of the Pallas kernels; of all where there is none."""
        pallas = [k.cycles for k in self.kernels if k.pallas]
        return sum(pallas or [k.cycles for k in self.kernels])

    @property
    def beside(self) -> float:
        """Cycles of XLA's own programs beside Pallas kernels."""
        total = sum(k.cycles for k in self.kernels)
        return total - self.cycles


def measure(
    chip: str,
    fn: Callable,
    *args,
    shares=None,
    trips: tuple[int, ...] = (),
    cache: Path | None = None,
) -> Cost:
    """Compiles `fn` for one device of the chip and reads its schedule.

    args: ShapeDtypeStructs, or trees of them. shares: {kernel name: share of steps in
    which each of its conditional parts runs, in program order}, for kernels whose
    conditions depend on their arguments, parts in such loops included. trips: of those
    loops of each kernel whose count depends on its arguments, in program order. cache:
    folder of earlier results, found by what was lowered; None: none.

    Raises UnknownCount for a loop or a condition whose count cannot be told, and what
    the compiler raises.
    """
    folder = compiler.prepare()
    with compiler.tracing_for(chip):
        calls = steps.pallas_calls(fn, *args)
    lowered = compiler.lower(chip, fn, *args)
    key = _key(chip, lowered.as_text(), repr((calls, shares, trips)))
    stored = cache and cache / f"{key}.json"
    if stored and stored.exists():
        return _from_json(json.loads(stored.read_text()))
    for path in folder.iterdir():  # what others compiled
        path.unlink()
    compiled = compiler.compile_lowered(lowered)
    programs = bundles.read_folder(folder)
    if not programs:
        raise RuntimeError("libtpu dumped nothing: it was loaded before prepare()")
    cost = _cost(programs, calls, shares or {}, trips, compiled)
    if stored:
        stored.parent.mkdir(parents=True, exist_ok=True)
        partial = stored.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(cost))
        partial.replace(stored)
    return cost


def _key(chip: str, *texts: str) -> str:
    here = [path.read_text() for path in sorted(Path(__file__).parent.glob("*.py"))]
    known = (chip, version("libtpu"), *texts, *here)
    return hashlib.sha256("\0".join(known).encode()).hexdigest()[:32]


def _from_json(fields) -> Cost:
    """JSON keeps the order of a NamedTuple's fields and drops its names."""
    kernels, *rest = fields

    def kernel(values) -> Kernel:
        k = Kernel(*values)
        parts = tuple(Part(*part) for part in k.parts)
        return k._replace(parts=parts, grid=tuple(k.grid))

    return Cost(tuple(map(kernel, kernels)), *rest)._replace(unknown=tuple(rest[0]))


def _cost(programs, calls, given, trips, compiled) -> Cost:
    """Kernels of one name are told apart by their order."""
    waiting = {call.name: [c for c in calls if c.name == call.name] for call in calls}
    kernels, unknown = [], []
    for program in programs:
        program = program._replace(name=_plain(program.name, waiting))
        mine = waiting.get(program.name)
        try:
            if mine:
                call = mine.pop(0) if len(mine) > 1 else mine[0]
                call = call._replace(shares=given.get(call.name, call.shares))
                kernels.append(weigh(counted(program, trips), call))
            else:
                kernels.append(weigh(program))
        except UnknownCount:
            if mine:
                raise
            unknown.append(program.name)
    missing = set(waiting) - {k.name for k in kernels}
    if missing:
        raise ValueError(f"libtpu's dump lacks {sorted(missing)}")
    analysis = compiled.cost_analysis() or {}
    memory = compiled.memory_analysis()
    return Cost(
        kernels=tuple(kernels),
        unknown=tuple(unknown),
        flops=float(analysis.get("flops", 0.0)),
        bytes_accessed=float(analysis.get("bytes accessed", 0.0)),
        temporary=int(memory.temp_size_in_bytes),
        estimate=float(sum(map(int, _ESTIMATE.findall(compiled.as_text())))),
    )


def counted(program: Program, trips) -> Program:
    """With `trips` for the loops of unknown count."""
    left = iter(trips)
    loops = [
        loop if loop.trips is not None else loop._replace(trips=next(left, None))
        for loop in program.loops
    ]
    return program._replace(loops=tuple(loops))


def _plain(name: str, known) -> str:
    """A kernel's own name, where the dump has the transformations around it:
    transpose_jvp_NAME__."""
    bare = _TRANSFORMS.sub("", name).rstrip("_")
    return bare if name not in known and bare in known else name


def weigh(program: Program, call: steps.Call | None = None) -> Kernel:
    """Cycles of one program; `call` is its pallas_call, None for a program of XLA's,
    all of whose conditional parts count as run."""
    runs = np.ones(program.bundles)
    for loop in program.loops:
        if loop.trips is None:
            raise UnknownCount(
                f"{program.name}: the trip count of the loop at bundles "
                f"{loop.span.first}..{loop.span.last} is not in the schedule; unroll "
                "it, or give it a constant bound"
            )
        runs[loop.span.first : loop.span.last] *= loop.trips
    pairs = []
    if call is not None:
        inside, runs = _pipeline(program, call.grid, runs)
        pairs = _matched(program, inside, call.shares)
        # Parts inside others have shares of all steps already.
        for span, share in pairs:
            outer = [s for other, s in pairs if other != span and other.holds(span)]
            share = share / (min(outer) or 1) if outer else share
            runs[span.first : span.last] *= share
    cycles = float(runs.sum())
    slots = {
        name: float((runs * np.array(used)).sum() / cycles / program.capacity[name])
        for name, used in program.used.items()
    }
    spills = np.array(program.used["VLOAD:FILL"]) + program.used["VSTORE:SPILL"]

    def part(span: Span, share: float) -> Part:
        here = slice(*span)
        cycles = float(runs[here].sum())
        return Part(span.bundles, share, cycles, int(spills[here].sum()))

    parts = tuple(part(*pair) for pair in pairs)
    return Kernel(
        name=program.name,
        bundles=program.bundles,
        cycles=cycles,
        slots=slots,
        spills=int(spills.sum()),
        vmem=program.vmem,
        grid=() if call is None else call.grid,
        parts=parts,
        pallas=call is not None,
    )


def _pipeline(program: Program, grid, runs) -> tuple[list[Span], np.ndarray]:
    """The kernel's own conditional parts, and the counts with the grid's pipeline.

    The grid is one loop of two trips more than a core's steps, for the first loads and
    the last stores; the step itself is a part that runs in all but two. Parts without
    vector operations are the pipeline's: short, and counted in every step.
    """
    parts = [span for span in program.regions if _uses(program, span, _VECTOR)]
    whole = prod(grid)
    if whole == 1:
        return parts, runs
    found = [
        (loop.span, steps)
        for loop in program.loops
        for steps in (whole, whole // 2)  # where two cores share it
        if loop.depth == 1 and loop.trips == steps + 2
    ]
    if not found:
        raise UnknownCount(f"{program.name}: no loop has the {whole} steps of its grid")
    span, steps = found[0]
    inside = [part for part in parts if span.holds(part)]
    if not inside:
        raise UnknownCount(f"{program.name}: no part of the grid's loop is its step")
    body = max(inside, key=lambda span: span.bundles)
    runs = runs.copy()
    runs[body.first : body.last] *= steps / (steps + 2)
    return [span for span in inside if span != body and body.holds(span)], runs


def _uses(program: Program, span: Span, slots) -> bool:
    return any(any(program.used[name][slice(*span)]) for name in slots)


def _matched(program: Program, spans, shares) -> list[tuple[Span, float]]:
    """Compiled parts and their shares, in program order.

    There may be parts that are not the kernel's: the pipeline copies small blocks
    within vector memory itself, which is loads and stores and nothing else.
    """
    if len(spans) > len(shares):

        def copies(span: Span) -> bool:
            loads = _uses(program, span, ("VLOAD",))
            return loads and not _uses(program, span, _COMPUTING)

        spans = [span for span in spans if not copies(span)]
    if len(spans) < len(shares) and None not in shares:
        # Small parts are no branches any more, and run always. Which of them, is not
        # told: the dearest choice is no less than the truth.
        choices = combinations(shares, len(spans))
        sizes = [span.bundles for span in spans]
        shares = max(choices, key=lambda chosen: np.dot(sizes, chosen))
    if len(spans) != len(shares) or None in shares:
        raise UnknownCount(
            f"{program.name}: its conditional parts have {[s.bundles for s in spans]} "
            f"bundles, and the share of steps in which they run is {shares}. Give "
            f"`shares={{{program.name!r}: (...)}}`, one a part"
        )
    return list(zip(spans, shares, strict=True))
