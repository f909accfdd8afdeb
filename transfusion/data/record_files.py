"""Reads the rows of files that hold records: .jsonl, .json, .csv, .parquet, .tar and .array_record.

`STORES` is the table from the end of a file's name to its class. A row is a table of fields as the file has them;
`record_source` makes records of rows. A file that is read as a whole (.json, .csv, .txt, ...) may need a reader to
say which rows it has (`transfusion.data.readers`); all others are indexed once and then read row by row.
"""

import array
import csv
import dataclasses
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import BinaryIO, Protocol

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource

from transfusion import storage
from transfusion.data import files, foreign_text, webdataset
from transfusion.data.array_records import read_record
from transfusion.data.faults import error_line
from transfusion.data.parquet import RowGroups, open_metadata
from transfusion.data.segments import Read
from transfusion.errors import UsageError

_WHOLE_BYTES = 2**31  # a file that is read as a whole
_LINE_BYTES = 2**26  # a record of a .jsonl file

RowsOf = Callable[[object, Read], Sequence[Mapping]]
"""The rows of a file that was read as a whole: of its JSON or its text; the second argument reads files beside it."""


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a file.

    Attributes:
      where: the file and the row's number, which name it in logs.
      fields: what it holds.
      read: reads the files that it names, where the file of the row has them itself; None: they lie in a folder.
    """

    where: str
    fields: Mapping[str, object]
    read: Read | None = None


class Store(Protocol):
    """A file of rows. `row` raises OSError or ValueError if a row cannot be read; `where` names it then."""

    def __len__(self) -> int: ...

    def row(self, index: int) -> Row: ...

    def where(self, index: int) -> str: ...


class JsonLines:
    """One row per line that is not empty."""

    def __init__(self, path: str, rows_of: RowsOf):
        self._path = path
        self._lines = array.array("Q")  # offset, length and number of each

        def index(file: BinaryIO) -> None:
            start = file.read(4)
            encoding = foreign_text.encoding_of(start)
            if not encoding.startswith("utf-8") or b"\0" in start:
                raise UsageError(f"{path} is not UTF-8 text: {foreign_text.ADVICE}")
            at, number = 3 * (encoding == "utf-8-sig"), 0
            file.seek(at)
            for number, line in enumerate(file, start=1):
                if line.strip():
                    self._lines.extend((at, len(line), number))
                at += len(line)

        webdataset.with_file(path, index, (os.path.dirname(path) or ".",))

    def __len__(self) -> int:
        return len(self._lines) // 3

    def where(self, index: int) -> str:
        return f"{self._path}:{self._lines[3 * index + 2]}"

    def row(self, index: int) -> Row:
        start, size, _ = self._lines[3 * index : 3 * index + 3]
        if size > _LINE_BYTES:
            raise ValueError(f"the line has more than {_LINE_BYTES} bytes")
        data = webdataset.with_file(self._path, lambda file: files.read_part(file, start, size), (self._path,))
        return Row(self.where(index), _table(foreign_text.decode_text(data)))


def _table(text: str) -> Mapping[str, object]:
    """The table of a JSON text; raises ValueError if it is none."""
    try:
        found = foreign_text.parse_json(text)
    except ValueError as error:
        raise ValueError(f"the record {error}") from error
    if not isinstance(found, dict):
        raise ValueError("the record is no JSON object")
    return found


class Whole:
    """A file that is read as a whole when it is opened."""

    def __init__(self, path: str, rows_of: RowsOf):
        self._path = path

        def beside(name: str) -> bytes:
            return files.read_whole(os.path.join(os.path.dirname(path), name), _WHOLE_BYTES)

        try:
            text = files.patiently(path, lambda: foreign_text.decode_text(files.read_whole(path, _WHOLE_BYTES)), ())
            content = foreign_text.parse_json(text) if path.lower().endswith(".json") else text
            self._rows = rows_of(content, beside)
        except OSError as error:
            raise storage.lasting(f"cannot read {path}", error) from error
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise UsageError(f"{path} does not have the form that its reader reads ({error_line(error)})") from error

    def __len__(self) -> int:
        return len(self._rows)

    def where(self, index: int) -> str:
        return f"{self._path}#{index}"

    def row(self, index: int) -> Row:
        if not isinstance(row := self._rows[index], Mapping):
            raise ValueError("the record is no table of fields")
        return Row(self.where(index), row)


def plain_rows(content: object, beside: Read) -> Sequence[Mapping]:
    """The rows of a JSON file that is a list, or of a table with commas and a line of names."""
    if isinstance(content, str):
        return list(csv.DictReader(io.StringIO(content), strict=True))
    if not isinstance(content, list):
        raise ValueError("no list of records")
    return content


class Parquet:
    """One row per row of the table."""

    def __init__(self, path: str, rows_of: RowsOf):
        self._path, self._groups = path, RowGroups(path, open_metadata(path))

    def __len__(self) -> int:
        return len(self._groups)

    def where(self, index: int) -> str:
        return f"{self._path}#{index}"

    def row(self, index: int) -> Row:
        batch, place = self._groups.place(index)
        return Row(self.where(index), batch.slice(place, 1).to_pylist()[0])


class Tar:
    """One row per sample of a tar: the fields of its .json member, and its further members as files.

    A segment names a member by what follows the sample's key, such as '0.png'. `__members__` lists them.
    """

    def __init__(self, path: str, rows_of: RowsOf):
        self._path, self._samples = path, webdataset.index_shard(path, follow_links=True)

    def __len__(self) -> int:
        return len(self._samples)

    def where(self, index: int) -> str:
        return f"{self._path}:{self._samples[index].key}"

    def row(self, index: int) -> Row:
        sample = self._samples[index]
        if sample.error:
            raise ValueError(sample.error)
        fields: Mapping[str, object] = {}
        if ".json" in sample.parts:
            text = foreign_text.decode_text(webdataset.read_member(sample, ".json", _LINE_BYTES))
            fields = _table(text)
        members = [name[1:] for name in sample.parts if name != ".json"]

        def read(name: str) -> bytes:
            extension = "." + name.lower().removeprefix(f"{os.path.basename(sample.key)}.".lower())
            if extension not in sample.parts:
                raise ValueError(f"is no member of the sample: it has {', '.join(members) or 'none'}")
            return webdataset.read_member(sample, extension, files.MEDIA_BYTES)

        return Row(self.where(index), {**fields, "__members__": members}, read)


class ArrayRecord:
    """One row per record of a file that `transfusion.prepare` wrote; see `pack_record`."""

    def __init__(self, path: str, rows_of: RowsOf):
        self._path = path
        self._open()

    def _open(self) -> None:
        try:
            self._data = ArrayRecordDataSource([self._path])
        except (RuntimeError, ValueError, OSError) as error:  # ArrayRecord's are not OSErrors
            raise UsageError(f"cannot read {self._path}: {error_line(error)}") from error

    def __len__(self) -> int:
        return len(self._data)

    def where(self, index: int) -> str:
        return f"{self._path}#{index}"

    def row(self, index: int) -> Row:
        folder = os.path.dirname(self._path) or "."
        data = read_record(self.where(index), folder, lambda: self._data[index], self._open)
        line, _, rest = data.partition(b"\n")
        fields, starts = _table(foreign_text.decode_text(line)), [0]
        for size in fields.get("files", ()):
            starts.append(starts[-1] + size)
        if starts[-1] != len(rest):
            raise ValueError("the record is damaged: its files have another size than it says")

        def read(name: str) -> bytes:
            number = int(name)
            return rest[starts[number] : starts[number + 1]]

        return Row(self.where(index), fields.get("record", {}), read)


def pack_record(record: Mapping[str, object], read: Read) -> bytes:
    """A stored record as `ArrayRecord` reads it: a line of JSON, and behind it the bytes of all its files as they are.

    Args:
      record: the record, in which files are named or are bytes.
      read: reads those that are named.

    Raises:
      OSError, ValueError: if a file cannot be read.
    """
    data: list[bytes] = []
    places: dict[str, str] = {}  # of files that are named: several segments may show pictures of one

    def packed(value: object, held: bool = False) -> object:
        if isinstance(value, Mapping):
            if held and (value.get("bytes") or value.get("path")):
                inner = packed(value.get("bytes") or value.get("path"), True)
                return {"path": inner, "frame": value["frame"]} if value.get("frame") else {"path": inner}
            return {name: packed(one, name in _FILES) for name, one in value.items() if one is not None}
        if held and isinstance(value, str):
            if value not in places:
                data.append(read(value))
                places[value] = str(len(data) - 1)
            return places[value]
        if isinstance(value, bytes | bytearray):
            data.append(bytes(value))
            return str(len(data) - 1)
        if isinstance(value, list | tuple | np.ndarray):
            return [packed(one) for one in value]
        return value.item() if isinstance(value, np.generic) else value

    stored = packed(record)
    head = json.dumps({"record": stored, "files": [len(one) for one in data]}, allow_nan=False)
    return head.encode() + b"\n" + b"".join(data)


_FILES = ("image", "clip", "video", "sound", "codes", "series")

STORES: dict[str, Callable[[str, RowsOf], Store]] = {
    ".jsonl": JsonLines,
    ".json": Whole,
    ".csv": Whole,
    ".token": Whole,
    ".txt": Whole,
    ".parquet": Parquet,
    ".tar": Tar,
    ".array_record": ArrayRecord,
}
