"""Trains from Python. The same call again continues, whatever ended the one before: a stop, a fault, a new kernel."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from transfusion import api
from transfusion.config import Experiment, checked
from transfusion.latents import open_codecs
from transfusion.model.parameters import Params
from transfusion.notebook import live
from transfusion.notebook.lists import Item, with_list, write_list
from transfusion.notebook.run import Run, load_run
from transfusion.running.jax_setup import keep_programs
from transfusion.tasks import SequenceTask, make_task
from transfusion.train import train as train_state


@dataclasses.dataclass
class Moment:
    """A training after a step that is logged.

    Attributes:
      experiment: what is trained.
      step: steps that were made.
      row: the numbers of this row of metrics.jsonl, such as row["loss"].
      stopped: whether `stop` was called.
    """

    experiment: Experiment
    step: int
    row: Mapping[str, Any]
    stopped: bool = False
    _task: SequenceTask | None = None
    _params: Params | None = None
    _workdir: str = ""

    @property
    def run(self) -> Run:
        """The model as it is now, which draws and captions. It takes memory for a second copy of the parameters."""
        params = jax.tree.map(jnp.copy, self._params)  # the next step reuses the memory of these
        return Run(self.experiment, self._task, params, open_codecs(self.experiment), self.step, self._workdir)

    def stop(self) -> None:
        """Ends the training after this step, with a checkpoint; the same call would continue it."""
        self.stopped = True


Callback = Callable[[Moment], object]


def train(
    experiment: Experiment | str | os.PathLike,
    workdir: str | os.PathLike,
    *,
    data: Sequence[Item] | None = None,
    hold_out: float = 0.05,
    callbacks: Sequence[Callback] = (),
    show: bool | None = None,
    **changes: Any,
) -> Run | None:
    """Trains, or continues the run in `workdir`, up to `experiment.steps`; returns the run, or None for a codec's.

    run = transfusion.train("digits", "runs/digits")
    run = transfusion.train("digits", "runs/mine", data=[(image, "a caption"), ...], steps=500)
    run = transfusion.train(experiment, "runs/mine", callbacks=[lambda moment: print(moment.step, moment.row["loss"])])

    Interrupt it (Ctrl-C, or the stop of a notebook): it saves after the running step and returns. The same call goes on
    from there, with the losses of a run that was never interrupted.

    Args:
      experiment: an experiment, or what `transfusion.experiment` takes.
      workdir: the folder of the run.
      data: records in place of those of the experiment; see `transfusion.notebook.lists`.
      hold_out: the share of `data` that is only evaluated on.
      callbacks: are called after each step that is logged (`log_every`).
      show: whether to show a live curve and pictures; default: in a notebook.
      changes: fields of the experiment, as in `steps=500` or `**{"optim.learning_rate": 1e-3}`.

    Raises:
      UsageError: if the config, the data or the checkpoints cannot be used, or the checkpoint is of another config.
    """
    if jax.config.jax_compilation_cache_dir is None:
        keep_programs()
    experiment = checked(api.experiment(experiment, **changes))
    if data is not None:
        experiment = with_list(experiment, write_list(data, workdir, experiment), hold_out)
    task = make_task(experiment)
    shown = live.in_notebook() if show is None else show
    with live.Live(experiment) if shown else contextlib.nullcontext() as display:
        called = [*callbacks, *([display] if display is not None else [])]

        def call(step: int, row: Mapping[str, Any], params: Params) -> bool:
            moment = Moment(experiment, step, row, False, task, params, os.fspath(workdir))
            for callback in called:
                callback(moment)
            return moment.stopped

        train_state(experiment, workdir, callback=call if called else None, progress=not shown)
    return load_run(workdir) if isinstance(task, SequenceTask) else None
