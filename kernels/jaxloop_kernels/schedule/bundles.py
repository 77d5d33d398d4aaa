"""Reads the final bundles of one compiled program out of libtpu's dump.

A bundle is what a TensorCore issues in one cycle: up to so many operations of each kind
(a slot each). The dump prints one a line, names the region that a branch skips or goes
back to, and prints in each loop the test that ends it:

    0x1d LB: > { ... } /* Start region 542 */
    0x2e   : > { ... sbr.rel (%p448_p7) target = $region36 }
    0x502 PF: > { ... } /* Start/End empty region 36 */
    0x504  : > { %s35_s26 = sadd.s32 1, %s76_s26 ... }
    0x508  : > { ... scmp.ge.s32.totalorder %s35_s26, 130 /* loop exit test */ }
    0x50a  : > { ... sbr.rel (!%p35_p12) target = $region542 }

The marks `>` of depth are no help: loops may follow one another without a gap.

Nothing of this is documented by its makers: what does not look as expected raises.
"""

import re
from pathlib import Path
from typing import NamedTuple

_BUNDLE = re.compile(r"^\s*(?:0x[0-9a-f]+|0)\s+(?:[A-Z]{2})?\s*:[> ]*\{")
_HEAD = re.compile(r"^\s*\S+\s+LB:")
_EXIT = re.compile(
    r"scmp\.ge\.s32\.totalorder (\S+), (\d+) /\* [^*]*\bloop exit test\b"
)
_STEP = re.compile(r"(\S+) = sadd\.s32 (\d+), ")
_BRANCH = re.compile(r"sbr\.rel \([^)]*\) target = \$region(\d+)")
_START = re.compile(r"Start region (\d+)\b")
_TARGET = re.compile(r"empty region (\d+)\b")
_VMEM = re.compile(r"space=vmem, size = (0x[0-9a-f]+)")

DELAY = 4
"""Bundles after a branch that run before it is taken."""


class Span(NamedTuple):
    """Bundles first..last-1."""

    first: int
    last: int

    def holds(self, other: "Span") -> bool:
        return self.first <= other.first and other.last <= self.last

    @property
    def bundles(self) -> int:
        return self.last - self.first


class Loop(NamedTuple):
    span: Span
    depth: int
    trips: int | None
    """None: the test that ends it compares with something not known here."""


class Program(NamedTuple):
    """One kernel or one fusion, as the core runs it."""

    name: str
    bundles: int
    loops: tuple[Loop, ...]
    regions: tuple[Span, ...]
    """What forward branches skip, in program order, each before those inside it."""
    capacity: dict[str, int]
    """Operations of each kind that one bundle can hold."""
    used: dict[str, tuple[int, ...]]
    """Operations of each kind in each bundle."""
    vmem: int
    """Bytes of vector memory that the program allocates, spills included."""


def read_folder(folder: Path) -> list[Program]:
    """All programs of one dump, in the order in which they were compiled."""
    programs = []
    for path in sorted(folder.glob("*-final_bundles.txt")):
        stem = re.sub(r"-\d+-final_bundles\.txt$", "", path.name)
        if "schedule-analysis" in path.name or stem.endswith(("-TLP", ">")):
            continue
        usage = _one(folder, f"{stem}-*-final_hlo-static-per-bundle-utilization.txt")
        memory = _one(folder, f"{stem}-*-post-delay-converter.txt")
        name = re.sub(r"(\.\d+)?$", "", re.sub(r"^\d+-", "", stem))
        programs.append(
            parse(name, path.read_text(), usage.read_text(), memory.read_text())
        )
    return programs


def _one(folder: Path, pattern: str) -> Path:
    found = list(folder.glob(pattern.replace("[", "[[]")))
    if len(found) != 1:
        raise ValueError(f"libtpu's dump has {len(found)} files {pattern}, not one")
    return found[0]


def parse(name: str, bundles: str, usage: str, memory: str = "") -> Program:
    """One program from the text of its files; ValueError where they do not agree."""
    rows = _rows(bundles)
    capacity, used = _usage(usage)
    counted = {len(column) for column in used.values()}
    if counted != {len(rows)}:
        raise ValueError(f"{name}: {len(rows)} bundles, use of {counted} of them")
    return Program(
        name=name,
        bundles=len(rows),
        loops=_loops(rows),
        regions=_regions(rows),
        capacity=capacity,
        used=used,
        vmem=sum(int(size, 16) for size in _VMEM.findall(memory)),
    )


def _rows(text: str) -> list[str]:
    """The text of each bundle, which may take several lines."""
    rows: list[str] = []
    for line in text.splitlines():
        if _BUNDLE.match(line):
            rows.append(line)
        elif rows:
            rows[-1] += line
    return rows


def _loops(rows) -> tuple[Loop, ...]:
    """A loop goes from the start of a region to the branch that goes back there, and to
    the end of that branch's delay; its test is one that no loop inside it holds."""
    starts: dict[str, int] = {}
    spans = []
    for at, text in enumerate(rows):
        for region in _START.findall(text):
            starts.setdefault(region, at)
        for region in _BRANCH.findall(text):
            if region in starts:
                spans.append(Span(starts[region], min(at + 1 + DELAY, len(rows))))
    heads = {at for at, text in enumerate(rows) if _HEAD.match(text)}
    if heads != {span.first for span in spans}:
        raise ValueError(f"loops begin at {sorted(heads)}; branches go back in {spans}")
    steps = {name: int(step) for text in rows for name, step in _STEP.findall(text)}
    loops = []
    for span in sorted(spans):
        inside = [other for other in spans if other != span and span.holds(other)]
        tests = [
            -(-int(limit) // steps[counter]) if counter in steps else None
            for at in range(*span)
            if not any(first <= at < last for first, last in inside)
            for counter, limit in _EXIT.findall(rows[at])
        ]
        depth = sum(other.holds(span) for other in spans)
        loops.append(Loop(span, depth, tests[-1] if tests else None))
    return tuple(loops)


def _regions(rows) -> tuple[Span, ...]:
    ends = {n: at for at, text in enumerate(rows) for n in _TARGET.findall(text)}
    regions = []
    for at, text in enumerate(rows):
        for n in _BRANCH.findall(text):
            if ends.get(n, 0) > at:
                regions.append(Span(at + 1, ends[n]))
    return tuple(regions)


def _usage(text: str) -> tuple[dict[str, int], dict[str, tuple[int, ...]]]:
    lines = [line for line in text.splitlines() if line.strip()]
    names = lines[1].replace(" ", "").split(",")
    capacity = dict(zip(names, map(int, lines[2].split()), strict=True))
    table = [tuple(map(int, line.split())) for line in lines[4:]]
    return capacity, dict(zip(names, zip(*table, strict=True), strict=True))
