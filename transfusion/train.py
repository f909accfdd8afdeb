"""Training, in the order in which it happens.

  python -m transfusion.train --config configs/digits.py --workdir runs/digits --config.steps=2000

The same command on a workdir that holds a checkpoint continues it: the losses are those of an uninterrupted run.
The loop knows no objective: a task (`transfusion.tasks`) gives parameters, draws and loss.
"""

import contextlib
import dataclasses
import functools
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags, logging
from etils import epath
from ml_collections import config_flags

from transfusion import initial, programs, sharding, storage
from transfusion.config import Experiment, checked, to_json
from transfusion.data.pipeline import merge_states
from transfusion.errors import UsageError
from transfusion.running import distributed, guard, provenance, supervise
from transfusion.running.checkpoint import Checkpoints, restore_state
from transfusion.sequence import text
from transfusion.tasks import Task, make_task
from transfusion.training.held_out import held_out_losses
from transfusion.training.run_log import RunLog
from transfusion.training.step import TrainState, abstract_state, compile_init, jit_step, state_shardings
from transfusion.workdir import portable, resume

PyTree = Any


def train(experiment: Experiment, workdir: str | os.PathLike, allow_change: Sequence[str] = ()) -> TrainState:
    """Trains, or continues the workdir's newest intact checkpoint, up to `experiment.steps`.

    Args:
      allow_change: fields that may differ from the checkpoint's though they give its weights their meaning.

    Raises:
      UsageError: if the config, the data or the checkpoints cannot be used, or the checkpoint is of another config.
      PassingError: if something outside fails; what was trained till then is saved.
    """
    workdir, experiment = epath.Path(workdir), portable.given(checked(experiment), workdir)
    experiment = dataclasses.replace(experiment, tokenizer=text.recorded(experiment.tokenizer))
    task = make_task(experiment)
    going = resume.compare(experiment, workdir, allow_change)
    if going and going.step == experiment.steps:
        return _finished(task, experiment, going, workdir)
    mesh = sharding.make_mesh(experiment.mesh)
    shardings = state_shardings(task, experiment, mesh)
    batch_spec = task.batch_spec(experiment.batch_size)
    rows = sharding.batch_shardings(batch_spec, mesh)
    mine = distributed.local_rows(batch_spec, rows)
    step = jit_step(task, experiment, shardings, rows)
    abstract = abstract_state(task, experiment, shardings)
    watch, pulse = guard.Guard(experiment.guard), supervise.Pulse()
    with (
        distributed.Interruption() as interruption,  # first: a signal must not end what is saved while the rest closes
        programs.sole_use(workdir) if jax.process_index() == 0 else contextlib.nullcontext(),
        jax.set_mesh(mesh),
        task.open_data(experiment, mine) as data,
        _same_start(experiment, data),
        Checkpoints(workdir, experiment.checkpoint) as checkpoints,
        RunLog(workdir, task, experiment) as log,
    ):
        restored = checkpoints.restore(abstract)
        if restored is None:
            given = task.start(experiment, initial.from_run(experiment.init, abstract.params))
            state, at = compile_init(task, experiment, shardings)(given), 0
        else:
            at, state, position, _ = restored
            data.restore(position)
            watch.restore(position.get("guard", {}))
        _begin(going, experiment, workdir)
        log.start(at)
        held_out, first = held_out_losses(task, experiment, rows), at
        interruption.listen()

        def keep() -> None:
            if at > first and at not in checkpoints.steps():
                _save(checkpoints, at, state, data.state(), watch, experiment)
                logging.warning("step %d is saved; the same command continues", at)

        while at < experiment.steps and not interruption.reached(at):
            pulse.beat(at, supervise.READS)
            with _on_the_way_out(keep):
                batch = distributed.place(next(data), rows, mine, experiment.batch_size)
            pulse.beat(at, supervise.COMPUTES)
            state = step(state, batch)
            pulse.stepped(functools.partial(jax.block_until_ready, state))
            at += 1
            if log.due(at):
                values = {}
                with _on_the_way_out(keep):
                    if held_out and at % experiment.eval.every == 0:
                        jax.block_until_ready(state)  # the steps still running count as training
                        pulse.beat(at, supervise.EVALUATES)
                        with log.clock.paused():
                            values = held_out(state.best)
                    state, in_a_row = log.write(at, state, data.stats(), values)
                if watch.should_roll_back(at, in_a_row):
                    at, state = _roll_back(checkpoints, abstract, at, state.skips)
                    log.start(at)
                    continue
            checkpoints.check()
            if checkpoints.due(at) or at == experiment.steps:
                jax.block_until_ready(state)
                pulse.beat(at, supervise.SAVES)
                with log.clock.paused():
                    _save(checkpoints, at, state, data.state(), watch, experiment)
        if interruption.requested:
            if at not in checkpoints.steps():
                _save(checkpoints, at, state, data.state(), watch, experiment)
            logging.warning("stopped at step %d; the same command continues", at)
    if at >= experiment.steps:
        pulse.beat(at, supervise.DONE)
    return state


