"""What a run says at its end: accuracies by round, samples before and after."""

from pathlib import Path

from jaxloop.checkpoint import Checkpointer
from jaxloop.loop.attempts import add_up, read_attempts
from jaxloop.loop.folder import RunFolder, read_records
from jaxloop.metrics import read_metrics
from jaxloop.records import Scored

SAMPLES = 3


def summarise(folder: RunFolder) -> dict:
    """The run's held-out figures and three held-out prompts before and after."""
    lines = read_metrics(folder.metrics)
    looks = [line for line in lines if "eval/accuracy" in line]
    # Those inside a stage have no round.
    ends = [line for line in looks if line["round"] is not None]
    accuracy = {f"round {line['round']}": line["eval/accuracy"] for line in ends}
    return {
        "steps": max((line["step"] for line in lines), default=0),
        "accuracy": accuracy,
        "evaluations": looks,
        "samples": _samples(folder),
        "goodput": add_up(read_attempts(folder.path))._asdict(),
    } | _best(folder)


def _best(folder: RunFolder) -> dict:
    """What was kept as the best checkpoint, where the run keeps one."""
    reader = Checkpointer(folder.checkpoints, read_only=True)
    number = reader.best()
    if number is None:
        return {}
    at, metrics = reader.position(number), reader.metrics(number)
    return {"best": {"round": at["round"], "step": at["step"], "metrics": metrics}}


def _samples(folder: RunFolder) -> list[dict]:
    """Prompts whose answer changed for the better come first, in the data's order."""
    before, after = folder.evaluation("round_000"), _last_round(folder)
    if after is None or not before.exists() or after == before:
        return []
    rows = []
    for old, new in zip(
        read_records(before, Scored), read_records(after, Scored), strict=True
    ):
        gain = (new.scores[0].value or 0.0) - (old.scores[0].value or 0.0)
        rows.append((-gain, old, new))
    rows.sort(key=lambda row: row[0])
    return [
        {
            "prompt": old.prompt.text,
            "before": old.rollouts[0].text,
            "before_score": old.scores[0].value,
            "after": new.rollouts[0].text,
            "after_score": new.scores[0].value,
        }
        for _, old, new in rows[:SAMPLES]
    ]


def _last_round(folder: RunFolder) -> Path | None:
    files = sorted((folder.path / "records" / "eval").glob("round_*.jsonl"))
    return files[-1] if files else None


def summary_text(summary: dict, out: Path) -> str:
    """The summary for a terminal."""
    lines = []
    if summary["accuracy"]:
        # A judge's points, or a reward, are no shares.
        shares = all(0 <= value <= 1 for value in summary["accuracy"].values())
        lines.append("held-out accuracy" if shares else "held-out score")
        last = list(summary["accuracy"])[-1]
        for name, value in summary["accuracy"].items():
            label = "before" if name == "round 0" else "after " + name
            if name == last and len(summary["accuracy"]) < 3:  # no rounds to tell apart
                label = "at the end"
            told = f"{100 * value:5.1f} %" if shares else f"{value:5.3g}"
            lines.append(f"  {label:<16} {told}")
    if "best" in summary:
        lines.append(f"best at step {summary['best']['step']}: {out}/checkpoints/best")
    for sample in summary["samples"]:
        lines.append(f"  {_short(sample['prompt'])}")
        for when in ("before", "after"):
            text, score = _short(sample[when]), sample[f"{when}_score"]
            lines.append(f"    {when:<7} {text}   (score {score})")
    lines.append(f"{summary['steps']} updates in {summary.get('seconds', '?')} s")
    lines.append(f"report: {out / 'report.html'}")
    return "\n".join(lines)


def _short(text: str, length: int = 72) -> str:
    flat = text.replace("\n", " ")
    return flat if len(flat) <= length else flat[: length - 1] + "…"
