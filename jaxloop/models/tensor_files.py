"""Safetensors files, read by slices and written tensor by tensor.

The format: eight bytes with the length of a JSON header, the header (dtype, shape and
byte range of each tensor), then the bytes, row-major and little-endian.
https://github.com/huggingface/safetensors#format
"""

import json
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
DTYPES = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


class TensorFiles:
    """The tensors of a model directory; a context manager. Nothing is read but slices.

    `shapes` and `dtypes` (the file's names of them, such as "BF16") are by tensor name.
    ValueError where files are missing, broken or not safetensors.
    """

    def __init__(self, directory: Path):
        self._stack = ExitStack()
        self._slices: dict[str, Any] = {}
        try:
            for path in tensor_files(directory):
                self._open(path)
        except BaseException:
            self._stack.close()
            raise
        self.shapes = {k: tuple(s.get_shape()) for k, s in self._slices.items()}
        self.dtypes = {k: s.get_dtype() for k, s in self._slices.items()}

    def _open(self, path: Path) -> None:
        try:
            # Opening maps the file; `get_slice` reads what is asked for.
            file = self._stack.enter_context(safe_open(path, framework="numpy"))
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"{path}: not a whole safetensors file ({error}). An interrupted "
                "download, or a Git LFS pointer in place of the file?"
            ) from None
        self._slices |= {name: file.get_slice(name) for name in file.offset_keys()}

    def __enter__(self) -> "TensorFiles":
        return self

    def __exit__(self, *error) -> None:
        self._slices.clear()
        self._stack.close()

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """That part of the tensor, in the file's dtype."""
        return self._slices[name][index]


def tensor_files(directory: Path) -> list[Path]:
    """The safetensors files of a model directory: the one, or those its index names.

    ValueError, with the way out, for a directory with pickled weights or none.
    """
    if (directory / SINGLE).is_file():
        return [directory / SINGLE]
    index = directory / INDEX
    if index.is_file():
        names = sorted(set(_weight_map(index).values()))
        # A name is a file of this directory, never a path out of it.
        here = {path.name for path in directory.iterdir() if path.is_file()}
        absent = [name for name in names if name not in here]
        if absent:
            raise ValueError(f"{index} names files that are not there: {absent[:20]}")
        return [directory / name for name in names]
    found = sorted(path.name for path in directory.iterdir())
    pickles = [name for name in found if name.endswith(PICKLES)]
    if pickles:
        raise ValueError(
            f"{directory}: {', '.join(pickles[:5])} would have to be unpickled, which "
            "can run any code; only safetensors are read. Convert where torch is there "
            "and the file is trusted: "
            "AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW_DIR)"
        )
    raise ValueError(
        f"{directory}: neither {SINGLE} nor {INDEX} is there; found {found[:20]}"
    )


def _weight_map(index: Path) -> dict[str, str]:
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {str(tensor): str(file) for tensor, file in names.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f'{index}: not JSON with a "weight_map" of names') from None


def write_tensors(
    directory: Path,
    shapes: Mapping[str, tuple[int, ...]],
    fetch: Callable[[str], np.ndarray],
    *,
    dtype: np.dtype,
    shard_bytes: int,
) -> None:
    """Writes tensors in the order of `shapes`, and an index if they fill several files.

    `fetch(name)` is called when that tensor's turn comes, so one is held at a time. A
    file holds at most `shard_bytes`, unless one tensor alone is larger.
    """
    sizes = {name: _bytes(shape, dtype) for name, shape in shapes.items()}
    shards = _split(sizes, shard_bytes)
    weight_map = {}
    for i, names in enumerate(shards):
        whole = len(shards) == 1
        file = SINGLE if whole else f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        _write_file(directory / file, {n: shapes[n] for n in names}, fetch, dtype)
        weight_map |= dict.fromkeys(names, file)
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(sizes.values())},
            "weight_map": weight_map,
        }
        write_json(directory / INDEX, index)


def write_json(path: Path, value: Mapping) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(json.dumps(value, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _bytes(shape: tuple[int, ...], dtype: np.dtype) -> int:
    return int(np.prod(shape)) * dtype.itemsize


def _split(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    """Names in order, cut where the next one would take a file past the limit."""
    shards: list[list[str]] = [[]]
    held = 0
    for name, size in sizes.items():
        if shards[-1] and held + size > limit:
            shards.append([])
            held = 0
        shards[-1].append(name)
        held += size
    return shards


def _header(shapes: Mapping[str, tuple[int, ...]], dtype: np.dtype) -> bytes:
    code = next(code for code, known in DTYPES.items() if known == dtype)
    # transformers 4 refuses files that do not say which framework laid them out.
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, shape in shapes.items():
        stop = start + _bytes(shape, dtype)
        header[name] = {"dtype": code, "shape": shape, "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header).encode()
    return text + b" " * (-len(text) % 8)  # the bytes that follow are then aligned


def _write_file(path: Path, shapes: Mapping, fetch: Callable, dtype) -> None:
    header = _header(shapes, dtype)
    with open(path, "wb") as file:
        file.write(len(header).to_bytes(8, "little"))
        file.write(header)
        for name, shape in shapes.items():
            tensor = np.ascontiguousarray(fetch(name), dtype)
            assert tensor.shape == tuple(shape), (name, tensor.shape, shape)
            file.write(tensor.reshape(-1).view(np.uint8).data)
        file.flush()
        os.fsync(file.fileno())
