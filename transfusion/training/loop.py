"""The steps of a training, between what opens a run and what closes it (`transfusion.train`)."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
from absl import logging

from transfusion.config import Experiment
from transfusion.model.parameters import Params
from transfusion.running.checkpoint import Checkpoints
from transfusion.running.guard import Guard
from transfusion.running.heartbeat import COMPUTES, READS, SAVES
from transfusion.running.interruption import Interruption
from transfusion.running.profile import Profile
from transfusion.training.run_log import RunLog
from transfusion.training.saving import Saver
from transfusion.training.step import TrainState
from transfusion.training.watching import Watch

# Gets the step, its row of metrics and the parameters that samplers use, whose memory the next step takes.
Callback = Callable[[int, Mapping[str, Any], Params], object]


@dataclasses.dataclass(frozen=True)
class Loop:
    """What the steps of a training need.

    Attributes:
      step: the compiled step: the state and rows to the next state.
      placed: puts rows where the devices read them.
      data: an iterator over rows, which has `stats()`.
      abstract: the state's shapes and shardings, into which a checkpoint is read.
    """

    experiment: Experiment
    step: Callable[[TrainState, Any], TrainState]
    placed: Callable[[Any], Any]
    data: Any
    abstract: TrainState
    saver: Saver
    checkpoints: Checkpoints
    guard: Guard
    log: RunLog
    profile: Profile
    watch: Watch
    interruption: Interruption
    callback: Callback | None

    def run(self, at: int, state: TrainState) -> tuple[int, TrainState]:
        """Trains from step `at` on until the last step or an interruption; returns the number of steps and the state.

        What was trained is saved in both cases, and if something outside fails.
        """
        while at < self.experiment.steps and not self.interruption.reached(at):
            state = self._stepped(at, state)
            at += 1
            if self.log.due(at):
                with self.saver.saves_on_failure(at, state):
                    state, in_a_row = self.log.write(at, state, self.data.stats(), self.watch.after(at, state))
                if self.guard.should_roll_back(at, in_a_row):
                    at, state = self.saver.roll_back(self.abstract, at, state.skips)
                    self.log.start(at)
                    continue
                if self.callback and self._called(at, state):
                    self.interruption.request()
            self.checkpoints.check()
            if self.checkpoints.due(at) or at == self.experiment.steps:
                self._save(at, state)
        if self.interruption.requested:
            self.saver.save_once(at, state)
            self.checkpoints.wait()  # before the trackers end, which may take longer than who stops the run will wait
            logging.warning("stopped at step %d; the same command continues", at)
        return at, state

    def _stepped(self, at: int, state: TrainState) -> TrainState:
        """The state after the next step."""
        pulse = self.watch.pulse
        pulse.beat(at, READS)
        with self.saver.saves_on_failure(at, state):
            batch = self.placed(self.log.read(self.data, state.step))
        pulse.beat(at, COMPUTES)
        self.watch.before(at, state, batch)
        with self.profile.step(at, state):
            state = self.step(state, batch)
        pulse.stepped(functools.partial(jax.block_until_ready, state))
        return state

    def _called(self, at: int, state: TrainState) -> bool:
        """What the callback returns, called in time that does not count as training; no step is lost if it fails."""
        with self.log.clock.paused():
            try:
                return bool(self.callback(at, self.log.row, state.best))
            except BaseException:
                if jax.process_count() == 1:
                    self.saver.save_once(at, state)
                raise

    def _save(self, at: int, state: TrainState) -> None:
        """Saves, in time that does not count as training."""
        jax.block_until_ready(state)
        self.watch.pulse.beat(at, SAVES)
        with self.log.clock.paused():
            self.saver.save(at, state)
