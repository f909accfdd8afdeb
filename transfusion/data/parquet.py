"""Reads captions files in Parquet: names of files, or the files themselves, as Hugging Face `datasets` writes them.

Only the columns in use are read. A table's metadata says how much memory they will take before anything is read.
"""

import collections
import os
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any, BinaryIO, TypeVar

import numpy as np

from transfusion import storage
from transfusion.data import files
from transfusion.data.faults import error_line
from transfusion.data.tables import TABLE_BYTES, CaptionRow, CaptionTable, MemoryTable, check_columns, check_rows
from transfusion.errors import UsageError, require

_T = TypeVar("_T")

GROUP_BYTES = 2**30  # one row group, unpacked
_BATCH_BYTES = 2**28


def read_parquet(path: str, file_field: str, caption_field: str) -> CaptionTable:
    """The rows of a Parquet file.

    `file_field` is a column of names, of bytes, or of `{bytes, path}`. Names and captions are kept in memory, files are
    read a row group at a time.

    Raises:
      StorageError: if the storage fails and goes on failing.
      UsageError: if the file cannot be read, lacks a column, or holds more than is read.
    """
    arrow, parquet = require("pyarrow", "parquet"), require("pyarrow.parquet", "parquet")

    def attempt() -> CaptionTable:
        with files.open_regular(path) as file:
            table = parquet.ParquetFile(file)
            check_rows(path, table.metadata.num_rows)
            schema = table.schema_arrow
            held = [name for name in schema.names if _holds(arrow, schema, name) in ("bytes", "files")]
            hint = f"; files lie in {held[0]!r}: set file_field={held[0]!r}" if held and file_field else ""
            check_columns(path, schema.names, (file_field, caption_field), hint)
            kind = _holds(arrow, schema, file_field)
            if not kind:
                raise UsageError(
                    f"{path}: the column {file_field!r} holds {schema.field(file_field).type}: file_field must be a "
                    "column of file names, or of files as bytes"
                )
            _check_groups(path, table.metadata, {file_field, caption_field})
            if kind == "names":
                return _names(arrow, parquet, file, path, file_field, caption_field)
            return _Files(path, table.metadata, kind, file_field, caption_field)

    return _opened(path, arrow, attempt)


def _opened(path: str, arrow: ModuleType, attempt: Callable[[], _T]) -> _T:
    """`attempt()`, which opens a file, patiently; raises UsageError if the file cannot be read."""
    try:
        return files.patiently(path, lambda: _translated(arrow, attempt), ())
    except OSError as error:
        raise storage.lasting(f"cannot read {path}", error) from error
    except ValueError as error:
        raise UsageError(f"cannot read {path}: {error}") from error


def _translated(arrow: ModuleType, action: Callable[[], _T]) -> _T:
    """`action()`; what pyarrow raises of its own becomes a ValueError of one line."""
    try:
        return action()
    except arrow.ArrowException as error:
        raise ValueError(f"no readable Parquet ({error_line(error)})") from error
    except OSError as error:
        if error.errno is None:  # pyarrow's word for damaged bytes
            raise ValueError(f"no readable Parquet ({error_line(error)})") from error
        raise


def _holds(arrow: ModuleType, schema, name: str) -> str:
    """What a column holds: 'names', 'bytes', 'files' ({bytes, path}), or '' if it holds something else."""
    kind = schema.field(schema.names.index(name)).type
    kind = kind.value_type if arrow.types.is_dictionary(kind) else kind
    if arrow.types.is_struct(kind):
        return "files" if {"bytes", "path"} <= {field.name for field in kind} else ""
    if kind in (arrow.string(), arrow.large_string(), arrow.string_view()):
        return "names"
    return "bytes" if kind in (arrow.binary(), arrow.large_binary(), arrow.binary_view()) else ""


def _check_groups(path: str, metadata, columns: set[str]) -> None:
    for number in range(metadata.num_row_groups):
        if (size := _group_bytes(metadata, number, columns)) > GROUP_BYTES:
            raise UsageError(
                f"{path}: row group {number} unpacks to {size} bytes, over the limit of {GROUP_BYTES}: write it with "
                "row_group_size=100"
            )


def _group_bytes(metadata, number: int, columns: set[str] | None) -> int:
    group = metadata.row_group(number)
    chunks = [group.column(i) for i in range(group.num_columns)]
    if columns is None:
        return sum(chunk.total_uncompressed_size for chunk in chunks)
    starts = tuple(f"{column}." for column in columns if column)
    # The name of a column may hold dots itself, so that a path does not say where it ends.
    return sum(c.total_uncompressed_size for c in chunks if f"{c.path_in_schema}.".startswith(starts))


def _names(arrow: ModuleType, parquet: ModuleType, file: BinaryIO, path: str, name: str, caption: str) -> MemoryTable:
    columns = [name] + [caption] * bool(caption)
    schema = parquet.ParquetFile(file).schema_arrow
    # In a dictionary, a text that occurs a million times is held once. Lists and tables cannot be read like that.
    table = parquet.ParquetFile(file, read_dictionary=[c for c in columns if _holds(arrow, schema, c) == "names"])
    rows, total = MemoryTable(path, "#"), 0
    for batch in table.iter_batches(batch_size=65536, columns=columns):
        total += sum(_text_bytes(arrow, column) for column in batch.columns)
        if total > TABLE_BYTES:
            raise UsageError(f"{path} holds more than {TABLE_BYTES} bytes of names and captions: split it")
        values = {column: _plain(arrow, batch.column(column)).to_pylist() for column in columns}
        for each in zip(values[name], values[caption] if caption else [None] * len(batch), strict=True):
            rows.add(len(rows), *each)
    return rows


def _plain(arrow: ModuleType, column):
    return column.dictionary_decode() if arrow.types.is_dictionary(column.type) else column


