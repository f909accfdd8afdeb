"""Writes released checkpoint folders: config.json, safetensors files and an index, one part of an array at a time."""

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import shutil
import struct
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np

from transfusion.errors import UsageError
from transfusion.interop.files import DTYPES, INDEX, SUFFIX, WEIGHT_FILES, ArrayEntry
from transfusion.storage import StorageError, lasting

ArrayForm = tuple[tuple[int, ...], str]  # shape and dtype (a key of DTYPES)


def write_file(
    path: pathlib.Path, forms: Mapping[str, ArrayForm], leaves: Iterator[tuple[str, np.ndarray]], metadata: Mapping = {}
) -> None:
    """Writes one safetensors file of the arrays that `leaves` yields, in the order and dtypes of `forms`.

    The arguments are those of `write_checkpoint`.
    """
    _write(path.parent, {path.name: dict(forms)}, leaves, {path.name: metadata})


def write_checkpoint(
    folder: str | os.PathLike,
    config: Mapping[str, Any],
    leaves: Iterator[tuple[str, np.ndarray]],
    forms: Mapping[str, ArrayForm],
    max_shard_bytes: int = 5_000_000_000,
    *,
    name: str = WEIGHT_FILES[0],
    layout: Mapping[str, str] | None = None,
    metadata: Mapping[str, Mapping[str, str]] | None = None,
    index_metadata: Mapping[str, Any] | None = None,
    beside: Collection[pathlib.Path] = (),
) -> None:
    """Writes a checkpoint folder, array by array. The folder appears when it is complete.

    Args:
      folder: must not exist, or be empty.
      config: becomes config.json; {} writes none.
      leaves: (key, array) for each key of `forms`, in any order. An array may come in several parts, its rows in order.
        Arrays are cast to the dtype of `forms`.
      forms: the shape and dtype of every key, in the order of the file.
      max_shard_bytes: larger weights are split into several files with an index.
      name: the files are NAME.safetensors, or NAME-00001-of-00002.safetensors and so on.
      layout: the file of each key, in place of `max_shard_bytes` and `name`.
      metadata: the metadata of the headers by file; by default that of PyTorch's files.
      index_metadata: the metadata of the index. If it is given, even one file has an index.
      beside: further files, which are copied as they are.

    Raises:
      UsageError: if the folder holds files, or cannot be written.
    """
    layout = shards(forms, max_shard_bytes, name) if layout is None else layout
    metadata = {file: {"format": "pt"} for file in layout.values()} if metadata is None else metadata
    with new_folder(folder, size_of(forms)) as temporary:
        if config:
            (temporary / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        write_shards(temporary, forms, leaves, layout, metadata, index_metadata)
        for path in beside:
            shutil.copyfile(path, temporary / path.name)


def size_of(forms: Mapping[str, ArrayForm]) -> int:
    """The bytes of all arrays."""
    return sum(math.prod(shape) * DTYPES[dtype].itemsize for shape, dtype in forms.values())


def write_shards(
    folder: pathlib.Path,
    forms: Mapping[str, ArrayForm],
    leaves: Iterator[tuple[str, np.ndarray]],
    layout: Mapping[str, str],
    metadata: Mapping[str, Mapping[str, str]],
    index_metadata: Mapping[str, Any] | None = None,
) -> None:
    """Writes the files with weights into a folder, and their index if there are several.

    The arguments are those of `write_checkpoint`.
    """
    files: dict[str, dict[str, ArrayForm]] = {}
    for key, form in forms.items():
        files.setdefault(layout[key], {})[key] = form
    _write(folder, files, leaves, metadata)
    if index_metadata is not None or len(files) > 1:
        about = {"metadata": dict(index_metadata or {"total_size": size_of(forms)}), "weight_map": dict(layout)}
        name = min(files).removesuffix(SUFFIX).split("-0")[0]
        (folder / f"{name}{INDEX}").write_text(json.dumps(about, indent=2) + "\n")


@contextlib.contextmanager
def new_folder(path: str | os.PathLike, needs: int = 0) -> Iterator[pathlib.Path]:
    """A temporary folder that gets the name `path` if no error was raised, and is removed otherwise.

    Args:
      path: must not exist, or be empty.
      needs: how many bytes will be written.

    Raises:
      UsageError: if `path` holds files, or cannot be written.
      StorageError: if the disk has less room than is needed.
    """
    try:
        target = pathlib.Path(path).expanduser().absolute()
        if os.path.lexists(target) and (not target.is_dir() or any(target.iterdir())):
            raise UsageError(f"{path} exists already: give a new folder")
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        temporary.mkdir(parents=True)
    except (OSError, ValueError, RuntimeError) as error:  # a name with a null byte; a home that is not known
        raise UsageError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from error
    try:
        free = shutil.disk_usage(temporary).free
        if needs > free:
            raise StorageError(f"cannot write {path}: it takes {needs / 1e9:.3g} GB, and {free / 1e9:.3g} GB are free")
        yield temporary
        os.rename(temporary, target)
    except OSError as error:
        raise lasting(f"cannot write {path}", error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def shards(forms: Mapping[str, ArrayForm], max_shard_bytes: int, name: str) -> dict[str, str]:
    """The file of each key. Files are filled in order, each up to `max_shard_bytes` (or one array that is larger)."""
    number, used, numbers = 1, 0, {}
    for key, (shape, dtype) in forms.items():
        size = math.prod(shape) * DTYPES[dtype].itemsize
        if used and used + size > max_shard_bytes:
            number, used = number + 1, 0
        used += size
        numbers[key] = number
    if number == 1:
        return dict.fromkeys(numbers, f"{name}{SUFFIX}")
    return {key: f"{name}-{i:05}-of-{number:05}{SUFFIX}" for key, i in numbers.items()}


def _write(
    folder: pathlib.Path,
    files: Mapping[str, Mapping[str, ArrayForm]],
    leaves: Iterator[tuple[str, np.ndarray]],
    metadata: Mapping[str, Mapping[str, str]],
) -> None:
    places: dict[str, ArrayEntry] = {}
    for file, forms in files.items():
        header: dict[str, Any] = {"__metadata__": dict(metadata[file])} if metadata.get(file) else {}
        end = 0
        for key, (shape, dtype) in forms.items():
            places[key] = ArrayEntry(file, dtype, tuple(shape), end)
            header[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end := end + places[key].nbytes]}
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        with open(folder / file, "wb") as out:
            out.write(struct.pack("<Q", len(text)) + text)
            out.truncate(8 + len(text) + end)
        places |= {key: dataclasses.replace(places[key], start=places[key].start + 8 + len(text)) for key in forms}
    filled = dict.fromkeys(places, 0)  # bytes
    for key, array in leaves:
        place = places[key]
        part = np.ascontiguousarray(array, DTYPES[place.dtype]).reshape(array.shape)  # it makes numbers arrays
        if (
            part.shape[1:] != place.shape[1:]
            or part.ndim != len(place.shape)
            or filled[key] + part.nbytes > place.nbytes
        ):
            raise ValueError(f"{key}: an array {array.shape} for the place of {place.shape}, or one too many")
        with open(folder / place.file, "r+b") as out:
            out.seek(place.start + filled[key])
            part.tofile(out)
        filled[key] += part.nbytes
    missing = [key for key, size in filled.items() if size != places[key].nbytes]
    if missing:
        raise ValueError(f"nothing was given for {missing[0]}, or a part of it")
