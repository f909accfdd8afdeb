"""Estimates the cost of a training step from shapes alone, and searches for a sharding.

State and collectives follow from the table of shardings. Temporaries are the sum of the large arrays that are alive at
once; a compiler may do better or worse. If a program can be compiled, that decides.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import AbstractMesh

from transfusion.config import Experiment
from transfusion.errors import UsageError
from transfusion.model.attention import BACKENDS, chosen
from transfusion.model.config import TransformerConfig
from transfusion.objectives.next_token import chunk_of
from transfusion.optim import split
from transfusion.planning.cost import USABLE, Bounds, Cost, bounds
from transfusion.planning.hlo import Collective, Program
from transfusion.running.chips import Topology
from transfusion.sharding import AXES, RULES, abstract_mesh, check_activations, partition
from transfusion.tasks import SequenceTask

FLOAT32 = 4
# Arrays of scores [rows, heads, L, L] in float32 that are alive at once in dense attention's backward pass.
SCORE_ARRAYS = 3


@dataclasses.dataclass(frozen=True)
class Sharding:
    """The number of devices along each axis of the mesh, the rows of the whole batch, and its microbatches."""

    data: int
    fsdp: int
    tensor: int
    batch: int
    accumulate: int = 1
    context: int = 1
    slice: int = 1
    expert: int = 1

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes of the mesh's axes."""
        return {name: getattr(self, name) for name in AXES}

    @property
    def mesh(self) -> AbstractMesh:
        return abstract_mesh(self.sizes)

    @property
    def gathered(self) -> "Sharding":
        """The sharding of parameters that are in use: they are split along the axes 'tensor' and 'expert' only."""
        return dataclasses.replace(self, data=self.data * self.fsdp * self.context, fsdp=1, context=1)

    @property
    def rows(self) -> int:
        """Rows of the batch on one device."""
        return self.batch // math.prod(self.sizes[name] for name in RULES["batch"])

    def of(self, experiment: Experiment) -> Experiment:
        """The experiment with this mesh, batch and microbatches."""
        mesh = dataclasses.replace(experiment.mesh, **self.sizes)
        optim = dataclasses.replace(experiment.optim, accumulate=self.accumulate)
        return dataclasses.replace(experiment, mesh=mesh, optim=optim, batch_size=self.batch)


def sharding_of(experiment: Experiment, devices: int, slices: int = 1) -> Sharding:
    """The config's own sharding on `devices` devices in `slices` slices.

    Raises:
      UsageError: if the mesh does not multiply to the number of devices, or the rows do not divide.
    """
    sizes = experiment.mesh.sizes(devices, slices)
    found = Sharding(**sizes, batch=experiment.batch_size, accumulate=experiment.optim.accumulate)
    parts = found.accumulate * math.prod(found.sizes[name] for name in RULES["batch"])
    if found.batch % parts:
        raise UsageError(
            f"batch_size {found.batch} does not divide over {parts} (devices of slice, data, fsdp and expert, "
            "microbatches)"
        )
    return found


def local_bytes(axes: Any, shapes: Any, mesh: AbstractMesh) -> float:
    """Bytes of a tree of parameters on one device."""

    def one(path, leaf, leaf_axes):
        spec = partition(leaf_axes, leaf.shape, mesh, jax.tree_util.keystr(path))
        names = [name for entry in spec if entry for name in ((entry,) if isinstance(entry, str) else entry)]
        return leaf.size * leaf.dtype.itemsize / math.prod(mesh.shape[name] for name in names)

    return sum(jax.tree.leaves(jax.tree_util.tree_map_with_path(one, shapes, axes)))


def state_bytes(task: SequenceTask, experiment: Experiment, on: Sharding) -> dict[str, float]:
    """Bytes on one device of the parameters, the optimizer (moments that are not offloaded, average) and gradients."""
    optim, both = experiment.optim, (task.template.axes, task.template.shapes)
    params, trained = (
        local_bytes(*both, on.mesh),
        local_bytes(*(split(tree, optim.groups)[0] for tree in both), on.mesh),
    )
    moments = 0.0 if optim.offload else 2 * trained
    return {"parameters": params, "optimizer": moments + (params if optim.ema else 0.0), "gradients": trained}


