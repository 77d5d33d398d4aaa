"""A run folder made by hand whose rounds were judged: in pairs, in both orders, by a
judge with a taste for the first place and for long answers, and by a meta-judge."""

import itertools
import json
from dataclasses import replace

import numpy as np

from jaxloop.metrics import MetricsWriter
from jaxloop.records import Judgement, Labelled, Pair, Prompt, Rollout, Score, Scored
from jaxloop.report.folder import RecordFile
from jaxloop.report.tables import RecordSet
from jaxloop.scoring.judge_metrics import judge_metrics
from tests.report.conftest import HOSTILE, write_lines

TOPICS = ("tides", "yeast", "rust", "rainbows", "echoes", "magnets", "sleep", "glass")
POINTS = (
    "It begins with what one can see.",
    "Something pulls or pushes, and something gives way.",
    "That is why it comes back at the same time each day.",
    "One can try it at home with a bowl and a spoon.",
    "Grown-ups measure it with numbers.",
)


def written(prompt_id, index, text, stop="eos"):
    """A rollout with one token a character and one to end with."""
    count = len(text) + 1
    rng = np.random.default_rng(len(text) + index)
    logps = tuple(float(x) for x in -rng.gamma(0.25, 0.8, count))
    ids = tuple(range(count))
    return Rollout(prompt_id, index, ids, text, logps, logps, stop)


def judgement(of, *values, texts=None, judge="judge", request="Which is better?"):
    """A request about the answers `of` with a judgement for each of `values`."""
    prompt = Prompt(f"{judge}:{'-'.join(map(str, of))}", request, (1, 2))
    texts = texts or [f"I say {value}." for value in values]
    rollouts = tuple(written(prompt.id, i, text) for i, text in enumerate(texts))
    return Judgement(prompt, tuple(of), rollouts, values, judge=judge)


def scored(texts, judgements=(), scores=None, truths=None, judge="judge", name="p"):
    """A prompt with answers, scores and judgements."""
    scores = scores or [None] * len(texts)
    truths = truths or [None] * len(texts)
    made = []
    for score, truth in zip(scores, truths, strict=True):
        known = {judge: score, f"{judge}_truth": truth}
        parts = {part: value for part, value in known.items() if value is not None}
        status = "unscored" if score is None else "scored"
        made.append(Score(score, status, components=parts))
    rollouts = tuple(written(name, i, text) for i, text in enumerate(texts))
    prompt = Prompt(name, f"Explain {name}.", (1,))
    return Scored(prompt, rollouts, tuple(made), tuple(judgements))


def record_set(tmp_path, records, label="Round 1"):
    file = RecordFile(tmp_path / "rollouts.jsonl", "round_000", label, (0,))
    return RecordSet(file, len(records), records, {})


def judged_row(name, rng, n=4):
    """Answers of which the longer is often the better one, and every pair twice."""
    points = rng.permutation(np.arange(1, 1 + n) % len(POINTS) + 1)[:n]
    texts = [" ".join(POINTS[: int(p)]) + f" ({i})" for i, p in enumerate(points)]
    truths = [float(p + rng.normal() > 3) for p in points]
    wins, judgements = np.zeros(n), []
    for i, j in itertools.permutations(range(n), 2):
        lean = 0.25 + (points[i] - points[j]) / 3 + rng.normal(0, 0.4)
        values = None if rng.random() < 0.06 else (1.0, 0.0) if lean > 0 else (0.0, 1.0)
        text = f"A has {points[i]} points and B {points[j]}. "
        end = {None: "Both have merits", (1.0, 0.0): "[[A]]", (0.0, 1.0): "[[B]]"}
        request = (
            f"Which answer explains {name} better?\n\n[A]\n{texts[i]}\n\n[B]\n"
            f"{texts[j]}\n\nEnd with [[A]] or [[B]]."
        )
        one = judgement((i, j), values, texts=[text + end[values]], request=request)
        judgements.append(one)
        wins[[i, j]] += (0, 0) if values is None else values
    if rng.random() < 0.2:
        wins[:] = wins[0]
    return scored(texts, judgements, [w / 6 for w in wins.tolist()], truths, name=name)


def meta_row():
    """A judge's five judgements of one answer, of which pairs were judged."""
    values = ((3.0,), (4.0,), None, (1.0,), (3.0,))
    one = judgement((0,), *values, judge="points", request="Give 0 to 5 points.")
    one = replace(one, scores=(0.4, 0.9, None, -1.3, 0.1))
    pairs = [
        judgement((1, 3), (1.0, 0.0), judge="meta", request="Which is better?"),
        judgement((3, 1), (0.0, 1.0), judge="meta", request="Which is better?"),
        judgement((0, 3), (1.0, 0.0), judge="meta", request="Which is better?"),
        judgement((3, 0), (1.0, 0.0), judge="meta", request="Which is better?"),
    ]
    return scored(["an answer"], [one, *pairs], [2.75], judge="points", name="meta")


def hostile_row(number):
    """All that a judge reads and writes is hostile, and the judge's name too."""
    text = HOSTILE[number].replace("\ud800", "")
    one = judgement((0, 1), (1.0, 0.0), None, texts=[text, text + "!"], request=text)
    one = replace(one, judge=text[:40])
    row = scored([text, f"{text}?"], [one], [1.0, 0.0], judge="j", name="hostile")
    return replace(row, prompt=Prompt(f"hostile-{number}", text, (1,)))


def build(out, rounds=2, prompts=8, seed=0):
    """Writes the folder: records, what was left out, metrics of the judges."""
    rng = np.random.default_rng(seed)
    lines = []
    for number in range(rounds):
        rows = [judged_row(f"{TOPICS[i % 8]}-{i}", rng) for i in range(prompts)]
        folder = out / f"records/round_{number:03d}"
        hostile = [hostile_row(i) for i in range(len(HOSTILE))]
        write_lines(folder / "rollouts.jsonl", [*rows, meta_row(), *hostile])
        write_lines(folder / "pairs.jsonl", list(map(_pair, rows[2:])))
        write_lines(folder / "labelled.jsonl", _labelled(rows[2]))
        left_out = {rows[0].prompt.id: "filter 0 RIP", rows[1].prompt.id: "no pair"}
        left_out["hostile-1"] = HOSTILE[1]
        (folder / "left_out.json").write_text(json.dumps(left_out))
        (folder / "dropped.json").write_text('{"filter 0 RIP": 1, "no pair": 2}')
        lines.append(judge_metrics([*rows, meta_row()]) | {"reward": 0.5})
    canary = scored(["real", ""], [judgement((0, 1), (1.0, 0.0))], [1.0, 0.0])
    write_lines(out / "records/canaries/round_001.jsonl", [canary])
    with MetricsWriter(out, tensorboard=False) as writer:
        for number, line in enumerate(lines):
            canaries = {"judge/canary/empty": 0.1, "judge/canary/opener": 0.3}
            writer.write(10 * number, canaries, phase="eval", round=number)
            writer.write(10 * number, line, phase="round", round=number)
    (out / "config.json").write_text(json.dumps({"name": "judged"}))
    return out


def _pair(row):
    values = [score.value for score in row.scores]
    best, worst = int(np.argmax(values)), int(np.argmin(values))
    return Pair(
        row.prompt,
        row.rollouts[best],
        row.rollouts[worst],
        values[best],
        values[worst],
        reason="best against worst",
    )


def _labelled(row):
    good = Labelled(row.prompt, row.rollouts[0], 1.0, steps=((5, 1.0), (9, 0.0)))
    return [good, Labelled(row.prompt, row.rollouts[1], 0.0, weight=2.0)]
