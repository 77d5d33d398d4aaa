"""What the scripts of the claims share: arms x seeds, each a run of its own; a table.

A claim is something that a paper shows, tried at toy scale. Its script holds a `Claim`
and calls `main`; the table that it prints is kept in `docs/claims.md` (`--write`).
Runs that are finished already are not run again, and interrupted ones go on. Where a
claim has a `start`, its supervised stage is run once a seed, and all arms begin there.
"""

import argparse
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxloop.metrics import read_metrics

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "claims.md"
Lines = list[dict]
ALONE = ("recipe=none", "offline=none", "prompts=none")  # the supervised stage
ALONE += ("evaluation.scorer=none", "checkpoint.best=")


@dataclass(frozen=True)
class Arm:
    """One way to run: a config, and what is set differently."""

    name: str
    spec: str
    """`irpo.py:tiny`, of `configs/`."""
    overrides: tuple[str, ...] = ()
    """`{seed}` in them is the run's."""
    worlds: tuple[str, ...] = ("data",)
    """Settings that make the problems; each gets the run's seed."""


@dataclass(frozen=True)
class Column:
    """A figure of a run, from its metrics."""

    name: str
    of: Callable[[Lines], float]
    form: str = ".1f"


@dataclass(frozen=True)
class Claim:
    name: str
    """Its heading in `docs/claims.md`."""
    paper: str
    """What the paper shows, in a sentence."""
    arms: tuple[Arm, ...]
    columns: tuple[Column, ...]
    start: Arm | None = None
    """Whose supervised stage all arms of a seed begin from; without, each has one."""
    seen: str = ""
    """What was seen here, and where that differs the likely reason."""


def values(lines: Lines, metric: str, phase: str = "") -> list[float]:
    """The metric wherever it was measured, in order, of one phase or all."""
    return [
        line[metric]
        for line in lines
        if metric in line and phase in ("", line["phase"])
    ]


def last(metric: str, *, phase: str = "", scale: float = 1) -> Callable[[Lines], float]:
    """Its last value."""
    return lambda lines: scale * values(lines, metric, phase)[-1]


def first(
    metric: str, *, phase: str = "", scale: float = 1
) -> Callable[[Lines], float]:
    """Its first value."""
    return lambda lines: scale * values(lines, metric, phase)[0]


def change(
    metric: str, *, phase: str = "", scale: float = 1
) -> Callable[[Lines], float]:
    """Its last value less its first one."""

    def of(lines: Lines) -> float:
        found = values(lines, metric, phase)
        return scale * (found[-1] - found[0])

    return of


def accuracy(name: str = "accuracy, %", set_name: str = "") -> tuple[Column, Column]:
    """Held-out accuracy before and after, of the plain prompts or of a set."""
    metric = f"eval/{set_name}/accuracy" if set_name else "eval/accuracy"
    return (
        Column(f"{name}, before", first(metric, scale=100)),
        Column(f"{name}, after", last(metric, scale=100)),
    )


def jaxloop(out: Path, *words: str) -> None:
    """The command, from the root; ends the script where it fails."""
    command = [sys.executable, "-m", "jaxloop", *words]
    env = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(out.parent / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")


def settings(arm: Arm, seed: int) -> list[str]:
    """The overrides that make it the arm's run of that seed."""
    seeds = [f"{world}.seed={seed}" for world in arm.worlds]
    given = [word.format(seed=seed) for word in arm.overrides]
    return [f"seed={seed}", *seeds, *given, "tensorboard=false"]


def started(arm: Arm, seed: int, out: Path, more: Sequence[str]) -> list[str]:
    """Overrides that begin from the arm's model after its supervised stage."""
    folder, model = out / f"start-{seed}", out / f"model-{seed}"
    if not model.exists():
        words = [*settings(arm, seed), *more, *ALONE]
        jaxloop(out, "run", f"configs/{arm.spec}", f"out={folder}", *words)
        jaxloop(out, "convert", str(folder / "checkpoints" / "latest"), str(model))
    return ["sft=none", "model.shape=none", f"model.path={model}"]


def run(arm: Arm, seed: int, out: Path, more: Sequence[str]) -> Lines:
    """The metrics of a finished run of the arm."""
    folder = out / f"{arm.name.replace(' ', '-')}-{seed}"
    words = [*settings(arm, seed), *more]
    jaxloop(out, "run", f"configs/{arm.spec}", f"out={folder}", *words)
    return read_metrics(folder / "metrics.jsonl")


def cell(figures: Sequence[float], form: str) -> str:
    """Mean and, in brackets, the least and the greatest of the seeds."""
    mean, least, most = statistics.mean(figures), min(figures), max(figures)
    return f"{mean:{form}} ({least:{form}} to {most:{form}})"


def table(claim: Claim, runs: dict[str, list[Lines]]) -> str:
    """A row for each arm."""
    names = ["", *(column.name for column in claim.columns)]
    rows = [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
    for arm in claim.arms:
        cells = [
            cell([column.of(lines) for lines in runs[arm.name]], column.form)
            for column in claim.columns
        ]
        rows.append(f"| {' | '.join([arm.name, *cells])} |")
    return "\n".join(rows)


def section(claim: Claim, text: str, script: str, seeds: int, minutes: float) -> str:
    """The claim's part of the page."""
    machine = f"{os.cpu_count()} CPU cores, {platform.machine()}"
    command = f"python experiments/{script} --seeds {seeds}"
    return (
        f"## {claim.name}\n\n{claim.paper}\n\n{text}\n\n"
        f"Mean (least to most) of {seeds} seeds. `{command}`: {minutes:.0f} minutes on "
        f"{machine}.\n\n{claim.seen}\n"
    )


def written(page: str, name: str, text: str) -> str:
    """The page with the section of that name in its place, or at its end."""
    old = re.compile(rf"^## {re.escape(name)}$.*?(?=^## |\Z)", re.S | re.M)
    if old.search(page):
        return old.sub(lambda _: text + "\n", page).rstrip() + "\n"
    return f"{page.rstrip()}\n\n{text.rstrip()}\n"


def main(claim: Claim, file: str) -> None:
    script = Path(file).name
    parser = argparse.ArgumentParser(
        description=f"{claim.name}: {claim.paper}",
        epilog="Further words (recipe.optimizer.learning_rate=...) go to every run.",
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/claims"))
    parser.add_argument("--write", action="store_true", help=f"into {PAGE.name}")
    options, more = parser.parse_known_args()
    out = options.out.absolute() / Path(script).stem
    out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    runs: dict[str, list[Lines]] = {arm.name: [] for arm in claim.arms}
    for seed in range(options.seeds):
        words = [*more]
        if claim.start is not None:
            words += started(claim.start, seed, out, more)
        for arm in claim.arms:
            print(f"{arm.name}, seed {seed} ...", file=sys.stderr, flush=True)
            runs[arm.name].append(run(arm, seed, out, words))
    spent = out / "minutes"  # of all calls, where a script was run in parts
    minutes = (time.monotonic() - began) / 60
    minutes += float(spent.read_text()) if spent.exists() else 0.0
    spent.write_text(f"{minutes:.2f}")
    text = table(claim, runs)
    print(text)
    if options.write:
        page = section(claim, text, script, options.seeds, minutes)
        PAGE.write_text(written(PAGE.read_text(), claim.name, page))
