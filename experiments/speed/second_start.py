"""How long the programs of `make demo` compile when they are started the first time, and the second time.

    python experiments/speed/second_start.py --data data [--steps 40]

Both starts run the commands of the demo after one another, each in a process of its own and in a new folder; the second
finds the compiled programs of the first on disk. Compiling is all that JAX reports as such: tracing, lowering, the
compiler, or reading the program from the disk in its place. It is told in seconds of processor time of the process, so
that other programs on the machine matter little. With fewer steps the same programs are compiled.
"""

import argparse
import atexit
import bisect
import collections
import json
import os
import pathlib
import runpy
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
PHASES = {
    "/jax/core/compile/jaxpr_trace_duration": "trace",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lower",
    "/jax/core/compile/backend_compile_duration": "compile",
}
SAMPLED = 0.005  # seconds between two looks at the clocks


def commands(run: str, data: str, steps: int) -> dict[str, list[str]]:
    """The demo's commands behind the preparation of the data, as the Makefile has them."""
    config = [f"--config={ROOT}/configs/digits.py", f"--config.data.data_dir={data}", f"--config.steps={steps}"]
    image = f"{run}/samples/seven.png"
    return {
        "train": [*config, f"--workdir={run}"],
        "sample": [f"--workdir={run}", "--prompt=a handwritten seven", f"--image={image}"],
        "caption": [f"--workdir={run}", f"--caption={image}"],
        "evaluate": [f"--workdir={run}"],
        "report": [f"--workdir={run}"],
    }


# --- one command, in a process of its own -----------------------------------------------------------------------------


class Watch:
    """Notes when JAX compiles, and how much processor time passes meanwhile."""

    def __init__(self):
        self.clock: list[tuple[float, float]] = []  # (wall, processor)
        self.spans: list[tuple[float, float, str]] = []  # (start, end, phase)
        self.counts: collections.Counter[str] = collections.Counter()
        threading.Thread(target=self._sample, daemon=True).start()

    def _sample(self) -> None:
        while True:
            self.clock.append((time.perf_counter(), time.process_time()))
            time.sleep(SAMPLED)

    def duration(self, event: str, seconds: float, **_) -> None:
        if event in PHASES:
            end = time.perf_counter()
            self.spans.append((end - seconds, end, PHASES[event]))

    def event(self, event: str, **_) -> None:
        self.counts[event.rsplit("/", 1)[-1]] += 1

    def summary(self) -> dict[str, float]:
        """Seconds of processor time: 'all' of the process, and of every phase that which lies in no other."""
        self.clock.append((time.perf_counter(), time.process_time()))
        found: collections.Counter[str] = collections.Counter()
        edges = sorted({edge for start, end, _ in self.spans for edge in (start, end)})
        at = {edge: self._processor(edge) for edge in edges}
        for start, end in zip(edges, edges[1:], strict=False):
            inside = [span for span in self.spans if span[0] <= start and end <= span[1]]
            if inside:
                found[max(inside)[2]] += at[end] - at[start]  # the one that began last
        seconds = {phase: round(found[phase], 3) for phase in PHASES.values()}
        programs = sum(phase == "compile" for _, _, phase in self.spans)
        counts = {name: self.counts[name] for name in ("cache_hits", "cache_misses")}
        return seconds | {"all": round(time.process_time(), 3), "programs": programs} | counts

    def _processor(self, wall: float) -> float:
        i = min(max(bisect.bisect(self.clock, (wall, 0.0)), 1), len(self.clock) - 1)
        (w0, p0), (w1, p1) = self.clock[i - 1 : i + 1]
        return p0 + (p1 - p0) * min(max((wall - w0) / (w1 - w0), 0.0), 1.0)


def watched(out: str, module: str, arguments: list[str]) -> None:
    """Runs a program of transfusion, and writes what it has compiled to the file `out`."""
    import jax.monitoring

    watch = Watch()
    jax.monitoring.register_event_duration_secs_listener(watch.duration)
    jax.monitoring.register_event_listener(watch.event)
    atexit.register(lambda: pathlib.Path(out).write_text(json.dumps(watch.summary())))
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__")


# --- two starts -------------------------------------------------------------------------------------------------------


def start(folder: pathlib.Path, number: int, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Runs the demo's commands once; the compiled programs lie in folder/cache."""
    environment = os.environ | {"TRANSFUSION_CACHE": str(folder / "cache"), "JAX_PLATFORMS": "cpu"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
    found = {}
    for name, arguments in commands(str(folder / f"run{number}"), options.data, options.steps).items():
        if name not in options.only.split(",") and options.only:
            continue
        out, module = folder / f"{number}-{name}.json", "sample" if name == "caption" else name
        command = [sys.executable, __file__, "--watch", str(out), f"transfusion.{module}", *arguments]
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        found[name] = json.loads(out.read_text())
    return found


def compiling(entry: dict[str, float]) -> float:
    return sum(entry[phase] for phase in PHASES.values())


def table(starts: list[dict[str, dict[str, float]]]) -> str:
    lines = ["| command | start | trace | lower | compile or read | together | programs | read | whole process |"]
    lines.append("|" + "---|" * 9)
    for name in starts[0]:
        for number, found in enumerate(starts, 1):
            one = found[name]
            cells = [name, str(number), *(f"{one[phase]:.2f}" for phase in PHASES.values()), f"{compiling(one):.2f}"]
            cells += [str(one["programs"]), str(one["cache_hits"]), f"{one['all']:.1f}"]
            lines.append("| " + " | ".join(cells) + " |")
    first, second = (sum(map(compiling, found.values())) for found in starts)
    return "\n".join([*lines, "", f"compiling: {first:.1f} s, then {second:.1f} s: {second / first:.2f} of it"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=str(ROOT / "data"), help="folder of the digits (transfusion.prepare)")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--only", default="", help="names of commands, joined by commas; empty: all")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(table([start(pathlib.Path(folder), number, options) for number in (1, 2)]))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--watch"]:
        watched(sys.argv[2], sys.argv[3], sys.argv[4:])
    else:
        main()
