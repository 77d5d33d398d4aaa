"""From records to arrays: prompts on the left, completions on the right.

A row is [padding, prompt | completion, padding] with the border at the same column
`start` in every row, so that a loss looks at a static slice. Padding has segment 0;
masks come from lengths, never from ids. Shapes come from short ladders, so that few are
compiled.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from jaxloop.records import Group, Pair, Prompt, Rollout

Batch = dict[str, np.ndarray]


def bucket(length: int, most: int) -> int:
    """The smallest of most/4, most/2, most (in whole eights) that holds `length`."""
    for part in (4, 2, 1):
        size = -(-most // (8 * part)) * 8
        if length <= size:
            return size
    raise ValueError(f"a length of {length} does not fit into {most} tokens")


@dataclass(frozen=True)
class Layout:
    """Columns of a batch: `prompt` on the left of the border, at most `completion`."""

    prompt: int
    completion: int

    @property
    def start(self) -> int:
        return self.prompt

    def width(self, rollouts: Sequence[Rollout]) -> int:
        longest = max((len(r.token_ids) for r in rollouts), default=1)
        return bucket(longest, self.completion)


def rows(
    items: Sequence[tuple[Prompt, Rollout] | None],
    layout: Layout,
    pad_id: int,
    columns: int,
) -> Batch:
    """Token arrays of (prompt, completion) rows; None is a row of padding.

    tokens, positions, segments: int32 (B, T) with T = layout.prompt + columns.
    mask_BC: float32 (B, columns), 1 on completion tokens. sampler_logp_BC: float32, the
    sampler's untruncated log-probabilities, 0 where masked.
    """
    B, P, T = len(items), layout.prompt, layout.prompt + columns
    tokens_BT = np.full((B, T), pad_id, np.int32)
    positions_BT = np.zeros((B, T), np.int32)
    segments_BT = np.zeros((B, T), np.int32)
    mask_BC = np.zeros((B, columns), np.float32)
    logp_BC = np.zeros((B, columns), np.float32)
    for b, item in enumerate(items):
        if item is None:
            continue
        prompt, rollout = item[0].token_ids, item[1]
        first, last = P - len(prompt), P + len(rollout.token_ids)
        tokens_BT[b, first:P] = prompt
        tokens_BT[b, P:last] = rollout.token_ids
        positions_BT[b, first:last] = np.arange(last - first)
        segments_BT[b, first:last] = 1
        mask_BC[b, : last - P] = 1
        if rollout.logps:  # pairs from a file have none
            logp_BC[b, : last - P] = rollout.logps
    return {
        "tokens_BT": tokens_BT,
        "positions_BT": positions_BT,
        "segments_BT": segments_BT,
        "mask_BC": mask_BC,
        "sampler_logp_BC": logp_BC,
    }


def micro_batches(batch: Batch, accumulation: int) -> Batch:
    """(A * B, ...) to (A, B, ...)."""
    return {
        name: x.reshape(accumulation, -1, *x.shape[1:]) for name, x in batch.items()
    }


def pair_batch(
    pairs: Sequence[Pair],
    layout: Layout,
    pad_id: int,
    size: int,
    reference: Sequence[np.ndarray] | np.ndarray | None = None,
) -> Batch:
    """`size` pairs as 2 * size rows, chosen and rejected in turn.

    `reference`: for each pair the reference's log-probabilities, (2, C) float32. Rows
    beyond `len(pairs)` are padding and not valid: they count for nothing.
    """
    items: list[tuple[Prompt, Rollout] | None] = []
    for pair in pairs:
        items += [(pair.prompt, pair.chosen), (pair.prompt, pair.rejected)]
    width = layout.width([item[1] for item in items if item])
    items += [None] * (2 * (size - len(pairs)))
    batch = rows(items, layout, pad_id, width)
    del batch["sampler_logp_BC"]  # of the sampling temperature, where pairs are at 1
    valid_B = np.zeros(2 * size, np.float32)
    valid_B[: 2 * len(pairs)] = 1
    weight_B = np.zeros(2 * size, np.float32)
    weight_B[: 2 * len(pairs)] = np.repeat([pair.weight for pair in pairs], 2)
    batch |= {"valid_B": valid_B, "weight_B": weight_B}
    if reference is not None:
        batch["reference_logp_BC"] = np.zeros_like(batch["mask_BC"])
        for i, logp_2C in enumerate(reference):
            kept = min(width, logp_2C.shape[1])  # beyond the longest row all is masked
            batch["reference_logp_BC"][2 * i : 2 * i + 2, :kept] = logp_2C[:, :kept]
    return batch


def group_batch(
    groups: Sequence[Group], layout: Layout, pad_id: int, size: int
) -> Batch:
    """All rollouts of all groups, padded with invalid rows up to `size` rows."""
    items: list[tuple[Prompt, Rollout] | None] = [
        (group.prompt, rollout) for group in groups for rollout in group.rollouts
    ]
    width = layout.width([item[1] for item in items if item])
    valid_B = np.zeros(size, np.float32)
    valid_B[: len(items)] = 1
    advantage_B = np.zeros(size, np.float32)
    advantage_B[: len(items)] = [a for group in groups for a in group.advantages]
    items += [None] * (size - len(items))
    batch = rows(items, layout, pad_id, width)
    return batch | {"valid_B": valid_B, "advantage_B": advantage_B}


def shuffled(count: int, epochs: int, size: int, rng) -> Iterator[np.ndarray]:
    """Indices of each batch: `epochs` passes in new orders, the last batch of a pass
    may be short."""
    for _ in range(epochs):
        order = rng.permutation(count)
        for first in range(0, count, size):
            yield order[first : first + size]


def count_batches(count: int, epochs: int, size: int) -> int:
    return epochs * -(-count // size)
