"""A folder of images, clips or sounds with their captions in one .jsonl, .csv or .parquet file."""

import csv
import json
import os
from collections.abc import Iterator

from transfusion.data.config import Record, SourceConfig
from transfusion.data.media import MEDIA
from transfusion.errors import UsageError, check, nearest, require

_NAMES = ("captions.jsonl", "captions.csv", "captions.parquet")


class FolderSource:
    """Rows of the captions file: `file_field` is the path inside the folder, `caption_field` the caption."""

    def __init__(self, config: SourceConfig, data_dir: str, pixel_limit: int):
        self._config, self._pixel_limit = config, pixel_limit
        self._root = os.path.realpath(config.path)
        if not config.path or not os.path.isdir(config.path):
            raise UsageError(f"no folder {config.path!r}: set path to the folder with images and captions")
        check("data.sources: medium", config.medium, MEDIA)
        self._table = _captions_file(config)
        self._rows = list(_READERS[os.path.splitext(self._table)[1]](self._table))
        columns = {column for row in self._rows for column in row}
        for wanted in filter(None, (config.file_field, config.caption_field)):
            if wanted not in columns and columns:
                names = ", ".join(sorted(columns - {"error"}))
                raise UsageError(f"{self._table} has no column {wanted!r}{nearest(wanted, columns)}: it has {names}")

    def __len__(self) -> int:
        return len(self._rows)

    def key(self, index: int) -> str:
        """See `hold_out.part_of`."""
        name = self._rows[index].get(self._config.file_field)
        return name if isinstance(name, str) and name else f"#{index}"

    def __getitem__(self, index: int) -> Record:
        row, config = self._rows[index], self._config
        name = row.get(config.file_field)
        if "error" in row or not isinstance(name, str) or not name:
            return {"id": f"{self._table}#{index}", "error": row.get("error") or f"no {config.file_field}"}
        path = os.path.realpath(os.path.join(self._root, name))
        if os.path.commonpath((self._root, path)) != self._root:
            return {"id": name, "error": f"lies outside the folder {config.path}"}
        record: dict = {"id": os.path.join(config.path, name)}
        try:
            with open(path, "rb") as file:
                record |= MEDIA[config.medium].decode(file.read(), self._pixel_limit)
        except (OSError, ValueError) as error:
            return {"id": record["id"], "error": str(error)}
        if config.caption_field:
            record["caption"] = row.get(config.caption_field)
        return record


def _captions_file(config: SourceConfig) -> str:
    names = (config.captions,) if config.captions else _NAMES
    for name in names:
        path = os.path.join(config.path, name)
        if os.path.isfile(path):
            if os.path.splitext(path)[1] not in _READERS:
                raise UsageError(f"captions file {path}: its name must end in {', '.join(_READERS)}")
            return path
    raise UsageError(f"no captions file in {config.path}: looked for {', '.join(names)}")


def _jsonl(path: str) -> Iterator[dict]:
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                yield row if isinstance(row, dict) else {"error": f"line {number} is no JSON object"}
            except ValueError:
                yield {"error": f"line {number} is no JSON"}


def _csv(path: str) -> Iterator[dict]:
    with open(path, encoding="utf-8", errors="replace", newline="") as file:
        for row in csv.DictReader(file):
            row.pop(None, None)  # cells beyond the header
            yield row


def _parquet(path: str) -> Iterator[dict]:
    parquet = require("pyarrow.parquet", "dev")
    try:
        yield from parquet.read_table(path).to_pylist()
    except (OSError, ValueError) as error:  # pyarrow's errors derive from these
        raise UsageError(f"cannot read {path}: {str(error).splitlines()[0]}") from error


_READERS = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}
