"""Does a Mixture-of-Transformers train as fast as the dense model of its active size?

Question: both spend the same FLOPs per token (`tests/model/test_mixture.py` counts them), but the mixture's matrix
products are cut in two and its optimizer has twice the trunk to update. Target: within 10 % of the dense step time.
Method: one process, the rows and the sizes of `experiments/peer_speed`, the training program's own step (an unrolled
trunk, float32). Rounds alternate between the two models, and each begins every other round; medians over rounds. The
processor time of a step is printed, too: it hardly depends on what else the machine does.
Command: python experiments/mot_step_time/run.py
Verdict: within the target, on a machine that was not idle. 2026-11-22, 2 cores (AMD EPYC), high priority beside
another training: 1.042 times the dense model's wall time in the median, rounds from 0.75 to 1.22 (`results.json`);
1.127 times its processor time there, 1.034 in an earlier run.
"""

import argparse
import dataclasses
import datetime
import importlib.metadata
import json
import pathlib
import platform
import statistics
import sys
import time
from collections.abc import Callable

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "peer_speed"))

import jax  # noqa: E402
import ours  # noqa: E402
import work  # noqa: E402

from transfusion.model.unified import parameter_count  # noqa: E402
from transfusion.tasks import SequenceTask  # noqa: E402
from transfusion.training.step import make_init, make_step  # noqa: E402

TARGET = 1.10
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


def training(size: work.Size, mixture: bool, dtype: str) -> tuple[Callable[[], None], int]:
    """A function that makes one training step and waits for it, and the model's number of parameters."""
    setup = ours.experiment(size, dtype, size.side, {"scan": False})
    if mixture:
        streams = {name: dataclasses.replace(stream, expert=name) for name, stream in setup.streams.items()}
        setup = dataclasses.replace(setup, streams=streams)
    task = SequenceTask(setup.model, setup.spec, setup.objectives)
    state = [jax.jit(make_init(task, setup))()]
    batch = jax.device_put(ours.packed(setup, size))
    step = jax.jit(make_step(task, setup), donate_argnums=0)

    def run() -> None:
        state[0] = jax.block_until_ready(step(state[0], batch))

    return run, parameter_count(task.template.shapes)


def measure(steps: dict[str, Callable[[], None]], rounds: int, calls: int) -> dict[str, dict[str, list[float]]]:
    """Seconds per step in every round: {'wall' or 'processor': {model: [seconds]}}."""
    for step in steps.values():  # compilation and first use of memory
        step()
        step()
    seconds: dict[str, dict[str, list[float]]] = {clock: {name: [] for name in steps} for clock in CLOCKS}
    for number in range(rounds):
        for name in list(steps)[:: 1 if number % 2 else -1]:
            start = {clock: now() for clock, now in CLOCKS.items()}
            for _ in range(calls):
                steps[name]()
            for clock, now in CLOCKS.items():
                seconds[clock][name].append((now() - start[clock]) / calls)
    return seconds


def processor() -> str:
    """The processor's name as Linux tells it."""
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=work.SIZES, default="small")
    parser.add_argument("--dtype", choices=work.DTYPES, default="float32")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--calls", type=int, default=5, help="training steps per model and round")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--shrink", type=int, default=1, help="divide width, depth and batch, to try the program")
    parser.add_argument("--out", default=str(HERE / "results.json"))
    options = parser.parse_args()
    work.pin(options.threads)
    size = work.SIZES[options.size]
    small = {name: max(1, getattr(size, name) // options.shrink) for name in ("width", "depth", "batch")}
    size = dataclasses.replace(size, **small)
    made = {name: training(size, name == "mixture", options.dtype) for name in ("dense", "mixture")}
    seconds = measure({name: step for name, (step, _) in made.items()}, options.rounds, options.calls)
    medians = {clock: {name: statistics.median(values) for name, values in of.items()} for clock, of in seconds.items()}
    ratios = {clock: of["mixture"] / of["dense"] for clock, of in medians.items()}
    pairs = [b / a for a, b in zip(seconds["wall"]["dense"], seconds["wall"]["mixture"], strict=True)]
    result = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{processor()}, {options.threads} threads",
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax")},
        "settings": vars(options) | {"size": dataclasses.asdict(size)} | {"out": pathlib.Path(options.out).name},
        "parameters": {name: count for name, (_, count) in made.items()},
        "seconds_per_step": seconds,
        "medians": medians,
        "ratio": ratios,
        "wall_ratio_of_rounds": {"least": min(pairs), "median": statistics.median(pairs), "most": max(pairs)},
    }
    pathlib.Path(options.out).write_text(json.dumps(result, indent=1) + "\n")
    for clock, of in medians.items():
        print(f"{clock}: dense {of['dense']:.4f} s, mixture {of['mixture']:.4f} s, {ratios[clock]:.3f} times as long")
    within = "within" if ratios["wall"] <= TARGET else "NOT within"
    print(f"{within} {TARGET:.2f}; rounds from {min(pairs):.3f} to {max(pairs):.3f}")


if __name__ == "__main__":
    main()
