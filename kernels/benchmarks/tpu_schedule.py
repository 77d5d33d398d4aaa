"""What TPU kernels cost, by the schedule of the TPU's own compiler; needs no TPU.

    python kernels/benchmarks/tpu_schedule.py                        a table of all
    ... --ops splash,mta --shapes 2k --chips v5e,v6e                 of some
    ... --ops splash --blocks block_q=1024,block_k=512               with these blocks
    ... --ops splash --shapes 8k --sweep                             finds the best
    ... --ops mta --shapes 2k --chips v6e --profile                  where cycles go
    ... --targets                                  what these kernels aim at, and reach

`cycles` counts bundles (one a cycle) by how often they run; skipped blocks are not
counted, memory is taken to be in time. `ratio` is to the op's baseline, with --sweep
each at its best blocks. Results are kept by content, so a second table is instant.
"""

import argparse
import os
import re
import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tpu_targets
from tpu_entries import OPS, Job, jobs_of

from jaxloop_kernels.schedule import TOPOLOGIES, VMEM, Cost, Kernel, measure, prepare


@dataclass(frozen=True)
class Failure:
    why: str


def run(job: Job, cache: Path | None) -> Cost | Failure:
    op, shape, chip, blocks = job
    try:
        fn, args = OPS[op].build(OPS[op].shapes[shape], dict(blocks), chip)
        counts = OPS[op].counts(OPS[op].shapes[shape], dict(blocks))
        cost = measure(chip, fn, *args, cache=cache, **counts)
    except Exception as error:  # the compiler's own reasons belong into the table
        return Failure(_short(error))
    only = OPS[op].only
    kernels = [k for k in cost.kernels if not k.pallas or re.search(only, k.name)]
    return cost._replace(kernels=tuple(kernels))


def _short(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if "exceeded" in line or "vmem" in line.lower()]
    return f"{type(error).__name__}: {(told or lines or [''])[0][:150]}"


def run_all(jobs: list[Job], cache: Path | None, processes: int) -> dict:
    """Each job's cost; a crash of the compiler is that of the job that met it."""
    found: dict[Job, Cost | Failure] = {}
    jobs = list(dict.fromkeys(jobs))
    while waiting := [job for job in jobs if job not in found]:
        with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
            futures = {job: pool.submit(run, job, cache) for job in waiting}
            for at, (job, future) in enumerate(futures.items()):
                _progress(len(found) + 1, len(jobs), job)
                try:
                    found[job] = future.result()
                except BrokenProcessPool:
                    # The first without a result is, with one process, the one.
                    if processes == 1 or at == 0:
                        found[job] = Failure("the compiler died")
                    processes = 1
                    break
    _progress(0, 0, None)
    return found


def _progress(at: int, of: int, job):
    if sys.stderr.isatty():
        text = f"{at}/{of} {' '.join(job[:3])}" if job else ""
        print(f"\r{text:<70}", end="" if job else "\r", file=sys.stderr, flush=True)


HEAD = (
    f"{'op':<18}{'shape':<10}{'chip':<7}{'blocks':<42}{'bundles':>8}{'kcycles':>10}"
    f"{'ratio':>7}{'beside':>8}  {'MXU':>4}{'VALU':>5}{'EUP':>4}{'XLU':>4}{'load':>5}"
    f"{'store':>6}{'spills':>8}{'VMEM':>6}"
)


def row(job: Job, cost: Cost | Failure, ratio: float | None) -> str:
    op, shape, chip, blocks = job
    named = ",".join(f"{k.removeprefix('block_')}={v}" for k, v in blocks)
    start = f"{op:<18}{shape:<10}{chip:<7}{named:<42}"
    if isinstance(cost, Failure):
        return f"{start}{cost.why}"
    own = [k for k in cost.kernels if k.pallas] or list(cost.kernels)
    slots = [
        sum(k.slots[name] * k.cycles for k in own) / cost.cycles
        for name in ("MATMUL", "VALU", "EUP", "XLU", "VLOAD", "VSTORE")
    ]
    mxu, valu, eup, xlu, load, store = (f"{100 * used:.0f}" for used in slots)
    unknown = "+" if cost.unknown else ""
    return (
        f"{start}{sum(k.bundles for k in own):>8}{cost.cycles / 1e3:>10.1f}"
        f"{'' if ratio is None else format(ratio, '.2f'):>7}"
        f"{format(cost.beside / 1e3, '.0f') + unknown:>8}  {mxu:>4}{valu:>5}{eup:>4}"
        f"{xlu:>4}{load:>5}{store:>6}{sum(k.spills for k in own):>8}"
        f"{max(k.vmem for k in own) / 2**20:>6.1f}"
    )


