"""Compiles the real training step and sampler for devices that need not be there, and reads what they cost."""

import dataclasses
import importlib.util
import math
import os
import re
import time
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import topologies
from jax.sharding import Mesh

from transfusion import sharding
from transfusion.config import Experiment
from transfusion.errors import UsageError
from transfusion.planning import gpus
from transfusion.planning.assembly import compile_for_gpu
from transfusion.planning.cost import UNKNOWN, USABLE, Cost
from transfusion.planning.hlo import NotUnderstood, Program, read_program
from transfusion.running.chips import GIB, Topology
from transfusion.sampling.conditions import conditions_of
from transfusion.sampling.decoder import decoder_of
from transfusion.sampling.prompts import Prompt, prefill_of
from transfusion.sampling.settings import Machine, machine_of
from transfusion.sampling.state import row_keys
from transfusion.sequence import Segment
from transfusion.tasks import SequenceTask
from transfusion.training.step import abstract_state, jit_step, state_shardings

# Without these settings libtpu looks for the machine's TPUs and reports at length that there are none. A second program
# that compiles at the same time would be refused, as if both wanted the same TPUs.
QUIET = {
    "TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-4", "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}  # fmt: skip
PROMPT = 64  # text tokens of the sampler's prompts


def can_compile(topology: Topology) -> str:
    """Says what is missing to compile programs for `topology` here; '' if nothing is."""
    if not topology.is_tpu:
        return gpus.missing()
    if importlib.util.find_spec("libtpu") is None:
        return "libtpu is not installed: pip install 'transfusion[tpu]'"
    return ""


def devices_of(topology: Topology) -> list[jax.Device]:
    """The devices of a topology, slice by slice; they can be compiled for, and hold no arrays.

    Raises:
      UsageError: if the compiler does not know the topology.
    """
    return _tpu_devices(topology) if topology.is_tpu else gpus.gpu_devices(topology)


def _tpu_devices(topology: Topology) -> list[jax.Device]:
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    more = {"num_slices": topology.slices} if topology.slices > 1 else {}
    try:
        found = topologies.get_topology_desc(f"{topology.chip}:{topology.shape}", "tpu", **more)
    except (jax.errors.JaxRuntimeError, NotImplementedError, ValueError) as error:
        raise UsageError(f"libtpu gives no topology {topology.name}: {error}") from error
    return sorted(found.devices, key=lambda device: (getattr(device, "slice_index", 0), device.id))


def compile_step(task: SequenceTask, experiment: Experiment, mesh: Mesh, topology: Topology) -> Cost:
    """The cost of the training step of `transfusion.train` on `mesh`, whose devices are as many as the topology's."""
    return _cost(lowered_step(task, experiment, mesh), mesh, topology)


def lowered_step(task: SequenceTask, experiment: Experiment, mesh: Mesh) -> jax.stages.Lowered:
    """The training step of `transfusion.train` for `mesh`, not compiled yet."""
    spec = task.batch_spec(experiment.batch_size)
    rows = sharding.batch_shardings(spec, mesh)
    # Says for which devices the kernels of attention are. No array can be made on devices that are not there, so the
    # mesh is abstract until the step is lowered.
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        shardings = state_shardings(task, experiment, mesh)
        state = abstract_state(task, experiment, shardings)
    with jax.set_mesh(mesh):
        return jit_step(task, experiment, shardings, rows).lower(state, _placed(spec, rows))


def compile_sampler(task: SequenceTask, experiment: Experiment, mesh: Mesh, topology: Topology) -> Cost:
    """The cost of one call of the decoder, with a text prompt for every device along the data axes."""
    # As a scan over the layers, which takes as much memory as unrolled layers and less time to compile.
    machine = dataclasses.replace(machine_of("tpu" if topology.is_tpu else "gpu"), unrolled=0)
    rows = math.prod(mesh.shape[axis] for axis in sharding.RULES["batch"])
    return _cost(lowered_sampler(task, experiment, mesh, machine, rows), mesh, topology)


def lowered_sampler(
    task: SequenceTask, experiment: Experiment, mesh: Mesh, machine: Machine, rows: int
) -> jax.stages.Lowered:
    """One call of the decoder for `rows` text prompts on `machine`, not compiled yet."""
    made, settings = decoder_of(task, experiment.sampling, (0, 0))
    made = dataclasses.replace(made, machine=machine)
    text = Segment("text", np.zeros(PROMPT, np.int32))
    first = made.drawables[0].kind if made.drawables else ""
    prompts = [Prompt((text,), draw=bool(made.drawables), kind=first)] * rows
    given = prefill_of(prompts, task.spec, made.drawables)
    conditions = conditions_of(prompts, task.spec, made.drawables, experiment.sampling)
    keys = jax.eval_shape(lambda: row_keys(0, np.arange(rows)))
    params = sharding.tree_shardings(task.template.axes, task.template.shapes, mesh)
    given, keys = (_placed(tree, sharding.batch_shardings(tree, mesh)) for tree in (given, keys))
    with jax.set_mesh(mesh):
        return made.whole.lower(_placed(task.template.shapes, params), given, conditions, keys, settings)


def _placed(tree: Any, shardings: Any) -> Any:
    return jax.tree.map(lambda s, on: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=on), tree, shardings)


def _cost(lowered: Any, mesh: Mesh, topology: Topology) -> Cost:
    start, kernels = time.perf_counter(), ()
    try:
        if mesh.devices.flat[0].platform == "gpu":
            compiled, kernels = compile_for_gpu(lowered)
        else:
            compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        used = re.search(r"Used ([\d.]+)([GM]) of", str(error))
        if used is None:
            raise
        peak = float(used[1]) * (GIB if used[2] == "G" else 2**20)
        return Cost("compiled", 0.0, peak, peak, False, Program((), 0), "none", time.perf_counter() - start)
    memory = compiled.memory_analysis()
    program, source = _collectives(compiled, mesh.size, topology)
    arguments, temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    # The peak is all that the program reserves. On TPUs the compiler's own `peak_memory_in_bytes` ignores arguments.
    peak = arguments + temporaries + memory.output_size_in_bytes - memory.alias_size_in_bytes
    # Only the compiler for TPUs refuses a program that is too large.
    fits = topology.is_tpu or peak <= USABLE * topology.spec.memory
    return Cost("compiled", arguments, temporaries, peak, fits, program, source, time.perf_counter() - start, kernels)


def _collectives(compiled: Any, devices: int, topology: Topology) -> tuple[Program, str]:
    """The collectives of a compiled program, and how they are known; none, and 'unknown', if its text cannot be had (as
    libtpu's for some topologies) or is not understood."""
    try:
        return read_program(compiled.as_text(), devices, topology.domain), "compiled"
    except jax.errors.JaxRuntimeError:
        return Program((), 0), UNKNOWN
    except NotUnderstood as error:
        logging.warning("the text of the compiled program is not understood (jax %s): %s", jax.__version__, error)
        return Program((), 0), UNKNOWN


def with_estimate(cost: Cost, guess: Cost) -> Cost:
    """The compiled cost. What the compiler does not give, or writes in a text that is not understood, is taken from the
    estimate `guess`, and said to be."""
    if cost.collectives == "compiled":
        return cost
    if cost.fits:
        return dataclasses.replace(cost, program=guess.program, collectives="from shapes")
    left = max(cost.peak - guess.arguments, 0.0)
    return dataclasses.replace(
        cost, arguments=guess.arguments, temporaries=left, program=guess.program, collectives="from shapes"
    )
