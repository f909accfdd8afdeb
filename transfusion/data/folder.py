"""The source of kind 'folder': images, clips or sounds with a captions file (.jsonl, .csv, or .parquet files)."""

import bisect
import itertools
import os

from transfusion.data import files
from transfusion.data.config import Record, SourceConfig
from transfusion.data.media import MEDIA
from transfusion.data.parquet import read_parquet
from transfusion.data.patterns import files_named
from transfusion.data.tables import CaptionTable, read_text_table
from transfusion.errors import UsageError, check

_NAMES = ("captions.jsonl", "captions.csv", "captions.parquet")
_READERS = {".jsonl": read_text_table, ".csv": read_text_table, ".parquet": read_parquet}
_SPLITS = ("train", "test", "validation", "valid", "dev", "eval")


class FolderSource:
    """One record per row of the captions file.

    The column `file_field` holds the path of a file inside the folder, the column `caption_field` its caption. In
    Parquet, `file_field` may also hold the files themselves, as bytes or as `{bytes, path}`.
    """

    def __init__(self, config: SourceConfig, data_dir: str, pixel_limit: int):
        self._config, self._pixel_limit = config, pixel_limit
        if not config.path or not os.path.isdir(config.path):
            raise UsageError(f"no folder {config.path!r}: set path to the folder with images and captions")
        check("data.sources: medium", config.medium, MEDIA)
        if not config.file_field:
            raise UsageError("data.sources: file_field is empty: set it to the column with the files' names")
        tables = _captions_files(config)
        self._folder = files.DataFolder(config.path, config.follow_links, tuple(tables))
        self._tables = [_read(table, config) for table in tables]
        self._starts = [0, *itertools.accumulate(map(len, self._tables))]

    def __len__(self) -> int:
        return self._starts[-1]

    def key(self, index: int) -> str:
        """See `hold_out.part_of`."""
        table = bisect.bisect_right(self._starts, index) - 1
        return self._tables[table].key(index - self._starts[table])

    def __getitem__(self, index: int) -> Record:
        table = bisect.bisect_right(self._starts, index) - 1
        record: dict = {"id": f"{self._config.path}#{index}"}
        try:
            row = self._tables[table][index - self._starts[table]]
            record["id"] = row.where
            if row.error:
                return {"id": row.where, "error": row.error}
            data = row.data
            if data is None:
                if not row.name:
                    return {"id": row.where, "error": f"no {self._config.file_field}"}
                record["id"] = os.path.join(self._config.path, row.name)
                data = self._folder.read(row.name)
            record |= MEDIA[self._config.medium].decode(data, self._pixel_limit)
        except (OSError, ValueError) as error:
            return {"id": record["id"], "error": str(error)}
        if self._config.caption_field:
            record["caption"] = row.caption
        return record


def _read(path: str, config: SourceConfig) -> CaptionTable:
    return _READERS[os.path.splitext(path)[1].lower()](path, config.file_field, config.caption_field)


def _captions_files(config: SourceConfig) -> list[str]:
    """The captions file, or several Parquet files: those that `captions` names, else those with the usual names."""
    names = (config.captions,) if config.captions else _NAMES
    for name in names:
        found = files_named(name, config.path)
        if found:
            return _checked(found, config)
    if not config.captions and (found := _parquet_files(config)):
        return _checked(found, config)
    raise UsageError(
        f"no captions file in {config.path}: looked for {', '.join(names)}"
        + ("" if config.captions else "; set captions to its name, or to 'NAME-*.parquet'")
    )


def _parquet_files(config: SourceConfig) -> list[str]:
    found = files_named("*.parquet", config.path)
    splits = {split for path in found for split in _SPLITS if os.path.basename(path).startswith(split)}
    if len(splits) > 1:  # test data would be trained on without anybody noticing
        names = " and ".join(sorted(splits))
        raise UsageError(f"{config.path} has Parquet files of {names}: set captions, as in captions='train*.parquet'")
    return found


def _checked(paths: list[str], config: SourceConfig) -> list[str]:
    for path in paths:
        if os.path.splitext(path)[1].lower() not in _READERS:
            raise UsageError(f"captions file {path}: its name must end in {', '.join(_READERS)}")
        here = (config.path, os.path.dirname(path))  # the user may have named a file elsewhere
        if not config.follow_links and all(files.leads_out(folder, path) for folder in here):
            raise UsageError(f"captions file {path} is a link to outside {config.path}: set follow_links=True")
    return paths