def _finished(task: Task, experiment: Experiment, going: resume.Going, workdir: epath.Path) -> TrainState:
    """The state of a run that has made all its steps. Nothing is written."""
    logging.info(
        "nothing to do: %s is at step %d of %d; raise --config.steps to go on", workdir, going.step, experiment.steps
    )
    optim = dataclasses.replace(going.trained.optim, offload=experiment.optim.offload)
    experiment = dataclasses.replace(experiment, optim=optim)
    mesh = sharding.make_mesh(experiment.mesh)
    with jax.set_mesh(mesh):
        abstract = abstract_state(task, experiment, state_shardings(task, experiment, mesh))
        state = restore_state(workdir, going.step, abstract)
    supervise.Pulse().beat(going.step, supervise.DONE)
    return state


def _begin(going: resume.Going | None, experiment: Experiment, workdir: epath.Path) -> None:
    """Says what is gone on from, and writes down the command, the files that the run needs, and its config."""
    if jax.process_index() != 0:
        return
    if going:
        logging.info("continuing %s at step %d", workdir, going.step)
        resume.say(going, experiment)
    portable.bring_in(experiment, workdir)
    provenance.record_command(workdir, going.step if going else 0, resume.rows(going))
    # Last: where the command cannot be written down the run does not begin, and config.json must not say that it did.
    storage.write_whole(workdir / portable.CONFIG, to_json(portable.recorded(experiment)))


@contextlib.contextmanager
def _on_the_way_out(keep: Callable[[], None]) -> Iterator[None]:
    """Calls `keep`, which saves a checkpoint, if data or storage fails. Several processes would have to agree on that,
    and have their last periodic one."""
    try:
        yield
    except UsageError:
        if jax.process_count() == 1:
            try:
                keep()
            except UsageError as failure:  # the error on its way out is the one the user must see
                logging.error("%s", failure)
        raise


@contextlib.contextmanager
def _same_start(experiment: Experiment, data: Any) -> Iterator[None]:
    """Refuses to begin unless every process has the same config, code and data."""
    if jax.process_count() > 1:
        config = jax.tree_util.tree_leaves_with_path(json.loads(to_json(experiment)))
        facts = {jax.tree_util.keystr(path, simple=True, separator="."): value for path, value in config}
        facts |= {f"version of {name}": version for name, version in provenance.versions().items()}
        facts |= {"source code of transfusion": provenance.source_code()}
        facts |= {f"records of data.sources.{name}": found for name, found in data.fingerprint().items()}
        distributed.check_same(facts)
    yield


def _save(
    checkpoints: Checkpoints, at: int, state: TrainState, position: dict, watch: guard.Guard, experiment: Experiment
) -> None:
    position = merge_states(distributed.gather(position)) | {"guard": watch.state()}
    last = at == experiment.steps
    config = {"experiment": to_json(portable.recorded(experiment))}
    checkpoints.save(at, state, position, config, force=True, wait=last)


def _roll_back(checkpoints: Checkpoints, abstract: TrainState, at: int, skips: PyTree) -> tuple[int, TrainState]:
    """The newest intact checkpoint, with the count of skipped updates going on. The data position stays: the records
    that led here are not seen again."""
    restored = checkpoints.restore(abstract)
    if restored is None:
        raise UsageError(f"the losses are not finite at step {at} and there is no checkpoint to go back to")
    logging.warning("the losses are not finite at step %d: back to step %d, skipping the data between", at, restored[0])
    skips = skips | {"in_a_row": jnp.zeros_like(skips["in_a_row"])}
    return restored[0], dataclasses.replace(restored[1], skips=skips)


def main(argv) -> None:
    programs.set_up_jax()
    programs.check_workdir(FLAGS.workdir)
    experiment = programs.experiment_of(FLAGS.config)
    if FLAGS.supervise:
        sys.exit(supervise.from_flags("transfusion.train").run())
    distributed.start(FLAGS.coordinator, FLAGS.processes, FLAGS.process_id, FLAGS.start_timeout, FLAGS.workdir)
    train(experiment, FLAGS.workdir, [field for given in FLAGS.allow_change for field in given.split(",") if field])


FLAGS = flags.FLAGS

if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "Config file; fields are overridden by --config.a.b=c.")
    flags.DEFINE_string("workdir", None, "Folder of the run; an existing one is continued.")
    flags.DEFINE_multi_string(
        "allow_change", [], "Field, such as objectives, that may differ from the checkpoint's though its weights were "
        "trained with the old value; several with commas."
    )  # fmt: skip
    distributed.define_flags()
    supervise.define_flags()
    programs.run(main)
