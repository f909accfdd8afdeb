"""Released checkpoint folders: config.json and safetensors files, read one leaf at a time.

A safetensors file is the length of its header (8 bytes, little endian), the header (JSON: for each key its dtype, shape
and the offsets of its bytes) and the bytes. The package's own reader maps whole files into memory; here each leaf, or
some rows of it, is read by itself, so that no more than that is ever held.
"""

import dataclasses
import json
import math
import os
import pathlib
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from transfusion.errors import UsageError, nearest

# What each name in a header stands for. Others (8-bit floats and the like) need scales that only their makers know.
DTYPES: dict[str, np.dtype] = {
    name: np.dtype(dtype)
    for name, dtype in {
        "F64": "<f8",
        "F32": "<f4",
        "F16": "<f2",
        "BF16": ml_dtypes.bfloat16,
        "I64": "<i8",
        "I32": "<i4",
        "I16": "<i2",
        "I8": "i1",
        "U8": "u1",
        "BOOL": "?",
    }.items()
}
FLOATS = ("F64", "F32", "F16", "BF16")
# Of the weights, as transformers and diffusers write them, and BAGEL, whose autoencoder lies beside.
NAMES = ("model", "diffusion_pytorch_model", "ema")
PARTS = ("llm_config", "vit_config")  # of a config, that BAGEL keeps in files of their own
INDEX = ".safetensors.index.json"
_MOST_HEADER = 100_000_000  # bytes; the limit of the format's own reader


@dataclasses.dataclass(frozen=True)
class Entry:
    """Where an array lies: `start` is its first byte in `file`, `dtype` a key of `DTYPES`."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    start: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


class Checkpoint:
    """A released checkpoint folder. Opening it reads config.json, the index if there is one, and the files' headers.

    Attributes:
      config: config.json ({} where there is none), with the `PARTS` that lie beside it.
      entries: where each key's array lies, in the order of the files.
      metadata: the headers' `__metadata__` by file name.
      index_metadata: the index's `metadata`; None without an index.

    Raises:
      UsageError: naming the file or the key, if something is missing, truncated, double or not understood.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = pathlib.Path(folder)
        if not self.folder.is_dir():
            raise UsageError(f"{folder} is not a folder: give the folder that holds config.json and *.safetensors")
        path = self.folder / "config.json"
        self.config: dict[str, Any] = read_json(path) if path.is_file() else {}
        for part in PARTS:
            if part not in self.config and (path := self.folder / f"{part}.json").is_file():
                self.config[part] = read_json(path)
        files, weight_map, self.index_metadata = self._files()
        self.entries: dict[str, Entry] = {}
        self.metadata: dict[str, dict[str, str]] = {}
        for file in files:
            self.metadata[file], entries = read_header(self.folder / file)
            for key, entry in entries.items():
                if key in self.entries:
                    raise UsageError(f"{self.folder}: key {key} is in both {self.entries[key].file} and {file}")
                if weight_map is not None and weight_map.get(key) != file:
                    raise UsageError(f"{self.folder}: key {key} of {file} is not listed there in the index")
                self.entries[key] = entry
        for key in weight_map or ():
            if key not in self.entries:
                raise UsageError(f"{self.folder}: the index lists key {key}, but {weight_map[key]} does not hold it")

    def _files(self) -> tuple[list[str], dict[str, str] | None, dict | None]:
        """The weight files in order, and the index's key -> file and metadata."""
        indices = {path.name.removesuffix(INDEX): path for path in self.folder.glob(f"*{INDEX}")}
        if indices:
            path = indices[_one(self.folder, list(indices), INDEX)]
            index = read_json(path)
            weight_map = index.get("weight_map")
            if not isinstance(weight_map, dict) or not weight_map:
                raise UsageError(f"{path} has no weight_map")
            for file in weight_map.values():
                if not isinstance(file, str) or pathlib.PurePath(file).name != file:
                    raise UsageError(f"{path} names {file!r}, which is not a file of the same folder")
            files = set(weight_map.values())
            for file in files:
                if not (self.folder / file).is_file():
                    raise UsageError(f"{self.folder}: shard {file} is missing (named in {path.name})")
            return sorted(files), weight_map, index.get("metadata") or {}
        single = [path.name.removesuffix(".safetensors") for path in sorted(self.folder.glob("*.safetensors"))]
        if not single:
            raise UsageError(f"{self.folder} holds no *.safetensors file")
        return [_one(self.folder, single, ".safetensors") + ".safetensors"], None, None

    def keys(self) -> list[str]:
        return list(self.entries)

    def entry(self, key: str) -> Entry:
        if key not in self.entries:
            raise UsageError(f"{self.folder} has no key {key}{nearest(key, self.entries)}")
        return self.entries[key]

    def shape(self, key: str) -> tuple[int, ...]:
        return self.entry(key).shape

    def read(self, key: str, rows: tuple[int, int] | None = None) -> np.ndarray:
        """The array of a key, or its rows [start, stop); floats as float32, integers as they are."""
        value = self.raw(key, rows)
        return value.astype(np.float32, copy=False) if self.entry(key).dtype in FLOATS else value

    def raw(self, key: str, rows: tuple[int, int] | None = None) -> np.ndarray:
        """As `read`, in the file's dtype."""
        entry = self.entry(key)
        dtype, shape, start = DTYPES[entry.dtype], entry.shape, entry.start
        if rows is not None:
            first, stop = rows
            start += first * math.prod(shape[1:]) * dtype.itemsize
            shape = (stop - first, *shape[1:])
        path = self.folder / entry.file
        try:
            value = np.fromfile(path, dtype, math.prod(shape), offset=start)
        except OSError as error:
            raise UsageError(f"cannot read {path}: {error.strerror}") from error
        if value.size != math.prod(shape):
            raise UsageError(f"{path} ends inside key {key}: it is truncated")
        return value.reshape(shape)


