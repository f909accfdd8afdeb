"""What looks at a training between its steps: losses of held-out data, pictures, and looks inside the model.

All of it takes place in time that does not count as training.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax

from transfusion.config import Experiment
from transfusion.model.parameters import Params
from transfusion.running.heartbeat import EVALUATES, Pulse
from transfusion.training.held_out import HeldOut
from transfusion.training.run_log import RunLog
from transfusion.training.step import TrainState
from transfusion.training.telemetry import Look

# Draws with the parameters that samplers use, after so many steps; see `transfusion.evaluation.while_training`.
Drawings = Callable[[Params, int], Sequence[Any]]


@dataclasses.dataclass(frozen=True)
class Watch:
    """Looks at a training when it is due; None is never.

    Attributes:
      losses: computes the held-out losses, every `eval.every` steps.
      drawings: draws, as often.
      look: looks inside the model, every `telemetry.every` steps.
    """

    experiment: Experiment
    pulse: Pulse
    log: RunLog
    losses: HeldOut | None
    drawings: Drawings | None
    look: Look | None

    def before(self, at: int, state: TrainState, batch: Any) -> None:
        """Looks inside the model before the step that follows `at` steps."""
        if self.look is None or (at + 1) % self.experiment.telemetry.every:
            return
        self._wait(at, state)
        with self.log.clock.paused():
            self.log.saw(self.look(state, batch))

    def after(self, at: int, state: TrainState) -> dict[str, float | None]:
        """The held-out losses after `at` steps, if they are due; then pictures are shown, too."""
        if not (self.losses or self.drawings) or at % self.experiment.eval.every:
            return {}
        self._wait(at, state)
        with self.log.clock.paused():
            found = self.losses(state.best) if self.losses else {}
            if self.drawings:
                self.log.show(at, self.drawings(state.best, at))
        return found

    def _wait(self, at: int, state: TrainState) -> None:
        """Waits for the steps still running, which count as training."""
        jax.block_until_ready(state)
        self.pulse.beat(at, EVALUATES)
