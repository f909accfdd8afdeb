"""A data set that was encoded once: latents of a codec in ArrayRecord, with what they were made of and by.

A folder holds shards of `shard_records` records each and `latents.json`: the codec's digest, the source and, once all
shards are there, their sizes. Record i is that of the source, broken ones included, so that training on the cache reads
the same documents in the same order. A record is a line of JSON and the bytes of its array.

What changes pixels before they are encoded is not possible with latents: mirroring (`data.flip`), moving (`shift`),
editing (`edit`) and streams that read pixels besides latents. Cropping and resizing are the source's, and done before.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import socket
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from transfusion.data.array_records import read_record
from transfusion.data.config import DataConfig, Record, SourceConfig
from transfusion.data.faults import RECORD_FAULTS, error_line
from transfusion.data.media import medium_of
from transfusion.errors import PassingError, UsageError
from transfusion.storage import lasting

LATENTS_JSON = "latents.json"
_FORMAT = 1
_MOST = 1_000_000  # shards
_HERE = ("path", "weight", "latents", "follow_links")  # fields of a source that do not say what its records hold


@dataclasses.dataclass(frozen=True)
class CachePlan:
    """What a folder of latents is to hold.

    Attributes:
      codec: digest of the codec.
      source: the fields of the source's config that say what its records hold.
      records: of the source.
      shard_records: of each shard but the last.
    """

    codec: str
    source: Mapping[str, object]
    records: int
    shard_records: int

    @property
    def shards(self) -> tuple[str, ...]:
        """Names of the files."""
        count = -(-self.records // self.shard_records)
        return tuple(f"latents-{i:05}-of-{count:05}.array_record" for i in range(count))

    def rows(self, number: int) -> range:
        """Records of shard `number`."""
        start = number * self.shard_records
        return range(start, min(start + self.shard_records, self.records))


def content_of(source: SourceConfig) -> dict[str, object]:
    """What a source's config says of its records."""
    return {name: value for name, value in dataclasses.asdict(source).items() if name not in _HERE}


