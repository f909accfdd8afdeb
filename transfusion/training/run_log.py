"""Logs a run while it trains: rows of metrics, pictures, its speed, the progress line."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from transfusion.config import Experiment, to_json
from transfusion.optim import learning_rate
from transfusion.running.agreement import gather
from transfusion.running.memory import device_memory
from transfusion.running.metrics import FLOPS_PER_STEP, Progress, means
from transfusion.running.throughput import Idle, Throughput, model_flops_utilisation, peak_flops
from transfusion.tasks import Task
from transfusion.trackers.together import Trackers
from transfusion.trackers.tracker import Picture


def _as_tables(*experiments: Experiment) -> list[dict]:
    return [json.loads(to_json(experiment)) for experiment in experiments]


class RunLog:
    """Writes a row of metrics every `log_every` steps, and keeps the clock and the progress line."""

    def __init__(
        self, workdir: epath.Path, task: Task, experiment: Experiment, rows: Sequence[int], progress: bool = True
    ):
        """`rows` are those of the global batch that this process reads; another may read some of them too. Without
        `progress` there is no line of it."""
        self._experiment, self._task, self._rows = experiment, task, rows
        self._tokens, self._peak = task.tokens(experiment.batch_size), peak_flops()
        self._flops, self._steps = np.zeros(len(rows)), 0
        self._trackers = Trackers(workdir, experiment.trackers, *_as_tables(experiment, Experiment()))
        self._progress, self._idle = Progress(experiment.steps, muted=not progress), Idle()
        self._schedule = learning_rate(experiment.optim, experiment.steps)
        self._written, self._seen = 0, {}
        self.row: dict[str, Any] = {}  # the last that was written
        self.clock = Throughput()

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_) -> None:
        self._progress.close()
        self._idle.close()
        self._trackers.finish()

    def start(self, at: int) -> None:
        """Begins to log after `at` steps, and removes later rows, which an earlier attempt has left."""
        self._trackers.start(at)
        self._written, self._seen = at, {}
        self._flops, self._steps = np.zeros(len(self._rows)), 0

    def saw(self, numbers: dict[str, float]) -> None:
        """Takes what was seen inside the model, for the next row."""
        self._seen = numbers

    def read(self, data: Iterator[Any], newest: jax.Array) -> Any:
        """Returns the next rows. It counts their FLOPs, and for how long the devices waited for them.

        Args:
          newest: a result of the step before, which the devices may still compute.
        """
        batch, seconds = self._idle.read(data, newest)
        self.clock.starved(seconds)
        self._flops += self._task.flops(batch)
        self._steps += 1
        return batch

    def due(self, at: int) -> bool:
        """Whether the step is logged: as the config says, or because held-out losses are computed after it, or because
        it was looked at."""
        config = self._experiment
        self._progress.step(at)
        evaluated = config.eval.every and config.eval.sources and at % config.eval.every == 0
        seen = config.telemetry.every and at % config.telemetry.every == 0
        return at % config.log_every == 0 or at == config.steps or bool(evaluated or seen)

    def write(self, at: int, state: Any, stats: dict, held_out: dict) -> tuple[Any, int]:
        """Writes a row with the means since the last one.

        Returns:
          (the `TrainState` with empty sums, how many updates in a row were skipped).
        """
        sums, skips = jax.device_get((state.log, state.skips))
        self.clock.add(self._tokens * (at - self._written), at - self._written)
        rates, flops = self.clock.rates(), self._flops_per_step()
        row = means(sums) | {"learning_rate": float(self._schedule(at)), "skipped_updates": int(skips["skipped"])}
        row |= {"bad_records": stats["bad"], FLOPS_PER_STEP: flops} | rates
        if self._peak:
            row["model_flops_utilisation"] = model_flops_utilisation(flops, rates["seconds_per_step"], self._peak)
        row |= {f"packing_{name}": value for name, value in stats["efficiency"].items()}
        row |= {f"held_out_{name}": value for name, value in held_out.items()} | self._seen
        row |= device_memory()
        self._trackers.scalars(at, row)
        self._progress.show(at, row)
        self.row = {"step": at} | row
        self._written, self._seen = at, {}
        self.clock.begin()
        return dataclasses.replace(state, log=jax.tree.map(jnp.zeros_like, state.log)), int(skips["in_a_row"])

    def show(self, at: int, pictures: Sequence[Picture]) -> None:
        """Shows pictures that were drawn after `at` steps."""
        self._trackers.media(at, pictures)

    def _flops_per_step(self) -> float:
        """The mean over the steps that were counted, of all rows of the global batch; collective."""
        everyone = gather(dict(zip(map(str, self._rows), self._flops.tolist(), strict=True)))
        rows = {row: flops for one in everyone for row, flops in one.items()}  # each once, whoever has read it
        mean = sum(rows.values()) / max(self._steps, 1)
        self._flops, self._steps = np.zeros(len(self._rows)), 0
        return mean
