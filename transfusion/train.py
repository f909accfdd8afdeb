"""Training, in the order in which it happens.

  python -m transfusion.train --config configs/digits.py --workdir runs/digits --config.steps=2000

The same command on a workdir that holds a checkpoint continues it: the losses are those of an uninterrupted run.
The loop knows no objective: a task (`transfusion.tasks`) gives parameters, draws and loss.
"""

import contextlib
import dataclasses
import functools
import importlib
import json
import os
import sys
import types
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from absl import flags, logging
from etils import epath
from ml_collections import config_flags

from transfusion import initial, programs, sharding, storage
from transfusion.config import Experiment, checked, to_json
from transfusion.evaluation.while_training import drawings
from transfusion.planning import forecast
from transfusion.running import distributed, provenance, supervise
from transfusion.running.agreement import check_same, is_first
from transfusion.running.checkpoint import Checkpoints
from transfusion.running.guard import Guard
from transfusion.running.heartbeat import DONE, Pulse
from transfusion.running.interruption import Interruption
from transfusion.running.jax_setup import set_up_jax
from transfusion.running.local_rows import local_rows, place
from transfusion.running.own_files import sole_use
from transfusion.running.profile import Profile, parse_window
from transfusion.running.restore import restore_state
from transfusion.sequence import text
from transfusion.tasks import Task, make_task
from transfusion.training.held_out import held_out_losses
from transfusion.training.loop import Callback, Loop
from transfusion.training.run_log import RunLog
from transfusion.training.saving import Saver
from transfusion.training.step import TrainState, abstract_state, compile_init, jit_step, state_shardings
from transfusion.training.telemetry import make_look
from transfusion.training.watching import Watch
from transfusion.workdir import portable, resume
from transfusion.workdir.place import check_workdir


def train(
    experiment: Experiment,
    workdir: str | os.PathLike,
    allow_change: Sequence[str] = (),
    callback: Callback | None = None,
    progress: bool = True,
    profile_steps: str = "",
) -> TrainState:
    """Trains, or continues the workdir's newest intact checkpoint, up to `experiment.steps`.

    Args:
      allow_change: fields that may differ from the checkpoint's though they give its weights their meaning.
      callback: is called after each step that is logged; if it returns true, the training ends as if interrupted.
      progress: whether to show a line of progress.
      profile_steps: such as '100:110', the steps that are traced; see `transfusion.running.profile`.

    Raises:
      UsageError: if the config, the data or the checkpoints cannot be used, or the checkpoint is of another config.
      PassingError: if something outside fails; what was trained till then is saved.
    """
    workdir, experiment = epath.Path(workdir), _as_given(experiment, workdir)
    task, continued = make_task(experiment), resume.compare(experiment, workdir, allow_change)
    if continued and continued.step == experiment.steps:
        return _finished_state(task, experiment, continued, workdir)
    mesh = sharding.make_mesh(experiment.mesh)
    batch, shardings = task.batch_spec(experiment.batch_size), state_shardings(task, experiment, mesh)
    rows = sharding.batch_shardings(batch, mesh)
    mine = local_rows(batch, rows)
    step, abstract = jit_step(task, experiment, shardings, rows), abstract_state(task, experiment, shardings)
    guard, pulse = Guard(experiment.guard), Pulse()
    with (
        Interruption() as interruption,  # first: a signal must not end what is saved while the rest closes
        sole_use(workdir) if is_first() else contextlib.nullcontext(),
        jax.set_mesh(mesh),
        task.open_data(experiment, mine) as data,
        _same_start(experiment, data),
        Checkpoints(workdir, experiment.checkpoint) as checkpoints,
        RunLog(workdir, task, experiment, mine, progress) as log,
        Profile(parse_window(profile_steps), workdir, log.clock.paused) as profile,
    ):
        saver = Saver(checkpoints, data, guard, experiment)
        at, state = saver.restore(abstract) or (0, _new_state(task, experiment, abstract, shardings))
        _begin(continued, experiment, workdir)
        log.start(at)
        looks = held_out_losses(task, experiment, rows), drawings(task, experiment, mesh, workdir)
        watch = Watch(experiment, pulse, log, *looks, make_look(task, experiment, shardings, rows))
        placed = functools.partial(place, shardings=rows, rows=mine, total=experiment.batch_size)
        interruption.listen()
        loop = Loop(
            experiment, step, placed, data, abstract, saver, checkpoints, guard, log, profile, watch, interruption,
            callback,
        )  # fmt: skip
        at, state = loop.run(at, state)
    if at >= experiment.steps:
        pulse.beat(at, DONE)
    return state


def _as_given(experiment: Experiment, workdir: str | os.PathLike) -> Experiment:
    """The experiment, checked, with the files of its tokenizer and codec as they can be opened from here."""
    experiment = portable.from_command_line(checked(experiment), workdir)
    return dataclasses.replace(experiment, tokenizer=text.recorded(experiment.tokenizer))


def _finished_state(
    task: Task, experiment: Experiment, continued: resume.Continuation, workdir: epath.Path
) -> TrainState:
    """The state of a run that has made all its steps. Nothing is written."""
    _say_finished(continued, experiment, workdir)
    optim = dataclasses.replace(continued.trained.optim, offload=experiment.optim.offload)
    experiment = dataclasses.replace(experiment, optim=optim)
    mesh = sharding.make_mesh(experiment.mesh)
    with jax.set_mesh(mesh):
        abstract = abstract_state(task, experiment, state_shardings(task, experiment, mesh))
        state = restore_state(workdir, continued.step, abstract)
    Pulse().beat(continued.step, DONE)
    return state


