"""Logs a run while it trains: rows of metrics, its speed, the progress line."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from transfusion.config import Experiment
from transfusion.optim import learning_rate
from transfusion.running.agreement import gather
from transfusion.running.metrics import FLOPS_PER_STEP, MetricWriter, Progress, means
from transfusion.running.throughput import Throughput, model_flops_utilisation, peak_flops
from transfusion.tasks import Task


class RunLog:
    """Writes a row of metrics every `log_every` steps, and keeps the clock and the progress line."""

    def __init__(self, workdir: epath.Path, task: Task, experiment: Experiment, rows: Sequence[int]):
        """`rows` are those of the global batch that this process reads; another may read some of them too."""
        self._experiment, self._task, self._rows = experiment, task, rows
        self._tokens, self._peak = task.tokens(experiment.batch_size), peak_flops()
        self._flops, self._steps = np.zeros(len(rows)), 0
        self._writer, self._progress = MetricWriter(workdir), Progress(experiment.steps)
        self._schedule = learning_rate(experiment.optim, experiment.steps)
        self._written, self._seen = 0, {}
        self.clock = Throughput()

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_) -> None:
        self._progress.close()
        self._writer.close()

    def start(self, at: int) -> None:
        """Begins to log after `at` steps, and removes later rows, which an earlier attempt has left."""
        self._writer.truncate(at)
        self._written, self._seen = at, {}
        self._flops, self._steps = np.zeros(len(self._rows)), 0

    def saw(self, numbers: dict[str, float]) -> None:
        """Takes what was seen inside the model, for the next row."""
        self._seen = numbers

    def counted(self, batch: Any) -> Any:
        """Counts the FLOPs of a step on these rows, and returns them. The devices still compute the step before."""
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
        self._writer.write(at, row)
        self._progress.show(at, row)
        self._written, self._seen = at, {}
        self.clock.begin()
        return dataclasses.replace(state, log=jax.tree.map(jnp.zeros_like, state.log)), int(skips["in_a_row"])

    def _flops_per_step(self) -> float:
        """The mean over the steps that were counted, of all rows of the global batch; collective."""
        everyone = gather(dict(zip(map(str, self._rows), self._flops.tolist(), strict=True)))
        rows = {row: flops for one in everyone for row, flops in one.items()}  # each once, whoever has read it
        mean = sum(rows.values()) / max(self._steps, 1)
        self._flops, self._steps = np.zeros(len(self._rows)), 0
        return mean