def _one(folder: pathlib.Path, names: list[str], suffix: str) -> str:
    """The one name that is meant."""
    for name in NAMES if len(names) > 1 else names:
        if name in names:
            return name
    listed = ", ".join(sorted(f"{name}{suffix}" for name in names))
    raise UsageError(f"{folder} holds several files and no index: {listed}. Leave the one to import in a folder")


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """A JSON file that holds one table.

    Raises:
      UsageError: naming the file, if it cannot be read, is no JSON, or is not one table with each key once.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_once)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise UsageError(f"{path} must hold a JSON object")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(name for name in names if names.count(name) > 1)} is there twice")
    return table


def read_header(path: pathlib.Path) -> tuple[dict[str, str], dict[str, Entry]]:
    """The metadata of a safetensors file and the entry of each key, checked before any memory is taken for them.

    Raises:
      UsageError: naming the file and the key, if an entry cannot be read or the file is truncated.
    """
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8)) if size >= 8 else (-1,)
            if not 2 <= length <= min(size - 8, _MOST_HEADER):
                raise UsageError(f"{path} is truncated or no safetensors file: its header does not fit in it")
            text = file.read(length).decode("utf-8")
        header = json.loads(text, object_pairs_hook=_once)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: the header is no JSON: {error}") from error
    if not isinstance(header, dict):
        raise UsageError(f"{path}: the header is no JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise UsageError(f"{path}: __metadata__ must be a table of texts")
    begin, entries, spans = 8 + length, {}, []
    for key, about in header.items():
        entry, stop = _entry(path, key, about, begin)
        if stop > size:
            raise UsageError(f"{path} is truncated: key {key} ends at byte {stop}, the file at {size}")
        entries[key] = entry
        spans.append((entry.start, stop, key))
    for start, stop, key in sorted(spans):
        if start != begin:
            raise UsageError(f"{path}: key {key} begins at byte {start}, where {begin} is expected")
        begin = stop
    if begin != size:
        raise UsageError(f"{path} has {size - begin} bytes that belong to no key")
    return metadata, entries


def _entry(path: pathlib.Path, key: str, about: Any, begin: int) -> tuple[Entry, int]:
    """The entry of one key of a header, and the byte after its last."""
    if not isinstance(about, dict) or not {"dtype", "shape", "data_offsets"} <= about.keys():
        raise UsageError(f"{path}: key {key} needs dtype, shape and data_offsets")
    dtype, shape, offsets = about["dtype"], about["shape"], about["data_offsets"]
    if dtype not in DTYPES:
        raise UsageError(f"{path}: key {key} has the dtype {dtype}, which is none of {', '.join(DTYPES)}")
    numbers = [shape, offsets]
    if not all(isinstance(n, list) and all(type(i) is int and i >= 0 for i in n) for n in numbers) or len(offsets) != 2:
        raise UsageError(f"{path}: key {key} has a broken shape {shape} or data_offsets {offsets}")
    entry = Entry(path.name, dtype, tuple(shape), begin + offsets[0])
    if offsets[1] - offsets[0] != entry.nbytes:
        raise UsageError(f"{path}: key {key} of {dtype}{shape} takes {entry.nbytes} bytes, not those of {offsets}")
    return entry, begin + offsets[1]


Form = tuple[tuple[int, ...], str]  # shape and dtype (a key of DTYPES)


def write_file(
    path: pathlib.Path, forms: Mapping[str, Form], leaves: Iterator[tuple[str, np.ndarray]], metadata: Mapping = {}
) -> None:
    """One safetensors file of the arrays that `leaves` yields, in the order and dtypes of `forms`; see
    `write_checkpoint`."""
    _write(path.parent, {path.name: dict(forms)}, leaves, {path.name: metadata})


def write_checkpoint(
    folder: str | os.PathLike,
    config: Mapping[str, Any],
    leaves: Iterator[tuple[str, np.ndarray]],
    forms: Mapping[str, Form],
    max_shard_bytes: int = 5_000_000_000,
    *,
    name: str = NAMES[0],
    layout: Mapping[str, str] | None = None,
    metadata: Mapping[str, Mapping[str, str]] | None = None,
    index_metadata: Mapping[str, Any] | None = None,
) -> None:
    """Writes a checkpoint folder, array by array; the folder appears when it is complete.

    Args:
      folder: must not exist, or be empty.
      config: becomes config.json ({}: none is written).
      leaves: (key, array) of each key of `forms`, in any order; an array may come in several parts of its rows, in
        order. They are cast to the dtype of `forms`.
      forms: shape and dtype of every key, in the order of the file.
      max_shard_bytes: above it the weights are split into files, with an index.
      name: the files are NAME.safetensors, or NAME-00001-of-00002.safetensors and so on.
      layout: file of each key, instead of `max_shard_bytes` and `name`.
      metadata: of the headers, by file; by default that of PyTorch's files.
      index_metadata: of the index; its presence asks for an index even of one file.

    Raises:
      UsageError: if the folder holds files, or cannot be written.
    """
    target = pathlib.Path(folder).expanduser().absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"{folder} exists already: give a new folder")
    layout = shards(forms, max_shard_bytes, name) if layout is None else layout
    files: dict[str, dict[str, Form]] = {}
    for key, form in forms.items():
        files.setdefault(layout[key], {})[key] = form
    metadata = {file: {"format": "pt"} for file in files} if metadata is None else metadata
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        if config:
            (temporary / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        _write(temporary, files, leaves, metadata)
        if index_metadata is not None or len(files) > 1:
            total = sum(math.prod(shape) * DTYPES[dtype].itemsize for shape, dtype in forms.values())
            about = {"metadata": dict(index_metadata or {"total_size": total}), "weight_map": dict(layout)}
            name = min(files).removesuffix(".safetensors").split("-0")[0]
            (temporary / f"{name}{INDEX}").write_text(json.dumps(about, indent=2) + "\n")
        os.rename(temporary, target)
    except OSError as error:
        raise UsageError(f"cannot write {folder}: {error.strerror}") from error
    finally:
        _remove(temporary)


def shards(forms: Mapping[str, Form], max_shard_bytes: int, name: str) -> dict[str, str]:
    """The file of each key: filled in order, each up to `max_shard_bytes` (or one array, where that is larger)."""
    number, used, numbers = 1, 0, {}
    for key, (shape, dtype) in forms.items():
        size = math.prod(shape) * DTYPES[dtype].itemsize
        if used and used + size > max_shard_bytes:
            number, used = number + 1, 0
        used += size
        numbers[key] = number
    if number == 1:
        return dict.fromkeys(numbers, f"{name}.safetensors")
    return {key: f"{name}-{i:05}-of-{number:05}.safetensors" for key, i in numbers.items()}


def _write(
    folder: pathlib.Path,
    files: Mapping[str, Mapping[str, Form]],
    leaves: Iterator[tuple[str, np.ndarray]],
    metadata: Mapping[str, Mapping[str, str]],
) -> None:
    places: dict[str, Entry] = {}
    for file, forms in files.items():
        header: dict[str, Any] = {"__metadata__": dict(metadata[file])} if metadata.get(file) else {}
        end = 0
        for key, (shape, dtype) in forms.items():
            places[key] = Entry(file, dtype, tuple(shape), end)
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


def _remove(folder: pathlib.Path) -> None:
    """Removes a folder of plain files that was not finished."""
    if folder.is_dir():
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
