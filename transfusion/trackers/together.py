"""All trackers of a run, as the training calls them."""

import json
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from etils import epath

from transfusion import storage
from transfusion.trackers import table
from transfusion.trackers.apart import PATIENCE, Apart
from transfusion.trackers.config import TrackersConfig
from transfusion.trackers.jsonl import Jsonl
from transfusion.trackers.tags import tag
from transfusion.trackers.tracker import Numbers, Picture, Tracked

COMPARED = ("seed", "steps", "batch_size", "model.width", "model.layers", "optim.learning_rate", "sampling.guidance")
ID = "tracked_as.json"  # the file in the workdir with the id of the run, the same for all trackers


class Trackers:
    """metrics.jsonl, and beside it the trackers of the config; only process 0 writes.

    Args:
      config: of the run, a tree of tables as `json` reads it.
      defaults: a config in which nothing is chosen.
    """

    def __init__(self, workdir: str | os.PathLike, settings: TrackersConfig, config: Mapping, defaults: Mapping = {}):
        first = jax.process_index() == 0
        self._jsonl = Jsonl(epath.Path(workdir))
        self._others = [Apart(name, table.make(name)) for name in settings.names] if first else []
        called = settings.run or os.path.basename(os.fspath(workdir).rstrip("/")) or "run"
        run = _id(workdir) if first and any(table.TRACKERS[name].by_id for name in settings.names) else ""
        fields, usual = flat(config), flat(defaults)
        chosen = {name: x for name, x in fields.items() if name in COMPARED or usual.get(name) != x}
        self._run = Tracked(os.fspath(workdir), run, called, settings.project, fields, chosen)
        self._first = first

    def start(self, at: int) -> None:
        """Begins, or goes back to, what was logged after `at` steps."""
        self._jsonl.start(self._run, at)
        for tracker in self._others:
            tracker.call("start", self._run, at)

    def scalars(self, step: int, row: Mapping[str, Any]) -> None:
        """Writes a row of numbers; raises what `MetricWriter.write` raises."""
        self._jsonl.scalars(step, row)
        numbers: Numbers = {tag(name): value.item() if hasattr(value, "item") else value for name, value in row.items()}
        for tracker in self._others:
            tracker.call("scalars", step, numbers)

    def media(self, step: int, pictures: Sequence[Picture]) -> None:
        """Shows pictures, which are also written into the workdir."""
        if pictures and self._first:
            self._jsonl.media(step, pictures)
            for tracker in self._others:
                tracker.call("media", step, pictures)

    def finish(self) -> None:
        """Ends all trackers, and waits for a minute at most until they have sent what they hold."""
        self._jsonl.finish()
        until = time.monotonic() + PATIENCE
        for tracker in self._others:
            tracker.finish(until)


def _id(workdir: str | os.PathLike) -> str:
    """The id of a run: letters and digits, chosen when it is first tracked."""
    path = epath.Path(workdir) / ID
    try:
        found = storage.read_json(path)
    except ValueError:
        found = None
    if isinstance(found, dict) and isinstance(found.get("id"), str) and found["id"].isalnum():
        return found["id"]
    new = secrets.token_hex(4)
    storage.make_folder(workdir)
    storage.write_whole(path, json.dumps({"id": new}) + "\n")
    return new


def flat(config: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """The fields of a config by their full names. A list is a text, and what has no value is left out."""
    fields: dict[str, Any] = {}
    for name, value in config.items():
        name = name.replace("/", ".")  # MLflow takes a slash for a folder
        if isinstance(value, Mapping):
            fields |= flat(value, f"{above}{name}.")
        elif value is not None:
            fields[f"{above}{name}"] = json.dumps(value) if isinstance(value, list | tuple) else value
    return fields
