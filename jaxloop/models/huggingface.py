"""Hugging Face model directories in: sizes from config.json, weights to the devices.

Nothing of a checkpoint is executed: config.json is plain JSON checked against the
families that are implemented, and weights are safetensors only.
"""

import json
import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from flax import traverse_util
from jax.sharding import Mesh

from jaxloop.models.decoder import Decoder, ModelShape, init_boxed
from jaxloop.models.families import TENSORS, shape_of
from jaxloop.models.layout import (
    axis_sizes,
    file_shapes,
    flat,
    is_stacked,
    layers_of,
    read_block,
)
from jaxloop.models.parameters import abstract_params, tree_bytes
from jaxloop.models.tensor_files import DTYPES, TensorFiles

LISTED = 20
"""How many names of each kind an error shows."""
CHUNK_ROWS = 4096
ADDED = re.compile(r"head_DK|(.*/)?mta/.*")
"""Leaves that a plain checkpoint lacks when the shape adds them."""


def resolve_model_path(path: str | Path, revision: str | None = None) -> Path:
    """The directory of a model: `path` itself, or a hub id's files, downloaded once.

    Of a hub repository only safetensors, JSON and tokenizer files of its top folder
    are fetched. ValueError says what to do when there is no such directory or
    repository, no permission or no network.
    """
    directory = Path(path).expanduser()
    if directory.is_dir():
        if revision is not None:
            raise ValueError(
                f"{path} is a directory; revision {revision!r} is for hub ids"
            )
        return directory
    if directory.exists():
        raise ValueError(f"{path} is a file; give the directory that holds the model")
    name = str(path)
    if name.count("/") != 1 or name.startswith((".", "/", "~")) or name.endswith("/"):
        raise ValueError(
            f"{path}: no such directory (and not a hub id, which reads owner/name)"
        )
    import huggingface_hub
    from huggingface_hub import errors

    try:
        fetched = huggingface_hub.snapshot_download(
            name,
            revision=revision,
            allow_patterns=["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"],
            ignore_patterns=["*/*"],
        )
    except errors.GatedRepoError:
        problem = "ask for access on its page, then log in: `hf auth login`"
    except errors.RepositoryNotFoundError:
        problem = "no such public model (if it is private: `hf auth login`)"
    except errors.RevisionNotFoundError:
        problem = f"it has no revision {revision!r}"
    except errors.HFValidationError as error:
        problem = str(error)
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, OSError) as error:
        problem = (
            f"the hub cannot be reached and the model is not in the local cache "
            f"({type(error).__name__}). Download it where there is a network "
            f"(`hf download {name} --local-dir DIR`) and give DIR"
        )
    else:
        return Path(fetched)
    raise ValueError(f"{path}: no such directory, and as a hub id: {problem}")


def read_shape(directory: str | Path) -> ModelShape:
    """The model that DIR/config.json describes, in transformers 4's or 5's form.

    A *ForSequenceClassification model has a scalar head, and often no output matrix:
    the embedding then stands in for it. ValueError names the file and every key that
    asks for what is not implemented.
    """
    path = Path(directory) / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"{path} is missing: not a Hugging Face model directory"
        ) from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds {type(config).__name__}, not an object")
    try:
        shape = shape_of(config)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if shape.outputs and not shape.tied:
        with TensorFiles(Path(directory)) as files:
            return replace(shape, tied="lm_head.weight" not in files.shapes)
    return shape


def load_params(
    directory: str | Path,
    shape: ModelShape,
    mesh: Mesh,
    dtype="float32",
    *,
    on_progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], Any] = warnings.warn,
) -> dict:
    """The parameters of a Hugging Face directory, each leaf placed by its sharding.

    The host never holds more than one device's part of one leaf: each part is read
    from the files by slices, put on the devices that want it, and dropped. `dtype` is
    what the leaves become. `on_progress(done, total)` counts bytes of the result. Where
    the shape has a scalar head or Multi-Token Attention and the files have none, these
    start as in a new model (zero, and the identity), and `say` gets a sentence on it.

    ValueError before anything is read: pickled weights, broken files, tensors that are
    missing, unexpected or of another shape (all kinds in one message).
    """
    directory = Path(directory)
    leaves = flat(abstract_params(shape, mesh, dtype))
    total, done = tree_bytes(leaves), 0
    loaded = {}
    with TensorFiles(directory) as files:
        added = _added(files, leaves)
        _check_names(directory, files, shape, leaves, added)
        if shape.tied and "lm_head.weight" in files.shapes:
            _check_tied(directory, files)
        for path, leaf in leaves.items():
            if path in added:
                loaded[path] = _new_leaf(shape, path, leaf)
            else:
                loaded[path] = _load_leaf(files, path, leaf)
            done += tree_bytes(leaf)
            if on_progress is not None:
                on_progress(done, total)
    if added:
        say(f"{directory} has no {', '.join(added)}: new, as the identity or zero")
    return traverse_util.unflatten_dict(loaded, sep="/")


