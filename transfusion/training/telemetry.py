"""Looks inside a model while it trains: the gradients of each modality by layer, and how outputs and attention grow.

A modality here is a stream with a loss. At a step that is looked at, a second program computes, from the parameters
before the step and with the batch and the random numbers of the step:

- `gradient_norm_STREAM`: the norm of the gradient of this stream's part of the loss alone, by layer.
- `gradient_cosine_ONE_OTHER`: the cosine between the gradients of two streams, by layer. At 1 both pull the weights
  into the same direction, at -1 they undo each other (Yu et al., arXiv 2001.06782).
- `output_STREAM`: root mean square of the numbers of its tokens behind each layer. Chameleon (arXiv 2405.09818, section
  2.3) saw it grow long before a loss diverged.
- `query_STREAM`, `key_STREAM`: root mean square over its tokens of the length of a head's query, or key.
- `load_LAYER_STREAM`: of routed feed-forward layers, the share of the stream's tokens that the busiest expert has,
  times the number of experts: 1 is even.

The program of the training step is the same with and without telemetry, and so are all numbers of the training. What
the norm clips and the optimizer scales is not in the gradients: they are those of the loss.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from transfusion import sharding
from transfusion.config import Experiment
from transfusion.errors import UsageError
from transfusion.model.names import by_path
from transfusion.model.observe import KEY, OUTPUT, QUERY, SEEN, Observe
from transfusion.model.transformer import Loads
from transfusion.model.unified import UnifiedModel, model_template
from transfusion.optim import merge, split
from transfusion.sharding import PyTree
from transfusion.tasks import SequenceTask, Task
from transfusion.training.step import TrainState, accumulated

PREFIX = "telemetry_"
PARTS = "parts"  # all parameters that belong to no layer: embeds, heads, final norms
EPSILON = 1e-30

Look = Callable[[TrainState, PyTree], dict[str, float]]


def make_look(task: Task, experiment: Experiment, shardings: TrainState, rows: PyTree) -> Look | None:
    """Returns `look(state, batch) -> {name: number}`, or None if the experiment asks for no telemetry.

    It leaves the state as it is. Names begin with `PREFIX` and end with the trunk and the number of the layer, or with
    `PARTS`.

    Raises:
      UsageError: if the task has no modalities.
    """
    if not experiment.telemetry.every:
        return None
    if not isinstance(task, SequenceTask):
        raise UsageError("telemetry.every must be 0: an autoencoder has no modalities to compare")
    everywhere = sharding.replicated(jax.tree.leaves(rows)[0].mesh)
    given = (_parameters(shardings), rows)
    run = jax.jit(functools.partial(numbers, task, experiment), in_shardings=given, out_shardings=everywhere)

    def look(state: TrainState, batch: PyTree) -> dict[str, float]:
        found = jax.device_get(run(_parameters(state), batch))
        return {f"{PREFIX}{name}": value for key, values in found.items() for name, value in _each(key, values)}

    return look


def _parameters(state: TrainState) -> TrainState:
    """The state without what a look does not need, such as moments that wait in the host's memory."""
    return dataclasses.replace(state, opt_state=None, skips=None, log=None)


def _each(name: str, values: np.ndarray) -> Iterator[tuple[str, float]]:
    """The entries of a vector, one per layer, with their names; or a number with its name."""
    names = [f"{name}_{i}" for i in range(len(values))] if np.ndim(values) else [name]
    yield from zip(names, np.ravel(values).tolist(), strict=True)


def numbers(task: SequenceTask, experiment: Experiment, state: TrainState, batch: PyTree) -> dict[str, jax.Array]:
    """All numbers of a step, by name: vectors [layers] of a trunk, scalars of what is in no layer."""
    key = jax.random.fold_in(jax.random.key(experiment.seed), state.step)
    draws, totals = task.with_targets(state.best, batch, task.draw(batch, key)), task.totals(batch)
    gradients = gradients_by_stream(task, experiment, state.params, batch, draws, totals)
    # JAX sorts the names of a dict; a pair is named as in the config.
    found = compare({s: gradients[s] for s in task.spec.streams if s in gradients}, task.template.axes)
    model: UnifiedModel = model_template(task.model, task.spec, more=(Observe(),)).bind(state.params)
    inputs = {name: task.inputs(name, batch, draws) for name in task.spec.streams}
    _, seen = model.encode_counted(inputs)
    widths = {where: config.width for where, config in model.configs.items()}
    for where, loads in seen.items():
        found |= _growth(where, loads, widths[where]) | _busiest(where, loads)
    return found


