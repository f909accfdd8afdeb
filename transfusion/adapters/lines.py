"""Files of prompts: one JSON object per line, of which each asks for pictures, captions or texts.

    {"id": "seven", "prompt": "a handwritten seven", "number": 4, "seed": 1}    four pictures
    {"id": 17, "image": "photos/17.png"}                                        a caption ("video" and "sound" as well)
    {"id": "tale", "text": "Once upon a time"}                                  what the model writes behind a text
    {"prompt": ["a red fox like ", {"image": "fox.png"}]}                       several parts, in reading order

Paths are relative to the folder of the file. A line without an `id` has its number in the file for one.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from transfusion import storage
from transfusion.api import MOST_SEED
from transfusion.api.prompts import as_path, checked_kind, checked_size, checked_text, whole_number
from transfusion.errors import UsageError, nearest, shown

MOST_NUMBER = 1_000_000  # samples of one line
LARGEST = 2**30  # bytes of a file of prompts
# The field that says what a line asks for, and what that is.
TASKS = {"prompt": "draw", "text": "write", "image": "caption", "video": "caption", "sound": "caption"}
MEDIA = ("image", "video", "sound")
_OTHERS = ("id", "number", "seed", "kind", "label", "size")
_SAFE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")


@dataclasses.dataclass(frozen=True)
class Line:
    """What one line asks for.

    Attributes:
      where: the file and the number of the line, for messages.
      id: names the line; unique in its file.
      task: a value of `TASKS`.
      parts: texts and the paths of media, in reading order.
      number: how many samples are asked for.
      seed: with the `id` and the number of a sample it decides the sample's random numbers.
      kind, label, size: of what is drawn, see `transfusion.api.run.Trained.generate`; label -1 is none.
    """

    where: str
    id: str
    task: str
    parts: tuple[str | pathlib.Path, ...]
    number: int = 1
    seed: int = 0
    kind: str = ""
    label: int = -1
    size: tuple[int, ...] = (0, 0)

    @property
    def digest(self) -> str:
        """Names what is asked for, but for the number of samples: a changed line has another digest."""
        parts = [part if isinstance(part, str) else {"file": os.fspath(part)} for part in self.parts]
        asked = [self.id, self.task, parts, self.seed, self.kind, self.label, list(self.size)]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]

    def stem(self, sample: int) -> str:
        """The name of a sample's file without its suffix: that of the line, and the sample's number if it has several.

        An id of other characters than letters, digits, '.', '_' and '-' is written with '_' for these, and with a part
        of its digest, so that it neither leaves the folder nor meets another.
        """
        name = self.id
        if not _SAFE.fullmatch(name) or name.endswith("."):
            plain = re.sub(r"[^A-Za-z0-9_-]+", "_", name)[:60].strip("_") or "id"
            name = f"{plain}-{hashlib.sha256(self.id.encode('utf-8', 'surrogatepass')).hexdigest()[:10]}"
        return name if self.number == 1 else f"{name}-{sample}"

    def noise(self, sample: int) -> int:
        """The number from which a sample's random numbers are made: it depends on seed, id and sample alone."""
        named = f"{self.seed}\0{sample}\0{self.id}".encode("utf-8", "surrogatepass")
        return int.from_bytes(hashlib.sha256(named).digest()[:4], "big") >> 1


def read_lines(path: str | os.PathLike, number: int = 1, seed: int = 0) -> list[Line]:
    """Reads and checks a whole file of prompts, so that no mistake in it is found after hours of drawing.

    Args:
      path: the file.
      number: samples of lines that do not say how many.
      seed: the seed of lines that have none.

    Raises:
      UsageError: naming the file and the number of the first line that is wrong, and what is.
    """
    path = pathlib.Path(path)
    try:
        data = storage.read_bytes(path, LARGEST)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {shown(str(path))}: {getattr(error, 'strerror', None) or error}") from error
    lines = []
    for place, row in enumerate(data.split(b"\n"), 1):
        if row.strip():
            where = f"{shown(str(path))} line {place}"
            try:
                lines.append(_line(where, storage.parse(row), str(place), path.parent, number, seed))
            except UsageError as error:
                raise UsageError(f"{where}: {error}") from error
            except ValueError as error:
                raise UsageError(f"{where} is no JSON: {error}") from error
    if not lines:
        raise UsageError(f"{shown(str(path))} holds no prompts")
    check_names(lines)
    return lines


