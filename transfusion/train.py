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
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags, logging
from etils import epath
from jax.sharding import Mesh
from ml_collections import config_flags

from transfusion import distributed, guard, initial, programs, provenance, sharding, supervise
from transfusion.checkpoint import Checkpoints
from transfusion.codecs import text
from transfusion.codecs.losses import STATISTICS
from transfusion.config import Experiment, to_json
from transfusion.data.pipeline import merge_states
from transfusion.errors import UsageError
from transfusion.metrics import MetricWriter, Progress, means
from transfusion.optim import average, make_optimizer, merge, schedule, split
from transfusion.tasks import Task, make_task
from transfusion.throughput import Throughput, model_flops_utilisation, peak_flops

PyTree = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a checkpoint holds of the model.

    Attributes:
      step: int32, updates made (skipped ones included).
      params: float32.
      ema: their moving average, or None.
      opt_state: optax's, of the parameters that are not frozen.
      skips: see `transfusion.guard.zero_skips`.
      log: Sums since the last logged step, so that a resumed run logs the same numbers.
    """

    step: jax.Array
    params: PyTree
    ema: PyTree
    opt_state: PyTree
    skips: PyTree
    log: PyTree

    @property
    def best(self) -> PyTree:
        """What samplers use: the average if there is one."""
        return self.params if self.ema is None else self.ema


# --- one step ---------------------------------------------------------------------------------------------------------


def make_step(task: Task, experiment: Experiment):
    """`step(state, batch) -> state`, a pure function; keys are folded from (seed, step)."""
    config = experiment.optim
    optimizer = make_optimizer(config, experiment.steps)

    def step(state: TrainState, batch: PyTree) -> TrainState:
        key = jax.random.fold_in(jax.random.key(experiment.seed), state.step)
        draws, totals = task.draw(batch, key), task.totals(batch)
        trained, frozen = split(state.params, config.groups)
        gradient = jax.value_and_grad(lambda part, *rest: task.loss(merge(part, frozen), *rest), has_aux=True)
        if config.accumulate == 1:
            (loss, sums), grads = gradient(trained, batch, draws, totals)
        else:
            (loss, sums), grads = _accumulate(gradient, trained, batch, draws, totals, config.accumulate)
        norms = {"grad_norm": optax.tree.norm(grads)}
        norms |= {f"grad_norm_{name}": optax.tree.norm(part) for name, part in grads.items()}
        before = sharding.on_devices(state.opt_state) if config.offload else state.opt_state
        updates, opt_state = optimizer.update(grads, before, trained)
        statistics = sums.pop(STATISTICS, None)
        params = merge(task.after_step(trained, optax.apply_updates(trained, updates), statistics), frozen)
        ema = None if state.ema is None else average(state.ema, params, config, state.step)
        ok = guard.all_finite(loss, norms["grad_norm"])
        params, ema, opt_state = guard.select_finite(ok, (params, ema, opt_state), (state.params, state.ema, before))
        sums |= {"loss": (loss, jnp.ones(()))} | {name: (norm, jnp.ones(())) for name, norm in norms.items()}
        log = jax.tree.map(lambda total, new: total + jnp.where(ok, new, 0), state.log, sums)
        return TrainState(state.step + 1, params, ema, opt_state, guard.count_skips(state.skips, ok), log)

    return step


def jit_step(task: Task, experiment: Experiment, shardings: TrainState, rows: PyTree):
    """The jitted step; `shardings` are of the state, `rows` of the batch. The state that goes in is given up."""
    step = make_step(task, experiment)
    return jax.jit(step, in_shardings=(shardings, rows), out_shardings=shardings, donate_argnums=0)


def _accumulate(gradient, params, batch, draws, totals, parts: int):
    """Sums loss, Sums and gradients over `parts` slices of the rows. Each slice takes every parts-th row, so that every
    device keeps its share of each."""
    sliced = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), (batch, draws))

    def add(total, part):
        return jax.tree.map(jnp.add, total, gradient(params, *part, totals)), None

    first = jax.tree.map(lambda x: x[0], sliced)
    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(gradient, params, *first, totals))
    return jax.lax.scan(add, zero, sliced)[0]


# --- state ------------------------------------------------------------------------------------------------------------


def make_init(task: Task, experiment: Experiment):
    """`init(given) -> TrainState` from the experiment's seed, but for the parameters of `given` (see `initial`)."""
    optim = experiment.optim

    def init(given: dict[str, jax.Array] | None = None) -> TrainState:
        params = initial.replace(task.template.init(jax.random.key(experiment.seed)), given or {})
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            ema=jax.tree.map(jnp.copy, params) if optim.ema else None,
            opt_state=make_optimizer(optim, experiment.steps).init(split(params, optim.groups)[0]),
            skips=guard.zero_skips(),
            log=_zero_log(task, experiment),
        )

    return init


