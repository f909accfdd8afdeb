"""Data as a Python list: its records are written into a folder once, where every program finds them again."""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from transfusion import storage
from transfusion.api.fitting import Fitter
from transfusion.api.prompts import Part
from transfusion.config import Experiment
from transfusion.data import media
from transfusion.data.config import HELD_OUT, SourceConfig
from transfusion.data.forms import Form
from transfusion.data.sources import open_source
from transfusion.errors import UsageError
from transfusion.latents import forms_of, open_codecs

# A pair of a medium and its caption, a text, a list of segments in reading order, or a record as files have it.
Item = tuple[Part, str] | str | Sequence[Part | Mapping[str, Any]] | Mapping[str, Any]

_FIELDS = {"image": "image", "video": "clip", "sound": "sound"}  # of the record form, by the kind of a medium
_SUFFIXES = {"image": ".png", "video": ".webp", "sound": ".wav"}
_SHARES = (1, 2, 4)  # times the share that is held out, until a record is
RECORDS = "records.jsonl"


def write_list(items: Sequence[Item], folder: str | os.PathLike, experiment: Experiment) -> pathlib.Path:
    """Writes a list of records into FOLDER/data-DIGEST, media fitted to the model; returns the file of records.

    A list that was written before is not written again, so that the same call continues a run.

    Args:
      items: see `Item`. A segment is a text, a medium, or a mapping as in the files of records: {"image": array,
        "role": "context"}.
      folder: where the new folder is made.
      experiment: the model's; its media have the size that it reads.

    Raises:
      UsageError: naming the item that cannot be used.
    """
    if isinstance(items, str | Mapping) or not isinstance(items, Sequence) or not len(items):
        raise UsageError("data must be a list of (image, caption), texts or lists of segments, and not empty")
    writer = _Writer(forms_of(experiment.spec, open_codecs(experiment)))
    lines = []
    for number, item in enumerate(items):
        try:
            lines.append(json.dumps(writer.record(item)) + "\n")
        except UsageError as error:
            raise UsageError(f"data[{number}]: {error}") from error
    writer.fitter.tell()
    text = "".join(lines)
    path = pathlib.Path(folder) / f"data-{_digest(text.encode())}" / RECORDS
    if not path.exists():
        storage.make_folder(path.parent)
        for name, data in writer.files.items():
            storage.write_whole(path.parent / name, data)
        storage.write_whole(path, text)  # last: it says that all is there
    return path


def with_list(experiment: Experiment, path: pathlib.Path, hold_out: float) -> Experiment:
    """The experiment that trains on written records, and evaluates on a share of them, which it never trains on.

    Where there are too few records to hold some out, it evaluates on nothing.
    """
    source = SourceConfig(kind="records", path=os.fspath(path))
    data, evaluated = dataclasses.replace(experiment.data, sources={"list": source}), {}
    for share in (hold_out * times for times in _SHARES if 0 < hold_out * times <= 0.5):
        held = dataclasses.replace(source, hold_out=share, part=HELD_OUT)
        try:
            open_source(held)
        except UsageError:
            continue
        evaluated = {"list": held}
        data = dataclasses.replace(data, sources={"list": dataclasses.replace(source, hold_out=share)})
        break
    every = experiment.eval.every if evaluated else 0
    return dataclasses.replace(
        experiment, data=data, eval=dataclasses.replace(experiment.eval, sources=evaluated, every=every)
    )


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()


class _Writer:
    """Turns items into the record form, and keeps the files that they name.

    Attributes:
      files: what they hold, by name.
    """

    def __init__(self, forms: dict[str, Form]):
        self.fitter, self.files = Fitter(forms), {}

    def record(self, item: Item) -> dict[str, Any]:
        if isinstance(item, str):
            return {"text": item}
        if isinstance(item, tuple) and len(item) == 2 and isinstance(item[1], str) and not isinstance(item[0], str):
            return self._medium(item[0]) | {"caption": item[1]}
        if isinstance(item, Mapping):
            inner = item.get("segments")
            return self._fields(item) | ({} if inner is None else {"segments": [*map(self._segment, inner)]})
        if isinstance(item, list | tuple) and item:
            return {"segments": [self._segment(part) for part in item]}
        raise UsageError(f"a record is (image, caption), a text or a list of segments, not {type(item).__name__}")

    def _segment(self, part: Any) -> dict[str, Any]:
        if isinstance(part, str):
            return {"text": part}
        return self._fields(part) if isinstance(part, Mapping) else self._medium(part)

    def _fields(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of a record or segment, with names of files in place of media."""
        result: dict[str, Any] = {}
        for name, value in fields.items():
            result |= self._medium(value) if name in _FIELDS.values() else {name: value}
        return result

    def _medium(self, part: Part) -> dict[str, str]:
        kind, array = self.fitter.read(part)
        if kind not in _FIELDS:
            raise UsageError("this model reads no such medium")
        data = media.to_file(array, _SUFFIXES[kind], self.fitter.forms[kind].rate)
        name = f"{_digest(data)}{_SUFFIXES[kind]}"
        self.files[name] = data
        return {_FIELDS[kind]: name}