def check_names(lines: Iterable[Line]) -> None:
    """Raises a UsageError if two lines have one id, or would write into one file."""
    ids: dict[str, str] = {}
    names: dict[str, str] = {}
    for line in lines:
        if line.id in ids:
            raise UsageError(f"{line.where}: the id {shown(repr(line.id))} is that of {ids[line.id]}, too")
        ids[line.id] = line.where
        for sample in range(line.number):
            name = line.stem(sample)
            other = names.setdefault(name.casefold(), line.where)  # some file systems do not see the case
            if other != line.where:
                raise UsageError(f"{line.where}: its file {name} would be that of {other}, too: change the id")


def _line(where: str, row: Any, place: str, folder: pathlib.Path, number: int, seed: int) -> Line:
    if not isinstance(row, Mapping):
        raise UsageError(f'a line is an object such as {{"prompt": "a cat"}}, not {shown(repr(row))}')
    for name in row:
        if name not in TASKS and name not in _OTHERS:
            known = (*TASKS, *_OTHERS)
            raise UsageError(f"no field {shown(repr(name))}{nearest(name, known)}: there are {', '.join(known)}")
    given = [name for name in TASKS if name in row]
    if len(given) != 1:
        found = " and ".join(given) or "none"
        raise UsageError(f"a line has one of {', '.join(TASKS)}, this one has {found}")
    (what,) = given
    parts = (_file(row[what], folder),) if what in MEDIA else _parts(what, row[what], folder)
    drawn = [name for name in ("kind", "label", "size") if name in row]
    if drawn and TASKS[what] != "draw":
        raise UsageError(f"{drawn[0]} is of what a prompt draws")
    return Line(
        where, _id(row.get("id", place)), TASKS[what], parts,
        _at_least_one(whole_number("number", row.get("number", number), MOST_NUMBER)),
        whole_number("seed", row.get("seed", seed), MOST_SEED),
        checked_kind(row.get("kind", "")),
        whole_number("label", row["label"], 2**31 - 1) if "label" in row else -1,
        checked_size(row.get("size", (0, 0))),
    )  # fmt: skip


def _at_least_one(number: int) -> int:
    if number < 1:
        raise UsageError("number=0 asks for nothing")
    return number


def _id(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value):
        raise UsageError(f"id={shown(repr(value))} must be a text or a whole number")
    return checked_text(str(value))


def _parts(what: str, value: Any, folder: pathlib.Path) -> tuple[str | pathlib.Path, ...]:
    if isinstance(value, str):
        return (checked_text(value),)
    if not isinstance(value, Sequence) or not value:
        raise UsageError(f'{what} must be a text, or a list of texts and of files such as {{"image": "a.png"}}')
    return tuple(_part(what, part, folder) for part in value)


def _part(what: str, part: Any, folder: pathlib.Path) -> str | pathlib.Path:
    if isinstance(part, str):
        return checked_text(part)
    if isinstance(part, Mapping) and len(part) == 1 and (name := next(iter(part))) in MEDIA:
        return _file(part[name], folder)
    raise UsageError(f'a part of {what} is a text or a file such as {{"image": "a.png"}}, not {shown(repr(part))}')


def _file(value: Any, folder: pathlib.Path) -> pathlib.Path:
    if not isinstance(value, str):
        raise UsageError(f"the path of a file is a text, not {shown(repr(value))}")
    path = folder / as_path(checked_text(value))
    if "\0" in value or not path.is_file():
        raise UsageError(f"there is no file {shown(str(path))}")
    return path
