"""Gives a source behind URLs the paths of copies on this machine, which the readers of local files read.

Of a folder, the files that hold records are copied when the source is opened, and the files that these name when they
are first read. Tars, tables and record files are copied whole, because records are read in any order.
"""

import dataclasses

from transfusion.data.config import SourceConfig
from transfusion.data.patterns import braces
from transfusion.errors import UsageError
from transfusion.remote.urls import copied_files, copied_folder, is_url, mirror_of

# Kind of source -> the files of a folder that are copied first; ** stands for any folders.
FIRST: dict[str, tuple[str, ...]] = {
    "folder": ("captions.jsonl", "captions.csv", "captions.parquet", "*.parquet"),
    "webdataset": ("*.tar",),
    "text": ("**/*.txt",),
    "records": ("*.jsonl", "*.parquet", "*.tar", "*.array_record", "*.json", "*.csv", "*.token", "*.txt"),
    "tfds": ("**/*",),
}
_HOLDS_RECORDS = (".jsonl", ".json", ".csv", ".token", ".txt", ".parquet", ".tar", ".array_record")


def copied(config: SourceConfig, data_dir: str) -> tuple[SourceConfig, str]:
    """The config and the data folder with paths of copies in place of URLs.

    Raises:
      UsageError: if there is nothing at a URL, or no driver for it is installed.
      StorageError: if it cannot be reached, or the disk has no room.
    """
    if config.kind == "tfds" and not config.path and is_url(data_dir):
        name = config.name.replace(":", "/")
        copied_folder(data_dir, (f"{name}/**/*", f"{name}/*"))
        return config, mirror_of(data_dir).folder
    changes = {}
    if is_url(config.path):
        changes["path"] = _path(config)
    if is_url(config.files):
        changes["files"] = mirror_of(config.files).folder
    if is_url(config.captions):
        changes["captions"] = copied_files(config.captions, braces)
    return dataclasses.replace(config, **changes), data_dir


def _path(config: SourceConfig) -> str:
    if config.kind not in FIRST:
        raise UsageError(f"data.sources: {config.path}: sources of kind {config.kind!r} are read from local paths only")
    if config.path.lower().endswith(_HOLDS_RECORDS):
        return copied_files(config.path, braces)
    first = FIRST[config.kind]
    if config.captions and not is_url(config.captions):
        first = tuple(braces(config.captions))
    return copied_folder(config.path, first, one=config.kind == "folder")
