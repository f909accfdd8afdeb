"""Computes losses of held-out data while a run trains."""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from transfusion import sharding
from transfusion.config import Experiment
from transfusion.objectives import STATISTICS
from transfusion.running.local_rows import place
from transfusion.running.metrics import means
from transfusion.sharding import PyTree
from transfusion.tasks import Task

HeldOut = Callable[[PyTree], dict[str, float | None]]


def held_out_losses(task: Task, experiment: Experiment, rows: PyTree) -> HeldOut | None:
    """Returns `held_out(params) -> {name: mean}`, over the held-out batches and always with the same random numbers.

    Args:
      rows: the shardings of a batch.

    Returns:
      The function, or None if the experiment has no held-out sources, or never evaluates.
    """
    if not experiment.eval.sources or not experiment.eval.every:
        return None
    batches: list[PyTree] = []
    everywhere, total_rows = sharding.replicated(jax.tree.leaves(rows)[0].mesh), experiment.batch_size

    sums = jax.jit(batch_sums(task, experiment.seed + 1), out_shardings=everywhere)

    def held_out(params: PyTree) -> dict[str, float | None]:
        batches.extend(_take(task.held_out(experiment), experiment.eval.batches) if not batches else ())
        total = None
        for i, batch in enumerate(batches):
            placed = place(batch, rows, range(total_rows), total_rows)
            new = jax.device_get(sums(params, placed, np.int32(i)))
            total = new if total is None else jax.tree.map(lambda a, b: a + b, total, new)
        return means(total)

    return held_out


def batch_sums(task: Task, seed: int) -> Callable[[PyTree, PyTree, jax.Array], dict]:
    """Returns `sums(params, batch, i)`, the Sums of batch number `i`, always with the same random numbers."""

    def sums(params, batch, i):
        key = jax.random.fold_in(jax.random.key(seed), i)
        draws = task.with_targets(params, batch, task.draw(batch, key))
        loss, parts = task.loss(params, batch, draws, task.totals(batch))
        parts.pop(STATISTICS, None)
        return parts | {"loss": (loss, jnp.ones(()))}

    return sums


def _take(batches: Iterator[PyTree], count: int) -> list[PyTree]:
    return [batch for _, batch in zip(range(count), batches, strict=False)]
