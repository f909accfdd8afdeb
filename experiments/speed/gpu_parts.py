"""The parts of `gpu.py` that use JAX. Each runs in a process of its own, which `gpu.py` ends when its time is over.

python experiments/speed/gpu_parts.py attention --out results.jsonl --rows rows.npz --seconds 120
"""

import argparse
import dataclasses
import functools
import gc
import importlib.metadata
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import record
import subjects

from transfusion import sharding
from transfusion.config import Experiment
from transfusion.sequence.masks import Metadata, see
from transfusion.tasks import make_task
from transfusion.training.step import compile_init, jit_step, state_shardings

SIDE = 8192  # of the square matrices whose product shows what the card can do
COPIED = 2**30  # bytes
WARM_UP, TIMED = 3, 10  # training steps


@dataclasses.dataclass(frozen=True)
class Log:
    """Where measurements go, and until when there is time for more."""

    path: pathlib.Path
    end: float
    rows: pathlib.Path  # for the metadata of the rows

    def measure(self, name: str, measurement: Callable[[], dict[str, Any]]) -> None:
        """Writes what `measurement()` returns. What it cannot do, such as take too much memory, ends no other one."""
        if time.monotonic() > self.end:
            record.write(self.path, name, skipped="no time was left")
            return
        try:
            record.write(self.path, name, **measurement())
        except Exception as error:  # of any kind: the card's time must not be lost
            record.write(self.path, name, error=" ".join(str(error).split())[:300] or type(error).__name__)


def seconds_per_call(calls: list[Callable[[], Any]], least: float = 0.05, rounds: int = 7) -> float:
    """The median over rounds of the time of a call. The calls, on different inputs, take turns.

    A round makes as many calls as take `least` seconds, and waits for the last one only: kernels of a fraction of a
    millisecond would be shorter than the way there and back.
    """
    for call in calls * 2:
        jax.block_until_ready(call())
    start = time.perf_counter()
    jax.block_until_ready(calls[0]())
    times = max(1, min(200, round(least / (time.perf_counter() - start))))
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        result = [calls[number % len(calls)]() for number in range(times)][-1]
        jax.block_until_ready(result)
        found.append((time.perf_counter() - start) / times)
    return statistics.median(found)


def random_arrays(shapes: list[jax.ShapeDtypeStruct], seed: int) -> list[jax.Array]:
    """Normal random arrays."""
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return [jax.random.normal(key, x.shape, x.dtype) for key, x in zip(keys, shapes, strict=True)]


# --- the card ---------------------------------------------------------------------------------------------------------


def product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.dot(a, b, preferred_element_type=jnp.bfloat16)


def copy(x: jax.Array) -> jax.Array:
    return x + 1


