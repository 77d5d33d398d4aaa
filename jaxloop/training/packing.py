"""Short sequences packed into rows of one length, so that little is padding.

Rows carry segment ids: attention stays inside a segment, positions start anew in each,
and no token is predicted from another segment.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from jaxloop.records import Demonstration

Packed = dict[str, np.ndarray]


def pack(
    demonstrations: Sequence[Demonstration],
    row_tokens: int,
    pad_id: int,
    *,
    on_long: Literal["error", "truncate"] = "error",
) -> Packed:
    """All demonstrations in rows of T = `row_tokens`, by first-fit decreasing (Johnson
    1973): longest first, each into the first row with room. Same input, same rows.

    tokens_BT, positions_BT, segments_BT: int32; segments count from 1 in each row, 0 is
    padding (so `pad_id` may be any token). mask_BT: float32, 1 where the token is a
    target, which the hidden state one to its left scores; the first token of a segment
    never is. weights_BT: float32, the demonstration's weight times the token's, 0 on
    padding. repeats_BT, where some demonstration has repeats: int32.

    A demonstration longer than T is a ValueError, or loses its end with
    `on_long="truncate"` (`count_long` says how many do).
    """
    if not demonstrations:
        raise ValueError("there are no demonstrations to pack")
    long = count_long(demonstrations, row_tokens)
    if long and on_long == "error":
        longest = max(demonstrations, key=lambda d: len(d.token_ids))
        raise ValueError(
            f"{long} of {len(demonstrations)} demonstrations do not fit into a row of "
            f"row_tokens={row_tokens}; the longest, {longest.id}, has "
            f"{len(longest.token_ids)} tokens: raise row_tokens or leave them out"
        )
    lengths = [min(len(d.token_ids), row_tokens) for d in demonstrations]
    row_of, start_of = _first_fit(lengths, row_tokens)
    shape = (max(row_of) + 1, row_tokens)
    tokens_BT = np.full(shape, pad_id, np.int32)
    positions_BT = np.zeros(shape, np.int32)
    segments_BT = np.zeros(shape, np.int32)
    mask_BT = np.zeros(shape, np.float32)
    weights_BT = np.zeros(shape, np.float32)
    repeats_BT = np.zeros(shape, np.int32)
    order = sorted(range(len(lengths)), key=lambda i: (row_of[i], start_of[i]))
    for i in order:
        demonstration, length = demonstrations[i], lengths[i]
        b, first, last = row_of[i], start_of[i], start_of[i] + length
        tokens_BT[b, first:last] = demonstration.token_ids[:length]
        positions_BT[b, first:last] = np.arange(length)
        segments_BT[b, first:last] = segments_BT[b].max() + 1
        mask_BT[b, first + 1 : last] = demonstration.mask[1:length]
        weights_BT[b, first:last] = demonstration.weight
        if demonstration.token_weights:
            weights_BT[b, first:last] *= demonstration.token_weights[:length]
        if demonstration.repeats:
            repeats_BT[b, first:last] = demonstration.repeats[:length]
    packed = {
        "tokens_BT": tokens_BT,
        "positions_BT": positions_BT,
        "segments_BT": segments_BT,
        "mask_BT": mask_BT,
        "weights_BT": weights_BT,
    }
    return packed | ({"repeats_BT": repeats_BT} if repeats_BT.any() else {})


def take_rows(
    packed: Packed, rows: Sequence[int] | np.ndarray, size: int, pad_id: int
) -> Packed:
    """A batch of B = `size` rows, the missing ones padding that counts for nothing.

    tokens_BT, positions_BT, segments_BT as in `pack`; mask_BC, weight_BC (float32) and
    repeat_BC (int32, where there are repeats) for tokens 1 to T - 1 (C = T - 1; token 0
    is never a target); valid_B: float32.
    """
    count = len(rows)
    assert count <= size, f"{count} rows do not fit into a batch of {size}"
    fill = {"tokens_BT": pad_id}
    batch = {}
    for name, x in packed.items():
        out = np.full((size, *x.shape[1:]), fill.get(name, 0), x.dtype)
        out[:count] = x[np.asarray(rows, int)]
        batch[name] = out
    batch["mask_BC"] = batch.pop("mask_BT")[:, 1:]
    batch["weight_BC"] = batch.pop("weights_BT")[:, 1:]
    if "repeats_BT" in batch:
        batch["repeat_BC"] = batch.pop("repeats_BT")[:, 1:]
    batch["valid_B"] = (np.arange(size) < count).astype(np.float32)
    return batch


def count_long(demonstrations: Sequence[Demonstration], row_tokens: int) -> int:
    """How many demonstrations are longer than a row."""
    return sum(len(d.token_ids) > row_tokens for d in demonstrations)


def _first_fit(lengths: Sequence[int], capacity: int) -> tuple[list[int], list[int]]:
    """(row, first column) of each length."""
    free = np.full(len(lengths) + 1, capacity)  # never more rows than sequences
    opened = 0
    row_of, start_of = [0] * len(lengths), [0] * len(lengths)
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        row = int(np.argmax(free[: opened + 1] >= lengths[i]))
        opened = max(opened, row + 1)
        row_of[i], start_of[i] = row, int(capacity - free[row])
        free[row] -= lengths[i]
    return row_of, start_of