def _say_finished(continued: resume.Continuation, experiment: Experiment, workdir: str | os.PathLike) -> None:
    logging.info(
        "nothing to do: %s is at step %d of %d; raise --config.steps to go on",
        workdir, continued.step, experiment.steps,
    )  # fmt: skip


def _new_state(task: Task, experiment: Experiment, abstract: TrainState, shardings: TrainState) -> TrainState:
    """The state that a new run begins with: drawn from the seed, or with parameters of another run."""
    given = task.start(experiment, initial.from_run(experiment.init, abstract.params))
    return compile_init(task, experiment, shardings)(given)


def _begin(continued: resume.Continuation | None, experiment: Experiment, workdir: epath.Path) -> None:
    """Logs what this run continues, and writes the command, the files that the run needs, and its config."""
    if not is_first():
        return
    if continued:
        logging.info("continuing %s at step %d", workdir, continued.step)
        resume.log_changes(continued, experiment)
    portable.bring_in(experiment, workdir)
    provenance.record_command(workdir, continued.step if continued else 0, resume.change_rows(continued))
    # Last: where the command cannot be written down the run does not begin, and config.json must not say that it did.
    storage.write_whole(workdir / portable.CONFIG, to_json(portable.as_recorded(experiment)))


@contextlib.contextmanager
def _same_start(experiment: Experiment, data: Any) -> Iterator[None]:
    """Refuses to begin unless every process has the same config, code and data."""
    if jax.process_count() > 1:
        config = jax.tree_util.tree_leaves_with_path(json.loads(to_json(experiment)))
        facts = {jax.tree_util.keystr(path, simple=True, separator="."): value for path, value in config}
        facts |= {f"version of {name}": version for name, version in provenance.versions().items()}
        facts |= {"source code of transfusion": provenance.source_code()}
        facts |= {f"records of data.sources.{name}": found for name, found in data.fingerprint().items()}
        check_same(facts)
    yield


def main(argv: Sequence[str]) -> None:
    set_up_jax()
    check_workdir(FLAGS.workdir)
    experiment = programs.experiment_of(FLAGS.config)
    if FLAGS.trackers is not None:
        experiment = _tracked_by(experiment, FLAGS.trackers)
    parse_window(FLAGS.profile)
    allowed = [field for given in FLAGS.allow_change for field in given.split(",") if field]
    supervise.patience()  # refuses wrong flags even without --supervise
    if FLAGS.dry_run:
        print(forecast.text(forecast.forecast(_as_given(experiment, FLAGS.workdir), FLAGS.workdir)))
        return
    if FLAGS.supervise:
        sys.exit(_supervise(experiment, allowed))
    distributed.start(FLAGS.coordinator, FLAGS.processes, FLAGS.process_id, FLAGS.start_timeout, FLAGS.workdir)
    train(experiment, FLAGS.workdir, allowed, profile_steps=FLAGS.profile)


def _tracked_by(experiment: Experiment, names: str) -> Experiment:
    """The experiment with the trackers of a flag, such as 'tensorboard,wandb'; '' has none."""
    chosen = tuple(name.strip() for name in names.split(",") if name.strip())
    return dataclasses.replace(experiment, trackers=dataclasses.replace(experiment.trackers, names=chosen))


def _supervise(experiment: Experiment, allowed: Sequence[str]) -> int:
    """Runs the training in processes of its own, unless it is finished; returns the exit code."""
    supervisor = supervise.from_flags("transfusion.train")
    if supervisor.newest == experiment.steps:
        jax.config.update("jax_platforms", "cpu")  # to compare configs takes no device
        experiment = _as_given(experiment, FLAGS.workdir)
        continued = resume.compare(experiment, FLAGS.workdir, allowed)
        if continued and continued.step == experiment.steps:
            _say_finished(continued, experiment, FLAGS.workdir)
            return 0
    return supervisor.run()


class _Module(types.ModuleType):
    """`transfusion.train` is this module, and what scripts and notebooks call: see `transfusion.notebook.train`."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return importlib.import_module("transfusion.notebook").train(*arguments, **options)  # it imports this module


sys.modules[__name__].__class__ = _Module
FLAGS = flags.FLAGS

if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "Config file; fields are overridden by --config.a.b=c.")
    flags.DEFINE_string("workdir", None, "Folder of the run; an existing one is continued.")
    flags.DEFINE_multi_string(
        "allow_change", [], "Field, such as objectives, that may differ from the checkpoint's though its weights were "
        "trained with the old value; several with commas."
    )  # fmt: skip
    flags.DEFINE_bool("dry_run", False, "Tell what would be trained: parameters, FLOPs, memory, time. Write nothing.")
    flags.DEFINE_string(
        "trackers", None, "Where the run is shown, with commas: tensorboard, wandb, trackio, mlflow. Replaces "
        "--config.trackers.names; '' is none."
    )  # fmt: skip
    flags.DEFINE_string("profile", "", "FIRST:LAST: trace these steps, for TensorBoard's profile plugin and Perfetto.")
    distributed.define_flags()
    supervise.define_flags()
    programs.run(main)
