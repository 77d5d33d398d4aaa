"""The quickstart's table: every variant with five seeds, one process each.

    python benchmarks/quickstart_table.py [--seeds 5] [--out runs/table] [variant ...]

Prints held-out accuracy by round with its spread, and the seconds of the whole command;
writes docs/quickstart.svg. Runs that are finished already are not run again.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from jaxloop.report.figure import accuracies, write_figure

ROOT = Path(__file__).parent.parent
VARIANTS = ("irpo", "self_rewarding", "scpo", "grpo", "shuffled")
NAMES = {
    "irpo": "gold answers (IRPO)",
    "self_rewarding": "no answers, its own verdicts",
    "scpo": "no answers, votes (ScPO)",
    "grpo": "gold answers, online (GRPO)",
    "shuffled": "shuffled rewards (control)",
}


def run(variant: str, seed: int, out: Path, more: list[str]) -> dict:
    """The summary of one run, with `wall`: seconds of the whole command."""
    spec = "configs/quickstart.py"
    if variant != "irpo":
        spec += f":{variant}"
    folder = out / f"{variant}-{seed}"
    command = [sys.executable, "-m", "jaxloop", "run", spec, f"out={folder}"]
    command += [f"seed={seed}", f"data.seed={seed}", *more]
    wall = folder.with_suffix(".seconds")
    began = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")
    if not wall.exists():
        wall.write_text(f"{time.perf_counter() - began:.0f}")
    summary = json.loads((folder / "summary.json").read_text())
    return summary | {"wall": float(wall.read_text()), "folder": folder}


def row(variant: str, runs: list[dict]) -> str:
    """One line of the table: mean accuracy by round, gains, seconds."""
    curves = [[100 * a for a in r["accuracy"].values()] for r in runs]
    means = [statistics.mean(points) for points in zip(*curves, strict=True)]
    gains = [curve[-1] - curve[0] for curve in curves]
    each = ", ".join(f"{gain:+.0f}" for gain in gains)
    seconds = [r["wall"] for r in runs]
    path = " -> ".join(f"{mean:.1f}" for mean in means)
    return (
        f"| {NAMES[variant]} | {path} | {each} | {statistics.mean(gains):+.1f} "
        f"| {statistics.median(seconds):.0f} ({max(seconds):.0f}) |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("variants", nargs="*", default=VARIANTS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/table"))
    parser.add_argument("--figure", type=Path, default=ROOT / "docs/quickstart.svg")
    options, more = parser.parse_known_args()
    out = options.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    lines = [
        "| variant | held-out accuracy by round, % | gain of each seed, points "
        "| mean gain | seconds, median (most) |",
        "|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    curves = {}
    for variant in options.variants:
        runs = [run(variant, seed, out, more) for seed in range(options.seeds)]
        print(row(variant, runs), flush=True)
        curves[NAMES[variant]] = [accuracies(r["folder"]) for r in runs]
    write_figure(
        options.figure,
        curves,
        title="Two-digit sums: accuracy on held-out problems",
        x_name="round",
    )


if __name__ == "__main__":
    main()
