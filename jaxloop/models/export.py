"""Hugging Face model directories out: what transformers and vLLM serve."""

import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxloop.models.decoder import Decoder, ModelShape, init_boxed
from jaxloop.models.families import TENSORS, config_of
from jaxloop.models.layout import file_shapes, flat, layers_of, to_file
from jaxloop.models.tensor_files import DTYPES, write_json, write_tensors

SHARD_BYTES = 5 * 10**9


class SavedTokenizer(Protocol):
    """What the export needs of a tokenizer."""

    @property
    def eos_ids(self) -> tuple[int, ...]: ...
    @property
    def bos_ids(self) -> tuple[int, ...]: ...
    @property
    def pad_id(self) -> int: ...
    def save(self, directory: Path) -> Any: ...


def save_model(
    directory: str | Path,
    shape: ModelShape,
    params: Mapping,
    tokenizer: SavedTokenizer,
    *,
    dtype=None,
    shard_bytes: int = SHARD_BYTES,
    generation: Mapping[str, Any] | None = None,
) -> None:
    """Writes weights, config.json, generation_config.json and the tokenizer's files.

    `dtype`: what is stored (float32, bfloat16 or float16); None is what the parameters
    are. `generation`: more keys of generation_config.json; its `eos_token_id` joins the
    tokenizer's. Weights take files of at most `shard_bytes`; one tensor at a time comes
    to the host. The directory appears only when it is complete, by a rename. With
    several processes all call, the first writes, and all return when it is there.

    ValueError: a directory that is not empty, parameters that are not the shape's,
    token ids outside the vocabulary, a shape that its family cannot express.
    """
    leaves = flat(params)
    stored = _stored_dtype(leaves, dtype)
    _check_leaves(shape, leaves)
    tokens = _special_tokens(shape, tokenizer, generation or {})
    config = config_of(shape, stored.name) | tokens
    shapes = file_shapes(leaves)
    fetch = _fetcher(leaves)
    if jax.process_index() == 0:
        with _appearing(Path(directory)) as partial:
            tokenizer.save(partial)
            write_json(partial / "config.json", config)
            more = {**(generation or {}), **tokens}
            write_json(partial / "generation_config.json", more)
            write_tensors(partial, shapes, fetch, dtype=stored, shard_bytes=shard_bytes)
    else:
        for name in shapes:  # their part in gathering each tensor
            fetch(name)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"saved {directory}")


def _stored_dtype(leaves: Mapping[str, Any], dtype) -> np.dtype:
    have = {np.dtype(leaf.dtype) for leaf in leaves.values()}
    if dtype is None and len(have) > 1:
        raise ValueError(f"parameters are of {sorted(map(str, have))}: give the dtype")
    stored = np.dtype(dtype) if dtype is not None else have.pop()
    if stored not in DTYPES.values():
        names = ", ".join(known.name for known in DTYPES.values())
        raise ValueError(f"dtype {stored} cannot be stored; these can: {names}")
    return stored


def _check_leaves(shape: ModelShape, leaves: Mapping[str, Any]) -> None:
    boxed = jax.eval_shape(lambda: init_boxed(Decoder(shape), jax.random.key(0)))
    wanted = {path: box.value.shape for path, box in flat(boxed).items()}
    have = {path: leaf.shape for path, leaf in leaves.items()}
    if wrong := sorted(set(wanted.items()) ^ set(have.items())):
        raise ValueError(
            f"the parameters are not those of the shape; they differ in {wrong[:20]}"
        )


def _special_tokens(
    shape: ModelShape, tokenizer: SavedTokenizer, generation: Mapping[str, Any]
) -> dict[str, Any]:
    """The ids that end, begin and pad, as both configuration files have them."""
    more = generation.get("eos_token_id") or []
    more = [more] if isinstance(more, int) else more
    eos = list(dict.fromkeys([*tokenizer.eos_ids, *more]))
    ids = [*eos, *tokenizer.bos_ids, tokenizer.pad_id]
    if outside := [i for i in ids if not 0 <= i < shape.vocab]:
        raise ValueError(
            f"special token ids {outside} are outside the model's {shape.vocab} "
            "embedding rows: this tokenizer is not the model's"
        )
    tokens: dict[str, Any] = {"pad_token_id": tokenizer.pad_id}
    if eos:
        tokens["eos_token_id"] = eos[0] if len(eos) == 1 else eos
    if tokenizer.bos_ids:
        tokens["bos_token_id"] = tokenizer.bos_ids[0]
    return tokens


def _fetcher(leaves: Mapping[str, Any]) -> Callable[[str], np.ndarray]:
    """fetch(name): that tensor on the host, in the file's layout."""
    sources = {
        TENSORS[path][0].format(layer): (path, layer)
        for path, leaf in leaves.items()
        for layer in layers_of(path, leaf.shape)
    }

    def fetch(name: str) -> np.ndarray:
        path, layer = sources[name]
        x = leaves[path]
        if layer is not None:
            # The index is an operand: one compilation a leaf, not one a layer.
            x = jax.lax.dynamic_index_in_dim(x, layer, keepdims=False)
        return to_file(_to_host(x), path)

    return fetch


def _to_host(x: jax.Array | np.ndarray) -> np.ndarray:
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return np.asarray(multihost_utils.process_allgather(x, tiled=True))
    return np.asarray(x)


@contextmanager
def _appearing(target: Path) -> Iterator[Path]:
    """A new sibling directory that takes the target's place when all went well."""
    target = target.expanduser().resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} exists and is not empty; give a new directory")
    partial = target.with_name(f".{target.name}.partial-{uuid.uuid4().hex[:8]}")
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    parent = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(parent)  # the rename itself
    finally:
        os.close(parent)
