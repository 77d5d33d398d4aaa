"""Rewards by token from two prompts, for better and for worse answers (T-REG)."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from jaxloop.loop.recipe import Contrast
from jaxloop.loop.round_training import known_logps
from jaxloop.loop.workbench import Workbench
from jaxloop.losses.objective import Objective
from jaxloop.losses.pair_terms import contrastive_reward
from jaxloop.prompts.context import with_context
from jaxloop.training.batches import Example, Layout


def token_rewards(
    bench: Workbench,
    contrast: Contrast,
    objective: Objective,
    params: dict,
    examples: Sequence[Example],
    size: int,
    layout_of: Callable[[Sequence[Example]], Layout],
) -> np.ndarray:
    """(examples, 2, C) float32, 0 where masked: how much likelier `params` say a token
    behind the better prompt than behind the worse one, squashed; by `size` examples.

    Prompts are longer with their texts: `layout_of` says the columns for such examples.
    """

    def logps(text: str) -> np.ndarray:
        asked = [
            replace(each, prompt=with_context(each.prompt, text, bench.tokenizer))
            for each in examples
        ]
        layout = layout_of(asked)
        return known_logps(bench, objective, params, asked, size, layout)

    better_NRC, worse_NRC = logps(contrast.better), logps(contrast.worse)
    kept = min(better_NRC.shape[2], worse_NRC.shape[2])  # both hold the longest
    return contrastive_reward(better_NRC[:, :, :kept], worse_NRC[:, :, :kept])
