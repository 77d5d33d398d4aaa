"""Between a leaf of our tree and the tensors of a file: names, sizes, order of axes.

A leaf is named by its path, "layers/attn/q_DNH". Its axes are the letters at the end of
the name, after the layer's where it is stacked: one leaf is then one tensor a layer.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from jaxloop.models.families import TENSORS

Sizes = dict[str, int]
"""Length of each axis, by its letter."""


def flat(tree: Mapping) -> dict[str, Any]:
    """Leaves by path."""
    return dict(traverse_util.flatten_dict(dict(tree), sep="/"))


def is_stacked(path: str) -> bool:
    """Whether the leaf's first axis is the layer."""
    return path.startswith("layers/")


def axes_of(path: str) -> str:
    """The axis letters of one layer: "DNH"."""
    return path.rpartition("_")[2]


def axis_sizes(path: str, size: tuple[int, ...]) -> Sizes:
    size = size[1:] if is_stacked(path) else size
    return dict(zip(axes_of(path), size, strict=True))


def layers_of(path: str, size: tuple[int, ...]) -> list[int | None]:
    """The layers that a leaf of this size holds; [None] where it is not stacked."""
    return list(range(size[0])) if is_stacked(path) else [None]


def file_shapes(leaves: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name in the file -> its shape there, for leaves (abstract ones too) by path.

    In the order in which a forward pass wants them: embedding, each layer, the rest.
    """
    shapes, order = {}, {}
    for path, leaf in leaves.items():
        name, layout = TENSORS[path]
        sizes = axis_sizes(path, leaf.shape)
        for layer in layers_of(path, leaf.shape):
            of_layer = name.format(layer)
            shapes[of_layer] = tuple(_product(sizes, g) for g in layout.split())
            outside = -np.inf if path == "embed_VD" else np.inf
            order[of_layer] = outside if layer is None else layer
    return {name: shapes[name] for name in sorted(shapes, key=order.__getitem__)}


def read_block(
    read: Callable[[tuple[slice, ...]], np.ndarray],
    path: str,
    sizes: Sizes,
    cuts: Mapping[str, slice],
) -> np.ndarray:
    """The part `cuts` (a slice for each letter) of one layer of a leaf, axes as ours.

    `read(index)` is asked for the part of the file's tensor that covers it. A merged
    dimension is cut by its outermost letter; cuts of the others are made afterwards.
    """
    layout = TENSORS[path][1]
    rows, split, rest = [], [], []
    for outer, *inner in layout.split():
        cut, width = cuts[outer], _product(sizes, inner)
        rows.append(slice(cut.start * width, cut.stop * width))
        split += [cut.stop - cut.start, *(sizes[letter] for letter in inner)]
        rest += [slice(None), *(cuts[letter] for letter in inner)]
    block = read(tuple(rows)).reshape(split)[tuple(rest)]
    letters = layout.replace(" ", "")
    return block.transpose([letters.index(letter) for letter in axes_of(path)])


def to_file(x: np.ndarray, path: str) -> np.ndarray:
    """One layer of a leaf in the shape and order of the file."""
    layout, axes = TENSORS[path][1], axes_of(path)
    sizes = dict(zip(axes, x.shape, strict=True))
    x = x.transpose([axes.index(letter) for letter in layout.replace(" ", "")])
    return x.reshape([_product(sizes, group) for group in layout.split()])


def _product(sizes: Mapping[str, int], letters) -> int:
    return int(np.prod([sizes[letter] for letter in letters]))
