"""Reads captions files in .jsonl and .csv as tables, of which only the columns in use are kept. `parquet` reads the
rest.
"""

import abc
import array
import csv
import dataclasses
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

from transfusion import storage
from transfusion.data import files, foreign_text
from transfusion.errors import UsageError, nearest

FILE_BYTES = 2**34  # the largest captions file
MOST_ROWS = 10_000_000  # rows of a captions file
TABLE_BYTES = 2**31  # bytes of all its names and captions in memory
_BAD_ROWS = 100_000  # a file with more bad rows than these is no captions file
_ROW_LINES = 128  # a row of a CSV file with more lines than these has an open quotation mark


@dataclasses.dataclass(frozen=True)
class CaptionRow:
    """One row of a captions file: a file and its caption, or what is wrong with the row.

    Attributes:
      where: the captions file and the line, which name the row in logs.
      name: the path of the row's file; '' if the row holds the file itself.
      caption: the caption, which may be missing.
      error: what is wrong with the row; '' if nothing is.
      data: the bytes of the row's file, if the row holds it.
    """

    where: str
    name: str = ""
    caption: object = None
    error: str = ""
    data: bytes | None = None


class CaptionTable(Sequence[CaptionRow]):
    """The rows of one captions file."""

    @abc.abstractmethod
    def key(self, index: int) -> str:
        """A name for a row that does not change when rows are added; see `hold_out.part_of`."""


class MemoryTable(CaptionTable):
    """Rows that are kept in memory, packed tightly: as Python objects a few million rows would take gigabytes."""

    def __init__(self, path: str, separator: str = ":"):
        self._path, self._separator = path, separator
        self._bytes = bytearray()  # name, caption, name, caption, ...
        self._ends, self._numbers = array.array("Q", [0]), array.array("Q")
        self._errors: dict[int, str] = {}

    def add(self, number: int, name: object, caption: object, error: str = "") -> None:
        """Adds the row that begins in line `number`. A row whose name or caption is no text is a bad one.

        Raises:
          UsageError: if there are more rows, or bad ones, than a captions file may have.
        """
        for what, value in (("name of the file", name), ("caption", caption)):
            if not error and (wrong := foreign_text.not_text(value)):
                error = f"the {what} {wrong}"
        if error:
            self._errors[len(self._numbers)] = error
            if len(self._errors) > _BAD_ROWS:
                raise UsageError(f"{self._path} has more than {_BAD_ROWS} rows that cannot be read, the last: {error}")
        self._numbers.append(number)
        for value in (name, caption):
            if isinstance(value, str):
                self._bytes += value.encode("utf-8", "surrogatepass")
            self._ends.append(len(self._bytes))
        if len(self._numbers) > MOST_ROWS:
            check_rows(self._path, len(self._numbers))
        if len(self._bytes) > TABLE_BYTES:
            raise UsageError(f"{self._path} holds more than {TABLE_BYTES} bytes of names and captions: split it")

    def __len__(self) -> int:
        return len(self._numbers)

    def key(self, index: int) -> str:
        name = self[index].name
        return os.path.normpath(name) if name else f"#{index}"  # './0.png' and '0.png' are one file

    def __getitem__(self, index: int) -> CaptionRow:
        start, middle, end = self._ends[2 * index : 2 * index + 3]
        name, caption = (self._bytes[a:b].decode("utf-8", "surrogatepass") for a, b in ((start, middle), (middle, end)))
        where = f"{self._path}{self._separator}{self._numbers[index]}"
        return CaptionRow(where, name, caption, self._errors.get(index, ""))


def check_rows(path: str, count: int) -> None:
    """Raises UsageError if a captions file has more rows than are read."""
    if count > MOST_ROWS:
        raise UsageError(f"{path} has more than {MOST_ROWS} rows, the limit of a captions file: split it")


def check_columns(path: str, known: Sequence[str], wanted: Iterable[str], hint: str = "") -> None:
    """Raises UsageError if a wanted column is missing or occurs twice."""
    for column in filter(None, wanted):
        if column not in known:
            names = ", ".join(sorted(known))[:300]
            raise UsageError(f"{path} has no column {column!r}{nearest(column, known)}: it has {names}{hint}")
        if list(known).count(column) > 1:
            raise UsageError(f"{path} has the column {column!r} twice: rename one of them")


def read_text_table(path: str, file_field: str, caption_field: str) -> MemoryTable:
    """The rows of a .jsonl or .csv file.

    Raises:
      StorageError: if the storage fails and goes on failing.
      UsageError: if the file cannot be read, is no text, or lacks a column.
    """
    read = _jsonl if path.lower().endswith(".jsonl") else _csv

    def attempt() -> MemoryTable:
        with files.open_regular(path) as file:
            if os.fstat(file.fileno()).st_size > FILE_BYTES:
                raise ValueError(f"it holds more than {FILE_BYTES} bytes: split it")
            return read(path, foreign_text.lines(file), file_field, caption_field)

    try:
        return files.patiently(path, attempt, (os.path.dirname(path),))
    except OSError as error:
        raise storage.lasting(f"cannot read {path}", error) from error
    except ValueError as error:
        raise UsageError(f"cannot read {path}: {error}") from error


