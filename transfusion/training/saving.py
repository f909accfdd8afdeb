"""What a run continues from, saved and restored together: its state, its data position, its guard and its config."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging

from transfusion.config import Experiment, to_json
from transfusion.data.pipeline import merge_states
from transfusion.errors import UsageError
from transfusion.running.agreement import gather
from transfusion.running.checkpoint import Checkpoints
from transfusion.running.guard import Guard
from transfusion.sharding import PyTree
from transfusion.training.step import TrainState
from transfusion.workdir import portable


class Saver:
    """Saves a run and restores it.

    Args:
      data: the batches that the run reads, with `state` and `restore`.
      watch: its counter of rollbacks goes into the checkpoints.
    """

    def __init__(self, checkpoints: Checkpoints, data: Any, watch: Guard, experiment: Experiment):
        self._checkpoints, self._data, self._watch, self._experiment = checkpoints, data, watch, experiment
        self._first = 0  # the step that was restored

    def restore(self, abstract: TrainState) -> tuple[int, TrainState] | None:
        """Returns (step, state) of the newest intact checkpoint, or None; data and guard continue from it, too."""
        restored = self._checkpoints.restore(abstract)
        if restored is None:
            return None
        self._first, state, position, _ = restored
        self._data.restore(position)
        self._watch.restore(position.get("guard", {}))
        return self._first, state

    def save(self, at: int, state: TrainState) -> None:
        """Saves a checkpoint after `at` steps. The run's last one is sealed when this returns."""
        position = merge_states(gather(self._data.state())) | {"guard": self._watch.state()}
        config = {"experiment": to_json(portable.as_recorded(self._experiment))}
        last = at == self._experiment.steps
        self._checkpoints.save(at, state, position, config, force=True, wait=last)

    def save_once(self, at: int, state: TrainState) -> bool:
        """`save`, unless this step is saved already; returns whether it saved."""
        wanted = at not in self._checkpoints.steps()
        if wanted:
            self.save(at, state)
        return wanted

    @contextlib.contextmanager
    def saves_on_failure(self, at: int, state: TrainState) -> Iterator[None]:
        """Saves the state if data or storage fails inside, so that no step is lost.

        Several processes would have to agree on that; they have their last periodic checkpoint.
        """
        try:
            yield
        except UsageError:
            if jax.process_count() == 1 and at > self._first:
                try:
                    if self.save_once(at, state):
                        logging.warning("step %d is saved; the same command continues", at)
                except UsageError as failure:  # the error on its way out is the one the user must see
                    logging.error("%s", failure)
            raise

    def roll_back(self, abstract: TrainState, at: int, skips: PyTree) -> tuple[int, TrainState]:
        """Returns (step, state) of the newest intact checkpoint, with the present count of skipped updates.

        The data position does not change, so that the records that led here are not seen again.

        Raises:
          UsageError: if there is no checkpoint.
        """
        restored = self._checkpoints.restore(abstract)
        if restored is None:
            raise UsageError(f"the losses are not finite at step {at} and there is no checkpoint to go back to")
        step, state, *_ = restored
        logging.warning("the losses are not finite at step %d: back to step %d, skipping the data between", at, step)
        skips = skips | {"in_a_row": jnp.zeros_like(skips["in_a_row"])}
        return step, dataclasses.replace(state, skips=skips)
