"""Writes a latent cache: a data set whose media are encoded once, so that training encodes nothing.

`transfusion.cache_latents` is the program; `latent_files` describes the folder that is written here.
"""

import contextlib
import dataclasses
import os
import pathlib
import socket
from collections.abc import Callable, Iterator

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from transfusion.data.config import Record
from transfusion.data.documents import Encode, segment_value
from transfusion.data.faults import RECORD_FAULTS, error_line
from transfusion.data.latent_files import LATENTS_JSON, CachePlan, check_source, read_about, to_bytes, write_about
from transfusion.data.media import medium_of
from transfusion.data.segments import RawSegment
from transfusion.errors import PassingError, UsageError
from transfusion.sequence import TEXT
from transfusion.storage import lasting


def begin_cache(folder: pathlib.Path, plan: CachePlan) -> list[int]:
    """Makes the folder, or continues one that is not complete. Returns the numbers of the missing shards.

    Raises:
      UsageError: if the folder holds latents of another codec or source, or cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(".*.tmp"):
            leftover.unlink()
        if (folder / LATENTS_JSON).is_file():
            _check_plan(folder, read_about(folder)[0], plan)
        else:
            write_about(folder, plan, None)
    except OSError as error:
        raise lasting(f"cannot write latents to {folder}", error) from error
    return [i for i, name in enumerate(plan.shards) if not _holds(folder / name, len(plan.rows(i)))]


def write_shard(
    folder: pathlib.Path, plan: CachePlan, number: int, records: Callable[[int], Record], encode: Encode
) -> int:
    """Encodes the records of one shard. Its file appears when it is complete. Returns the number of bad records.

    Raises:
      UsageError: if the file cannot be written.
    """
    path = folder / plan.shards[number]
    # The name is this process's own, because two workers of a cluster may be given the same shard.
    temporary = folder / f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp"
    bad = 0
    with _writing(path):
        writer = ArrayRecordWriter(str(temporary), "group_size:1,uncompressed")
    for i in plan.rows(number):
        row = _encoded(records(i), encode)
        bad += "error" in row
        with _writing(path):
            writer.write(to_bytes(row))
    with _writing(path):
        writer.close()
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        if not _holds(temporary, len(plan.rows(number))):
            raise OSError(f"it does not hold {len(plan.rows(number))} records")
        os.replace(temporary, path)
    return bad


@contextlib.contextmanager
def _writing(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise lasting(f"cannot write {path}", error) from error
    except (RuntimeError, ValueError) as error:  # ArrayRecord's own
        raise UsageError(f"cannot write {path}: {error_line(error)}") from error


def finish_cache(folder: pathlib.Path, plan: CachePlan) -> int:
    """Writes down the sizes of all shards, which completes the folder. Returns their sum in bytes."""
    sizes = {name: (folder / name).stat().st_size for name in plan.shards}
    write_about(folder, plan, sizes)
    return sum(sizes.values())


def _encoded(record: Record, encode: Encode) -> Record:
    """The record with its media encoded, each by the codec of its kind."""
    kind = medium_of(record)
    if "error" in record or not (kind or "segments" in record):
        return record
    try:
        if "segments" in record:
            return {**record, "segments": tuple(_encoded_segment(one, encode) for one in record["segments"])}
        return {**record, kind: np.ascontiguousarray(encode(kind, record[kind]))}
    except PassingError:
        raise
    except RECORD_FAULTS as error:  # such as a size that the codec does not take
        return {"id": record["id"], "error": error_line(error)}


def _encoded_segment(segment: RawSegment, encode: Encode) -> RawSegment:
    if segment.encoded or segment.kind == TEXT:
        return segment
    value = segment_value(encode(segment.kind, segment.value))
    return dataclasses.replace(segment, value=np.ascontiguousarray(value), encoded=True)


def _check_plan(folder: pathlib.Path, there: CachePlan, wanted: CachePlan) -> None:
    if there.codec != wanted.codec:
        raise UsageError(
            f"{folder} holds latents of the codec {there.codec[:16]}, and this config's codec is {wanted.codec[:16]}: "
            "give another --output"
        )
    check_source(folder, there, wanted.source)
    for field in ("records", "shard_records"):
        before, now = getattr(there, field), getattr(wanted, field)
        if before != now:
            raise UsageError(
                f"{folder} was started with {field}={before}, and this run has {now}: give another --output"
            )


def _holds(path: pathlib.Path, records: int) -> bool:
    """Whether the file of a shard holds so many records."""
    if not path.is_file():
        return False
    try:
        reader = ArrayRecordReader(str(path))
        try:
            return reader.num_records() == records
        finally:
            reader.close()
    except (RuntimeError, ValueError, OSError):
        return False