def input_bytes(task: SequenceTask, on: Sharding) -> float:
    """Bytes of a device's rows of the batch."""
    return on.rows * sum(s.size * s.dtype.itemsize for s in jax.tree.leaves(task.batch_spec(1)))


def estimate(task: SequenceTask, experiment: Experiment, on: Sharding, topology: Topology, scale: float = 1.0) -> Cost:
    """The estimated cost of a training step. `scale` corrects the temporaries, as a compiled program showed it.

    Raises:
      UsageError: if an activation or a parameter does not divide.
    """
    check_activations(task.activations(on.batch // on.accumulate), on.mesh)
    state = state_bytes(task, experiment, on)
    arguments = state["parameters"] + state["optimizer"] + input_bytes(task, on)
    temporaries = scale * (state["gradients"] + _activations(task, on, topology) + _weights(task, on))
    program = Program(tuple(_collectives(task, on, topology)), 0)
    peak = arguments + temporaries
    fits = peak <= USABLE * topology.spec.memory
    return Cost("from shapes", arguments, temporaries, peak, fits, program, "from shapes")


def _trunks(task: SequenceTask) -> Iterator[tuple[TransformerConfig, int]]:
    """Yields each trunk with the number of tokens of a row that pass through it."""
    for config in (task.model, *(stage.trunk for stage in task.model.stages.values())):
        inside = config.streams or tuple(task.spec.streams)
        yield config, sum(task.spec.streams[name].budget for name in inside)


def _activations(task: SequenceTask, on: Sharding, topology: Topology) -> float:
    """Bytes of a microbatch's activations: those kept for the backward pass, one layer's own arrays, and logits."""
    kept, layer, rows = 0.0, 0.0, on.rows // on.accumulate
    for config, length in _trunks(task):
        width = 2 if config.dtype == "bfloat16" else FLOAT32
        heads, hidden = max(config.heads // on.tensor, 1), config.hidden_of_token / on.tensor
        share = length / on.context
        attention = BACKENDS[chosen(config.attention, "tpu" if topology.is_tpu else "gpu")]
        scores = SCORE_ARRAYS * FLOAT32 * heads * share * length * attention.quadratic
        own = share * (2 * heads * config.size + 3 * hidden + 2 * config.width)
        inner = rows * (scores + 3 * width * own)
        outer = rows * share * config.width * width
        of_remat = {"full": 0.0, "dots": rows * width * own, "none": inner}
        kept += config.layers * (outer + of_remat[config.remat])
        layer = max(layer, inner)
    heads, chunk = [s for s in task.spec.streams.values() if s.head != "none"], task.objectives.next_token.chunk
    logits = sum(s.budget * (chunk_of(s.vocabulary, chunk) or s.vocabulary) for s in heads)
    return kept + max(layer, 3 * FLOAT32 * rows * logits / on.tensor / on.context)


def _weights(task: SequenceTask, on: Sharding) -> float:
    """Bytes of one layer's gathered weights, its gradients before they are scattered, and the largest table."""
    if on.fsdp * on.context == 1:
        return 0.0
    whole = on.gathered.mesh
    trunks = (tree["trunk"] for tree in (task.template.axes, task.template.shapes))
    axes, shapes = ({n: tree[n] for n in ("blocks", "feed_forwards") if n in tree} for tree in trunks)
    layer = local_bytes(axes, shapes, whole) / task.model.layers
    tables = [leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(task.template.shapes["parts"])]
    return 2 * layer + 2 * max(tables) / on.tensor


def _collectives(task: SequenceTask, on: Sharding, topology: Topology) -> Iterator[Collective]:
    """Yields the collectives of a step.

    Weights are gathered for the forward and for the backward pass, gradients are summed, tensor parallelism sums
    activations, and context parallelism gathers keys and values. Expert parallelism gathers tokens, and scatters the
    outputs of the experts that they chose.
    """
    parts, far, reach = on.accumulate, {}, 1
    for axis in reversed(AXES):  # neighbours lie along the last axis
        reach *= on.sizes[axis]
        far[axis] = reach > topology.domain
    size = local_bytes(task.template.axes, task.template.shapes, on.gathered.mesh)
    width = 2 if task.model.dtype == "bfloat16" else FLOAT32
    split = on.fsdp * on.context
    if split > 1:
        yield Collective("all-gather", round(size * width / FLOAT32), split, far["fsdp"], 2 * parts)
        yield Collective("reduce-scatter", round(size), split, far["fsdp"], parts)
    for axis in ("data", "slice"):
        if on.sizes[axis] > 1:
            yield Collective("all-reduce", round(size / split), on.sizes[axis], far[axis], parts)
    if on.expert > 1:
        trees = (task.template.axes, task.template.shapes)
        rest = size - local_bytes(*(t["trunk"].get("feed_forwards", {}) for t in trees), on.gathered.mesh)
        yield Collective("all-reduce", round(rest / split), on.expert, far["expert"], parts)
    for config, length in _trunks(task):
        runs, again = config.layers * parts, config.remat != "none"
        tokens = on.rows // parts * length * width
        if on.tensor > 1:
            sent = round(tokens * config.width / on.context)
            yield Collective("all-reduce", sent, on.tensor, far["tensor"], (6 if again else 4) * runs)
        if on.context > 1:
            sent = round(tokens * 2 * config.groups * config.size / on.tensor)
            yield Collective("all-gather", sent, on.context, far["context"], (2 if again else 1) * runs)
            yield Collective("reduce-scatter", sent, on.context, far["context"], runs)
        taken = sum(layer.choices for layer in config.feed_forwards.values())
        if on.expert > 1 and taken:
            sent = round(on.expert * tokens * config.width / on.context)
            yield Collective("all-gather", (1 + taken) * sent, on.expert, far["expert"], (2 if again else 1) * runs)
            yield Collective("reduce-scatter", (1 + taken) * sent, on.expert, far["expert"], runs)


# --- search -----------------------------------------------------------------------------------------------------------


def shardings(devices: int, slices: int, batch: int, accumulate: int, expert: int = 1) -> Iterator[Sharding]:
    """Yields all shardings with powers of two along the axes tensor, context and data, and `expert` as it is.

    Rows are split over a context only if each device has just one row.
    """
    for tensor, context in itertools.product((2**i for i in range(6)), (1, 2, 4, 8)):
        for data in (2**i for i in range(devices.bit_length())):
            fsdp = devices // (slices * data * expert * tensor * context)
            on = Sharding(data, fsdp, tensor, batch, accumulate, context, slices, expert)
            parts = accumulate * slices * data * fsdp * expert
            whole = math.prod(on.sizes.values()) == devices and batch % parts == 0
            if whole and (context == 1 or on.rows == accumulate):
                yield on


def search(
    task: SequenceTask, experiment: Experiment, topology: Topology, row_flops: float, scale: float = 1.0
) -> list[tuple[Sharding, Cost, Bounds]]:
    """The shardings of the config's batch that fit, the fastest first: by the roofline, then without any overlap.

    `row_flops` are the model FLOPs of a step on one row.

    More microbatches than the config's are tried only if nothing fits otherwise.
    """
    batch, parts = experiment.batch_size, experiment.optim.accumulate
    flops, found = row_flops * batch, []
    while not found and batch % parts == 0:
        for on in shardings(topology.devices, topology.slices, batch, parts, max(experiment.mesh.expert, 1)):
            try:
                cost = estimate(task, experiment, on, topology, scale)
            except UsageError:  # some parameter does not divide
                continue
            if cost.fits:
                found.append((on, cost, bounds(cost, flops, task.model.remat, topology)))
        parts *= 2
    return sorted(found, key=lambda one: (one[2].step, one[2].total))


def largest_batch(
    task: SequenceTask, experiment: Experiment, on: Sharding, topology: Topology, scale: float = 1.0
) -> Sharding | None:
    """The sharding with the most rows per device (a power of two) that fit; None if not even one row fits."""
    best, rows = None, on.accumulate * math.prod(on.sizes[name] for name in RULES["batch"])
    while True:
        larger = dataclasses.replace(on, batch=rows)
        if not estimate(task, experiment, larger, topology, scale).fits:
            return best
        best, rows = larger, 2 * rows
