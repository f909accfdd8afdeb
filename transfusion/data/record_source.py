"""The source of kind 'records': records with segments, in the record form or in a public form that a reader reads."""

import bisect
import itertools
import os
from collections.abc import Mapping

from transfusion.data import files
from transfusion.data.config import Record, SourceConfig
from transfusion.data.media import MEDIA
from transfusion.data.patterns import files_named
from transfusion.data.readers import READERS, Reader
from transfusion.data.record_files import STORES, Row, Store
from transfusion.data.segments import Read, read_medium, read_segments
from transfusion.errors import PassingError, UsageError, check

_SHORT = {"image": "image", "clip": "video", "sound": "sound"}  # the media of short forms, and their kinds


class RecordSource:
    """One record per row of the files that `path` names: a file, a pattern, or a folder with files of one kind."""

    def __init__(self, config: SourceConfig, data_dir: str, pixel_limit: int):
        check("data.sources: reader", config.reader, READERS)
        self._reader, self._pixel_limit = READERS[config.reader], pixel_limit
        paths = _paths(config, self._reader)
        self._stores = [_open(path, self._reader, config) for path in paths]
        self._starts = [0, *itertools.accumulate(map(len, self._stores))]
        folders = [config.files or (path if os.path.isdir(path) else os.path.dirname(path) or ".") for path in paths]
        for folder in folders:
            if not os.path.isdir(folder):
                raise UsageError(f"no folder {folder!r}: set files to the folder of the files that the records name")
        self._folders = [files.DataFolder(folder, config.follow_links) for folder in folders]

    def __len__(self) -> int:
        return self._starts[-1]

    def _place(self, index: int) -> tuple[int, int]:
        number = bisect.bisect_right(self._starts, index) - 1
        return number, index - self._starts[number]

    def key(self, index: int) -> str:
        """See `hold_out.part_of`."""
        number, place = self._place(index)
        return os.path.basename(self._stores[number].where(place))

    def stored(self, index: int) -> tuple[Mapping[str, object], Read]:
        """Record `index` in the record form, and what reads its files.

        Raises:
          OSError, ValueError: if it cannot be read, or the reader finds no record in its row.
        """
        number, place = self._place(index)
        row = self._stores[number].row(place)
        return self._reader.read(row.fields), self._read_of(row, number)

    def where(self, index: int) -> str:
        """The file and the number of record `index`."""
        number, place = self._place(index)
        return self._stores[number].where(place)

    def _read_of(self, row: Row, number: int) -> Read:
        return row.read or self._folders[number].read

    def __getitem__(self, index: int) -> Record:
        name = self.where(index)
        try:
            return {"id": name} | read_record(*self.stored(index), self._pixel_limit)
        except PassingError:
            raise
        except (OSError, ValueError) as error:
            return {"id": name, "error": str(error)}


def read_record(stored: Mapping[str, object], read: Read, pixel_limit: int) -> Record:
    """A record without its id, from the record form.

    Args:
      stored: the segments, or a short form.
      read: reads the files that it names.
      pixel_limit: larger pictures are not decoded.

    Raises:
      OSError, ValueError: if it is no record, or one of its files cannot be read.
    """
    fields = {name: value for name, value in stored.items() if value is not None}
    if "segments" in fields:
        return {"segments": read_segments(fields["segments"], read, pixel_limit)}
    record: dict = {}
    for form, kind in _SHORT.items():
        if form in fields:
            record |= read_medium(kind, fields[form], read, pixel_limit)
    if len([kind for kind in record if kind in MEDIA]) > 1:
        raise ValueError("a short form has one image, clip or sound: write segments")
    if isinstance(fields.get("label"), int):
        record["label"] = fields["label"]
    captions = fields.get("captions")
    if isinstance(captions, list | tuple):
        found = tuple(text for text in captions if isinstance(text, str) and text.strip())
        record |= {"caption": found[0] if found else None} | ({"captions": found} if len(found) > 1 else {})
    record |= {name: fields[name] for name in ("text", "caption") if name in fields}
    if not record:
        raise ValueError(f"neither segments nor a short form: it has {', '.join(map(str, fields)) or 'no fields'}")
    return record


def _paths(config: SourceConfig, reader: Reader) -> list[str]:
    """The files of a source; of a reader that reads folders without a file of records, the folder."""
    path = config.path
    if not path:
        raise UsageError("path is empty: set it to the file with the records, or to their folder")
    if not os.path.isdir(path):
        found = files_named(path)
        if not found:
            raise UsageError(f"no file matches {path!r}")
        return found
    names = sorted(entry.name for entry in os.scandir(path) if entry.is_file())
    for name in reader.names:
        if name in names:
            return [os.path.join(path, name)]
    for suffix in (".jsonl", ".parquet", ".tar", ".array_record"):
        if found := [os.path.join(path, name) for name in names if name.lower().endswith(suffix)]:
            return found
    if reader.folder:
        return [path]
    raise UsageError(f"no file of records in {path!r}: a .jsonl, .parquet, .tar or .array_record, or name the file")


def _open(path: str, reader: Reader, config: SourceConfig) -> Store:
    if os.path.isdir(path):
        return reader.folder(path)
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in STORES:
        raise UsageError(f"{path}: records lie in files whose names end in {', '.join(STORES)}")
    if not config.follow_links and os.path.isdir(config.path) and files.leads_out(config.path, path):
        raise UsageError(f"{path} is a link to outside {config.path}: set follow_links=True if it may be read")
    return STORES[suffix](path, reader.rows)
