from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxloop.records import Demonstration
from jaxloop.training.packing import count_long, pack, take_rows

ROW, PAD = 12, 99


def make(lengths, weights=None) -> list[Demonstration]:
    """Demonstrations of distinct tokens; all but the first third are trained on."""
    made, token = [], 100
    for i, length in enumerate(lengths):
        mask = tuple(int(t >= length // 3) for t in range(length))
        weight = 1.0 if weights is None else weights[i]
        ids = tuple(range(token, token + length))
        made.append(Demonstration(str(i), ids, mask, weight))
        token += length
    return made


LENGTHS = st.lists(st.integers(1, ROW), min_size=1, max_size=20)


def unpack(packed):
    """(tokens, mask, weight) of each segment."""
    for tokens, positions, segments, mask, weights in zip(
        *packed.values(), strict=True
    ):
        for segment in range(1, segments.max() + 1):
            (at,) = np.nonzero(segments == segment)
            assert list(at) == list(range(at[0], at[-1] + 1))
            assert list(positions[at]) == list(range(len(at)))
            yield tuple(tokens[at]), tuple(mask[at]), set(weights[at])


@given(LENGTHS)
@settings(max_examples=60, deadline=None)
def test_every_demonstration_is_there_once_and_whole(lengths):
    demonstrations = make(lengths, weights=[1 + i / 2 for i in range(len(lengths))])
    packed = pack(demonstrations, ROW, PAD)
    found = {tokens: (mask, weight) for tokens, mask, weight in unpack(packed)}
    assert len(found) == len(demonstrations)
    for d in demonstrations:
        mask, weight = found[d.token_ids]
        assert mask == (0, *d.mask[1:])  # the first token has nothing to score it
        assert weight == {d.weight}


@given(LENGTHS)
@settings(max_examples=60, deadline=None)
def test_padding_counts_for_nothing(lengths):
    packed = pack(make(lengths), ROW, PAD)
    padding = packed["segments_BT"] == 0
    assert (packed["tokens_BT"][padding] == PAD).all()
    for name in ("positions_BT", "mask_BT", "weights_BT"):
        assert (packed[name][padding] == 0).all()


@given(LENGTHS)
@settings(max_examples=60, deadline=None)
def test_each_goes_into_the_first_row_with_room_longest_first(lengths):
    segments_BT = pack(make(lengths), ROW, PAD)["segments_BT"]
    rows = [np.bincount(row[row > 0])[1:] for row in segments_BT]
    for later in range(len(rows)):
        assert sorted(rows[later], reverse=True) == list(rows[later])
        for earlier in range(later):
            for length in rows[later]:
                taken = sum(n for n in rows[earlier] if n >= length)
                assert taken + length > ROW


def test_weights_and_repeats_follow_their_tokens():
    plain, other = make([4, 6])
    marked = replace(
        other,
        weight=2.0,
        token_weights=(1.0, -0.5, 0.0, 1.0, 1.0, 1.0),
        repeats=(0, 0, 0, 2, 2, 2),
    )
    assert "repeats_BT" not in pack([plain, other], ROW, PAD)
    packed = pack([plain, marked], ROW, PAD)
    wanted = [2, -1, 0, 2, 2, 2, 1, 1, 1, 1, 0, 0]
    assert packed["weights_BT"][0].tolist() == wanted
    assert packed["repeats_BT"][0].tolist() == [0, 0, 0, 2, 2, 2] + [0] * 6
    batch = take_rows(packed, [0], 2, PAD)
    assert batch["weight_BC"].shape == batch["repeat_BC"].shape == (2, ROW - 1)
    assert batch["weight_BC"][0].tolist() == wanted[1:]
    assert batch["repeat_BC"].dtype == np.int32
    assert not batch["repeat_BC"][1].any()


def test_the_order_is_longest_first_and_deterministic():
    packed = pack(make([3, 9, 5, 4, 3]), ROW, PAD)
    again = pack(make([3, 9, 5, 4, 3]), ROW, PAD)
    for name, x in packed.items():
        np.testing.assert_array_equal(x, again[name])
    segments = [[1] * 9 + [2] * 3, [1] * 5 + [2] * 4 + [3] * 3]
    np.testing.assert_array_equal(packed["segments_BT"], segments)


def test_dtypes():
    packed = pack(make([3]), ROW, PAD)
    kinds = {name: x.dtype for name, x in packed.items()}
    assert kinds == {
        "tokens_BT": np.int32,
        "positions_BT": np.int32,
        "segments_BT": np.int32,
        "mask_BT": np.float32,
        "weights_BT": np.float32,
    }


def test_long_demonstrations_are_an_error_or_lose_their_end():
    demonstrations = make([ROW + 3, 4])
    assert count_long(demonstrations, ROW) == 1
    with pytest.raises(
        ValueError, match=r"1 of 2 demonstrations .* the longest, 0, has"
    ):
        pack(demonstrations, ROW, PAD)
    packed = pack(demonstrations, ROW, PAD, on_long="truncate")
    np.testing.assert_array_equal(
        packed["tokens_BT"][0], demonstrations[0].token_ids[:ROW]
    )
    with pytest.raises(ValueError, match="no demonstrations"):
        pack([], ROW, PAD)


def test_a_batch_shifts_the_mask_and_pads_with_rows_that_are_not_valid():
    packed = pack(make([9, 9, 9], weights=[1, 2, 3]), ROW, PAD)
    batch = take_rows(packed, [2, 0], 4, PAD)
    assert batch["tokens_BT"].shape == (4, ROW)
    np.testing.assert_array_equal(batch["mask_BC"][0], packed["mask_BT"][2, 1:])
    np.testing.assert_array_equal(batch["weight_BC"][1], packed["weights_BT"][0, 1:])
    np.testing.assert_array_equal(batch["valid_B"], [1, 1, 0, 0])
    assert (batch["tokens_BT"][2:] == PAD).all()
    assert batch["segments_BT"][2:].sum() == batch["mask_BC"][2:].sum() == 0


def test_many_demonstrations_pack_quickly_and_well():
    rng = np.random.default_rng(0)
    demonstrations = make(rng.integers(1, 200, 5000).tolist())
    packed = pack(demonstrations, 512, 0)
    assert (packed["segments_BT"] > 0).mean() > 0.98
