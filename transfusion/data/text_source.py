"""The source of kind 'text': a text file, or all .txt files below a folder, cut into records."""

import array
import mmap
import os
from collections import Counter
from collections.abc import Callable
from typing import BinaryIO, TypeVar

import numpy as np
from absl import logging

from transfusion import storage
from transfusion.data import files, foreign_text, text_records
from transfusion.data.config import Record, SourceConfig
from transfusion.data.faults import error_line
from transfusion.errors import UsageError

_T = TypeVar("_T")

_FILE_BYTES = 2**36  # a larger file is no text


class TextSource:
    """A UTF-8 text file, or all .txt files below a folder, cut into records of at most `record_bytes`.

    A file that cannot be read, or has another encoding, is one error record. The log says which files are left out.
    """

    def __init__(self, config: SourceConfig, data_dir: str, pixel_limit: int):
        path = self._path = config.path
        if config.record_bytes < 4:
            raise UsageError(
                f"data.sources: record_bytes={config.record_bytes} must be at least 4, which one character may take"
            )
        if os.path.isdir(path):
            self._files = _text_files(path, config.follow_links)
        elif os.path.lexists(path) and path:
            self._files = [path]
        else:
            raise UsageError(f"no text file or folder at {path!r}")
        self._faults: dict[int, str] = {}
        rows = array.array("q")
        for number, name in enumerate(self._files):
            try:
                if name != path and not config.follow_links and files.leads_out(path, name):
                    raise ValueError(f"is a link to outside the folder {path}: set follow_links=True if it may be read")
                rows.extend(self._cut(number, name, config))
            except (OSError, ValueError) as error:
                self._faults[number] = error_line(error) if isinstance(error, OSError) else str(error)
                rows.extend((number, 0, 0))
        self._rows = np.array(rows, np.int64).reshape(-1, 3)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Record:
        number, start, stop = (int(value) for value in self._rows[index])
        path, name = self._files[number], f"{self._files[number]}:{start}"
        if number in self._faults:
            return {"id": path, "error": self._faults[number]}
        try:
            # The file existed when it was cut: if it is missing now, its storage cannot be reached.
            data = _with_file(path, lambda file: files.read_part(file, start, stop - start), path)
            return {"id": name, "text": foreign_text.decode_text(data).strip()}
        except (OSError, ValueError) as error:
            return {"id": name, "error": str(error)}

    def key(self, index: int) -> str:
        """See `hold_out.part_of`."""
        number, start, _ = self._rows[index]
        return f"{os.path.relpath(self._files[number], self._path)}:{start}"

    def _cut(self, number: int, path: str, config: SourceConfig) -> array.array:
        def cut(file: BinaryIO) -> array.array:
            size, rows = os.fstat(file.fileno()).st_size, array.array("q")
            if size > _FILE_BYTES:
                raise ValueError(f"holds {size} bytes, over the limit of {_FILE_BYTES}")
            if not size:
                return rows
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                for start, stop in text_records.spans(data, config.record_bytes, _beginning(data[:4096])):
                    rows.extend((number, start, stop))
            return rows

        return _with_file(path, cut, config.path)


def _beginning(start: bytes) -> int:
    """The offset at which a UTF-8 text begins.

    Raises:
      ValueError: if it announces another encoding, or holds NUL bytes.
    """
    encoding = foreign_text.encoding_of(start[:4])
    if not encoding.startswith("utf-8"):
        raise ValueError(f"is {encoding.upper()}, not UTF-8 text: {foreign_text.ADVICE}")
    if b"\0" in start:
        raise ValueError(f"is not UTF-8 text, as it holds NUL bytes: {foreign_text.ADVICE}")
    return 3 if encoding == "utf-8-sig" else 0


def _with_file(path: str, use: Callable[[BinaryIO], _T], home: str) -> _T:
    def attempt() -> _T:
        with files.open_regular(path) as file:
            return use(file)

    return files.patiently(path, attempt, (home,))


def _text_files(root: str, follow_links: bool) -> list[str]:
    """The .txt files below a folder. One line of the log says what else is there.

    Raises:
      StorageError: if the storage fails.
    """
    found, left_out = [], Counter()

    def unreadable(error: OSError) -> None:
        if storage.may_pass(error):
            raise storage.StorageError(f"cannot read {error.filename}: {error_line(error)}")
        left_out["folders that cannot be read"] += 1

    seen = {os.path.realpath(root)}
    for folder, folders, names in os.walk(root, onerror=unreadable, followlinks=True):
        kept = []
        for name in sorted(folders):
            path = os.path.join(folder, name)
            real = os.path.realpath(path)
            if not follow_links and files.leads_out(root, path):
                left_out["links to folders outside of it (set follow_links=True to read them)"] += 1
            elif real in seen:  # it would be read twice, or for ever if it links to a folder above it
                left_out["links to folders that are read anyway"] += 1
            else:
                seen.add(real)
                kept.append(name)
        folders[:] = kept
        texts_here = [name for name in names if name.lower().endswith(".txt")]
        found += [os.path.join(folder, name) for name in texts_here]
        if len(names) > len(texts_here):
            left_out["files whose names do not end in .txt"] += len(names) - len(texts_here)
    if left_out:
        logging.info("%s: left out %s", root, ", ".join(f"{count} {what}" for what, count in left_out.items()))
    return sorted(found)