def card_programs() -> Iterator[tuple[str, Callable[..., Any], list[jax.ShapeDtypeStruct]]]:
    """What shows the card's two limits: a large product of matrices, and a large copy."""
    yield "gemm", product, [jax.ShapeDtypeStruct((SIDE, SIDE), "bfloat16")] * 2
    yield "copy", copy, [jax.ShapeDtypeStruct((COPIED // 2,), "bfloat16")]


def card(log: Log) -> None:
    device = jax.devices()[0]
    versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib")}
    memory = (device.memory_stats() or {}).get("bytes_limit")
    log.measure("card", lambda: {"kind": device.device_kind, "memory": memory, "driver": driver()} | versions)
    for name, function, shapes in card_programs():
        inputs = [random_arrays(shapes, seed) for seed in range(2)]
        compiled = jax.jit(function)

        def timed(name=name, compiled=compiled, inputs=inputs) -> dict[str, Any]:
            seconds = seconds_per_call([functools.partial(compiled, *each) for each in inputs])
            rate = {"flops_per_second": 2 * SIDE**3 / seconds} if name == "gemm" else {}
            rate |= {"bytes_per_second": 2 * COPIED / seconds} if name == "copy" else {}
            return {"seconds": seconds} | rate

        log.measure(name, timed)


def driver() -> str:
    """What the driver says of the card; '' if it has no program that says it."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,power.limit,clocks.max.sm", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


# --- attention --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Case:
    """Attention of one candidate on packed rows, forwards or with its gradients."""

    candidate: str
    length: int
    size: int
    direction: str
    rows: int

    @property
    def name(self) -> str:
        return f"attention/{self.length}/{self.size}/{self.direction}/{self.candidate}"

    @property
    def attention(self) -> subjects.Attention:
        return subjects.ATTENTION[self.candidate]()

    def function(self, *inputs: Any) -> Any:
        q, k, v, change, plan = inputs
        if self.direction == "gradients":
            return self.attention.gradients(q, k, v, change, plan)
        return self.attention.attend(q, k, v, plan)

    def plan(self, tokens: Metadata) -> Any:
        return self.attention.plan(tokens, self.size)

    def shapes(self) -> list[Any]:
        columns = Metadata(*[jax.ShapeDtypeStruct((self.rows, self.length), "int32")] * 5)
        plan = jax.eval_shape(self.plan, columns)
        return [*subjects.arrays(self.length, self.rows, self.size), plan]


def cases() -> Iterator[Case]:
    """All cases, the most important first."""
    for direction in ("gradients", "forward"):
        for size in (128, 64):
            for length, rows in subjects.ROWS.items():
                for candidate in subjects.ATTENTION:
                    yield Case(candidate, length, size, direction, rows)


def attention(log: Log) -> None:
    metadata = {length: subjects.tokens(length, rows) for length, rows in subjects.ROWS.items()}
    arrays = {f"{n}/{f.name}": getattr(of, f.name) for n, of in metadata.items() for f in dataclasses.fields(of)}
    np.savez(log.rows, **arrays)  # the same rows for torch
    for size in (128, 64):
        log.measure(f"correct/{size}", functools.partial(errors, metadata[min(metadata)], size))
    for case in cases():
        log.measure(case.name, functools.partial(timed_attention, case, metadata[case.length]))


def timed_attention(case: Case, tokens: Metadata) -> dict[str, Any]:
    plan = jax.block_until_ready(jax.jit(case.plan)(jax.device_put(tokens)))
    function = jax.jit(case.function)
    inputs = [random_arrays(subjects.arrays(case.length, case.rows, case.size), seed) for seed in range(3)]
    return {"seconds": seconds_per_call([functools.partial(function, *each, plan) for each in inputs])}


def errors(tokens: Metadata, size: int) -> dict[str, Any]:
    """Relative errors (in the 2-norm) of the output and of the gradients, of two rows, against float64."""
    tokens = jax.tree.map(lambda x: x[:2], tokens)
    inputs = random_arrays(subjects.arrays(tokens.order.shape[1], 2, size), 7)
    mask = jax.jit(see)(jax.device_put(tokens), jax.device_put(tokens))
    with jax.enable_x64(True):
        out, gradients = jax.jit(subjects.exact)(*inputs, mask)
        want = [np.asarray(x) for x in (out, *gradients)]
    result: dict[str, Any] = {}
    for candidate in ("kernel", "dense"):
        way = subjects.ATTENTION[candidate]()
        plan = jax.jit(way.plan, static_argnums=1)(jax.device_put(tokens), size)
        out, gradients = jax.jit(way.gradients)(*inputs, plan)
        found = [np.asarray(x.astype(jnp.float32), np.float64) for x in (out, *gradients)]
        pairs = zip(("out", "q", "k", "v"), found, want, strict=True)
        result[candidate] = {name: float(np.linalg.norm(a - b) / np.linalg.norm(b)) for name, a, b in pairs}
    # NaN is no number that is at most another one.
    worst = {name: result["kernel"][name] / result["dense"][name] for name in result["dense"]}
    return result | {"as_good_as_dense": all(value <= 2 for value in worst.values())}


# --- training steps ---------------------------------------------------------------------------------------------------


def steps_of() -> Iterator[tuple[str, Experiment]]:
    """All steps, the most important first."""
    yield "step/0.76B/4/kernel", subjects.experiment("0.76B", 4)
    yield "step/0.76B/4/dense", subjects.experiment("0.76B", 4, attention="dense")
    yield "step/1.4B/8/kernel", subjects.experiment("1.4B", 8, remat="dots")
    yield "step/0.76B/8/kernel", subjects.experiment("0.76B", 8, remat="dots")
    yield "step/0.76B/8/mixture", subjects.experiment("0.76B", 8, remat="dots", mixture=True)
    yield "step/1.4B/8/mixture", subjects.experiment("1.4B", 8, mixture=True)


def steps(log: Log) -> None:
    for name, experiment in steps_of():
        log.measure(name, functools.partial(timed_step, experiment))
        jax.clear_caches()
        gc.collect()


def timed_step(experiment: Experiment) -> dict[str, Any]:
    task = make_task(experiment)
    mesh = sharding.make_mesh(experiment.mesh, jax.devices()[:1])
    batch = subjects.packed(task.spec, experiment.batch_size)
    shardings = state_shardings(task, experiment, mesh)
    rows = sharding.batch_shardings(batch, mesh)
    start = time.perf_counter()
    with jax.set_mesh(mesh):
        state = compile_init(task, experiment, shardings)()
        placed, step = jax.device_put(batch, rows), jit_step(task, experiment, shardings, rows)
        state = jax.block_until_ready(step(state, placed))
        compiled = time.perf_counter() - start
        for _ in range(WARM_UP):
            state = step(state, placed)
        jax.block_until_ready(state)
        start = time.perf_counter()
        for _ in range(TIMED):
            state = step(state, placed)
        jax.block_until_ready(state)
    seconds = (time.perf_counter() - start) / TIMED
    memory = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    flops = float(task.flops(batch).sum())
    return {"seconds": seconds, "flops": flops, "peak_so_far": memory, "first_seconds": compiled}


PARTS: dict[str, Callable[[Log], None]] = {"card": card, "attention": attention, "steps": steps}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--rows", type=pathlib.Path, required=True, help="where the metadata of the rows is written")
    options = parser.parse_args()
    log = Log(options.out, time.monotonic() + options.seconds, options.rows)
    if jax.default_backend() != "gpu":
        record.write(log.path, f"part/{options.part}", error=f"jax found no GPU, but {jax.default_backend()}")
        sys.exit(1)
    PARTS[options.part](log)


if __name__ == "__main__":
    main()
