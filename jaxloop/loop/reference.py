"""Log-probabilities of the reference, once for every rollout that is trained on."""

from collections.abc import Sequence

import jax
import numpy as np

from jaxloop.loop.workbench import Workbench
from jaxloop.records import Pair, Prompt, Rollout
from jaxloop.training.batches import rows


def rollout_logps(
    bench: Workbench,
    params: dict,
    items: Sequence[tuple[Prompt, Rollout]],
    size: int,
    *,
    temperature: float = 1.0,
) -> np.ndarray:
    """Log-probabilities of each completion's tokens, `size` rows a call.

    Returns float32 (len(items), C), C the layout's longest completion; 0 past the end.
    """
    logp_BC = np.zeros((len(items), bench.layout.completion), np.float32)
    score = bench.token_scorer(temperature=temperature)
    with jax.set_mesh(bench.mesh):
        for first in range(0, len(items), size):
            bench.interrupt.check()
            part = list(items[first : first + size])
            width = bench.layout.width([rollout for _, rollout in part])
            padded = part + [None] * (size - len(part))
            batch = rows(padded, bench.layout, bench.tokenizer.pad_id, width)
            mask_BC = batch["mask_BC"]
            del batch["sampler_logp_BC"]
            scored_BC = np.asarray(score(params, batch)) * mask_BC
            logp_BC[first : first + len(part), :width] = scored_BC[: len(part)]
    return logp_BC


def pair_logps(
    bench: Workbench, params: dict, pairs: Sequence[Pair], size: int
) -> np.ndarray:
    """(pairs, 2, C) float32: chosen and rejected.

    A rollout in many pairs is scored once.
    """
    places: dict[tuple[str, int], int] = {}
    items: list[tuple[Prompt, Rollout]] = []
    for pair in pairs:
        for rollout in (pair.chosen, pair.rejected):
            name = (pair.prompt.id, rollout.index)
            if name not in places:
                places[name] = len(items)
                items.append((pair.prompt, rollout))
    logp_BC = rollout_logps(bench, params, items, size)
    index_P2 = [
        [places[p.prompt.id, r.index] for r in (p.chosen, p.rejected)] for p in pairs
    ]
    return logp_BC[np.asarray(index_P2, int).reshape(-1, 2)]
