"""Ten minutes on a GPU: attention, training steps and sampling, with what they are compared to, in one run.

    python experiments/speed/gpu.py --out results.jsonl             # on a GPU; ends within 560 s whatever happens
    python experiments/speed/gpu.py --rehearse --out rehearsal.jsonl   # without one: compiles all that it would run
    python experiments/speed/gpu.py --show results.jsonl            # the ratios of a run, and which targets are reached

Each part runs in a process of its own, which is ended when its time is over; what a part leaves of its time, the next
one may use. Every measurement is on disk before the next one begins. README.md says how to prepare a run.
"""

import argparse
import functools
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable

import record
from record import Results, Target

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SECONDS = 560.0  # of all parts together
MARGIN = 5.0  # of the last part, for what is printed at the end
GRACE = 8.0  # a part that goes on for so long after its time is killed
LEAST = 5.0  # with less time a part is not begun
ROWS = "rows.npz"
# Seconds of each part, the most important first. What a part leaves, the next ones have.
PARTS = {"card": 35.0, "attention": 120.0, "flex": 75.0, "steps": 165.0, "now": 80.0, "before": 80.0}


def command(part: str, out: pathlib.Path, seconds: float, before: pathlib.Path) -> list[str]:
    """The command of a part that has `seconds`."""
    common = ["--out", str(out), "--seconds", f"{seconds:.0f}"]
    if part == "flex":
        return [sys.executable, str(HERE / "flex.py"), *common, "--rows", str(out.with_name(ROWS))]
    if part in ("now", "before"):
        tree = ROOT if part == "now" else before
        return [sys.executable, str(HERE / "sampler.py"), *common, "--tree", str(tree), "--as", part]
    return [sys.executable, str(HERE / "gpu_parts.py"), part, *common, "--rows", str(out.with_name(ROWS))]


def environment(out: pathlib.Path) -> dict[str, str]:
    """The parts' environment: memory is taken as needed, so that torch finds some, and compiled programs are kept."""
    set_here = {
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95",
        "JAX_COMPILATION_CACHE_DIR": str(out.with_name("cache")),
        "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}".rstrip(":"),
    }
    return os.environ | set_here


def run(out: pathlib.Path, before: pathlib.Path, seconds: float) -> None:
    """Runs all parts one after the other. A part gets what is left of all time, less what later ones are promised."""
    end = time.monotonic() + seconds - MARGIN
    for number, part in enumerate(PARTS):
        later = sum(list(PARTS.values())[number + 1 :]) * seconds / SECONDS
        given = end - time.monotonic() - later - GRACE
        if part == "before" and not (before / "transfusion").exists():
            record.write(out, f"part/{part}", error=f"no earlier tree in {before}: see README.md")
            continue
        if given < LEAST:
            record.write(out, f"part/{part}", skipped="no time was left")
            continue
        start = time.monotonic()
        process = subprocess.Popen(command(part, out, given, before), env=environment(out), cwd=ROOT)
        try:
            code = process.wait(timeout=given + GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            code = "killed, as its time was over"
        record.write(out, f"part/{part}", ended=code, took=round(time.monotonic() - start, 1), given=round(given, 1))


# --- what comes of it -------------------------------------------------------------------------------------------------


def against(candidate: str, length: int, size: int) -> Callable[[Results], float | None]:
    """How many times as long as our kernel a candidate takes, forwards and backwards."""
    name = f"attention/{length}/{size}/gradients/"
    return functools.partial(record.ratio, above=name + candidate, below=name + "kernel")


def utilisation(name: str, results: Results) -> float | None:
    """The FLOPs per second of a step, counted on its rows, as a share of what the card's products reach."""
    step, gemm = results.get(name, {}), results.get("gemm", {})
    if "seconds" not in step or "flops_per_second" not in gemm:
        return None
    return step["flops"] / step["seconds"] / gemm["flops_per_second"]


def faster(work: str, rows: int) -> Callable[[Results], float | None]:
    name = f"sampler/{{}}/{work}/{rows}"
    return functools.partial(record.ratio, above=name.format("before"), below=name.format("now"))


TARGETS = [
    *(
        Target(f"flex_attention / kernel, {length // 1024}k, head size {size}", 1.0, against("flex", length, size))
        for length in (4096, 16384)
        for size in (64, 128)
    ),
    *(
        Target(f"cuDNN, masked / kernel, {length // 1024}k, head size {size}", least, against("cudnn", length, size))
        for length, least in ((4096, 6.0), (16384, 15.0))
        for size in (64, 128)
    ),
    *(
        Target(f"dense / kernel, {length // 1024}k, head size {size}", 8.0, against("dense", length, size))
        for length in (4096, 16384)
        for size in (64, 128)
    ),
    Target(
        "step of 0.76B on 4 rows: dense / kernel", 5.0,
        functools.partial(record.ratio, above="step/0.76B/4/dense", below="step/0.76B/4/kernel"),
    ),
    Target("step of 1.4B: share of the measured bf16 rate", 0.50, functools.partial(utilisation, "step/1.4B/8/kernel")),
    Target("step of 0.76B: the same", 0.45, functools.partial(utilisation, "step/0.76B/8/kernel")),
    Target("text at batch 1: before / now", 3.0, faster("text", 1)),
    Target("guided image at batch 1: before / now", 3.0, faster("guided", 1)),
    Target("text at batch 16: before / now", 1.3, faster("text", 16)),
    Target("guided images at batch 16: before / now", 1.3, faster("guided", 16)),
]  # fmt: skip


def show(out: pathlib.Path) -> None:
    results = record.read(out)
    print(record.table(TARGETS, results))
    for name, values in results.items():
        if name.startswith("correct/"):
            good = values.get("as_good_as_dense")
            print(f"{name}: errors of the kernel are at most twice those of dense attention: {good}")
        if "error" in values or "skipped" in values:
            print(f"{name}: {values.get('error', values.get('skipped'))}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("results.jsonl"))
    parser.add_argument("--before", type=pathlib.Path, default=HERE / "before", help="the tree of an earlier commit")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of all parts together")
    parser.add_argument("--rehearse", action="store_true", help="compile all programs for a GPU that is not there")
    parser.add_argument("--chip", default="h100", help="the GPU of the rehearsal")
    parser.add_argument("--show", type=pathlib.Path, help="print the ratios of a run that was made")
    options = parser.parse_args()
    if options.show:
        show(options.show)
        return
    out = options.out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    if options.rehearse:
        import rehearsal

        rehearsal.rehearse(out, options.chip)
        return
    run(out, options.before.resolve(), options.seconds)
    show(out)


if __name__ == "__main__":
    main()
