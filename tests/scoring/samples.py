"""Records to score."""

from jaxloop.records import Prompt, Rollout, Stop


def prompt(name="p", text="question", **columns) -> Prompt:
    return Prompt(name, text, (1, 2), columns)


def rollouts(of: Prompt, *texts: str, stop: Stop = "eos") -> tuple[Rollout, ...]:
    return tuple(
        Rollout(of.id, i, tuple(range(len(text) + 1)), text, (), (), stop)
        for i, text in enumerate(texts)
    )


def run(scorer, *texts: str, **columns):
    """The scores of the texts, as completions of one prompt."""
    asked = prompt(**columns)
    return scorer([asked], [rollouts(asked, *texts)])[0].scores
