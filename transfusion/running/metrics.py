"""Reduces the metrics of a run, writes them to metrics.jsonl, and shows its progress.

Means are never averaged: every metric is a pair (sum, weight) until it is written, so that masks, microbatches, devices
and log intervals of any size give the same number.
"""

import itertools
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

import jax
import numpy as np
from absl import logging
from etils import epath

from transfusion import storage

FLOPS_PER_STEP = "model_flops_per_step"  # of a row of metrics.jsonl: the mean over the steps since the row before


def training_flops(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """The model FLOPs of all steps that the rows of a metrics.jsonl tell of; None if a row does not say.

    Runs of versions that counted each row as one document do not say.
    """
    steps = itertools.pairwise((0, *(row["step"] for row in rows)))
    counts = [row.get(FLOPS_PER_STEP) for row in rows]
    if None in counts:
        return None
    return sum((count * (last - first) for count, (first, last) in zip(counts, steps, strict=True)), 0.0)


def means(sums: Mapping[str, tuple[Any, Any]]) -> dict[str, float | None]:
    """Returns sum / weight of each metric as a Python float, None where the weight is 0. It waits for the device.

    A metric of vectors, such as a loss by noise level, gives one number per entry: name_0, name_1, ... A histogram,
    which is a vector of counts with one weight, their sum, gives `codebook_scores`.
    """
    row: dict[str, float | None] = {}
    for name, (total, weight) in jax.device_get(dict(sums)).items():
        if np.ndim(total) > np.ndim(weight):
            row |= {f"{name}_{key}": value for key, value in codebook_scores(total).items()}
            continue
        entries = zip(np.ravel(total), np.ravel(weight), strict=True)
        numbers = [float(t) / float(w) if w else None for t, w in entries]
        row |= {f"{name}_{i}": x for i, x in enumerate(numbers)} if np.ndim(total) else {name: numbers[0]}
    return row


def codebook_scores(counts: np.ndarray) -> dict[str, float | None]:
    """From counts [K]: 'use', the share of codes that occur, and 'perplexity', exp of the entropy of their shares."""
    counts = np.asarray(counts, np.float64)
    if not counts.sum():
        return {"use": None, "perplexity": None}
    shares = counts[counts > 0] / counts.sum()
    return {"use": len(shares) / len(counts), "perplexity": float(np.exp(-np.sum(shares * np.log(shares))))}


class MetricWriter:
    """Writes `metrics.jsonl`, one object per logged step; only process 0 does.

    Numbers keep their full precision. A number that is not finite is null, and the row's field 'nonfinite' has its name
    and value ('nan', 'inf', '-inf'), so that each row is valid JSON. None, which means no data, is null too.
    """

    def __init__(self, workdir: str | os.PathLike):
        self.path = epath.Path(workdir) / "metrics.jsonl"
        self._last: int | None = None
        if jax.process_index() == 0:
            storage.make_folder(self.path.parent)
            self._last = _last_step(read_metrics(self.path))

    def truncate(self, step: int) -> None:
        """Removes the rows after `step`. Call with the step restored (0: none) before writing on from it.

        If lines of the file are damaged, a copy of the whole file is kept as metrics.jsonl.damaged.
        """
        if jax.process_index() != 0:
            return
        rows, damaged = storage.read_json_lines(self.path, is_row)
        if damaged:
            kept = self.path.with_name(self.path.name + ".damaged")
            storage.write_whole(kept, storage.read_bytes(self.path))
            logging.warning("a copy of the damaged %s is kept as %s", self.path, kept.name)
        rows = [row for row in rows if row["step"] <= step]
        self._last = _last_step(rows)
        storage.write_whole(self.path, "".join(json.dumps(row) + "\n" for row in rows))

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Appends one row, on disk when this returns.

        Args:
          step: larger than that of the row before.
          values: name -> number, 0-d array or None.

        Raises:
          ValueError: if `step` does not increase.
          StorageError: if the storage fails time after time, or is full.
          UsageError: if the file cannot be written at all.
        """
        if jax.process_index() != 0:
            return
        if self._last is not None and step <= self._last:
            raise ValueError(f"metrics of step {step} after those of step {self._last}: truncate first")
        numbers = {name: None if value is None else _number(value) for name, value in values.items()}
        wild = {name: str(x) for name, x in numbers.items() if x is not None and not math.isfinite(x)}
        row = {"step": step} | {name: None if name in wild else x for name, x in numbers.items()}
        if wild:
            row["nonfinite"] = wild
        storage.append_line(self.path, json.dumps(row, allow_nan=False))
        self._last = step


def read_metrics(path: str | os.PathLike) -> list[dict]:
    """Returns the rows of a metrics.jsonl ([] if there is none); damaged lines are left out with a warning.

    Raises:
      StorageError, UsageError: if the file cannot be read at all.
    """
    return storage.read_json_lines(path, is_row)[0]


def is_row(row: Any) -> bool:
    """Whether a line of JSON is a row of metrics: it has a step, and numbers or null by name."""
    if not isinstance(row, dict) or type(row.get("step")) is not int or not 0 <= row["step"] < 2**63:
        return False
    return all(_is_value(value) for name, value in row.items() if name != "nonfinite")


def _is_value(value: Any) -> bool:
    if type(value) is int:
        return abs(value) < 2**1023  # as a float holds it
    return value is None or (type(value) is float and math.isfinite(value))


def _last_step(rows: list[dict]) -> int | None:
    return max((row["step"] for row in rows), default=None)


def _number(value: Any) -> float | int:
    value = value.item() if hasattr(value, "item") else value
    return int(value) if isinstance(value, int) else float(value)


def human(number: float) -> str:
    """Returns three significant digits with a unit prefix: 45.6k, 1.23M."""
    for size, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.3g}{prefix}"
    return f"{number:.3g}"


class Progress:
    """Shows how far a run is: on a terminal with a line that moves, elsewhere with one plain line per log interval."""

    def __init__(self, steps: int, stream: TextIO | None = None, muted: bool = False):
        self._steps = steps
        self._stream = stream if stream is not None else sys.stderr
        self._bar = self._task = None
        self._muted = muted or jax.process_index() != 0
        if self._stream.isatty() and not self._muted:
            import rich.console
            import rich.progress

            columns = ("{task.completed}/{task.total}", rich.progress.BarColumn(24), "{task.fields[text]}")
            console = rich.console.Console(file=self._stream)
            self._bar = rich.progress.Progress(*columns, console=console)
            self._task = self._bar.add_task("", total=steps, text="compiling")
            self._bar.start()

    def step(self, step: int) -> None:
        """Moves the bar; silent where there is none."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def show(self, step: int, values: Mapping[str, float | None]) -> None:
        """Shows the log row of `step`: the losses and the speed in `values` (as `MetricWriter` writes them)."""
        text = progress_text(step, self._steps, values)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, text=text)
        elif not self._muted:
            print(f"step {step}/{self._steps}  {text}", file=self._stream, flush=True)

    def close(self) -> None:
        """Leaves the last state of the line on the terminal."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
            self._muted = True


def progress_text(step: int, steps: int, values: Mapping[str, float | None]) -> str:
    """Returns e.g. 'loss 1.234  text 0.9  image 0.1  5.2 steps/s  45.6k tokens/s  MFU 31%  ETA 0:02:10'."""
    parts = []
    streams = (name for name in values if name.endswith("_loss") and not name.startswith("held_out_"))
    for name in ("loss", *streams):
        if values.get(name) is not None:
            parts.append(f"{name.removesuffix('_loss')} {values[name]:.4g}")
    rate = values.get("steps_per_second")
    if rate:
        parts.append(f"{human(rate)} steps/s")
    if values.get("tokens_per_second"):
        parts.append(f"{human(values['tokens_per_second'])} tokens/s")
    if values.get("model_flops_utilisation") is not None:
        parts.append(f"MFU {values['model_flops_utilisation']:.0%}")
    if rate:
        seconds = round((steps - step) / rate)
        parts.append(f"ETA {seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}")
    return "  ".join(parts)
