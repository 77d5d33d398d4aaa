"""Length limits put into preference pairs, as LIFT-DPO does.

Each pair gets a copy whose prompt asks for at most so many words, and in which keeping
to that comes before everything else. Following length constraints in general
instructions (Yuan et al. 2024, arXiv 2406.17744). Training on both is ordinary DPO.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jaxloop.prompts.dataset import Dataset, JsonlData
from jaxloop.prompts.tokenizer import Tokenizer
from jaxloop.records import Pair, Prompt, Rollout

Count = Callable[[str], int]
FIELD = "{limit}"
INSTRUCTION = "Answer in at most {limit} words.\n\n"


def words(text: str) -> int:
    """Pieces of a text with white space between them."""
    return len(text.split())


def violates(prompt: Prompt, text: str, count: Count = words) -> bool:
    """Whether a completion is longer than its prompt's column `limit` allows; without
    such a column it never is."""
    limit = prompt.columns.get("limit")
    return limit is not None and count(text) > int(limit)


def violations(prompt: Prompt, rollout: Rollout) -> float:
    """1 for a completion of more words than its prompt allows, else 0: averaged, their
    share."""
    return float(violates(prompt, rollout.text))


def under_limit(pair: Pair, limit: int, count: Count = words) -> Pair | None:
    """The pair with the limit above quality, its prompt as it was.

    Exactly one is longer than the limit: the other one is chosen, whatever the order
    was. None is: the order stays. Both are: None, it is of no use (in the paper as
    recalled, not checked, the shorter might be preferred then).
    """
    longer = [count(side.text) > limit for side in (pair.chosen, pair.rejected)]
    if all(longer):
        return None
    if not any(longer):
        return replace(pair, reason=f"none is longer than {limit}")
    reason = f"the other one is longer than {limit}"
    if longer[0]:
        pair = replace(pair, chosen=pair.rejected, rejected=pair.chosen)
    return replace(pair, reason=reason)


def draw_limit(pair: Pair, rng: np.random.Generator, count: Count = words) -> int:
    """A limit that makes the pair useful. Half of the time only its longer side exceeds
    it (if their lengths differ), else it is between the longer side and twice that.

    The rule is ours: the paper's is not known to us.
    """
    short, long = sorted(count(side.text) for side in (pair.chosen, pair.rejected))
    low = max(short, 1)
    if low < long and rng.random() < 0.5:
        return int(rng.integers(low, long))
    return int(rng.integers(max(long, 1), max(2 * long, 1) + 1))


def limited_prompt(
    prompt: Prompt, limit: int, tokenizer: Tokenizer, instruction: str = INSTRUCTION
) -> Prompt:
    """The prompt with the instruction in front: of its text, or of the last message of
    the user. Its column `limit` is the number, its id that of the prompt with `:limit`
    behind it. ValueError where no message is the user's."""
    said = instruction.replace(FIELD, str(limit))
    columns = {**prompt.columns, "limit": limit}
    id, text, messages = f"{prompt.id}:limit", said + prompt.text, None
    if prompt.messages is None:
        return Prompt(id, text, tokenizer.encode_prompt(text), columns)
    messages = _told(prompt, said)
    asked = {"chat_template_kwargs": {}, "tools": None} | columns
    text = tokenizer.chat_text(
        messages,
        add_generation_prompt=True,
        tools=asked["tools"],
        **(asked["chat_template_kwargs"] or {}),
    )
    return Prompt(id, text, tokenizer.encode(text), columns, messages)


def _told(prompt: Prompt, said: str) -> tuple[Mapping[str, Any], ...]:
    messages = list(prompt.messages or ())
    places = [i for i, message in enumerate(messages) if message["role"] == "user"]
    if not places:
        raise ValueError(
            f"{prompt.id}: no message is the user's, so there is none that could ask "
            "for a length"
        )
    content = messages[places[-1]].get("content") or ""
    if isinstance(content, str):
        content = said + content
    else:  # a list of parts
        content = [{"type": "text", "text": said}, *content]
    messages[places[-1]] = {**messages[places[-1]], "content": content}
    return tuple(messages)


def with_limits(
    pairs: Sequence[Pair],
    tokenizer: Tokenizer,
    rng: np.random.Generator,
    *,
    instruction: str = INSTRUCTION,
    count: Count = words,
) -> tuple[list[Pair], str]:
    """(each pair and behind it its copy under a limit, a sentence on what became of
    them)."""
    made, seen = [], Counter()
    for pair in pairs:
        made.append(pair)
        limit = draw_limit(pair, rng, count)
        limited = under_limit(pair, limit, count)
        if limited is None:
            seen["dropped"] += 1
            continue
        turned = limited.chosen is not pair.chosen
        seen["turned round" if turned else "as they were"] += 1
        prompt = limited_prompt(pair.prompt, limit, tokenizer, instruction)
        chosen, rejected = (
            replace(side, prompt_id=prompt.id)
            for side in (limited.chosen, limited.rejected)
        )
        made.append(replace(limited, prompt=prompt, chosen=chosen, rejected=rejected))
    told = ", ".join(f"{number} {name}" for name, number in sorted(seen.items()))
    return made, f"{len(made) - len(pairs)} pairs have a copy with a limit ({told})"


@dataclass(frozen=True)
class LimitedPairs(JsonlData):
    """`JsonlData` with a copy under a length limit beside each of its pairs."""

    instruction: str = INSTRUCTION
    """What asks for the length; {limit} is the number."""
    count: Count = words
    """What is limited: a function of a completion's text."""
    limit_seed: int = 0
    """Of the limits."""

    def __post_init__(self):
        if FIELD not in self.instruction:
            raise ValueError(
                f"data.instruction {self.instruction!r} does not say the limit: write "
                f"{FIELD} where the number goes"
            )

    def load(self, tokenizer: Tokenizer) -> Dataset:
        data = super().load(tokenizer)
        rng = np.random.default_rng(self.limit_seed)
        pairs, note = with_limits(
            data.pairs,
            tokenizer,
            rng,
            instruction=self.instruction,
            count=self.count,
        )
        return replace(data, pairs=pairs, notes=[*data.notes, note])
