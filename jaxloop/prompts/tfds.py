"""Rows of a TensorFlow dataset, read without TensorFlow.

`tfds:NAME/CONFIG:VERSION?split=SPLIT` names one; `&data_dir=DIR` says where it lies. It
must have been prepared as array_record files, which are read by random access.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from jaxloop.prompts.jsonl import DataError, Row

PREFIX = "tfds:"


@dataclass(frozen=True)
class TfdsAddress:
    """`name` as tensorflow_datasets takes it: "name", "name/config:1.0.0"."""

    name: str
    split: str
    data_dir: str | None = None


def parse_address(source: str) -> TfdsAddress:
    """The parts of a `tfds:` source. ValueError for an unknown option or no split."""
    assert source.startswith(PREFIX)
    name, _, query = source.removeprefix(PREFIX).partition("?")
    # "+" is not a space here: it joins splits (train+test).
    options = dict(parse_qsl(query.replace("+", "%2B"), keep_blank_values=True))
    unknown = sorted(set(options) - {"split", "data_dir"})
    if not name or unknown or not options.get("split"):
        reason = (
            f"unknown option {unknown[0]!r}" if unknown else "name or split missing"
        )
        raise ValueError(
            f"{source!r}: {reason}; write tfds:NAME/CONFIG:VERSION?split=SPLIT, with "
            "&data_dir=DIR if it is not in ~/tensorflow_datasets"
        )
    return TfdsAddress(name, options["split"], options.get("data_dir"))


def read_tfds(source: str) -> Iterator[Row | DataError]:
    """Every row in the order of the files, bytes decoded as UTF-8 and numpy values made
    plain; a DataError in place of a row whose bytes are not text. Nothing is fetched:
    DataError naming the fix where the dataset is not prepared."""
    address = parse_address(source)
    records = _data_source(source, address)
    for index in range(len(records)):
        place = f"{source}[{index}]"
        try:
            values = {
                name: _plain(value, place, name)
                for name, value in records[index].items()
            }
        except DataError as error:
            yield error
        else:
            yield Row(place, index + 1, values)


def _data_source(source: str, address: TfdsAddress) -> Any:
    import tensorflow_datasets as tfds

    prepare = (
        f"tfds.builder({address.name!r}, file_format='array_record')"
        ".download_and_prepare()"
    )
    try:
        builder: Any = tfds.builder(address.name, data_dir=address.data_dir)
    except (tfds.core.DatasetNotFoundError, AssertionError) as error:
        where = address.data_dir or "~/tensorflow_datasets"
        raise DataError(
            f"{source}: no such dataset or version in {where}: {error}"
        ) from error
    if not builder.data_path.exists():
        raise DataError(
            f"{source}: not prepared (no {builder.data_path}); run {prepare}"
        )
    if address.split not in builder.info.splits and not set(address.split) & set("[+"):
        raise DataError(
            f"{source}: no split {address.split!r}; there are "
            f"{sorted(builder.info.splits)}"
        )
    try:
        return builder.as_data_source(split=address.split)
    except NotImplementedError as error:
        raise DataError(
            f"{source}: its files cannot be read by random access; prepare it again: "
            f"{prepare}"
        ) from error


def _plain(value: Any, place: str, name: str) -> Any:
    """Numpy and bytes to what JSON has."""
    if isinstance(value, dict):
        return {k: _plain(v, place, f"{name}.{k}") for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v, place, name) for v in value]
    if hasattr(value, "tolist"):  # a numpy array or scalar
        return _plain(value.tolist(), place, name)
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{place}: the field {name!r} is not UTF-8 at its byte {error.start}"
            ) from error
    return value
