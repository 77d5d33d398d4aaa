"""Which prompts stay together when a step draws from all of them."""

from collections.abc import Sequence

from jaxloop.records import Prompt
from jaxloop.scoring.scorer import column


def drawn_together(prompts: Sequence[Prompt], field: str) -> list[list[Prompt]]:
    """The prompts that share a value of their row's `field`, in the order of the first
    of each; every prompt by itself for "".

    ValueError where a row has no such field, or values have unequally many prompts.
    """
    if not field:
        return [[prompt] for prompt in prompts]
    by_value: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        by_value.setdefault(str(column(prompt, field)), []).append(prompt)
    sizes = {len(found) for found in by_value.values()}
    if len(sizes) > 1:
        few = min(by_value, key=lambda value: len(by_value[value]))
        raise ValueError(
            f"prompts are to be drawn together by {field!r}, but of {few!r} there are "
            f"{len(by_value[few])} and of others up to {max(sizes)}"
        )
    return list(by_value.values())
