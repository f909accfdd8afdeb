"""The folder of a latent cache: which files it holds, how a record is stored, and what the records were made of.

A folder holds shards of `shard_records` records each and `latents.json`: the codec's digest, the source and, once all
shards are there, their sizes. Record i of the cache is record i of the source, broken ones included, so that training
on the cache reads the same documents in the same order. A record is a line of JSON and the bytes of its array.

`latent_cache` writes such a folder, `latent_source` reads it.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping

import numpy as np

from transfusion.data.config import Record, SourceConfig
from transfusion.data.faults import error_line
from transfusion.data.media import medium_of
from transfusion.errors import UsageError

LATENTS_JSON = "latents.json"
_FORMAT = 1
_MOST = 1_000_000  # shards
_HERE = ("path", "weight", "latents", "follow_links")  # fields of a source that do not say what its records hold


@dataclasses.dataclass(frozen=True)
class CachePlan:
    """The content of a folder of latents.

    Attributes:
      codec: digest of the codec.
      source: the fields of the source's config that say what its records hold.
      records: number of records of the source.
      shard_records: number of records of each shard but the last.
    """

    codec: str
    source: Mapping[str, object]
    records: int
    shard_records: int

    @property
    def shards(self) -> tuple[str, ...]:
        """The names of the shards' files."""
        count = -(-self.records // self.shard_records)
        return tuple(f"latents-{i:05}-of-{count:05}.array_record" for i in range(count))

    def rows(self, number: int) -> range:
        """The records of shard `number`."""
        start = number * self.shard_records
        return range(start, min(start + self.shard_records, self.records))


def content_of(source: SourceConfig) -> dict[str, object]:
    """The fields of a source's config that say what its records hold, as JSON gives them back."""
    fields = json.loads(json.dumps(dataclasses.asdict(source)))
    return {name: value for name, value in fields.items() if name not in _HERE}


def to_bytes(record: Record) -> bytes:
    """A record as it is stored: a line of JSON and the bytes of its array."""
    kind = medium_of(record) if "error" not in record else ""
    fields = {name: value for name, value in record.items() if isinstance(value, (str, int, float, tuple))}
    head = {"fields": fields}
    if kind:
        head |= {"kind": kind, "dtype": record[kind].dtype.str, "shape": record[kind].shape}
    return json.dumps(head).encode() + b"\n" + (record[kind].tobytes() if kind else b"")


def from_bytes(data: bytes) -> Record:
    """The record that `to_bytes` stored. Raises ValueError if the bytes are damaged."""
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


def read_about(folder: pathlib.Path) -> tuple[CachePlan, dict[str, int] | None]:
    """The plan of a folder of latents, and the size of each shard; None while the folder is not complete.

    Raises:
      UsageError: if `latents.json` cannot be read or is damaged.
    """
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
        # Only names of shards are accepted: other names could lead out of the folder.
        if sizes is not None and (plan.records > _MOST * plan.shard_records or tuple(sizes) != plan.shards):
            raise ValueError("other files than its shards")
        return plan, sizes
    except OSError as error:
        raise UsageError(f"cannot read {folder / LATENTS_JSON}: {error_line(error)}") from error
    except (ValueError, KeyError, TypeError, ArithmeticError, RecursionError) as error:
        raise UsageError(
            f"{folder / LATENTS_JSON} is damaged: remove the folder and write the latents again"
        ) from error


def write_about(folder: pathlib.Path, plan: CachePlan, sizes: dict[str, int] | None) -> None:
    """Writes `latents.json`; `sizes` are those of the shards, once all of them are there."""
    temporary = folder / f".{LATENTS_JSON}.tmp"
    temporary.write_text(json.dumps({"format": _FORMAT, **dataclasses.asdict(plan), "sizes": sizes}, indent=1))
    os.replace(temporary, folder / LATENTS_JSON)


def check_source(folder: pathlib.Path, there: CachePlan, wanted: Mapping[str, object]) -> None:
    """Raises UsageError if the latents `there` were made of another source than the one that is `wanted`."""
    default = content_of(SourceConfig())  # for fields that did not exist when the latents were written
    for field in sorted({*there.source, *wanted}):
        before, now = there.source.get(field, default.get(field)), wanted.get(field)
        if before != now:
            raise UsageError(f"{folder} holds latents of a source with {field}={before!r}, not {now!r}")
