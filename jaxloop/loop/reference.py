"""Log-probabilities of the reference, once for every rollout that is trained on."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxloop.distributed import fetch, place
from jaxloop.loop.workbench import Workbench
from jaxloop.mesh import sharding
from jaxloop.training.batches import Batch, Layout, Row, micro_batches, rows


def rollout_logps(
    bench: Workbench,
    params: dict,
    items: Sequence[Row],
    size: int,
    *,
    layout: Layout,
    temperature: float = 1.0,
) -> np.ndarray:
    """Log-probabilities of each completion's tokens, `size` rows a call.

    Returns float32 (len(items), C), C the layout's longest completion; 0 past the end.
    """
    logp_BC = np.zeros((len(items), layout.completion), np.float32)
    score = bench.token_scorer(layout, temperature=temperature)
    with jax.set_mesh(bench.mesh):
        for first in range(0, len(items), size):
            bench.interrupt.check()
            part = list(items[first : first + size])
            width = layout.width([rollout for _, rollout in part])
            padded = part + [None] * (size - len(part))
            batch = rows(padded, layout, bench.tokenizer.pad_id, width)
            mask_BC = batch["mask_BC"]
            del batch["sampler_logp_BC"]
            scored_BC = score(params, batch) * mask_BC
            logp_BC[first : first + len(part), :width] = scored_BC[: len(part)]
    return logp_BC


def in_parts(call: Callable[[Batch], Any], batch: Batch, parts: int, mesh: Mesh) -> Any:
    """`call` of equal parts of the rows, put together on the host: what takes no
    gradient then takes no more memory than a micro-batch of the update."""
    cut, where = micro_batches(batch, parts), sharding(mesh, "batch")
    made = [
        call(place({name: x[i] for name, x in cut.items()}, where))
        for i in range(parts)
    ]
    return jax.tree.map(lambda *xs: np.concatenate(xs), *fetch(made))


def example_logps(
    bench: Workbench,
    params: dict,
    rows_of_each: Sequence[Sequence[Row]],
    size: int,
    layout: Layout,
) -> np.ndarray:
    """(examples, R, C) float32, of the R rows of each example.

    A row that many examples share is scored once.
    """
    places: dict[tuple[str, str, int], int] = {}
    items: list[Row] = []
    index: list[list[int]] = []
    for group in rows_of_each:
        index.append([])
        for prompt, rollout in group:
            name = (prompt.id, rollout.prompt_id, rollout.index)
            if name not in places:
                places[name] = len(items)
                items.append((prompt, rollout))
            index[-1].append(places[name])
    logp_BC = rollout_logps(bench, params, items, size, layout=layout)
    return logp_BC[np.asarray(index, int)]
