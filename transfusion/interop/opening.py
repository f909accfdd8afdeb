"""Opens files of folders that strangers made: only plain files inside the folder, and only up to a size.

A pipe or a device in place of a file would hang the program or never end, and a link may lead to any file of the
machine. So the importer reads everything through `Folder`.
"""

import collections
import dataclasses
import functools
import json
import os
import pathlib
import reprlib
import stat
from typing import Any, BinaryIO

from transfusion.errors import UsageError, nearest

MOST_JSON = 32_000_000  # bytes; config.json of Emu3, with its vocabulary of 184,622 tokens, has 7 million
MOST_DEEP = 50  # tables within tables, at most
_LONGEST_NAME = 255  # bytes of a file's name, in all common file systems
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80


def short(value: Any) -> str:
    """`repr(value)`, cut to fit into an error of one line, since a stranger's value may have millions of characters."""
    return _SHORT.repr(value)


def near(name: str, known: collections.abc.Iterable[str]) -> str:
    """`errors.nearest` among at most 2,000 names of under 200 characters, as its time grows with the square of both."""
    return nearest(name, [other for other in known if len(other) < 200][:2000]) if len(name) < 200 else ""


@dataclasses.dataclass(frozen=True)
class Folder:
    """A folder whose files are opened by name.

    Attributes:
      path: where it is.
      follow_links: whether links may lead out of it. The links of a Hugging Face cache, from 'snapshots' into the
        'blobs' of the same model, always may.
    """

    path: pathlib.Path
    follow_links: bool = False

    @functools.cached_property
    def _roots(self) -> tuple[pathlib.Path, ...]:
        here = self.path.resolve()
        cached = here.parent.name == "snapshots"
        return (here, here.parent.parent / "blobs") if cached else (here,)

    def has(self, name: str) -> bool:
        """Whether something has that name, a file or not."""
        return os.path.lexists(self.path / name)

    def names(self, suffix: str = "") -> list[str]:
        """The visible names that end in `suffix`, sorted."""
        try:
            return sorted(n for n in os.listdir(self.path) if n.endswith(suffix) and not n.startswith("."))
        except OSError as error:
            raise UsageError(f"cannot read {self.path}: {error.strerror}") from error

    def open(self, name: str) -> BinaryIO:
        """The file, open for reading.

        Raises:
          UsageError: if it does not exist, is no plain file, or lies outside the folder.
        """
        path = self.path / name
        try:
            real = path.resolve(strict=True)
            if not self.follow_links and not any(real.is_relative_to(root) for root in self._roots):
                raise UsageError(
                    f"{path} is a link that leads out of the folder, to {real}: copy the file, or give --follow_links"
                )
            _insist_plain(path, os.stat(real))
            # If a pipe takes the file's place at this moment, opening it does not wait for a writer.
            number = os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
            file = os.fdopen(number, "rb")
            _insist_plain(path, os.fstat(number))
        except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: links in a circle
            raise UsageError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
        return file

    def read(self, name: str, most: int) -> bytes:
        """The file's bytes.

        Raises:
          UsageError: as `open` does, or if there are more than `most`.
        """
        with self.open(name) as file:
            try:
                size = os.fstat(file.fileno()).st_size
                data = file.read(size + 1) if size <= most else b""
            except OSError as error:
                raise UsageError(f"cannot read {self.path / name}: {error.strerror}") from error
        if max(size, len(data)) > most:
            raise UsageError(f"{self.path / name} has {size:,} bytes, more than the {most:,} that such a file may have")
        return data

    def read_json(self, name: str) -> dict[str, Any]:
        """A JSON file that holds one table.

        Raises:
          UsageError: naming the file, if it cannot be read, is no JSON, or is not one table with each key once.
        """
        return parse_table(self.read(name, MOST_JSON), str(self.path / name))


def _insist_plain(path: pathlib.Path, about: os.stat_result) -> None:
    if not stat.S_ISREG(about.st_mode):
        what = "a folder" if stat.S_ISDIR(about.st_mode) else "a pipe, a socket or a device"
        raise UsageError(f"{path} is {what}, not a file")


def parse_table(data: bytes, what: str) -> dict[str, Any]:
    """The table in a JSON file; `what` names the file in errors.

    Raises:
      UsageError: if it is no JSON in UTF-8, is nested too deeply, has a key twice, or is anything but a table.
    """
    try:
        value = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_once)
    except UnicodeDecodeError as error:
        raise UsageError(f"{what} is not UTF-8 text: byte {error.start} is {data[error.start]:#04x}") from error
    except RecursionError as error:
        raise UsageError(f"{what} is nested too deeply") from error
    except ValueError as error:
        raise UsageError(f"{what} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise UsageError(f"{what} must hold a JSON object, not {short(value)}")
    level = [value]
    for _ in range(MOST_DEEP):
        level = [inner for table in level for inner in _inside(table)]
    if level:
        raise UsageError(f"{what} is nested too deeply: more than {MOST_DEEP} tables or lists within each other")
    return value


def _inside(table: dict | list) -> list[dict | list]:
    values = table.values() if isinstance(table, dict) else table
    return [value for value in values if isinstance(value, dict | list)]


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        twice = next(name for name, count in collections.Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"key {_plain(twice)} is there twice")
    for name in table:
        if not name.isascii():
            _insist_unicode(name)
    return table


def _plain(name: str) -> str:
    """A name for a message, cut where it is long."""
    return name if len(name) <= 80 else f"{name[:80]}..."


def _insist_unicode(name: str) -> None:
    """Refuses a name with half of a surrogate pair, which JSON can write and nothing else can."""
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the name {short(name)} is not Unicode text") from error


def check_name(name: Any, suffix: str, where: str) -> str:
    """Returns `name` if it can be that of a file in the same folder.

    Raises:
      UsageError: if it is anything else, such as a path. `where` says what gave the name.
    """
    try:
        fits = isinstance(name, str) and len(name.encode()) <= _LONGEST_NAME and name.endswith(suffix)
    except UnicodeEncodeError:
        fits = False
    if not fits or {"/", "\\", "\0"} & {*name} or name.startswith("."):
        raise UsageError(f"{where} names {short(name)}, which is not a file of the same folder (*{suffix})")
    return name
