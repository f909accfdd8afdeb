"""Random-access sources of raw records, one table from kind to constructor.

A source has `len(source)` and `source[i]`, and gives the same record for the same i. A record that cannot be used is
{'id': ..., 'error': one line}: one broken file never stops a run. What concerns the whole source (no such folder, no
such column) is a UsageError when it is opened.
"""

import mmap
import os
from collections.abc import Callable, Sequence

import numpy as np

from transfusion.data import text_records
from transfusion.data.config import Record, SourceConfig
from transfusion.data.folder import FolderSource
from transfusion.data.hold_out import part_of
from transfusion.data.latent_cache import LatentSource
from transfusion.data.media import MEDIA, medium_of
from transfusion.data.tfds_source import TfdsSource
from transfusion.data.webdataset import WebDatasetSource
from transfusion.errors import UsageError, nearest

Source = Sequence[Record]


def open_source(config: SourceConfig, data_dir: str = "data", pixel_limit: int = 50_000_000) -> Source:
    """Opens the source that `config` names; images are fitted to its resolution and channels.

    Raises:
      UsageError: if the kind, a file, a folder, a dataset or a column does not exist, or nothing is in it.
    """
    if config.kind not in SOURCES:
        raise UsageError(f"unknown source kind {config.kind!r}{nearest(config.kind, SOURCES)}: {', '.join(SOURCES)}")
    if config.latents:  # they were written from the part that the config names
        source = LatentSource(config)
    else:
        source = part_of(SOURCES[config.kind](config, data_dir, pixel_limit), config)
    if not len(source):
        raise UsageError(f"the {config.kind} source at {config.path or config.name} holds no records")
    return _Checked(source, config)


class _Checked:
    """Completes a source: no exception of a record gets out, records are well formed, images have the asked size."""

    def __init__(self, source: Source, config: SourceConfig):
        self._source, self._config = source, config

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Record:
        name = f"{self._config.path or self._config.name}#{index}"
        try:
            record = self._source[index]
            name = record["id"]
            if "error" in record or "encoded" in record:
                return record
            error = _fault(record)
            kind = medium_of(record)
            if error is None and kind in MEDIA:
                return {**record, kind: MEDIA[kind].fit(record, self._config)}
        except Exception as exception:  # foreign readers raise what they like; the record is counted and named
            error = " ".join(f"{type(exception).__name__}: {exception}".split())[:200]
        return record if error is None else {"id": name, "error": error}


def _fault(record: Record) -> str | None:
    kind = medium_of(record)
    if not kind and "text" not in record:
        return "neither an image nor a text"
    for field in ("caption", "text"):
        if field in record and not (isinstance(record[field], str) and record[field].strip()):
            return f"the {field} is empty or missing"
    return MEDIA[kind].fault(record[kind]) if kind in MEDIA else None


class TextSource:
    """A UTF-8 text file, or all .txt files below a folder, cut into records of at most `record_bytes`."""

    def __init__(self, config: SourceConfig, data_dir: str, pixel_limit: int):
        path = self._path = config.path
        if os.path.isdir(path):
            found = (os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names)
            self._files = sorted(name for name in found if name.endswith(".txt"))
        elif os.path.isfile(path):
            self._files = [path]
        else:
            raise UsageError(f"no text file or folder at {path!r}")
        rows = []
        for number, name in enumerate(self._files):
            if os.path.getsize(name):
                with open(name, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                    rows += [(number, start, stop) for start, stop in text_records.spans(data, config.record_bytes)]
        self._rows = np.array(rows, np.int64).reshape(-1, 3)

    def __len__(self) -> int:
        return len(self._rows)

    def key(self, index: int) -> str:
        """See `hold_out.part_of`."""
        number, start, _ = self._rows[index]
        return f"{os.path.relpath(self._files[number], self._path)}:{start}"

    def __getitem__(self, index: int) -> Record:
        number, start, stop = (int(value) for value in self._rows[index])
        name = f"{self._files[number]}:{start}"
        with open(self._files[number], "rb") as file:
            file.seek(start)
            data = file.read(stop - start)
        try:
            return {"id": name, "text": data.decode("utf-8").strip()}
        except UnicodeDecodeError as error:
            return {"id": name, "error": f"not UTF-8 text ({error.reason})"}


SOURCES: dict[str, Callable[[SourceConfig, str, int], Source]] = {
    "tfds": TfdsSource,
    "folder": FolderSource,
    "webdataset": WebDatasetSource,
    "text": TextSource,
}
