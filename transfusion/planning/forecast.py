"""Says what a training would do, before it does it: parameters, rows, FLOPs, memory and time. It writes nothing.

The devices are those of this machine; `transfusion.plan` answers for others.
"""

import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from transfusion import sharding
from transfusion.config import Experiment
from transfusion.optim import split
from transfusion.running.chips import GIB, chip_of
from transfusion.running.metrics import human, read_metrics
from transfusion.running.throughput import peak_flops
from transfusion.tasks import Task, make_task
from transfusion.training.step import abstract_state, state_shardings
from transfusion.workdir import resume

ROWS = 64  # rows of the data that are read: enough to tell how full they are


@dataclasses.dataclass(frozen=True)
class Forecast:
    """What a training would do.

    Attributes:
      workdir: where; '' if that was not asked.
      start: the step that it continues from.
      steps: how many steps it makes in all.
      changes: fields that differ from those of the run that it continues, in words.
      parameters: how many there are, by part of the model.
      trained: how many of them are trained.
      rows: rows of a step, over all devices.
      tokens: tokens of a row, by stream; empty for a codec.
      records: how many records each source has.
      filled: the share of each budget that packing fills, and of 'all'.
      bad: of the records that were read, what is wrong by name.
      step_flops: model FLOPs of a step, counted on the rows that were read.
      devices: the devices, in words.
      state: bytes on one device of the parameters with their average and the optimizer, and of the gradients.
      device_memory: bytes of one device; None if that is not known.
      seconds: of a step; None if that is not known.
      seconds_how: why the time is what it is, or is not known.
    """

    workdir: str
    start: int
    steps: int
    changes: tuple[str, ...]
    parameters: dict[str, int]
    trained: int
    rows: int
    tokens: dict[str, int]
    records: dict[str, int]
    filled: dict[str, float]
    bad: dict[str, str]
    step_flops: float
    devices: str
    state: int
    device_memory: int | None
    seconds: float | None
    seconds_how: str


def forecast(experiment: Experiment, workdir: str | os.PathLike = "") -> Forecast:
    """What training this experiment in a workdir would do.

    Raises:
      UsageError: as the training would: if the config, the data or the checkpoints cannot be used.
    """
    task = make_task(experiment)
    continued = resume.compare(experiment, workdir) if workdir else None
    shapes, trained = task.template.shapes, split(task.template.shapes, experiment.optim.groups)[0]
    read = _read(task, experiment)
    flops = read.pop("step_flops")
    devices = jax.devices()
    chip = chip_of(devices[0].device_kind) if devices[0].platform != "cpu" else None
    seconds, how = _seconds(workdir, flops)
    streams = getattr(task, "spec", None)
    return Forecast(
        workdir=os.fspath(workdir),
        start=continued.step if continued else 0,
        steps=experiment.steps,
        changes=tuple(map(str, continued.changes)) if continued else (),
        parameters={name: _count(part) for name, part in _parts(shapes)},
        trained=_count(trained),
        rows=experiment.batch_size,
        tokens={name: stream.budget for name, stream in streams.streams.items()} if streams else {},
        **read,
        step_flops=flops,
        devices=f"{len(devices)} x {devices[0].device_kind}",
        state=_state_bytes(task, experiment),
        device_memory=chip[1].memory if chip else None,
        seconds=seconds,
        seconds_how=how,
    )


def _parts(shapes: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The parts of a model: those of each stream one by one, as they are what configs change."""
    return [
        (f"{name}/{inner}" if name == "parts" else name, tree)
        for name, part in shapes.items()
        for inner, tree in (part.items() if name == "parts" else (("", part),))
    ]


def _count(tree: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def _read(task: Task, experiment: Experiment) -> dict[str, Any]:
    """What the first rows of the data tell."""
    quiet = dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, prefetch=0))
    lanes = min(ROWS, experiment.batch_size)
    flops = []
    with task.open_data(quiet, range(lanes)) as data:
        for _ in range(-(-ROWS // lanes)):
            flops.append(task.flops(next(data)))
        stats = data.stats()
        records = {name: len(source) for name, source in data.sources.items()}
    return {
        "step_flops": float(np.mean(np.concatenate(flops))) * experiment.batch_size,
        "records": records, "filled": stats["efficiency"], "bad": stats["errors"],
    }  # fmt: skip


def _state_bytes(task: Task, experiment: Experiment) -> int:
    """Bytes of the train state and of the gradients on one device of this machine."""
    mesh = sharding.make_mesh(experiment.mesh)
    with jax.set_mesh(mesh):
        state = abstract_state(task, experiment, state_shardings(task, experiment, mesh))
    gradients, _ = split(state.params, experiment.optim.groups)
    leaves = jax.tree.leaves((state, gradients))
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def _seconds(workdir: str | os.PathLike, step_flops: float) -> tuple[float | None, str]:
    """Seconds of a step and how they are known: from the run so far, or from the peak of the devices."""
    rows = read_metrics(epath.Path(workdir) / "metrics.jsonl") if workdir else []
    known = [row["seconds_per_step"] for row in rows if row.get("seconds_per_step")]
    if known:
        return float(np.median(known)), "as its steps so far"
    if peak := peak_flops():
        return step_flops / peak, "at least, at the full peak of the devices"
    return None, "is known after its first steps; a CPU has no data sheet"


def text(found: Forecast) -> str:
    """The forecast as lines that people read."""
    left = found.steps - found.start
    total = sum(found.parameters.values())
    frozen = f", of which {found.trained:,} are trained" if found.trained != total else ""
    where = f" in {found.workdir}" if found.workdir else ""
    begins = f"continues{where} at step {found.start}" if found.start else f"a new run{where}"
    lines = [f"training    {begins}: {left:,} of {found.steps:,} steps are to be made"]
    lines += [f"            {change}" for change in found.changes]
    lines.append(f"parameters  {total:,}{frozen}")
    lines += [f"            {name:<16}{count:,}" for name, count in found.parameters.items()]
    if found.tokens:
        shares = {name: f"{budget} {name}" for name, budget in found.tokens.items()}
        lines.append(f"rows        {found.rows} a step, each of {', '.join(shares.values())} tokens")
        filled = ", ".join(f"{name} {share:.0%}" for name, share in found.filled.items() if name != "all")
        lines.append(f"            filled to {found.filled['all']:.0%} ({filled})")
    else:
        lines.append(f"rows        {found.rows} images a step")
    lines.append("data        " + ", ".join(f"{count:,} records of {name}" for name, count in found.records.items()))
    lines += [f"            left out: {name}: {error}" for name, error in [*found.bad.items()][:5]]
    flops = f"{human(found.step_flops)} a step, {human(found.step_flops * left)} in all"
    lines.append(f"FLOPs       {flops}, counted on the first rows")
    memory = f" of {found.device_memory / GIB:.0f} GiB" if found.device_memory else ""
    size = f"{found.state / GIB:.2f} GiB" if found.state > GIB / 10 else f"{found.state / 2**20:.1f} MiB"
    lines.append(f"memory      {size}{memory} on each device for the state and its gradients; activations come on top")
    lines.append(f"devices     {found.devices}")
    time = "not known: it " if found.seconds is None else f"{_duration(found.seconds * left)}, "
    return "\n".join([*lines, f"time        {time}{found.seconds_how}"])


def _duration(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if hours < 2 else f"{hours:.1f} h"