# --- gradients --------------------------------------------------------------------------------------------------------


def gradients_by_stream(
    task: SequenceTask, experiment: Experiment, params: PyTree, batch: PyTree, draws: PyTree, totals: PyTree
) -> dict[str, PyTree]:
    """The gradient of each stream's part of the loss, of the parameters that are trained: one forward, and a backward
    for each stream."""
    trained, frozen = split(params, experiment.optim.groups)

    def of(part, batch, draws, totals):
        def losses(part):
            _, sums = task.loss(merge(part, frozen), batch, draws, totals)
            terms = {name: sums.get(f"{name}_loss") for name in task.spec.streams}
            weights = {name: stream.weight for name, stream in task.spec.streams.items()}
            return {name: weights[name] * term[0] / totals[name] for name, term in terms.items() if term is not None}

        found, back = jax.vjp(losses, part)
        return {stream: back({name: jnp.float32(name == stream) for name in found})[0] for stream in found}

    if experiment.optim.accumulate == 1:
        return of(trained, batch, draws, totals)
    return accumulated(of, trained, batch, draws, totals, experiment.optim.accumulate)


def compare(gradients: Mapping[str, PyTree], axes: PyTree) -> dict[str, jax.Array]:
    """The norms of the streams' gradients and the cosines between them, by layer.

    Args:
      gradients: per stream a tree of arrays.
      axes: the logical axes of all parameters; those that are stacked begin with 'layers'.
    """
    stacked = {path: _trunk_of(path) for path, a in by_path(axes).items() if a[:1] == ("layers",)}
    flat = {stream: by_path(tree) for stream, tree in gradients.items()}
    products = {
        pair: _products(flat[pair[0]], flat[pair[1]], stacked)
        for pair in itertools.combinations_with_replacement(flat, 2)
    }
    found = {}
    for (one, other), by_place in products.items():
        for place, product in by_place.items():
            if one == other:
                found[f"gradient_norm_{one}_{place}"] = jnp.sqrt(product)
            else:
                lengths = products[one, one][place] * products[other, other][place]
                found[f"gradient_cosine_{one}_{other}_{place}"] = product / jnp.sqrt(jnp.maximum(lengths, EPSILON))
    return found


def _products(
    one: Mapping[str, jax.Array], other: Mapping[str, jax.Array], stacked: Mapping[str, str]
) -> dict[str, jax.Array]:
    """The inner products of two gradients, per trunk [layers], and of all that is in no layer."""
    found: dict[str, jax.Array] = {}
    for path, x in one.items():
        product = x.astype(jnp.float32) * other[path].astype(jnp.float32)
        place = stacked.get(path, PARTS)
        total = product.sum() if place == PARTS else product.reshape(len(product), -1).sum(1)
        found[place] = found[place] + total if place in found else total
    return found


def _trunk_of(path: str) -> str:
    """The trunk whose layers a stacked parameter has: 'trunk', or the name of a later stage.

    A second attention is in a few of the layers only, and counts as none of them.
    """
    names = path.split("/")
    where, *rest = names[1:] if names[0] == "stages" else names
    return PARTS if rest[0].startswith("dual") else where


# --- the trunk --------------------------------------------------------------------------------------------------------


def _growth(where: str, loads: Loads, width: int) -> dict[str, jax.Array]:
    """Root mean squares of outputs, queries and keys, by layer."""
    found = {}
    for name, size in ((OUTPUT, width), (QUERY, 1), (KEY, 1)):
        for stream, sums in loads.get(name, {}).items():
            mean = sums[:, 0] / jnp.maximum(sums[:, 1], 1) / size
            found[f"{name.removeprefix('seen_')}_{stream}_{where}"] = jnp.sqrt(mean)
    return found


def _busiest(where: str, loads: Loads) -> dict[str, jax.Array]:
    """How much more than an even share the busiest expert of each routed layer has, by layer."""
    found = {}
    for name, of_stream in loads.items():
        for stream, counts in of_stream.items() if name not in SEEN else ():
            share = counts.max(1) / jnp.maximum(counts.sum(1), 1)
            found[f"load_{name}_{stream}_{where}"] = share * counts.shape[1]
    return found
