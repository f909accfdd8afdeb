"""Reads released checkpoint folders: config.json and safetensors files, one array at a time.

A safetensors file consists of the length of its header (8 bytes, little endian), the header (JSON: for each key its
dtype, shape and the offsets of its bytes) and the bytes. The package's own reader maps whole files into memory. Here
each array, or some of its rows, is read by itself, so that no more than that is ever in memory.
"""

import dataclasses
import math
import os
import pathlib
import re
import struct
from typing import Any

import ml_dtypes
import numpy as np

from transfusion.errors import UsageError
from transfusion.interop.opening import Folder, check_name, near, parse_table, short

# The dtype of each name in a header. Other dtypes (such as 8-bit floats) need scales that only their makers know.
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
# The names of the files with weights: of transformers, of diffusers, and of BAGEL, whose autoencoder lies beside them.
WEIGHT_FILES = ("model", "diffusion_pytorch_model", "ema")
CONFIG_PARTS = ("llm_config", "vit_config")  # tables of BAGEL's config that are files of their own
SUFFIX, INDEX = ".safetensors", ".safetensors.index.json"
# The most bytes of a header. The package's own reader takes 100 million, of which Python would make gigabytes. This has
# room for 100,000 arrays in one file.
_MOST_HEADER = 16_000_000
_MOST_AXES = 8


@dataclasses.dataclass(frozen=True)
class ArrayEntry:
    """Where an array lies: `start` is its first byte in `file`; `dtype` is a key of `DTYPES`."""

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
      folder: where it is.
      files: opens its files.
      config: config.json ({} if there is none), with the `CONFIG_PARTS` that lie beside it.
      entries: where each key's array lies, in the order of the files.
      metadata: the headers' `__metadata__` by file name.
      index_metadata: the index's `metadata`; None without an index.

    Raises:
      UsageError: naming the file or the key, if something is missing, truncated, double or not understood.
    """

    def __init__(self, folder: str | os.PathLike, follow_links: bool = False):
        self.folder = pathlib.Path(folder)
        _insist_folder(self.folder, str(folder))
        self.files = Folder(self.folder, follow_links)
        self.config: dict[str, Any] = self.files.read_json("config.json") if self.files.has("config.json") else {}
        for part in CONFIG_PARTS:
            if part not in self.config and self.files.has(f"{part}.json"):
                self.config[part] = self.files.read_json(f"{part}.json")
        files, weight_map, self.index_metadata = self._files()
        self.entries: dict[str, ArrayEntry] = {}
        self.metadata: dict[str, dict[str, str]] = {}
        for file in files:
            self.metadata[file], entries = read_header(self.files, file)
            for key, entry in entries.items():
                if key in self.entries:
                    raise UsageError(f"{self.folder}: key {_cut(key)} is in both {self.entries[key].file} and {file}")
                if weight_map is not None and weight_map.get(key) != file:
                    raise UsageError(f"{self.folder}: key {_cut(key)} of {file} is not listed there in the index")
                self.entries[key] = entry
        for key in weight_map or ():
            if key not in self.entries:
                raise UsageError(
                    f"{self.folder}: the index lists key {_cut(key)}, but {weight_map[key]} does not hold it"
                )

    def _files(self) -> tuple[list[str], dict[str, str] | None, dict | None]:
        """The weight files in order, and the index's key -> file and metadata."""
        indices = [name.removesuffix(INDEX) for name in self.files.names(INDEX)]
        if indices:
            name = _one(self.folder, indices, INDEX) + INDEX
            index = self.files.read_json(name)
            weight_map, metadata = index.get("weight_map"), index.get("metadata") or {}
            where = str(self.folder / name)
            if not isinstance(weight_map, dict) or not weight_map:
                raise UsageError(f"{where} has no weight_map")
            if not isinstance(metadata, dict):
                raise UsageError(f"{where}: metadata must be a table, not {short(metadata)}")
            for file in weight_map.values():
                check_name(file, SUFFIX, where)
            for file in sorted({*weight_map.values()}):
                if not self.files.has(file):
                    raise UsageError(f"{self.folder}: shard {file} is missing (named in {name})")
            return sorted({*weight_map.values()}), weight_map, metadata
        single = [name.removesuffix(SUFFIX) for name in self.files.names(SUFFIX)]
        if not single:
            others = [name for name in self.files.names() if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]
            hint = f"; {others[0]} is of another form, which may run code when it is read" if others else ""
            raise UsageError(f"{self.folder} holds no *.safetensors file{hint}")
        return [_one(self.folder, single, SUFFIX) + SUFFIX], None, None

    def keys(self) -> list[str]:
        return list(self.entries)

    def entry(self, key: str) -> ArrayEntry:
        if key not in self.entries:
            raise UsageError(f"{self.folder} has no key {_cut(key)}{near(key, self.entries)}")
        return self.entries[key]

    def shape(self, key: str) -> tuple[int, ...]:
        return self.entry(key).shape

    def read(self, key: str, rows: tuple[int, int] | None = None) -> np.ndarray:
        """The array of a key, or its rows [start, stop); floats as float32, integers as they are."""
        value = self.raw(key, rows)
        return value.astype(np.float32, copy=False) if self.entry(key).dtype in FLOATS else value

    def raw(self, key: str, rows: tuple[int, int] | None = None) -> np.ndarray:
        """The array of a key, or its rows [start, stop), in the file's dtype."""
        entry = self.entry(key)
        dtype, shape, start = DTYPES[entry.dtype], entry.shape, entry.start
        if rows is not None:
            first, stop = rows
            start += first * math.prod(shape[1:]) * dtype.itemsize
            shape = (stop - first, *shape[1:])
        try:
            with self.files.open(entry.file) as file:
                value = np.fromfile(file, dtype, math.prod(shape), offset=start)
        except OSError as error:
            raise UsageError(f"cannot read {self.folder / entry.file}: {error.strerror}") from error
        if value.size != math.prod(shape):
            raise UsageError(f"{self.folder / entry.file} ends inside key {_cut(key)}: it is truncated")
        return value.reshape(shape)


