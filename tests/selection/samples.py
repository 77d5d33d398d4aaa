"""Scored prompts to select from."""

from dataclasses import replace

from jaxloop.records import Prompt, Rollout, Score, Scored


def row(name: str, *samples) -> Scored:
    """Samples are (text, value) or (text, value, answer, votes); value None:
    unscored."""
    scores = [
        Score(value, "unscored" if value is None else "scored", *rest)
        for _, value, *rest in samples
    ]
    rollouts = [
        Rollout(name, i, tuple(map(ord, sample[0])), sample[0], (), (), "eos")
        for i, sample in enumerate(samples)
    ]
    return Scored(Prompt(name, name, (1,)), tuple(rollouts), tuple(scores))


def voted(name: str, answers: str) -> Scored:
    """A row whose samples' answers are these characters; "." is no answer."""
    return row(
        name,
        *(
            (f"{answer}{i}", None)
            if answer == "."
            else (
                f"{answer}{i}",
                answers.count(answer) / len(answers),
                answer,
                answers.count(answer),
            )
            for i, answer in enumerate(answers)
        ),
    )


def with_columns(scored: Scored, **columns) -> Scored:
    """The same with those columns in its prompt's data."""
    return replace(scored, prompt=replace(scored.prompt, columns=columns))


def with_components(name: str, *components: dict | None) -> Scored:
    """A row whose scores have those components and their sum; None: unscored."""
    values = [None if parts is None else sum(parts.values()) for parts in components]
    scored = row(name, *((str(i), value) for i, value in enumerate(values)))
    scores = zip(scored.scores, components, strict=True)
    return replace(
        scored, scores=tuple(replace(s, components=parts or {}) for s, parts in scores)
    )