def begin_cache(folder: pathlib.Path, plan: CachePlan) -> list[int]:
    """Makes the folder, or goes on with what is there; returns the numbers of the shards that are missing.

    Raises:
      UsageError: if the folder holds latents of another codec or source, or cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(".*.tmp"):
            leftover.unlink()
        if (folder / LATENTS_JSON).is_file():
            _check_plan(folder, _about(folder)[0], plan)
        else:
            _write_about(folder, plan, None)
    except OSError as error:
        raise lasting(f"cannot write latents to {folder}", error) from error
    return [i for i, name in enumerate(plan.shards) if not _holds(folder / name, len(plan.rows(i)))]


def write_shard(
    folder: pathlib.Path, plan: CachePlan, number: int, records: Callable[[int], Record], encode: Callable
) -> int:
    """Encodes the records of one shard; its file appears when it is whole. Returns how many cannot be used.

    Raises:
      UsageError: if the file cannot be written.
    """
    path = folder / plan.shards[number]
    # Two workers of a cluster may be given the same shard.
    temporary = folder / f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp"
    bad = 0
    with _writing(path):
        writer = ArrayRecordWriter(str(temporary), "group_size:1,uncompressed")
    for i in plan.rows(number):
        row = _encoded(records(i), encode)
        bad += "error" in row
        with _writing(path):
            writer.write(_to_bytes(row))
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
    """Notes the sizes of all shards, with which the folder can be read; returns their bytes."""
    sizes = {name: (folder / name).stat().st_size for name in plan.shards}
    _write_about(folder, plan, sizes)
    return sum(sizes.values())


def _encoded(record: Record, encode: Callable[[np.ndarray], np.ndarray]) -> Record:
    kind = medium_of(record)
    if "error" in record or not kind:
        return record
    try:
        return {**record, kind: np.ascontiguousarray(encode(record[kind]))}
    except PassingError:
        raise
    except RECORD_FAULTS as error:  # such as a size that the codec does not take
        return {"id": record["id"], "error": error_line(error)}


def _to_bytes(record: Record) -> bytes:
    kind = medium_of(record) if "error" not in record else ""
    fields = {name: value for name, value in record.items() if isinstance(value, (str, int, float, tuple))}
    head = {"fields": fields}
    if kind:
        head |= {"kind": kind, "dtype": record[kind].dtype.str, "shape": record[kind].shape}
    return json.dumps(head).encode() + b"\n" + (record[kind].tobytes() if kind else b"")


def _from_bytes(data: bytes) -> Record:
    """Raises ValueError if the bytes are not those of a record."""
    try:
        line, _, rest = data.partition(b"\n")
        head = json.loads(line)
        fields = {name: tuple(v) if isinstance(v, list) else v for name, v in head["fields"].items()}
        if "id" not in fields:
            raise KeyError("id")
        if "kind" not in head:
            return fields
        array = np.frombuffer(rest, np.dtype(head["dtype"])).reshape(head["shape"])
        return {**fields, str(head["kind"]): array, "encoded": True}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"damaged latents: {error_line(error)}") from error


class LatentSource:
    """The records of a source with their media encoded; such a record has 'encoded'.

    Attributes:
      codec: digest of the codec that made the latents.
    """

    def __init__(self, config: SourceConfig):
        """Raises UsageError if the folder is not whole, or holds latents of another source than `config`."""
        folder = pathlib.Path(config.latents)
        if not (folder / LATENTS_JSON).is_file():
            raise UsageError(f"no latents in {folder}: write them with python -m transfusion.cache_latents")
        plan, sizes = _about(folder)
        if sizes is None:
            raise UsageError(f"the latents in {folder} are not complete: the command that writes them goes on")
        _check_source(folder, plan, content_of(config))
        for name, size in sizes.items():
            found = (folder / name).stat().st_size if (folder / name).is_file() else None
            if found != size:
                state = "is missing" if found is None else f"has {found} bytes instead of {size}"
                raise UsageError(f"{folder / name} {state}: remove it and write the latents again")
        self.codec = plan.codec
        self._folder = folder
        self._files = [str(folder / name) for name in sizes]
        self._open()

    def _open(self) -> None:
        try:
            self._data = ArrayRecordDataSource(self._files)
        except (RuntimeError, ValueError, OSError) as error:  # ArrayRecord's are not OSErrors
            raise UsageError(f"cannot read the latents in {self._folder}: {error_line(error)}") from error

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"no record {index}")
        name = f"{self._folder}#{index}"
        try:
            return _from_bytes(read_record(name, self._folder, lambda: self._data[index], self._open))
        except ValueError as error:
            return {"id": name, "error": str(error)}


def check_latents(
    sources: Mapping[str, SourceConfig], data: DataConfig, reads_pixels: bool, digest: Callable[[], str]
) -> None:
    """Refuses cached latents that are not those that encoding on the fly would give.

    Args:
      reads_pixels: whether a stream reads pixels besides latents.
      digest: of the codec that the config names; asked for where a source has latents only.

    Raises:
      UsageError: naming the source and both codecs, or what is not possible.
    """
    for name, source in sources.items():
        if not source.latents:
            continue
        wrong = [f"data.{field}" for field in ("flip", "shift", "edit") if getattr(data, field)]
        if reads_pixels:
            wrong.append("a stream with source 'pixels'")
        if wrong:
            raise UsageError(f"sources.{name}.latents: {wrong[0]} needs pixels, and the cache holds latents only")
        made_by = LatentSource(source).codec
        if made_by != (ours := digest()):
            raise UsageError(
                f"the latents in {source.latents} are of the codec {made_by[:16]}, and this config's codec is "
                f"{ours[:16]}: write them again into another folder"
            )


# --- the folder -------------------------------------------------------------------------------------------------------


def _about(folder: pathlib.Path) -> tuple[CachePlan, dict[str, int] | None]:
    try:
        about = json.loads((folder / LATENTS_JSON).read_text())
        if about["format"] != _FORMAT:
            raise UsageError(
                f"{folder / LATENTS_JSON} is of format {about['format']}, not {_FORMAT}: write the latents again"
            )
        plan = CachePlan(**{field.name: about[field.name] for field in dataclasses.fields(CachePlan)})
        sizes = about["sizes"]
        if not (isinstance(plan.source, dict) and isinstance(plan.codec, str) and plan.records >= 0):
            raise ValueError("fields of wrong types")
        # Only the names of shards are read: others could lead out of the folder.
        if sizes is not None and (plan.records > _MOST * plan.shard_records or tuple(sizes) != plan.shards):
            raise ValueError("other files than its shards")
        return plan, sizes
    except OSError as error:
        raise UsageError(f"cannot read {folder / LATENTS_JSON}: {error_line(error)}") from error
    except (ValueError, KeyError, TypeError, ArithmeticError, RecursionError) as error:
        raise UsageError(
            f"{folder / LATENTS_JSON} is damaged: remove the folder and write the latents again"
        ) from error


def _write_about(folder: pathlib.Path, plan: CachePlan, sizes: dict[str, int] | None) -> None:
    temporary = folder / f".{LATENTS_JSON}.tmp"
    temporary.write_text(json.dumps({"format": _FORMAT, **dataclasses.asdict(plan), "sizes": sizes}, indent=1))
    os.replace(temporary, folder / LATENTS_JSON)


def _check_plan(folder: pathlib.Path, there: CachePlan, wanted: CachePlan) -> None:
    if there.codec != wanted.codec:
        raise UsageError(
            f"{folder} holds latents of the codec {there.codec[:16]}, and this config's codec is {wanted.codec[:16]}: "
            "give another --output"
        )
    _check_source(folder, there, wanted.source)
    for field in ("records", "shard_records"):
        before, now = getattr(there, field), getattr(wanted, field)
        if before != now:
            raise UsageError(f"{folder} was begun with {field}={before}, and now it is {now}: give another --output")


def _check_source(folder: pathlib.Path, there: CachePlan, wanted: Mapping[str, object]) -> None:
    default = content_of(SourceConfig())  # of fields that there were not yet when the latents were written
    for field in sorted({*there.source, *wanted}):
        before, now = there.source.get(field, default.get(field)), wanted.get(field)
        if before != now:
            raise UsageError(f"{folder} holds latents of a source with {field}={before!r}, not {now!r}")


def _holds(path: pathlib.Path, records: int) -> bool:
    """Whether a shard is whole."""
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
