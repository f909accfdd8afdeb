"""Compiles every program of `gpu.py` for a GPU that is not there, so that the card's time is not spent on mistakes."""

import functools
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import gpu_parts
import jax
import record
import settings
import subjects
from jax.sharding import NamedSharding, PartitionSpec

from transfusion import sharding
from transfusion.errors import UsageError
from transfusion.planning import compiled, gpus
from transfusion.planning.assembly import compile_for_gpu, uses_text
from transfusion.running.chips import parse_topology
from transfusion.sampling.settings import machine_of
from transfusion.tasks import make_task

Lower = Callable[[], Any]


def programs(chip: str) -> Iterator[tuple[str, Lower]]:
    """The name of each program, and what lowers it for the chip."""
    devices = gpus.gpu_devices(parse_topology(f"{chip}:1"))
    mesh = sharding.make_mesh(sharding.MeshConfig(data=1, fsdp=1), devices)

    def lower(function: Callable[..., Any], inputs: list[Any], wide: bool = False) -> Any:
        whole = NamedSharding(mesh, PartitionSpec())
        placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), inputs)
        with jax.set_mesh(mesh), jax.enable_x64(wide):
            return jax.jit(function).lower(*placed)

    for name, function, shapes in gpu_parts.card_programs():
        yield name, functools.partial(lower, function, shapes)
    for size in (128, 64):
        mask = jax.ShapeDtypeStruct((2, 4096, 4096), bool)
        inputs = [*subjects.arrays(4096, 2, size), mask]
        yield f"correct/{size}", functools.partial(lower, subjects.exact, inputs, True)
    for case in gpu_parts.cases():
        yield case.name, lambda case=case: lower(case.function, case.shapes())
    for name, experiment in gpu_parts.steps_of():
        on = sharding.make_mesh(experiment.mesh, devices)
        task = make_task(experiment)
        yield name, functools.partial(compiled.lowered_step, task, experiment, on)
    for work, rows in settings.WORKS:
        experiment = settings.sampled(subjects.experiment(settings.SIZE, 1), work)
        on, task = sharding.make_mesh(experiment.mesh, devices), make_task(experiment)
        decoder = functools.partial(compiled.lowered_sampler, task, experiment, on, machine_of("gpu"), rows)
        yield f"sampler/now/{work}/{rows}", decoder


def rehearse(out: pathlib.Path, chip: str) -> None:
    """Writes a line for each program: its bytes on the device and what its kernels take, or why it does not compile.

    Raises:
      UsageError: if the compiler for GPUs is not installed.
    """
    jax.config.update("jax_platforms", "cpu")
    if missing := gpus.missing():
        raise UsageError(missing)
    done = record.read(out)
    for name, lower in programs(chip):
        if "temporaries" in done.get(name, {}):  # a rehearsal that was interrupted goes on
            continue
        start = time.process_time()
        try:
            program, kernels = compile_for_gpu(lower())
        except Exception as error:  # of any kind: the other programs are rehearsed all the same
            record.write(out, name, error=" ".join(str(error).split())[:300])
            continue
        memory = program.memory_analysis()
        sizes = {"arguments": memory.argument_size_in_bytes, "temporaries": memory.temp_size_in_bytes}
        record.write(
            out, name, chip=chip, **sizes, kernels=uses_text(kernels), processor_seconds=time.process_time() - start
        )
        jax.clear_caches()