def _cut(key: str) -> str:
    """A key, cut for a message."""
    return key if len(key) <= 200 else f"{key[:200]}..."


def _insist_folder(path: pathlib.Path, given: str) -> None:
    try:
        there = path.is_dir()
    except (OSError, ValueError):  # a name that no file can have
        there = False
    if there:
        return
    if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", given) and not os.path.lexists(path):
        raise UsageError(f"{given} is not a folder on this machine; hf://{given} is the model of that name on the hub")
    raise UsageError(f"{_cut(given)} is not a folder: give the folder that holds config.json and *.safetensors")


def _one(folder: pathlib.Path, names: list[str], suffix: str) -> str:
    if len(names) == 1:
        return names[0]
    for name in WEIGHT_FILES:
        if name in names:
            return name
    raise UsageError(f"{folder} holds several files and no index: {', '.join(n + suffix for n in names[:20])}")


def read_header(folder: Folder, name: str) -> tuple[dict[str, str], dict[str, ArrayEntry]]:
    """The metadata of a safetensors file and the entry of each key, checked before any memory is taken for them.

    Raises:
      UsageError: naming the file and the key, if an entry cannot be read or the file is truncated.
    """
    path = folder.path / name
    with folder.open(name) as file:
        try:
            size = os.fstat(file.fileno()).st_size
            (length,) = struct.unpack("<Q", file.read(8)) if size >= 8 else (-1,)
            if not 2 <= length <= min(size - 8, _MOST_HEADER):
                raise UsageError(f"{path} is truncated or no safetensors file: its header does not fit in it")
            text = file.read(length)
        except OSError as error:
            raise UsageError(f"cannot read {path}: {error.strerror}") from error
    header = parse_table(text, f"{path}: the header")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise UsageError(f"{path}: __metadata__ must be a table of texts, not {short(metadata)}")
    begin, entries, spans = 8 + length, {}, []
    for key, about in header.items():
        entry, stop = _entry(path, key, about, begin)
        if stop > size:
            raise UsageError(f"{path} is truncated: key {_cut(key)} ends at byte {stop}, the file at {size}")
        entries[key] = entry
        spans.append((entry.start, stop, key))
    for start, stop, key in sorted(spans):
        if start != begin:
            raise UsageError(f"{path}: key {_cut(key)} begins at byte {start}, where {begin} is expected")
        begin = stop
    if begin != size:
        raise UsageError(f"{path} has {size - begin} bytes that belong to no key")
    return metadata, entries


def _entry(path: pathlib.Path, key: str, about: Any, begin: int) -> tuple[ArrayEntry, int]:
    """The entry of one key of a header, and the offset at which its bytes end."""
    where = f"{path}: key {_cut(key)}"
    if not isinstance(about, dict) or not {"dtype", "shape", "data_offsets"} <= about.keys():
        raise UsageError(f"{where} needs dtype, shape and data_offsets")
    dtype, shape, offsets = about["dtype"], about["shape"], about["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        name = dtype if isinstance(dtype, str) and len(dtype) < 80 else short(dtype)
        raise UsageError(f"{where} has the dtype {name}, which is none of {', '.join(DTYPES)}")
    numbers = [shape, offsets]
    if not all(isinstance(n, list) and all(type(i) is int and i >= 0 for i in n) for n in numbers) or len(offsets) != 2:
        raise UsageError(f"{where} has a broken shape {short(shape)} or data_offsets {short(offsets)}")
    if len(shape) > _MOST_AXES:
        raise UsageError(f"{where} has {len(shape)} axes, more than {_MOST_AXES}")
    entry = ArrayEntry(path.name, dtype, tuple(shape), begin + offsets[0])
    if offsets[1] - offsets[0] != entry.nbytes:
        raise UsageError(
            f"{where} of {dtype}{short(shape)} takes {short(entry.nbytes)} bytes, not those of {short(offsets)}"
        )
    return entry, begin + offsets[1]
