"""A run folder made by hand: what rounds on sums leave, with hostile text in it."""

import json
import math

import numpy as np
import pytest

from jaxloop.metrics import MetricsWriter
from jaxloop.records import Group, Pair, Prompt, Rollout, Score, Scored, to_json

HOSTILE = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(2)>",
    "\"quotes\" 'single' & &amp; {{data}} ${x} \\u003c",
    "line\u2028separators\u2029and\x00nul \x1b[31mred \u202eright-to-left",
    "emoji 👩‍👩‍👧‍👦 and é and 漢字",
    "]]> --> <!-- <![CDATA[",
    "lone \ud800 surrogate",
    "very long " + "x" * 20_000,
)


def rollout(prompt, index, rng, right):
    a, b = prompt.columns["a"], prompt.columns["b"]
    if rng.random() < (0.85 if right else 0.2):
        text = f"{b % 10}+{a % 10}={a % 10 + b % 10};"
        text += f"{a // 10}+{b // 10}+{(a % 10 + b % 10) // 10}={(a + b) // 10}"
    else:
        text = ""
    answer = a + b if right else a + b + int(rng.integers(1, 6))
    text += f"#{answer}"
    cut = not right and rng.random() < 0.1
    count = len(text) + (not cut)
    logps = tuple(float(x) for x in -rng.gamma(0.25, 0.8, count))
    made = Rollout(
        prompt_id=prompt.id,
        index=index,
        token_ids=tuple(range(count)),
        text=text,
        logps=logps,
        drawn_logps=logps,
        stop="length" if cut else "eos",
    )
    return made, str(answer)


def make_scored(prompt, rng, chance, n):
    made = [rollout(prompt, i, rng, rng.random() < chance) for i in range(n)]
    answers = [answer for _, answer in made]
    gold = prompt.columns["answer"]
    scores = []
    for r, answer in made:
        right = float(answer == gold)
        unscored = rng.random() < 0.02
        scores.append(
            Score(
                value=None if unscored else right,
                status="timeout" if unscored else "scored",
                answer=answer,
                votes=answers.count(answer),
                components={"correct": right, "format": float(r.stop == "eos")},
            )
        )
    return Scored(prompt, tuple(r for r, _ in made), tuple(scores))


def make_prompt(name, i, rng):
    a, b = (int(x) for x in rng.integers(10, 99, 2))
    columns = {"answer": str(a + b), "a": a, "b": b}
    return Prompt(f"{name}-{i}", f"{a}+{b}=", (1, 2, 3), columns)


def hostile_records(n=4):
    for i, text in enumerate(HOSTILE):
        # Not a surrogate: no writer of ours can produce one, see the JSON test.
        text = text.replace("\ud800", "")
        prompt = Prompt(f"hostile-{i}", text, (1,), {"answer": text, "a": 1, "b": 2})
        rollouts = tuple(
            Rollout(prompt.id, j, (1, 2), text, (-0.1, -9.0), (-0.1, -9.0), "stop")
            for j in range(n)
        )
        score = Score(1.0, answer=text, votes=n, components={text[:40]: 0.5})
        yield Scored(prompt, rollouts, (score,) * n)


def pairs_of(records, rng):
    for record in records:
        known = [s.value if s.value is not None else 0.5 for s in record.scores]
        best, worst = int(np.argmax(known)), int(np.argmin(known))
        if known[best] > known[worst]:
            yield Pair(
                record.prompt,
                record.rollouts[best],
                record.rollouts[worst],
                known[best],
                known[worst],
                weight=float(rng.random()),
                reason=f"correct (#{best}) against incorrect (#{worst})",
            )


def write_lines(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(to_json(record) + "\n" for record in records))


def write_metrics(out, rounds, rng, accuracies):
    step = 0
    with MetricsWriter(out, tensorboard=False) as writer:
        clock = 1.75e9

        def write(metrics, **where):
            nonlocal clock
            clock += 0.7
            writer.write(step, metrics | {"time": clock}, **where)

        for step in range(1, 121):
            loss = 2.2 * math.exp(-step / 30) + 0.4 + 0.06 * rng.standard_normal()
            line = {"loss": loss, "grad_norm": 1 + rng.random(), "learning_rate": 1e-3}
            write(line | {"timing_s/step": 0.03, "num_tokens": 900}, phase="sft")
        for round, accuracy in enumerate(accuracies):
            direct = 0.74 * 0.3**round
            line = {"eval/accuracy": accuracy, "eval/direct_answers": direct}
            line["eval/completions/mean_length"] = 9 + 4 * round
            write(line | {"timing_s/eval": 1.2}, phase="eval", round=round)
            if round == rounds:
                break
            line = {
                "reward": accuracy - 0.1 + 0.02 * rng.standard_normal(),
                "reward_std": 0.4 - 0.1 * round,
                "frac_reward_zero_std": 0.2 + 0.1 * round,
                "completions/mean_length": 8.0 + 4 * round,
                "completions/min_length": 3.0,
                "completions/max_length": 18.0 + round,
                "pairs/kept_frac": 0.7 - 0.1 * round,
                "timing_s/gen": 4.1,
                "timing_s/score": 0.3,
            }
            write(line, phase="round", round=round)
            for update in range(40):
                step += 1
                margin = update / 40 + 0.1 * rng.standard_normal()
                loss = 0.69 - 0.3 * margin if update != 17 else math.nan
                line = {
                    "loss": loss,
                    "rewards/margins": margin,
                    "entropy": 0.5 - margin / 9,
                }
                line |= {"rewards/chosen": margin / 2, "rewards/rejected": -margin}
                write(line | {"timing_s/step": 0.08}, phase="round", round=round)