def profile(chip: str, cost: Cost) -> str:
    """Where cycles and spills are, kernel by kernel."""
    own = [k for k in cost.kernels if k.pallas]
    others = sorted((k for k in cost.kernels if not k.pallas), key=lambda k: -k.cycles)
    lines = [line for k in own or others[:3] for line in _profile_kernel(chip, k)]
    if own:
        most = ", ".join(f"{k.name} {k.cycles / 1e3:.0f}" for k in others[:5])
        lines.append(f"    XLA's own, kcycles: {most}")
    if cost.unknown:
        lines.append(f"    not counted (loops of unknown length): {cost.unknown}")
    lines.append(
        f"    beside the kernels: {cost.beside / 1e3:.0f} kcycles of XLA's own, "
        f"{cost.bytes_accessed / 1e6:.0f} MB to and from memory (its estimate), "
        f"{cost.temporary / 2**20:.0f} MiB kept meanwhile"
    )
    return "\n".join(lines)


def _profile_kernel(chip: str, kernel: Kernel) -> list[str]:
    lines = [
        f"  {kernel.name}: {kernel.cycles / 1e3:.1f} kcycles, grid "
        f"{kernel.grid}, {kernel.vmem / 2**20:.1f} of {VMEM[chip]} MiB, "
        f"{kernel.spills} spills"
    ]
    busiest = max(kernel.slots, key=lambda name: kernel.slots[name])
    for name, used in kernel.slots.items():
        bar = "#" * round(40 * used)
        mark = "  <- bound by this" if name == busiest and used > 0.6 else ""
        lines.append(f"    {name:<13}{used:>5.0%} {bar}{mark}")
    for at, part in enumerate(kernel.parts):
        lines.append(
            f"    part {at}: {part.bundles} bundles in {part.share:.1%} of steps, "
            f"{part.cycles / kernel.cycles:.0%} of cycles, {part.spills} spills"
        )
    return lines


def main(argv: list[str] | None = None):
    args = _arguments().parse_args(argv)
    if args.targets:
        chips = _chosen(args.chips, tpu_targets.CHIPS)
        jobs = tpu_targets.jobs(chips)
        prepare()
        found = run_all(jobs, None if args.fresh else args.cache, args.processes)
        print(tpu_targets.table(found, chips))
        return
    ops, chips = _chosen(args.ops, OPS), _chosen(args.chips, TOPOLOGIES)
    given = dict(part.split("=") for part in args.blocks.split(",") if part)
    given = {name: int(size) for name, size in given.items()}
    asked, bases = [], []
    for op in ops:
        base = OPS[op].baseline
        for shape in _chosen(args.shapes, OPS[op].shapes, strict=False):
            for chip in chips:
                asked += jobs_of(op, shape, chip, given, args.sweep)
                if base and shape in OPS[base].shapes:
                    bases += jobs_of(base, shape, chip, {}, args.sweep)
    prepare()
    found = run_all(asked + bases, None if args.fresh else args.cache, args.processes)
    print(HEAD)
    for job in asked:
        op, shape, chip, _ = job
        top = tpu_targets.best(found, op, shape, chip)
        if args.sweep and not args.all and top and top[0] != job:
            continue
        base = tpu_targets.best(found, OPS[op].baseline, shape, chip)
        cost = found[job]
        ratio = None
        if base is not None and isinstance(cost, Cost):
            ratio = cost.cycles / base[1].cycles
        print(row(job, cost, ratio))
        if args.profile and isinstance(cost, Cost):
            print(profile(chip, cost))


def _chosen(given: str, known, strict: bool = True) -> list[str]:
    if not given:
        return list(known)
    names = given.split(",")
    if strict and (strange := [name for name in names if name not in known]):
        raise SystemExit(f"no {', '.join(strange)} among {', '.join(known)}")
    return [name for name in names if name in known]


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    cache = home / "jaxloop_kernels" / "schedule"
    parser.add_argument("--ops", default="", help=f"of {', '.join(OPS)}; default: all")
    parser.add_argument("--shapes", default="", help="names as in the table")
    parser.add_argument("--chips", default="", help=f"of {', '.join(TOPOLOGIES)}")
    add = parser.add_argument
    add("--blocks", default="", help="NAME=SIZE,...: instead of the default")
    add("--sweep", action="store_true", help="the best of the op's choices")
    add("--all", action="store_true", help="with --sweep: each of them")
    add("--profile", action="store_true", help="slots, parts, spills")
    add("--targets", action="store_true", help="aims, and what is reached of them")
    add("--processes", type=int, default=1, help="that compile at once")
    add("--cache", type=Path, default=cache, help=f"default: {cache}")
    add("--fresh", action="store_true", help="neither reads nor keeps results")
    return parser


if __name__ == "__main__":
    main()
