"""Reads the final bundles of one compiled program out of libtpu's dump.

A bundle is what a TensorCore issues in one cycle: up to so many operations of each kind
(a slot each). The dump prints one a line, marks loops by the depth of `>`, names the
region that a branch skips, and prints beside each loop's branch the test that ends it:

    0x2e   : > { ... sbr.rel (%p448_p7) target = $region36 }
    0x502 PF: > { ... } /* Start/End empty region 36 */
    0x508  : > { ... scmp.ge.s32.totalorder %s35_s26, 130 /* loop exit test */ }

Nothing of this is documented by its makers: what does not look as expected raises.
"""

import re
from pathlib import Path
from typing import NamedTuple

_BUNDLE = re.compile(r"^\s*(?:0x[0-9a-f]+|0)\s+(?:[A-Z]{2})?\s*:\s*([> ]*)\{")
_EXIT = re.compile(r"scmp\.ge\.s32\.totalorder \S+, (\d+) /\* loop exit test \*/")
_SKIP = re.compile(r"sbr\.rel \(\S+\) target = \$region(\d+)")
_TARGET = re.compile(r"empty region (\d+)\b")
_VMEM = re.compile(r"space=vmem, size = (0x[0-9a-f]+)")

POLL = 4
"""A loop of no more bundles waits for something: no count is looked for."""


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


def _rows(text: str) -> list[tuple[int, str]]:
    """(loop depth, text) of each bundle; one may take several lines."""
    rows: list[tuple[int, str]] = []
    for line in text.splitlines():
        match = _BUNDLE.match(line)
        if match is None:
            if rows:
                rows[-1] = (rows[-1][0], rows[-1][1] + line)
            continue
        depth = match.group(1).count(">")
        if line[match.end() :].startswith("}") and rows:  # a branch's delay: no marks
            depth = rows[-1][0]
        rows.append((depth, line))
    return rows


def _loops(rows) -> tuple[Loop, ...]:
    loops: list[Loop] = []
    stack: list[Loop] = []

    def close(last: int):
        loop = stack.pop()
        span = Span(loop.span.first, last)
        trips = 1 if loop.trips is None and span.bundles <= POLL else loop.trips
        loops.append(Loop(span, loop.depth, trips))

    for at, (depth, text) in enumerate(rows):
        while stack and depth < stack[-1].depth:
            close(at)
        if depth > (stack[-1].depth if stack else 0):
            stack.append(Loop(Span(at, at), depth, None))
        for trips in _EXIT.findall(text):
            if stack:
                stack[-1] = stack[-1]._replace(trips=int(trips))
    while stack:
        close(len(rows))
    return tuple(sorted(loops, key=lambda loop: loop.span))


def _regions(rows) -> tuple[Span, ...]:
    ends = {n: at for at, (_, text) in enumerate(rows) for n in _TARGET.findall(text)}
    regions = []
    for at, (_, text) in enumerate(rows):
        for n in _SKIP.findall(text):
            if ends.get(n, 0) > at:
                regions.append(Span(at + 1, ends[n]))
    return tuple(regions)


def _usage(text: str) -> tuple[dict[str, int], dict[str, tuple[int, ...]]]:
    lines = [line for line in text.splitlines() if line.strip()]
    names = lines[1].replace(" ", "").split(",")
    capacity = dict(zip(names, map(int, lines[2].split()), strict=True))
    table = [tuple(map(int, line.split())) for line in lines[4:]]
    return capacity, dict(zip(names, zip(*table, strict=True), strict=True))
