"""Plans a training on a pod that is not at hand: memory, FLOPs, collectives, the least time of a step, a sharding.

  python -m transfusion.plan --config configs/transfusion_paper.py:7B --topology v5p:8x8x8
  python -m transfusion.plan --config configs/bagel.py:7b --topology v5e:16x16,v6e:16x16 --table --json plan.json

The training step is the one that `transfusion.train` runs. It is compiled for the devices, where the compiler is
installed (`pip install 'transfusion[tpu]'`, and `'transfusion[plan-gpu]'` for NVIDIA's GPUs); otherwise everything is
estimated from shapes. The report says which of the two it was. Nothing runs, and no accelerator is needed.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from absl import flags, logging
from ml_collections import config_flags

from transfusion import programs, storage
from transfusion.config import Experiment
from transfusion.errors import UsageError
from transfusion.planning import compiled, shapes
from transfusion.planning.assembly import KernelUse, uses_text
from transfusion.planning.cost import UNKNOWN, Cost, bounds
from transfusion.planning.shapes import Sharding
from transfusion.running.chips import GIB, Topology, parse_topology
from transfusion.sharding import AXES, RULES, make_mesh
from transfusion.tasks import SequenceTask, flops_of_data, make_task

COUNTED_ROWS = 16  # of the data, for the FLOPs of a step


@dataclasses.dataclass(frozen=True)
class Compilation:
    """How much of a plan is compiled; the rest is estimated from shapes.

    Attributes:
      compile: whether to compile at all.
      sampler: whether to compile the sampler too.
      confirm: whether to compile the suggestion too.
    """

    compile: bool = True
    sampler: bool = True
    confirm: bool = True


def plan(experiment: Experiment, topology: Topology, compilation: Compilation) -> dict[str, Any]:
    """The plan of one topology, as the JSON file holds it; bytes are those of one device.

    Raises:
      UsageError: if the config's mesh or batch does not fit the number of devices.
    """
    task = make_task(experiment)
    if not isinstance(task, SequenceTask):
        raise UsageError("task: plans are for sequences, not for an 'autoencoder'")
    on = shapes.sharding_of(experiment, topology.devices, topology.slices)
    row_flops, counted_on = flops_of_row(task, experiment)
    missing = compiled.can_compile(topology) if compilation.compile else "as asked"
    devices = [] if missing else compiled.devices_of(topology)

    def cost_of(on: Sharding, scale: float = 1.0) -> Cost:
        guess = shapes.estimate(task, experiment, on, topology, scale)
        if missing:
            return guess
        changed = on.of(experiment)
        mesh = make_mesh(changed.mesh, devices)
        return compiled.with_estimate(compiled.compile_step(task, changed, mesh, topology), guess)

    cost = cost_of(on)
    result = {"topology": topology.name, "devices": topology.devices, "not_compiled_because": missing}
    result |= {"chip_memory": topology.spec.memory, "tokens_per_row": task.tokens(1), "flops_counted_on": counted_on}
    result |= {
        "state": shapes.state_bytes(task, experiment, on),
        "step": _described(task, on, cost, topology, row_flops),
    }
    if compilation.sampler and not missing:
        mesh = make_mesh(on.of(experiment).mesh, devices)
        sampler = compiled.compile_sampler(task, experiment, mesh, topology)
        result["sampler"] = _memory(sampler) | _collectives(sampler)
    # The estimate is taken to be as far off for other programs as it was for this one.
    scale = cost.temporaries / shapes.estimate(task, experiment, on, topology).temporaries
    larger = shapes.largest_batch(task, experiment, on, topology, scale)
    result["largest_batch"] = larger.batch if larger else 0
    found = shapes.search(task, experiment, topology, row_flops, scale)
    if found:
        best, guess, _ = found[0]
        again = cost if best == on else cost_of(best, scale) if compilation.confirm else guess
        most = shapes.largest_batch(task, experiment, best, topology, scale)
        described = _described(task, best, again, topology, row_flops)
        result["suggestion"] = described | {"largest_batch": most.batch if most else 0}
    return result


def flops_of_row(task: SequenceTask, experiment: Experiment) -> tuple[float, str]:
    """The model FLOPs of a row, and in words on which rows they were counted.

    Attention costs what the documents of a row let their tokens see, so only the data can tell. Without them each row
    is taken as one document, which is more than packed rows need.
    """
    try:
        return flops_of_data(task, experiment, COUNTED_ROWS), f"the first {COUNTED_ROWS} packed rows of the data"
    except UsageError as error:
        counted_on = f"rows of one document each, an upper bound, for the data cannot be read: {error}"
        return task.flops_of_one_document(), counted_on


def _described(task: SequenceTask, on: Sharding, cost: Cost, topology: Topology, row_flops: float) -> dict[str, Any]:
    flops = row_flops * on.batch
    least = bounds(cost, flops, task.model.remat, topology)
    ideal = flops / topology.devices / topology.spec.flops
    times = dataclasses.asdict(least) | {"step": least.step, "by": least.by, "utilisation": ideal / least.step}
    return dataclasses.asdict(on) | _memory(cost) | {"flops": flops} | _collectives(cost) | {"seconds_at_least": times}


def _memory(cost: Cost) -> dict[str, Any]:
    names = ("how", "arguments", "temporaries", "peak", "fits")
    result = {name: getattr(cost, name) for name in names} | {"compile_seconds": round(cost.seconds, 1)}
    return result | {"kernels": [dataclasses.asdict(kernel) for kernel in cost.kernels]}


def _collectives(cost: Cost) -> dict[str, Any]:
    program = cost.program
    if cost.collectives == UNKNOWN:
        names = ("collectives", "bytes_sent", "bytes_sent_between_slices", "loops_of_unknown_length")
        return dict.fromkeys(names) | {"collectives_how": UNKNOWN}
    return {
        "collectives": program.by_kind(),
        "collectives_how": cost.collectives,
        "bytes_sent": program.bytes_sent(),
        "bytes_sent_between_slices": program.bytes_sent(far=True),
        "loops_of_unknown_length": program.unknown_loops,
    }


# --- words ------------------------------------------------------------------------------------------------------------


def plan_text(result: Mapping[str, Any]) -> str:
    """The plan as lines that people read."""
    memory = result["chip_memory"] / GIB
    lines = [f"{result['topology']}: {result['devices']} devices of {memory:.0f} GiB"]
    if result["not_compiled_because"]:
        lines.append(f"  from shapes only: {result['not_compiled_because']}")
    state = {name: f"{size / GIB:.2f} GiB" for name, size in result["state"].items()}
    lines += ["training step, " + _sharding(result["step"], result["tokens_per_row"])]
    lines += [f"  state        parameters {state['parameters']}, optimizer and average {state['optimizer']} per device"]
    lines += _step_lines(result["step"], memory)
    lines.append(f"               FLOPs counted on {result['flops_counted_on']}")
    if sampler := result.get("sampler"):
        lines += ["sampler, one prompt per device of slice, data, fsdp and expert", *_memory_lines(sampler, memory)]
        loops = sampler["loops_of_unknown_length"] or 0
        lines += _collective_lines(sampler) + [f"               {loops} loops over tokens or steps counted once"] * (
            loops > 0
        )
    lines.append(f"largest batch  {result['largest_batch']} rows with this sharding (shapes, scaled to the step above)")
    if suggestion := result.get("suggestion"):
        lines += ["suggested: " + _sharding(suggestion, result["tokens_per_row"]), *_step_lines(suggestion, memory)]
        lines.append(f"  largest batch {suggestion['largest_batch']} rows")
    else:
        lines.append("suggested: none, no sharding of this batch fits; take more devices, remat 'full' or fewer tokens")
    return "\n".join(lines)


def _sharding(part: Mapping[str, Any], tokens: int) -> str:
    rows = part["batch"] // math.prod(part[name] for name in RULES["batch"])
    parts = f" in {part['accumulate']} microbatches" if part["accumulate"] > 1 else ""
    share = f", each over {part['context']} devices" if part["context"] > 1 else ""
    return f"{_mesh(part)}, batch {part['batch']}{parts}: {rows} rows of {tokens} tokens per device{share}"


def _mesh(part: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={part[name]}" for name in AXES if part[name] > 1) or "one device"


def _step_lines(part: Mapping[str, Any], memory: float) -> list[str]:
    least = part["seconds_at_least"]
    times = ", ".join(f"{name} {least[name]:.3g} s" for name in ("compute", "memory", "network"))
    return [
        *_memory_lines(part, memory),
        f"  model FLOPs  {part['flops']:.4g} per step",
        *_collective_lines(part),
        f"  at least     {times}: {least['step']:.3g} s a step, {least['utilisation']:.0%} of the peak at most",
    ]


def _memory_lines(part: Mapping[str, Any], memory: float) -> list[str]:
    how = f"compiled in {part['compile_seconds']} s" if part["how"] == "compiled" else "from shapes"
    sizes = ", ".join(f"{name} {part[name] / GIB:.2f}" for name in ("arguments", "temporaries", "peak"))
    lines = [f"  memory       {sizes} of {memory:.0f} GiB: {'fits' if part['fits'] else 'DOES NOT FIT'} ({how})"]
    kernels = uses_text([KernelUse(**kernel) for kernel in part["kernels"]])
    return lines + [f"  {'kernels' if not i else '':<13}{line}" for i, line in enumerate(kernels)]


def _collective_lines(part: Mapping[str, Any]) -> list[str]:
    if part["collectives"] is None:
        return ["  collectives  unknown: the compiler's text of the program is missing, or is not understood"]
    kinds = ", ".join(f"{e['count']} {k} {e['bytes'] / 1e9:.3g} GB" for k, e in part["collectives"].items()) or "none"
    far = part["bytes_sent_between_slices"]
    lines = [f"  collectives  {kinds}; {part['bytes_sent'] / 1e9:.3g} GB sent per device ({part['collectives_how']})"]
    return lines + [f"               {far / 1e9:.3g} GB of it over the network between fast domains"] * (far > 0)


COLUMNS = (
    "topology", "mesh", "batch", "parameters GiB", "optimizer GiB", "temporaries GiB", "peak GiB",
    "of GiB", "model PFLOPs", "sent GB", "step s at least", "bound by", "how",
)  # fmt: skip


def plan_table(results: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table of the configs' own shardings on several topologies; memory and bytes are per device."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for result in results:
        step, state = result["step"], result["state"]
        least = step["seconds_at_least"]
        sizes = (state["parameters"], state["optimizer"], step["temporaries"], step["peak"])
        cells = [
            result["topology"], _mesh(step), str(step["batch"]),
            *(f"{size / GIB:.2f}" for size in sizes), f"{result['chip_memory'] / GIB:.0f}",
            f"{step['flops'] / 1e15:.1f}", f"{step['bytes_sent'] / 1e9:.1f}", f"{least['step']:.3g}", least["by"],
            step["how"] + ("" if step["fits"] else ", does not fit"),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    counted = dict.fromkeys(result["flops_counted_on"] for result in results)
    return "\n".join([*lines, "", *(f"Model FLOPs are counted on {rows}." for rows in counted)])


def main(argv: Sequence[str]) -> None:
    del argv
    logging.get_absl_handler().setFormatter(None)
    jax.config.update("jax_platforms", "cpu")  # the devices of a topology belong to a compiler, not to a backend
    experiment = programs.experiment_of(FLAGS.config)
    if not FLAGS.topology:
        raise UsageError("--topology is missing: for example --topology v5p:8x8x8, or h100:64")
    wanted = [parse_topology(name, FLAGS.slices) for name in FLAGS.topology]
    compilation = Compilation(FLAGS.compile, FLAGS.sampler, FLAGS.confirm)
    results = []
    if FLAGS.json:
        storage.make_folder(pathlib.Path(FLAGS.json).parent)
        storage.check_writable(FLAGS.json)
    for topology in wanted:
        results.append(plan(experiment, topology, compilation))
        if FLAGS.json:
            storage.write_whole(FLAGS.json, json.dumps(results, indent=1))
        if not FLAGS.table:
            print(plan_text(results[-1]), flush=True)
    if FLAGS.table:
        print(plan_table(results))


FLAGS = flags.FLAGS

if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "Config file; fields are overridden by --config.a.b=c.")
    flags.DEFINE_list("topology", [], "Topologies, for example v5e:16x16,v5p:8x8x8 or h100:64.")
    flags.DEFINE_integer("slices", 1, "Slices of the topology, joined by the data-centre network.")
    flags.DEFINE_string("json", None, "File for the plans, as JSON.")
    flags.DEFINE_bool("table", False, "Print one Markdown table in place of the reports.")
    flags.DEFINE_bool("compile", True, "Compile where that is possible; else everything is told from shapes.")
    flags.DEFINE_bool("sampler", True, "Compile the sampler too.")
    flags.DEFINE_bool("confirm", True, "Compile the suggested sharding too.")
    programs.run(main)
