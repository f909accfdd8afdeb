"""Prints everything about speed that a machine without an accelerator can measure, as ratios made in one run.

    .venv-gpu/bin/python experiments/speed/run.py                       # `make gates` makes this environment
    .venv-gpu/bin/python experiments/speed/run.py --before 4391904      # and beside an earlier commit
    .venv-gpu/bin/python experiments/speed/run.py --parts pairs,cpu     # these parts only
    .venv-gpu/bin/python experiments/speed/run.py --show                # the last run of results.json

Parts: `pairs` counts pairs of tokens; `programs` compiles for an H100 that is not there and reads memory and traffic of
the compiled programs; `cpu` times the work of `experiments/peer_speed` in this tree, by processor time, and with
`--before` in the tree of an earlier commit, in turns. Every run is added to results.json.
"""

import argparse
import datetime
import functools
import importlib.metadata
import io
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import record
from record import Target

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
HISTORY = HERE / "results.json"
LENGTHS = (4096, 16384, 65536)
DENSE_UP_TO = 16384  # tokens: dense attention of more takes minutes to compile
Values = dict[str, dict[str, Any]]


# --- pairs ------------------------------------------------------------------------------------------------------------


def pairs(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """Of packed rows: the share of all pairs that the rule allows, that the kernel computes, and that it must compute.

    A kernel that works in blocks must compute a block in which the rule allows a single pair.
    """
    import numpy as np
    import subjects

    from transfusion.sequence.masks import see

    for length, rows in subjects.ROWS.items():
        tokens = subjects.tokens(length, rows)
        allowed = np.asarray(see(tokens, tokens))
        computed, ideal = subjects.pairs_in_blocks(tokens, allowed)
        total = allowed.size
        shares = {"allowed": allowed.sum() / total, "computed": computed / total, "ideal": ideal / total}
        yield f"pairs/{length}", {name: float(share) for name, share in shares.items()}


# --- compiled programs ------------------------------------------------------------------------------------------------


def programs(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """Memory of attention and of training steps compiled for an H100, and the bytes that a step moves."""
    import jax
    import subjects
    from gpu_parts import Case
    from jax.sharding import NamedSharding, PartitionSpec

    from transfusion import sharding
    from transfusion.planning import compiled, gpus, traffic
    from transfusion.planning.assembly import compile_for_gpu, uses_text
    from transfusion.running.chips import parse_topology
    from transfusion.tasks import make_task

    if missing := gpus.missing():
        yield "programs", {"skipped": missing}
        return
    devices = gpus.gpu_devices(parse_topology("h100:1"))
    mesh = sharding.make_mesh(sharding.MeshConfig(data=1, fsdp=1), devices)
    whole = NamedSharding(mesh, PartitionSpec())
    for length in LENGTHS:
        for way in ("kernel", "dense") if length <= DENSE_UP_TO else ("kernel",):
            case = Case(way, length, 128, "gradients", 1)
            place = functools.partial(jax.tree.map, lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole))
            with jax.set_mesh(mesh):
                program, uses = compile_for_gpu(jax.jit(case.function).lower(*map(place, case.shapes())))
            bytes_taken = program.memory_analysis().temp_size_in_bytes
            yield f"program/attention/{length}/{way}", {"bytes": bytes_taken, "kernels": uses_text(uses)}
    for way in ("kernel", "dense"):
        experiment = subjects.experiment("0.76B", 4, attention=subjects.KERNEL if way == "kernel" else way)
        on = sharding.make_mesh(experiment.mesh, devices)
        program, uses = compile_for_gpu(compiled.lowered_step(make_task(experiment), experiment, on))
        moved = traffic.by_class(traffic.kernels(program.as_text()))
        sizes = {"bytes": program.memory_analysis().temp_size_in_bytes, "moved": sum(moved.values())}
        yield f"program/step/0.76B/4/{way}", sizes | {"moved_by_class": moved, "kernels": uses_text(uses)}


# --- this processor ---------------------------------------------------------------------------------------------------


def cpu(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """Processor seconds of a training step and of sampling, for each way of running the trunk and each tree."""
    with tempfile.TemporaryDirectory() as folder:
        trees = {"now": ROOT}
        if options.before:
            unpack(options.before, folder)
            trees["before"] = pathlib.Path(folder)
        found: dict[str, list[float]] = {}
        for _ in range(options.rounds):
            for name, tree in trees.items():
                for work, seconds in timings(tree, options.size):
                    found.setdefault(f"cpu/{name}/{work}", []).append(seconds)
    for name, values in found.items():
        yield name, {"seconds": statistics.median(values), "rounds": values}


def unpack(commit: str, folder: str) -> None:
    """The files of a commit, in a folder."""
    packed = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(folder, filter="data")


def timings(tree: pathlib.Path, size: str) -> Iterator[tuple[str, float]]:
    """The median processor seconds of each work of a tree's `experiments/peer_speed/ours.py`."""
    program = [sys.executable, str(tree / "experiments" / "peer_speed" / "ours.py")]
    settings = ["--size", size, "--repeats", "3", "--seconds", "10"]
    environment = os.environ | {"PYTHONPATH": str(tree), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([*program, *settings], cwd=tree, env=environment, check=True, capture_output=True, text=True)
    for timing in json.loads(done.stdout.splitlines()[-1])["timings"]:
        yield f"{timing['work']}/{timing['variant']}", statistics.median(timing["cpu"])


# --- all of it --------------------------------------------------------------------------------------------------------

PARTS: dict[str, Callable[[argparse.Namespace], Iterator[tuple[str, dict[str, Any]]]]] = {
    "pairs": pairs, "programs": programs, "cpu": cpu
}  # fmt: skip


def per_token(results: record.Results) -> float | None:
    found = results.get("program/attention/65536/kernel", {}).get("bytes")
    return 128 * 65536 / found if found else None


def share(above: str, below: str, length: int, results: record.Results) -> float | None:
    found = results.get(f"pairs/{length}", {})
    return found[above] / found[below] if found else None


def _ratio(what: str, least: float | None, above: str, below: str, field: str = "seconds") -> Target:
    return Target(what, least, functools.partial(record.ratio, above=above, below=below, field=field))


def targets() -> list[Target]:
    """All ratios; more is better."""
    attention, step, now = "program/attention/{}/{}", "program/step/0.76B/4/{}", "cpu/{}/{}"
    works = ("train/unrolled", "text/decoder", "image/decoder", "guided/decoder")
    return [
        *(
            Target(f"pairs at {n // 1024}k: ideal / computed", 0.98, functools.partial(share, "ideal", "computed", n))
            for n in LENGTHS[:2]
        ),
        *(
            Target(f"pairs at {n // 1024}k: seen / computed", None, functools.partial(share, "allowed", "computed", n))
            for n in LENGTHS[:2]
        ),
        *(
            _ratio(f"memory of attention at {n // 1024}k: dense / kernel", 100.0,
                   attention.format(n, "dense"), attention.format(n, "kernel"), "bytes")
            for n in LENGTHS[:2]
        ),
        Target("memory of attention at 64k: 128 B a token / kernel", 1.0, per_token),
        _ratio("memory of a step of 0.76B, 4 x 4k: dense / kernel", 4.0,
               step.format("dense"), step.format("kernel"), "bytes"),
        _ratio("bytes moved by that step: dense / kernel", 5.0, step.format("dense"), step.format("kernel"), "moved"),
        _ratio("training on a CPU: scanned / unrolled", None, now.format("now", "train/scan"),
               now.format("now", "train/unrolled")),
        _ratio("training on a CPU: blockwise / unrolled", None, now.format("now", "train/blockwise"),
               now.format("now", "train/unrolled")),
        *(_ratio(f"{w} on a CPU: before / now", None, now.format("before", w), now.format("now", w)) for w in works),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", default=",".join(PARTS), help="names of parts, joined by commas")
    parser.add_argument("--before", help="a commit whose work on the CPU is timed too")
    parser.add_argument("--size", default="small", help="of the work on the CPU, see experiments/peer_speed")
    parser.add_argument("--rounds", type=int, default=2, help="of the work on the CPU")
    parser.add_argument("--show", action="store_true", help="print the last run")
    options = parser.parse_args()
    history = json.loads(HISTORY.read_text()) if HISTORY.exists() else []
    if options.show:
        print(record.table(targets(), history[-1]["values"]))
        return
    os.environ["JAX_PLATFORMS"] = "cpu"
    entry = {
        "date": datetime.date.today().isoformat(),
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "jaxlib")},
        "command": sys.argv[1:],
        "values": (values := {}),
    }
    for part in options.parts.split(","):
        for name, found in PARTS[part](options):
            print(json.dumps({"name": name} | found), flush=True)
            values[name] = found
            HISTORY.write_text(json.dumps([*history, entry], indent=1) + "\n")
    print(record.table(targets(), values))


if __name__ == "__main__":
    main()