def _text_bytes(arrow: ModuleType, column) -> int:
    compute = require("pyarrow.compute", "parquet")
    if not arrow.types.is_dictionary(column.type):
        return column.nbytes
    try:
        return compute.sum(compute.take(compute.binary_length(column.dictionary), column.indices)).as_py() or 0
    except arrow.ArrowNotImplementedError:  # a dictionary of something else than text
        return column.nbytes


class _Kept:
    """Row groups that are kept in memory: those asked for last, `GROUP_BYTES` of all files together.

    Training reads the rows in random order. With only one group at hand, nearly each row would unpack a whole group.
    """

    def __init__(self):
        self._groups: collections.OrderedDict[tuple, tuple[list, int]] = collections.OrderedDict()
        self._used, self._lock = 0, threading.Lock()

    def get(self, key: tuple) -> list | None:
        with self._lock:
            if key not in self._groups:
                return None
            self._groups.move_to_end(key)
            return self._groups[key][0]

    def make_room(self, size: int) -> None:
        """Forgets groups until one of `size` bytes has room."""
        with self._lock:
            while self._groups and self._used + size > GROUP_BYTES:
                self._used -= self._groups.popitem(last=False)[1][1]

    def put(self, key: tuple, batches: list) -> None:
        size = sum(batch.nbytes for batch in batches)
        self.make_room(size)
        with self._lock:
            self._groups[key] = (batches, size)
            self._used += size


_KEPT = _Kept()


class RowGroups:
    """The rows of a file; its row groups are read when a row of them is asked for, see `_Kept`.

    Args:
      path: the file.
      metadata: what `open_metadata` gives.
      names, columns: see `read_group`.
    """

    def __init__(self, path: str, metadata: Any, names: set[str] | None = None, columns: list[str] | None = None):
        self._path, self._metadata, self._names, self._columns = path, metadata, names, columns
        sizes = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
        self._starts = np.cumsum([0, *sizes])
        self._lock, self._key = threading.Lock(), object()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def place(self, index: int):
        """The record batch that holds row `index`, and which of its rows this is.

        Raises:
          OSError, ValueError: if it cannot be read.
        """
        number = int(np.searchsorted(self._starts, index, "right")) - 1
        with self._lock:  # so that no two threads unpack the same group
            if (batches := _KEPT.get((self._key, number))) is None:
                _KEPT.make_room(_group_bytes(self._metadata, number, self._names))  # both would take twice the memory
                batches = read_group(self._path, number, self._metadata, self._names, self._columns)
                _KEPT.put((self._key, number), batches)
        at = index - int(self._starts[number])
        for batch in batches:
            if at < len(batch):
                return batch, at
            at -= len(batch)
        raise ValueError(f"row group {number} of {self._path} breaks off")


class _Files(CaptionTable):
    """The rows of a table with files inside."""

    def __init__(self, path: str, metadata, kind: str, file_field: str, caption_field: str):
        self._path, self._file, self._caption = path, file_field, caption_field
        leaves = [f"{file_field}.bytes", f"{file_field}.path"] if kind == "files" else [file_field]
        columns = leaves + [caption_field] * bool(caption_field)
        self._groups = RowGroups(path, metadata, {file_field, caption_field}, columns)

    def __len__(self) -> int:
        return len(self._groups)

    def key(self, index: int) -> str:
        return f"{os.path.basename(self._path)}#{index}"

    def __getitem__(self, index: int) -> CaptionRow:
        where = f"{self._path}#{index}"
        batch, place = self._groups.place(index)
        file = batch.column(self._file)[place].as_py()
        caption = batch.column(self._caption)[place].as_py() if self._caption else None
        if isinstance(file, dict):
            return CaptionRow(where, file["path"] or "", caption, data=file["bytes"])
        return CaptionRow(where, caption=caption, error="" if file else "no file", data=file)


def open_metadata(path: str):
    """The metadata of a Parquet file.

    Raises:
      StorageError: if the storage fails and goes on failing.
      UsageError: if the file cannot be read.
    """
    arrow, parquet = require("pyarrow", "parquet"), require("pyarrow.parquet", "parquet")

    def attempt():
        with files.open_regular(path) as file:
            metadata = parquet.ParquetFile(file).metadata
            check_rows(path, metadata.num_rows)
            return metadata

    return _opened(path, arrow, attempt)


def read_group(
    path: str, number: int, metadata, names: set[str] | None = None, columns: list[str] | None = None
) -> list:
    """A row group as a list of record batches of the columns `columns`, which lie within the fields `names`.

    Without them all columns are read.

    Raises:
      OSError, ValueError: if it cannot be read, or unpacks to more than `GROUP_BYTES`.
    """
    arrow, parquet = require("pyarrow", "parquet"), require("pyarrow.parquet", "parquet")
    size = _group_bytes(metadata, number, names)
    if size > GROUP_BYTES:
        raise ValueError(
            f"row group {number} unpacks to {size} bytes, over the limit of {GROUP_BYTES}: write it with "
            "row_group_size=100"
        )
    # No value is larger than its whole group. So this bounds a batch even if one value occurs many times.
    rows = max(1, min(_BATCH_BYTES // max(size, 1), 65536))

    def attempt() -> list:
        batches, total = [], 0
        with files.open_regular(path) as file:
            table = parquet.ParquetFile(file, metadata=metadata)
            for batch in table.iter_batches(rows, row_groups=[number], columns=columns):
                batches.append(batch)
                total += batch.nbytes
                if total > GROUP_BYTES:
                    raise ValueError(f"row group {number} unpacks to more than the limit of {GROUP_BYTES} bytes")
        return batches

    return files.patiently(path, lambda: _translated(arrow, attempt), (path,))
