"""What the kernels aim at, as ratios to the best plain ones, and what they reach.

Each baseline has the best of its block sizes, our kernels those that they choose.
"""

from collections.abc import Sequence
from typing import NamedTuple

from tpu_entries import OPS, Job, jobs_of

from jaxloop_kernels.schedule import Cost

CHIPS = ("v5e", "v5p", "v6e", "tpu7x")


class Target(NamedTuple):
    title: str
    op: str
    shapes: tuple[str, ...]
    aims: tuple[float, float] | None
    """On v5e and v5p, on v6e and tpu7x; None: it has none yet."""


TARGETS = (
    Target("convolution before, exact", "mta_pre", ("2k", "8k"), (2.2, 1.6)),
    Target("convolution before, rank 2", "mta_rank2", ("2k", "8k"), (1.35, 1.2)),
    Target("full stack, 16 heads", "mta_full", ("2k16", "8k16"), (6.0, 4.5)),
    Target("full stack, 16 heads, backward", "mta_full_backward", ("2k16",), None),
    Target("convolution before, backward", "mta_pre_backward", ("2k", "8k"), (2.5, 2)),
    Target("output layer", "lm_head", ("qwen-0.5b", "qwen-8b"), (1.3, 1.3)),
)
DENSE = ("mta_dense", "2k16")


def jobs(chips: Sequence[str] = CHIPS) -> list[Job]:
    """Those that `table` wants to be run."""
    found = [job for chip in chips for job in jobs_of(*DENSE, chip, {}, False)]
    for target in TARGETS:
        for shape in target.shapes:
            for chip in chips:
                found += jobs_of(target.op, shape, chip, {}, False)
                found += jobs_of(OPS[target.op].baseline, shape, chip, {}, True)
    return found


def best(found: dict, op: str, shape: str, chip: str) -> tuple[Job, Cost] | None:
    """Of all blocks that were run and compile."""
    mine = [
        (job, cost)
        for job, cost in found.items()
        if job[:3] == (op, shape, chip) and isinstance(cost, Cost)
    ]
    return min(mine, key=lambda pair: pair[1].cycles, default=None)


def table(found: dict, chips: Sequence[str] = CHIPS) -> str:
    """Markdown, for a README; `*` where the aim is missed, `-` where it did not run."""
    head = (
        "| ratio to the best plain kernel (aim) | shape | " + " | ".join(chips) + " |"
    )
    lines = [head, "|---" * (2 + len(chips)) + "|"]
    for target in TARGETS:
        for shape in target.shapes:
            cells = [_cell(found, target, shape, chip) for chip in chips]
            lines.append(f"| {target.title} | {shape} | {' | '.join(cells)} |")
    cells = [_dense(found, chip) for chip in chips]
    lines.append(f"| full stack, dense by XLA | {DENSE[1]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(found: dict, target: Target, shape: str, chip: str) -> str:
    ours = best(found, target.op, shape, chip)
    base = best(found, OPS[target.op].baseline, shape, chip)
    if ours is None or base is None:
        return "-"
    ratio = ours[1].cycles / base[1].cycles
    if target.aims is None:
        return f"{ratio:.2f}"
    aim = target.aims[chip in ("v6e", "tpu7x")]
    return f"{ratio:.2f} ({aim:g}){'' if ratio <= aim else ' *'}"


def _dense(found: dict, chip: str) -> str:
    """By the compiler's own estimate of cycles, which has memory in it."""
    dense = best(found, *DENSE, chip)
    base = best(found, OPS[DENSE[0]].baseline, DENSE[1], chip)
    if dense is None or base is None:
        return "-"
    cost = dense[1]
    return (
        f"{cost.estimate / base[1].cycles:.0f}; {cost.bytes_accessed / 1e9:.0f} GB "
        f"moved, {cost.temporary / 2**30:.1f} GiB kept"
    )
