"""Slices of a file are slices of our leaf, whichever way both are cut."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxloop.models.families import TENSORS
from jaxloop.models.layout import axes_of, file_shapes, read_block, to_file

SIZES = {"V": 7, "D": 6, "F": 5, "N": 4, "K": 2, "H": 3}
SIZES |= {"J": 2, "A": 3, "P": 5, "G": 2, "I": 4, "O": 4, "E": 1}


def numbered(axes: str) -> np.ndarray:
    sizes = [SIZES[letter] for letter in axes]
    return np.arange(np.prod(sizes)).reshape(sizes)


@given(st.sampled_from(sorted(TENSORS)), st.data())
def test_any_part_is_found_in_the_file(path, data):
    ours = numbered(axes_of(path))
    file = to_file(ours, path)
    cuts = {}
    for letter in axes_of(path):
        start = data.draw(st.integers(0, SIZES[letter] - 1))
        cuts[letter] = slice(start, data.draw(st.integers(start + 1, SIZES[letter])))
    part = read_block(file.__getitem__, path, SIZES, cuts)
    np.testing.assert_array_equal(part, ours[tuple(cuts[a] for a in axes_of(path))])


@pytest.mark.parametrize(
    ("path", "row", "column"),
    [("layers/attn/q_DNH", 2 * 3 + 1, 5), ("layers/attn/o_NHD", 5, 2 * 3 + 1)],
)
def test_heads_are_merged_outermost_first(path, row, column):
    """Place 1 of head 2 is number 7, a row for queries and a column for the output."""
    ours = numbered(axes_of(path))
    at = {"N": 2, "H": 1, "D": 5}
    value = ours[tuple(at[letter] for letter in axes_of(path))]
    assert to_file(ours, path)[row, column] == value


def test_names_come_layer_by_layer():
    leaves = {
        "final_norm_D": np.ones(6),
        "layers/attn_norm_D": np.ones((12, 6)),
        "layers/attn/q_bias_NH": np.ones((12, 4, 3)),
        "embed_VD": np.ones((7, 6)),
    }
    shapes = file_shapes(leaves)
    names = list(shapes)
    assert (names[0], names[-1]) == ("model.embed_tokens.weight", "model.norm.weight")
    assert [name.split(".")[2] for name in names[1:-1:2]] == [str(i) for i in range(12)]
    assert shapes["model.layers.11.self_attn.q_proj.bias"] == (12,)
    assert len(shapes) == 2 + 2 * 12
