"""Arrays on disk that are written and read part by part, in the format of Orbax checkpoints (zarr 2, uncompressed).

tensorstore could do the same, but its threads keep the memory that they have freed, so that in the end all the weights
would be in memory at once.
"""

import itertools
import json
import math
import os
import pathlib
import shutil
from collections.abc import Iterator

import numpy as np

Index = tuple  # of int, slice and one Ellipsis
_ABOUT = ".zarray"  # the file that says what an array's chunks are


class DiskArray:
    """A float32 array of `shape` in `folder`, which is replaced. Parts that are not written are undefined.

    Indexing with numbers and slices of step 1 gives a part. Assigning to a part writes it, and `np.asarray` reads it.
    """

    def __init__(self, folder: pathlib.Path, shape: tuple[int, ...], chunks: tuple[int, ...]):
        self._take(folder, shape, chunks)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / _ABOUT).write_text(json.dumps(self._about()))

    def _take(self, folder: pathlib.Path, shape: tuple[int, ...], chunks: tuple[int, ...]) -> None:
        self.folder, self.chunks = folder, chunks
        self._ranges, self._axes = tuple(range(n) for n in shape), tuple(range(len(shape)))

    @classmethod
    def open(cls, folder: pathlib.Path) -> "DiskArray | None":
        """The array that this class wrote in a folder; None if there is none."""
        if not (folder / _ABOUT).is_file():
            return None
        about = json.loads((folder / _ABOUT).read_text())
        array = object.__new__(cls)
        array._take(folder, tuple(about["shape"]), tuple(about["chunks"]))
        return array if about == array._about() else None

    def _about(self) -> dict:
        about = {"zarr_format": 2, "shape": [len(r) for r in self._ranges], "chunks": list(self.chunks)}
        about |= {"dtype": "<f4", "order": "C", "compressor": None, "filters": None, "fill_value": None}
        return about | {"dimension_separator": "."}

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(len(self._ranges[axis]) for axis in self._axes)

    def __getitem__(self, index: Index) -> "DiskArray":
        where = index.index(Ellipsis)
        rest = (slice(None),) * (len(self._axes) - len(index) + 1)
        ranges, axes = list(self._ranges), []
        for axis, i in zip(self._axes, (*index[:where], *rest, *index[where + 1 :]), strict=True):
            if isinstance(i, slice):
                axes.append(axis)
                ranges[axis] = ranges[axis][i]
                if ranges[axis].step != 1:
                    raise ValueError(f"a part of an array on disk has step 1, not {i}")
            else:
                ranges[axis] = range(ranges[axis][i], ranges[axis][i] + 1)
        part = object.__new__(DiskArray)
        part.folder, part.chunks, part._ranges, part._axes = self.folder, self.chunks, tuple(ranges), tuple(axes)
        return part

    def __setitem__(self, index: Index, value: np.ndarray) -> None:
        self[index]._write(value)

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        value = np.zeros([len(r) for r in self._ranges], np.float32)
        for name, there, here in self._touched():
            if (path := self.folder / name).exists():
                value[here] = np.memmap(path, "<f4", "r", shape=self.chunks or (1,))[there].reshape(value[here].shape)
        return value.reshape(self.shape).astype(dtype or np.float32, copy=False)

    def _write(self, value: np.ndarray) -> None:
        if value.shape != self.shape:
            raise ValueError(f"an array {value.shape} for the place of {self.shape}")
        value = value.reshape([len(r) for r in self._ranges])
        for name, there, here in self._touched():
            self._write_chunk(name, there, value[here])

    def _touched(self) -> Iterator[tuple[str, tuple[slice, ...], tuple[slice, ...]]]:
        """The chunks that hold a part of this array: (name, which part of the chunk, which part of this array)."""
        touched = [range(r.start // c, -(-r.stop // c)) for r, c in zip(self._ranges, self.chunks, strict=True)]
        for chunk in itertools.product(*touched):
            here, there = [], []
            for i, r, c in zip(chunk, self._ranges, self.chunks, strict=True):
                start, stop = max(r.start, i * c), min(r.stop, (i + 1) * c)
                here.append(slice(start - r.start, stop - r.start))
                there.append(slice(start - i * c, stop - i * c))
            yield ".".join(map(str, chunk)) or "0", tuple(there), tuple(here)

    def _write_chunk(self, name: str, where: tuple[slice, ...], value: np.ndarray) -> None:
        path = self.folder / name
        if value.shape == self.chunks:
            np.ascontiguousarray(value, "<f4").tofile(path)
            return
        if not path.exists():
            with open(path, "wb") as new:  # a map of a file without room on the disk would kill the process
                os.posix_fallocate(new.fileno(), 0, 4 * math.prod(self.chunks))
        file = np.memmap(path, "<f4", "r+", shape=self.chunks or (1,))
        file[where] = value
        file.flush()
