"""Writes records as ArrayRecord files, which `record_files.ArrayRecord` reads at random: see `transfusion.prepare`."""

import os
import pathlib
from collections.abc import Callable, Iterator

from array_record.python.array_record_module import ArrayRecordWriter

from transfusion.data.config import SourceConfig
from transfusion.data.faults import RECORD_FAULTS, error_line
from transfusion.data.record_files import pack_record
from transfusion.data.record_source import RecordSource, read_record
from transfusion.errors import PassingError, UsageError
from transfusion.storage import lasting

SHARD_BYTES = 2**28


def write_records(
    config: SourceConfig, folder: str, pixel_limit: int, on_bad: Callable[[str], None], shard_bytes: int = SHARD_BYTES
) -> int:
    """Writes the records of a source of kind 'records' into a new folder, in their order; returns how many.

    Pictures, clips and sounds keep the bytes of their files. Each record is read as training would read it; `on_bad`
    gets one line about each that cannot be used, and is left out. A folder appears when it is complete.

    Args:
      config: the source.
      folder: is made.
      pixel_limit: larger pictures are not decoded.
      on_bad: see above.
      shard_bytes: a file of about this size is followed by the next one.

    Raises:
      UsageError: if the folder exists, nothing can be used, or the source or the folder cannot be opened.
    """
    source, path = RecordSource(config, "", pixel_limit), pathlib.Path(folder)
    if path.exists():
        raise UsageError(f"{folder} exists: remove it, or give another name")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        count = _write(_packed(source, pixel_limit, on_bad), temporary, shard_bytes)
        if not count:
            raise UsageError(f"{config.path} holds no record that can be used")
        os.replace(temporary, path)
    except (RuntimeError, ValueError) as error:  # ArrayRecord's own
        raise UsageError(f"cannot write {folder}: {error_line(error)}") from error
    except OSError as error:
        raise lasting(f"cannot write {folder}", error) from error
    finally:
        for left in temporary.glob("*") if temporary.exists() else ():
            left.unlink()
        if temporary.exists():
            temporary.rmdir()
    return count


def _packed(source: RecordSource, pixel_limit: int, on_bad: Callable[[str], None]) -> Iterator[bytes]:
    for index in range(len(source)):
        try:
            stored, read = source.stored(index)
            read_record(stored, read, pixel_limit)
            data = pack_record(stored, read)
        except PassingError:
            raise
        except RECORD_FAULTS as error:
            on_bad(f"{source.where(index)}: {error}")
            continue
        yield data


def _write(records: Iterator[bytes], folder: pathlib.Path, shard_bytes: int) -> int:
    count, written, number, writer = 0, 0, 0, None
    for data in records:
        if writer is None or written > shard_bytes:
            if writer is not None:
                writer.close()
            writer = ArrayRecordWriter(str(folder / f"records-{number:05}.array_record"), "group_size:1")
            written, number = 0, number + 1
        writer.write(data)
        count, written = count + 1, written + len(data)
    if writer is not None:
        writer.close()
    return count