def _added(files: TensorFiles, leaves) -> list[str]:
    """Paths of the leaves that the shape adds to the checkpoint."""
    return [
        path
        for path, leaf in leaves.items()
        if ADDED.fullmatch(path) and not files.shapes.keys() & file_shapes({path: leaf})
    ]


def _new_leaf(shape: ModelShape, path: str, leaf: Any) -> jax.Array:
    """One leaf as a new model has it; the others are not computed."""

    def make():
        boxed = init_boxed(Decoder(shape), jax.random.key(0), leaf.dtype)
        return flat(nn.unbox(boxed))[path]

    return jax.jit(make, out_shardings=leaf.sharding)()


def _check_names(
    directory: Path, files: TensorFiles, shape: ModelShape, leaves, added: list[str]
) -> None:
    """One error for everything in which the files and the model differ."""
    wanted = file_shapes({k: v for k, v in leaves.items() if k not in added})
    # Old exports keep RoPE's frequencies; of a tied pair, both may be there.
    known = {"lm_head.weight"} if shape.tied else set()
    have = {k: v for k, v in files.shapes.items() if not k.endswith(".inv_freq")}
    problems = {
        "missing": [name for name in wanted if name not in have],
        "unexpected": [
            name for name in have if name not in wanted and name not in known
        ],
        "of another shape": [
            f"{name} {have[name]}, config.json says {size}"
            for name, size in wanted.items()
            if name in have and have[name] != size
        ],
        "of a type that is not read (F32, BF16, F16 are)": [
            f"{name} {files.dtypes[name]}"
            for name in wanted
            if name in have and files.dtypes[name] not in DTYPES
        ],
    }
    parts = []
    for kind, names in problems.items():
        if names:
            more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
            parts.append(f"{len(names)} {kind}: {', '.join(names[:LISTED])}{more}")
    if parts:
        raise ValueError(
            f"{directory}: the tensors are not those of a {shape.family} model of this "
            f"config.json. {'; '.join(parts)}"
        )


def _check_tied(directory: Path, files: TensorFiles) -> None:
    """Where one matrix is to serve twice, two different ones would be a mistake."""
    names = ("lm_head.weight", TENSORS["embed_VD"][0])
    size_VD, other_VD = (files.shapes[name] for name in names)
    same = size_VD == other_VD
    for start in range(0, size_VD[0] if same else 0, CHUNK_ROWS):
        rows = slice(start, min(start + CHUNK_ROWS, size_VD[0]))
        a_MD, b_MD = (files.read(name, (rows, slice(None))) for name in names)
        same = same and np.array_equal(a_MD, b_MD)
    if not same:
        raise ValueError(
            f'{directory}: config.json has "tie_word_embeddings": true, but '
            "lm_head.weight differs from the embedding; set it false if both count"
        )


def _load_leaf(files: TensorFiles, path: str, leaf: Any) -> jax.Array:
    """Reads each distinct part once, also where several devices hold the same.

    (`jax.make_array_from_callback` would ask once a device, and keep all parts until
    the last one is there.)
    """
    placement, holders = leaf.sharding.addressable_devices_indices_map(leaf.shape), {}
    for device, index in placement.items():
        pairs = zip(index, leaf.shape, strict=True)
        bounds = tuple(cut.indices(size)[:2] for cut, size in pairs)
        holders.setdefault(bounds, []).append(device)
    shards = []
    for bounds, devices in holders.items():
        part = _read_part(files, path, leaf, [slice(*bound) for bound in bounds])
        shards += [jax.device_put(part, device) for device in devices]
    return jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, shards)


def _read_part(files: TensorFiles, path: str, leaf, index: list[slice]) -> np.ndarray:
    """`leaf[index]` in our layout and dtype, from slices of the file's tensors."""
    sizes = axis_sizes(path, leaf.shape)
    cuts = dict(zip(sizes, index[-len(sizes) :], strict=True))
    part = np.empty([cut.stop - cut.start for cut in index], leaf.dtype)
    layers = layers_of(path, leaf.shape)
    layers = layers[index[0]] if is_stacked(path) else layers
    for i, layer in enumerate(layers):
        read = partial(files.read, TENSORS[path][0].format(layer))
        part[... if layer is None else i] = read_block(read, path, sizes, cuts)
    return part