def build_run(out, *, rounds=3, prompts=24, held_out=30, n=8, seed=0):
    """A finished run. Held-out prompts are the same at each evaluation."""
    rng = np.random.default_rng(seed)
    out.mkdir(parents=True, exist_ok=True)
    chances = [0.38, 0.74, 0.83, 0.8, 0.82][: rounds + 1]
    held = [make_prompt("test", i, rng) for i in range(held_out)]
    accuracies = []
    for round, chance in enumerate(chances):
        records = [make_scored(prompt, rng, chance, 1) for prompt in held]
        write_lines(out / f"records/eval/round_{round:03d}.jsonl", records)
        values = [record.scores[0].value or 0.0 for record in records]
        accuracies.append(float(np.mean(values)))
    for round in range(rounds):
        records = [
            make_scored(make_prompt("train", i, rng), rng, chances[round], n)
            for i in range(prompts)
        ]
        folder = out / f"records/round_{round:03d}"
        pairs = list(pairs_of(records, rng))
        write_lines(folder / "pairs.jsonl", pairs)
        dropped = {"MinimumVotes": round, "no pair": len(records) - len(pairs)}
        (folder / "dropped.json").write_text(json.dumps(dropped))
        write_lines(folder / "rollouts.jsonl", [*records, *hostile_records()])
    write_metrics(out, rounds, rng, accuracies)
    (out / "config.json").write_text(json.dumps(CONFIG))
    (out / "run.json").write_text(json.dumps(RUN))
    (out / "summary.json").write_text(json.dumps({"accuracy": accuracies}))
    return out


CONFIG = {
    "_type": "jaxloop.experiment:Config",
    "name": "sums",
    "model": {
        "path": "",
        "shape": {"layers": 2, "width": 64},
        "param_dtype": "float32",
    },
    "recipe": {
        "_type": "jaxloop.loop.recipe:Recipe",
        "sampling": {"n": 8, "temperature": 1.0, "max_new_tokens": 24},
        "scorer": {"_type": "jaxloop.scoring.verifiers:Numeric"},
        "objective": {
            "_type": "jaxloop.losses.objectives:Pairwise",
            "loss": {
                "_function": "jaxloop.losses.preference:dpo",
                "source_sha256": "0",
            },
            "beta": 0.1,
            "nll": 1.0,
        },
        "selector": {"_type": "jaxloop.selection.pairs:CorrectIncorrect", "pairs": 2},
        "schedule": {
            "_type": "jaxloop.loop.recipe:Rounds",
            "rounds": 3,
            "prompts": 256,
        },
        "filters": [{"_type": "jaxloop.selection.filters:MinimumVotes", "minimum": 2}],
    },
    "tracker": {"api_key": "hunter2", "note": "hf_" + "a" * 34},
    "seed": 0,
}
RUN = {
    "command": ["jaxloop", "run", "configs/quickstart.py", "tracker.api_key=hunter2"],
    "versions": {"jaxloop": "0.1.0", "jax": "0.10.2", "flax": "0.12.8"},
    "commit": "0123456789abcdef0123",
    "uncommitted_changes": True,
    "devices": ["cpu"],
}


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    return build_run(tmp_path_factory.mktemp("finished") / "sums")


@pytest.fixture(scope="session")
def make_run():
    return build_run


@pytest.fixture(scope="session")
def judged(tmp_path_factory):
    """The folder of a run with judges."""
    from tests.report.judged_run import build

    return build(tmp_path_factory.mktemp("judged"))


@pytest.fixture(scope="session")
def hostile():
    return HOSTILE


def build_online_run(out, seed=0):
    """20 supervised updates with an evaluation, then 30 online steps with two."""
    rng = np.random.default_rng(seed)
    held = [make_prompt("test", i, rng) for i in range(10)]
    names = {
        "step_000010": 0.1,
        "round_000": 0.3,
        "step_000030": 0.6,
        "step_000040": 0.7,
    }
    for name, chance in {**names, "round_001": 0.9}.items():
        records = [make_scored(prompt, rng, chance, 1) for prompt in held]
        write_lines(out / f"records/eval/{name}.jsonl", records)
    with MetricsWriter(out, tensorboard=False) as writer:

        def look(step, accuracy, round=None):
            metrics = {"eval/accuracy": accuracy, "time": 1.75e9 + step}
            writer.write(step, metrics, phase="eval", round=round)

        for step in range(1, 51):
            phase = "sft" if step <= 20 else "online"
            metrics = {"loss": 1 / step, "time": 1.75e9 + step}
            writer.write(step, metrics, phase=phase)
            if step == 10:
                look(step, 0.1)
            if step == 20:
                look(step, 0.3, round=0)
            if step in (30, 40):
                look(step, 0.3 + step / 100)
        look(50, 0.9, round=1)
    for step in range(30):
        records = [
            make_scored(make_prompt("train", i, rng), rng, 0.5, 4) for i in range(2)
        ]
        write_lines(out / f"records/online/step_{step:06d}.jsonl", records)
    return out


@pytest.fixture(scope="session")
def online(tmp_path_factory):
    return build_online_run(tmp_path_factory.mktemp("online"))


@pytest.fixture(scope="session")
def group_line():
    """A line of records/online/: a Group with advantages."""
    rng = np.random.default_rng(1)
    scored = make_scored(make_prompt("online", 0, rng), rng, 0.5, 4)
    group = Group(
        scored.prompt, scored.rollouts, scored.scores, (0.5, -0.5, 0.25, -0.25)
    )
    return to_json(group) + "\n"