def _jsonl(path: str, lines: Iterator[tuple[int, str]], file_field: str, caption_field: str) -> MemoryTable:
    rows, columns = MemoryTable(path), dict.fromkeys(())
    for number, line in lines:
        if not line.strip():
            continue
        error = foreign_text.fault(line) or (
            f"has more than {foreign_text.TEXT_BYTES} characters" if _too_long(line) else None
        )
        try:
            row = None if error else foreign_text.parse_json(line)
        except ValueError as exception:
            row, error = None, str(exception)
        if error is None and not isinstance(row, dict):
            error = "is no JSON object"
        if error is not None:
            rows.add(number, None, None, f"line {number} {error}")
            continue
        if not columns.keys() >= row.keys():
            columns |= dict.fromkeys(row if len(columns) < 1000 else {file_field, caption_field} & row.keys())
        rows.add(number, row.get(file_field), row.get(caption_field))
    if columns:
        check_columns(path, list(columns), (file_field, caption_field))
    return rows


def _too_long(line: str) -> bool:
    return len(line) > foreign_text.TEXT_BYTES


# --- CSV --------------------------------------------------------------------------------------------------------------


def _csv(path: str, lines: Iterator[tuple[int, str]], file_field: str, caption_field: str) -> MemoryTable:
    # The csv module limits cells to 131,072 characters, with one limit for the whole process. It is only raised here.
    csv.field_size_limit(max(csv.field_size_limit(), foreign_text.TEXT_BYTES))
    rows, reader = MemoryTable(path), _CsvReader(lines)
    first = next(reader, None)
    if first is None:
        return rows
    number, header, error = first
    if not error and (wrong := foreign_text.fault("".join(header))):
        error = f"its first line, which names the columns, {wrong}"
    if error:
        raise UsageError(f"{path}: {error}")
    apart = next((f": separate them by commas, not by {mark!r}" for mark in ";\t" if mark in "".join(header)), "")
    check_columns(path, header, (file_field, caption_field), apart)
    places = header.index(file_field), (header.index(caption_field) if caption_field else None)
    reader.expect(len(header), places[0])
    for number, cells, error in reader:
        if not error and len(cells) < len(header) and len(cells) <= max(filter(None, places), default=0):
            error = f"has {len(cells)} cells, and the header {len(header)}"
        if not error and any(cells[len(header) :]):
            error = f"has {len(cells)} cells, and the header {len(header)}: a text with commas needs quotation marks"
        used = [] if error else [cells[place] for place in places if place is not None]
        error = error or foreign_text.fault("".join(used))
        if error:
            rows.add(number, None, None, f"line {number} {error}")
        else:
            rows.add(number, used[0], used[1] if caption_field else None)
    return rows


class _CsvReader:
    """Yields (line, cells, what is wrong) for each row that is not empty.

    A quotation mark that is opened and never closed makes the next lines a part of its cell, until another mark closes
    it by chance: rows would vanish. Here such a row is one bad row, and reading continues with its second line.
    """

    def __init__(self, lines: Iterator[tuple[int, str]]):
        self._lines = lines
        self._again: deque[tuple[int, str]] = deque()  # lines that are read once more
        self._taken: list[tuple[int, str]] = []  # the lines of the row that is being read
        self._length = 0  # their length in characters
        self._width, self._file = 0, 0
        self._reader = csv.reader(self._feed(), strict=True)

    def expect(self, width: int, file: int) -> None:
        """Says how many cells a row has, and which of them names a file."""
        self._width, self._file = width, file

    def __iter__(self) -> Iterator[tuple[int, list[str], str]]:
        return self

    def __next__(self) -> tuple[int, list[str], str]:
        while True:
            self._taken.clear()
            self._length = 0
            try:
                cells, error = next(self._reader), ""
            except csv.Error as exception:
                cells, error = [], self._reason(exception)
            if not error and len(self._taken) > 1 and self._swallowed(cells):
                error = "opens a quotation mark that a later row closes"
            if error:
                (number, _), *rest = self._taken
                self._again.extendleft(reversed(rest))
                self._reader = csv.reader(self._feed(), strict=True)
                return number, [], error
            if any(cell.strip() for cell in cells):
                return self._taken[0][0], cells, ""

    def _feed(self) -> Iterator[str]:
        while (line := self._again.popleft() if self._again else next(self._lines, None)) is not None:
            self._taken.append(line)
            self._length += len(line[1])
            if len(self._taken) > _ROW_LINES or self._length > foreign_text.TEXT_BYTES:
                raise csv.Error("the row is too long")
            yield line[1]

    def _reason(self, error: csv.Error) -> str:
        if any(_too_long(line) for _, line in self._taken) or "field limit" in str(error):
            return f"has a cell of more than {foreign_text.TEXT_BYTES} characters"
        if len(self._taken) > 1 or "end of data" in str(error):
            return "opens a quotation mark that is not closed"
        return "has a quotation mark in the middle of a cell that begins with one: write it twice"

    def _swallowed(self, cells: list[str]) -> bool:
        """Whether a line within a cell looks like a row: it has as many cells, and a file name with the same suffix."""
        if len(cells) < self._file + 1 or not self._width:
            return False
        suffix = os.path.splitext(cells[self._file])[1]
        for _, line in self._taken[1:]:
            alone = next(csv.reader([line]), [])
            if suffix and len(alone) == self._width and os.path.splitext(alone[self._file])[1] == suffix:
                return True
        return False