def compile_init(task: Task, experiment: Experiment, shardings: TrainState):
    """`init` jitted, so that every device makes its own part of the state.

    It runs once, and on a CPU compiling random numbers well takes several times as long as drawing them badly.
    """
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jax.jit(make_init(task, experiment), out_shardings=shardings, compiler_options=options)


def _zero_log(task: Task, experiment: Experiment) -> PyTree:
    batch = task.batch_spec(experiment.batch_size)
    key = jax.eval_shape(lambda: jax.random.key(0))

    def sums(params, batch, key):
        return task.loss(params, batch, task.draw(batch, key), task.totals(batch))[1]

    shapes = jax.eval_shape(sums, task.template.shapes, batch, key)
    shapes.pop(STATISTICS, None)
    one = (jnp.zeros(()), jnp.zeros(()))
    trained, _ = split(task.template.shapes, experiment.optim.groups)
    names = ["loss", "grad_norm", *(f"grad_norm_{name}" for name in trained)]
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes) | dict.fromkeys(names, one)


def state_shardings(task: Task, experiment: Experiment, mesh: Mesh) -> TrainState:
    """NamedShardings of the train state: parameters, their average and moments by the table; the rest whole.

    Raises:
      UsageError: if rows, activations or parameters do not divide over the mesh.
    """
    rows = experiment.batch_size // experiment.optim.accumulate
    sharding.check_activations({"batch_size / optim.accumulate": (("batch",), (rows,))} | task.activations(rows), mesh)
    shapes = jax.eval_shape(make_init(task, experiment))
    whole = sharding.replicated(mesh)
    params = sharding.tree_shardings(task.template.axes, shapes.params, mesh)
    moments = sharding.on_host(params) if experiment.optim.offload else params
    opt_state = optax.tree_utils.tree_map_params(
        make_optimizer(experiment.optim, experiment.steps),
        lambda _, leaf: leaf,
        shapes.opt_state,
        split(moments, experiment.optim.groups)[0],
        transform_non_params=lambda _: whole,
    )
    rest = jax.tree.map(lambda _: whole, shapes)
    return dataclasses.replace(rest, params=params, opt_state=opt_state, ema=None if shapes.ema is None else params)


def abstract_state(task: Task, experiment: Experiment, shardings: TrainState) -> TrainState:
    """Shapes of the train state, with where they lie."""
    shapes = jax.eval_shape(make_init(task, experiment))
    return jax.tree.map(lambda s, on: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=on), shapes, shardings)


# --- the loop ---------------------------------------------------------------------------------------------------------


def train(experiment: Experiment, workdir: str | os.PathLike) -> TrainState:
    """Trains, or continues the workdir's newest intact checkpoint, up to `experiment.steps`.

    Raises:
      UsageError: if the config, the data or the checkpoints cannot be used.
    """
    workdir = epath.Path(workdir)
    task = make_task(experiment)
    experiment = dataclasses.replace(experiment, tokenizer=text.recorded(experiment.tokenizer))
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
            at, state, position, saved = restored
            text.check_same(json.loads(saved["experiment"]).get("tokenizer", {}), experiment.tokenizer)
            data.restore(position)
            watch.restore(position.get("guard", {}))
            logging.info("continuing %s at step %d", workdir, at)
        log.start(at)
        held_out = make_evaluation(task, experiment, rows)
        interruption.listen()
        while at < experiment.steps and not interruption.reached(at):
            pulse.beat(at, supervise.READS)
            batch = distributed.place(next(data), rows, mine, experiment.batch_size)
            pulse.beat(at, supervise.COMPUTES)
            state = step(state, batch)
            pulse.stepped(functools.partial(jax.block_until_ready, state))
            at += 1
            if log.due(at):
                values = {}
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


