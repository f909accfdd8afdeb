"""The train state, one update of it, and where its parts lie on the devices.

The step knows no objective: a task (`transfusion.tasks`) gives parameters, draws and loss.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from transfusion import initial, sharding
from transfusion.config import Experiment
from transfusion.objectives import STATISTICS
from transfusion.optim import average, make_optimizer, merge, split
from transfusion.running import guard
from transfusion.sharding import PyTree
from transfusion.tasks import Task


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The arrays of a run, all of which a checkpoint holds.

    Attributes:
      step: int32, updates made (skipped ones included).
      params: float32.
      ema: their moving average, or None.
      opt_state: optax's state, for the parameters that are not frozen.
      skips: see `transfusion.running.guard.zero_skips`.
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
        """The parameters that samplers use: the average if there is one."""
        return self.params if self.ema is None else self.ema


# --- one step ---------------------------------------------------------------------------------------------------------


def make_step(task: Task, experiment: Experiment):
    """Returns `step(state, batch) -> state`, a pure function whose random keys are folded from (seed, step)."""
    config = experiment.optim
    optimizer = make_optimizer(config, experiment.steps)

    def step(state: TrainState, batch: PyTree) -> TrainState:
        key = jax.random.fold_in(jax.random.key(experiment.seed), state.step)
        draws, totals = task.with_targets(state.best, batch, task.draw(batch, key)), task.totals(batch)
        trained, frozen = split(state.params, config.groups)
        gradient = jax.value_and_grad(lambda part, *rest: task.loss(merge(part, frozen), *rest), has_aux=True)
        if config.accumulate == 1:
            (loss, sums), grads = gradient(trained, batch, draws, totals)
        else:
            (loss, sums), grads = accumulated(gradient, trained, batch, draws, totals, config.accumulate)
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
    """The jitted step. `shardings` are those of the state, `rows` those of the batch. It donates the old state."""
    step = make_step(task, experiment)
    return jax.jit(step, in_shardings=(shardings, rows), out_shardings=shardings, donate_argnums=0)


def accumulated(gradient, params, batch, draws, totals, parts: int):
    """Sums what `gradient(params, batch, draws, totals)` gives over `parts` slices of the rows.

    Each slice takes every parts-th row, so that every device keeps its share of each slice.
    """
    sliced = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), (batch, draws))

    def add(total, part):
        return jax.tree.map(jnp.add, total, gradient(params, *part, totals)), None

    first = jax.tree.map(lambda x: x[0], sliced)
    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(gradient, params, *first, totals))
    return jax.lax.scan(add, zero, sliced)[0]


# --- state ------------------------------------------------------------------------------------------------------------


def make_init(task: Task, experiment: Experiment):
    """Returns `init(given) -> TrainState`, drawn from the experiment's seed except for the parameters in `given`."""
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
    """The jitted `init`, in which every device makes its own part of the state.

    On a CPU it is compiled without optimization: it runs once, and to optimize the drawing of random numbers takes
    several times as long as to draw them.
    """
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jax.jit(make_init(task, experiment), out_shardings=shardings, compiler_options=options)


def _zero_log(task: Task, experiment: Experiment) -> PyTree:
    batch = task.batch_spec(experiment.batch_size)
    key = jax.eval_shape(lambda: jax.random.key(0))

    def sums(params, batch, key):
        draws = task.with_targets(params, batch, task.draw(batch, key))
        return task.loss(params, batch, draws, task.totals(batch))[1]

    shapes = jax.eval_shape(sums, task.template.shapes, batch, key)
    shapes.pop(STATISTICS, None)
    one = (jnp.zeros(()), jnp.zeros(()))
    trained, _ = split(task.template.shapes, experiment.optim.groups)
    names = ["loss", "grad_norm", *(f"grad_norm_{name}" for name in trained)]
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes) | dict.fromkeys(names, one)


def state_shardings(task: Task, experiment: Experiment, mesh: Mesh) -> TrainState:
    """The NamedShardings of the train state.

    The parameters, their average and their moments are split by the table in `transfusion.sharding`; every device has
    all of the rest.

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
    """The train state as ShapeDtypeStructs with their shardings."""
    shapes = jax.eval_shape(make_init(task, experiment))
    return jax.tree.map(lambda s, on: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=on), shapes, shardings)
