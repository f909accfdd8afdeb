"""The work that is measured: sizes, input arrays, the clock, the JSON line. Both environments import it: only NumPy."""

import argparse
import dataclasses
import json
import os
import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np

WORKS = ("train", "text", "image", "guided")
DTYPES = ("float32", "bfloat16")
CHANNELS = 16
VOCABULARY = 4096
NEW_TOKENS = 64
EVALUATIONS = 30  # of the velocity per image: 15 intervals of the peer's midpoint rule, 30 Euler steps
GUIDANCE = 3.0
IMAGE_LOSS_SCALE = 5.0
LEARNING_RATE, BETAS, WEIGHT_DECAY = 1e-4, (0.9, 0.95), 0.1


@dataclasses.dataclass(frozen=True)
class Size:
    """A model and its training row: `text_before` tokens, one image of `side` x `side` latents, `text_after` tokens."""

    width: int
    depth: int
    heads: int
    batch: int
    text_before: int
    side: int
    text_after: int
    head_size: int = 64

    @property
    def latents(self) -> int:
        return self.side * self.side

    @property
    def ffn(self) -> int:
        """SwiGLU width: 8/3 of the model's width, rounded up to a multiple of 64."""
        return -(-8 * self.width // 3 // 64) * 64


SIZES = {
    "small": Size(width=256, depth=6, heads=4, batch=8, text_before=64, side=8, text_after=32),
    "medium": Size(width=512, depth=8, heads=8, batch=4, text_before=256, side=16, text_after=0),
}
# (work, variant) -> makes the step that is timed.
Plan = dict[tuple[str, str], Callable[[], Callable[[], None]]]
# Sampling draws one image of 64 latents after a prompt of 64 tokens at both sizes of the model.
PROMPT_TOKENS, IMAGE_SIDE = 64, 8


@dataclasses.dataclass(frozen=True)
class Rows:
    """Contents of one training batch: text ids [B, before], latents [B, side, side, C], text ids [B, after]."""

    before: np.ndarray
    latents: np.ndarray
    after: np.ndarray


def training_rows(size: Size, seed: int = 0) -> Rows:
    """The same random rows for all three programs."""
    rng = np.random.default_rng(seed)
    return Rows(
        before=rng.integers(0, 256, (size.batch, size.text_before)).astype(np.int32),
        latents=rng.standard_normal((size.batch, size.side, size.side, CHANNELS)).astype(np.float32),
        after=rng.integers(0, 256, (size.batch, size.text_after)).astype(np.int32),
    )


def prompt(seed: int = 1) -> np.ndarray:
    """Text ids [PROMPT_TOKENS] of the one prompt."""
    return np.random.default_rng(seed).integers(0, 256, PROMPT_TOKENS).astype(np.int32)


def arguments(description: str) -> argparse.ArgumentParser:
    """The command line that all three programs share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--work", default=",".join(WORKS), help="names of " + ", ".join(WORKS) + ", joined by commas")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--variant", default="", help="names of variants to measure, joined by commas; empty: all")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=20.0, help="stop repeating one work after this long")
    parser.add_argument("--threads", type=int, default=2)
    return parser


def pin(threads: int) -> None:
    """Allow the process `threads` CPUs. Must run before torch or JAX starts its thread pool."""
    cpus = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cpus[:threads])


def clock(step: Callable[[], Any], repeats: int, seconds: float) -> dict[str, Any]:
    """Time `step`, which must return only when its result is there.

    The first call (compilation, allocation) is timed apart, a second one is thrown away; then `repeats` calls, fewer
    when `seconds` have passed, at least two. A work whose call takes longer than `seconds` is called twice in all: its
    second call is the measurement. Times are seconds: `wall` and `cpu` (of the process) are lists.
    """
    start = time.perf_counter()
    step()
    first = time.perf_counter() - start
    wall: list[float] = []
    cpu: list[float] = []

    def call() -> None:
        wall_0, cpu_0 = time.perf_counter(), time.process_time()
        step()
        wall.append(time.perf_counter() - wall_0)
        cpu.append(time.process_time() - cpu_0)

    call()
    if wall[0] <= seconds:
        wall.clear()
        cpu.clear()
        start = time.perf_counter()
        while len(wall) < 2 or (len(wall) < repeats and time.perf_counter() - start < seconds):
            call()
    return {"first": first, "wall": wall, "cpu": cpu}


def report(
    program: str,
    options: argparse.Namespace,
    parameters: int,
    versions: dict[str, str],
    plan: Plan,
) -> None:
    """Time everything in the plan that was asked for, and print a JSON line.

    The line is printed anew, longer, after every work: a process that is stopped has told what it had measured.
    """
    timings: list[dict[str, Any]] = []
    works, variants = options.work.split(","), [name for name in options.variant.split(",") if name]
    for (work, variant), make in plan.items():
        if work not in works or (variants and variant not in variants):
            continue
        timings.append({"work": work, "variant": variant, **clock(make(), options.repeats, options.seconds)})
        line = {
            "program": program,
            "size": options.size,
            "dtype": options.dtype,
            "parameters": parameters,
            "versions": versions,
            "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "timings": timings,
        }
        print(json.dumps(line), flush=True)