class RunLog:
    """Writes config.json and a row of metrics every `log_every` steps, and keeps the clock and the progress line."""

    def __init__(self, workdir: epath.Path, task: Task, experiment: Experiment):
        self._workdir, self._experiment = workdir, experiment
        self._tokens, self._flops = task.tokens(experiment.batch_size), task.flops(experiment.batch_size)
        self._peak = peak_flops()
        self._writer, self._progress = MetricWriter(workdir), Progress(experiment.steps)
        self._schedule = schedule(experiment.optim, experiment.steps)
        self._written = 0
        self.clock = Throughput()

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_) -> None:
        self._progress.close()
        self._writer.close()

    def start(self, at: int) -> None:
        """Begins or begins again after `at` steps: later rows of an earlier attempt are removed."""
        if jax.process_index() == 0:
            (self._workdir / "config.json").write_text(to_json(self._experiment))
        self._writer.truncate(at)
        self._written = at

    def due(self, at: int) -> bool:
        """Whether the step is logged; an evaluation is a reason too."""
        config = self._experiment
        self._progress.step(at)
        evaluated = config.eval.every and config.eval.sources and at % config.eval.every == 0
        return at % config.log_every == 0 or at == config.steps or bool(evaluated)

    def write(self, at: int, state: TrainState, stats: dict, held_out: dict) -> tuple[TrainState, int]:
        """Writes the means since the last row; returns the state with empty sums, and how many updates in a row were
        skipped."""
        sums, skips = jax.device_get((state.log, state.skips))
        self.clock.add(self._tokens * (at - self._written), at - self._written)
        rates = self.clock.rates()
        utilisation = model_flops_utilisation(self._flops, rates["seconds_per_step"], self._peak.flops)
        row = means(sums) | {"learning_rate": float(self._schedule(at)), "skipped_updates": int(skips["skipped"])}
        row |= {"bad_records": stats["bad"], "model_flops_utilisation": utilisation} | rates
        row |= {f"packing_{name}": value for name, value in stats["efficiency"].items()}
        row |= {f"held_out_{name}": value for name, value in held_out.items()}
        self._writer.write(at, row)
        self._progress.show(at, row)
        self._written = at
        self.clock.begin()
        return dataclasses.replace(state, log=jax.tree.map(jnp.zeros_like, state.log)), int(skips["in_a_row"])


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
    checkpoints.save(at, state, position, {"experiment": to_json(experiment)}, force=True, wait=last)


def _roll_back(checkpoints: Checkpoints, abstract: TrainState, at: int, skips: PyTree) -> tuple[int, TrainState]:
    """The newest intact checkpoint, with the count of skipped updates going on. The data position stays: the records
    that led here are not seen again."""
    restored = checkpoints.restore(abstract)
    if restored is None:
        raise UsageError(f"the losses are not finite at step {at} and there is no checkpoint to go back to")
    logging.warning("the losses are not finite at step %d: back to step %d, skipping the data between", at, restored[0])
    skips = skips | {"in_a_row": jnp.zeros_like(skips["in_a_row"])}
    return restored[0], dataclasses.replace(restored[1], skips=skips)


def make_evaluation(task: Task, experiment: Experiment, rows: PyTree):
    """`held_out(params) -> {name: mean}` over the held-out batches with fixed draws; None without held-out sources."""
    if not experiment.eval.sources or not experiment.eval.every:
        return None
    batches: list[PyTree] = []
    everywhere, total_rows = sharding.replicated(jax.tree.leaves(rows)[0].mesh), experiment.batch_size

    @functools.partial(jax.jit, out_shardings=everywhere)
    def sums(params, batch, i):
        key = jax.random.fold_in(jax.random.key(experiment.seed + 1), i)
        loss, parts = task.loss(params, batch, task.draw(batch, key), task.totals(batch))
        parts.pop(STATISTICS, None)
        return parts | {"loss": (loss, jnp.ones(()))}

    def held_out(params: PyTree) -> dict[str, float]:
        batches.extend(_take(task.held_out(experiment), experiment.eval.batches) if not batches else ())
        total = None
        for i, batch in enumerate(batches):
            placed = distributed.place(batch, rows, range(total_rows), total_rows)
            new = jax.device_get(sums(params, placed, np.int32(i)))
            total = new if total is None else jax.tree.map(lambda a, b: a + b, total, new)
        return means(total)

    return held_out


def _take(batches: Iterator[PyTree], count: int) -> list[PyTree]:
    return [batch for _, batch in zip(range(count), batches, strict=False)]


def main(argv) -> None:
    programs.set_up_jax()
    programs.check_workdir(FLAGS.workdir)
    experiment = programs.experiment_of(FLAGS.config)
    if FLAGS.supervise:
        sys.exit(supervise.from_flags("transfusion.train").run())
    distributed.start(FLAGS.coordinator, FLAGS.processes, FLAGS.process_id, FLAGS.start_timeout, FLAGS.workdir)
    provenance.record_command(FLAGS.workdir)
    train(experiment, FLAGS.workdir)


FLAGS = flags.FLAGS

if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "Config file; fields are overridden by --config.a.b=c.")
    flags.DEFINE_string("workdir", None, "Folder of the run; an existing one is continued.")
    distributed.define_flags()
    supervise.define_flags()
    programs.run(main)
