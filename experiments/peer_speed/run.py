"""Measures transfusion-pytorch, a torch control and this library on the same work; writes results.json, prints a table.

    python experiments/peer_speed/run.py            # at most 15 minutes on 2 cores, after the first installation
    python experiments/peer_speed/run.py --quick    # about 3 minutes: size small, float32, few repeats

Run it with the project's interpreter on an otherwise idle machine. The first round measures every setting (dtype,
variant) of every program; the others only the settings that may win. Programs run one after the other, in turn.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import time
import venv
from typing import Any

import aggregate
import work

HERE = pathlib.Path(__file__).resolve().parent
PEER_PYTHON = HERE / ".venv-peer" / "bin" / "python"
WORKER_LIMIT = 240.0  # seconds after which a worker is stopped, and its work counts as not finished
COMPILE_LIMIT = 120.0
TOO_SLOW = 1.5  # a dtype this much slower than float32 at size small is not tried at medium
IDLE = 0.07  # share of the CPUs that others may use before results are marked as disturbed
# XLA:CPU allocates outputs afresh at each call; glibc gives big blocks back to the kernel, and their pages fault again.
KEEP_MEMORY = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "MALLOC_MMAP_THRESHOLD_": str(16 * 2**30),
    "MALLOC_TRIM_THRESHOLD_": str(16 * 2**30),
}


class Benchmark:
    """The measurements so far, and how to make more of them before the deadline."""

    def __init__(self, options: argparse.Namespace, cache: str):
        self.options = options
        self.deadline = time.monotonic() + 60 * options.minutes
        self.measurements: list[aggregate.Measurement] = []
        self.workers: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self.disturbance = 0.0
        self.environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": cache}
        self.environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            self.environment[name] = str(options.threads)

    def worker(self, program: str, size: str, dtype: str, works: str, variants: str, round_: int, limit: float) -> None:
        """Runs one process and keeps its measurements; a failure or a time-out becomes a note."""
        python = sys.executable if program == "ours" else str(PEER_PYTHON)
        command = [python, str(HERE / f"{program}.py"), "--size", size, "--dtype", dtype, "--work", works]
        command += [
            "--variant",
            variants,
            "--repeats",
            str(self.options.repeats),
            "--threads",
            str(self.options.threads),
        ]
        command += ["--seconds", str(self.options.seconds)]
        environment = self.environment | (KEEP_MEMORY if program in self.options.keep_memory.split(",") else {})
        name = f"{program} {size} {dtype} {works} {variants}".strip()
        self.disturbance = max(self.disturbance, others_share())
        start = time.monotonic()
        limit = min(limit, max(self.deadline - start, 0) + 30)
        try:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=limit)
        except subprocess.TimeoutExpired as error:
            self.note(f"{name}: not finished after {limit:.0f} s")
            if error.stdout:
                self.keep(error.stdout.decode(), name, round_)
            return
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or ["no message"]
            self.note(f"{name}: failed: {last[0]}")
            return
        self.keep(done.stdout, name, round_)
        print(f"round {round_}: {name}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)

    def keep(self, output: str, name: str, round_: int) -> None:
        try:
            line, measured = aggregate.parse(output, round_)
        except ValueError as error:
            self.note(f"{name}: {error}")
            return
        self.workers.append(line)
        self.measurements += measured

    def note(self, text: str) -> None:
        self.notes.append(text)
        print(f"note: {text}", file=sys.stderr, flush=True)

    def first_round(self) -> None:
        """Every setting once; size by size, so that medium leaves out what small has shown to be slow."""
        for size in self.options.sizes.split(","):
            for dtype in self.options.dtypes.split(","):
                for program in aggregate.PROGRAMS:
                    works = [name for name in work.WORKS if not self.too_slow(program, size, dtype, name)]
                    if works:
                        self.worker(program, size, dtype, ",".join(works), "", 0, WORKER_LIMIT)
                    if time.monotonic() > self.deadline:
                        self.note(f"out of time in the first round, after {program} {size} {dtype}")
                        return

    def too_slow(self, program: str, size: str, dtype: str, name: str) -> bool:
        """Whether the dtype lost clearly at the smaller size."""
        if dtype == "float32" or size == "small":
            return False
        found = aggregate.settings(self.measurements, program, "small", name)
        fast, this = aggregate.best(found, "float32/"), aggregate.best(found, f"{dtype}/")
        if fast is None or this is None:
            return False
        times = found[this][0] / found[fast][0]
        if times > TOO_SLOW:
            self.note(f"{program} {size} {dtype} {name}: left out, {times:.1f} times float32 at small")
        return times > TOO_SLOW

    def another_round(self, round_: int) -> None:
        for size in self.options.sizes.split(","):
            for program in aggregate.PROGRAMS:
                wanted: dict[tuple[str, str], list[str]] = {}
                for name in work.WORKS:
                    for setting in aggregate.near_best(aggregate.settings(self.measurements, program, size, name)):
                        dtype, variant = setting.split("/")
                        wanted.setdefault((dtype, variant), []).append(name)
                for (dtype, variant), names in wanted.items():
                    self.worker(program, size, dtype, ",".join(names), variant, round_, WORKER_LIMIT)

    def try_compile(self) -> None:
        """torch.compile on the peer's trunk, once, in bounded time; if it wins, later rounds measure it too."""
        start = time.monotonic()
        before = len(self.measurements)
        self.worker("peer", "small", "float32", "train", "compile", 0, COMPILE_LIMIT)
        if len(self.measurements) > before:
            self.note(
                f"torch.compile on the peer: {time.monotonic() - start:.0f} s to the end, "
                f"{aggregate.value(self.measurements[-1]):.0f} ms a step"
            )

    def rounds(self) -> None:
        """Further rounds, as many as end before the deadline if each takes as long as the last one."""
        took = 0.0
        for round_ in range(1, self.options.rounds):
            begun = time.monotonic()
            if begun + took > self.deadline:
                break
            self.another_round(round_)
            took = time.monotonic() - begun


def others_share(seconds: float = 0.5) -> float:
    """Share of the machine's CPU time used while this process sleeps."""

    def read() -> tuple[int, int]:
        fields = list(map(int, pathlib.Path("/proc/stat").read_text().splitlines()[0].split()[1:9]))
        return sum(fields), fields[3] + fields[4]

    total, idle = read()
    time.sleep(seconds)
    after, idle_after = read()
    return 1 - (idle_after - idle) / max(after - total, 1)


def prepare() -> None:
    """The environment of the peer and the control; torch first, so that the peer's requirement finds it."""
    if not PEER_PYTHON.exists():
        venv.create(PEER_PYTHON.parents[1], with_pip=True)
    requirements = HERE / "requirements-peer.txt"
    for requirement in requirements.read_text().splitlines():
        name, _, version = requirement.partition("==")
        if not version:
            continue
        code = f"import importlib.metadata as m, sys; sys.exit(m.version({name!r}).split('+')[0] != {version!r})"
        if subprocess.run([str(PEER_PYTHON), "-c", code], capture_output=True).returncode:
            print(f"installing {requirement} in {PEER_PYTHON.parents[1]}", file=sys.stderr, flush=True)
            subprocess.run([str(PEER_PYTHON), "-m", "pip", "install", "--quiet", requirement], check=True)


def check() -> dict[str, Any]:
    """Loss and gradients of the control against ours, with copied weights. A difference ends the run."""
    with tempfile.TemporaryDirectory() as folder:
        dump = os.path.join(folder, "dump.npz")
        ours = [sys.executable, str(HERE / "ours.py"), "--size", "small", "--dump", dump]
        subprocess.run(ours, check=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})
        command = [str(PEER_PYTHON), str(HERE / "check_control.py"), dump, "--size", "small"]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr.strip().splitlines()[-1])
    return json.loads(done.stdout.strip().splitlines()[-1])


def machine(threads: int) -> dict[str, Any]:
    """What a reader needs to compare with another machine."""
    fields: dict[str, str] = {}
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        key, _, text = line.partition(":")
        fields.setdefault(key.strip(), text.strip())
    flags = fields.get("flags", "").split()
    return {
        "cpu": fields.get("model name", platform.processor()),
        "cpus": os.cpu_count(),
        "threads": threads,
        "bfloat16_instructions": [flag for flag in ("avx512_bf16", "amx_bf16") if flag in flags],
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def write(benchmark: Benchmark, checked: dict[str, Any], path: pathlib.Path) -> dict[str, Any]:
    """results.json: date, machine, versions, medians, ranges, ratios, notes, and every timing."""
    versions: dict[str, str] = {}
    parameters: dict[str, dict[str, int]] = {}
    memory: dict[str, float] = {}
    for line in benchmark.workers:
        versions |= line["versions"]
        parameters.setdefault(line["size"], {})[line["program"]] = line["parameters"]
        key = f"{line['size']}/{line['program']}/{line['dtype']}"
        memory[key] = max(memory.get(key, 0.0), round(line["peak_rss_mb"]))
    result = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", "experiments/peer_speed/run.py", *sys.argv[1:]]),
        "machine": machine(benchmark.options.threads),
        "versions": versions,
        "parameters": parameters,
        "peak_rss_mb": memory,
        "control_check": checked,
        "others_cpu_share": round(benchmark.disturbance, 3),
        "keep_memory": benchmark.options.keep_memory,
        **aggregate.summary(benchmark.measurements),
        "notes": benchmark.notes,
        "measurements": benchmark.measurements,
    }
    path.write_text(json.dumps(result, indent=1) + "\n")
    return result


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="size small, float32, two rounds, no torch.compile")
    parser.add_argument("--sizes", default="small,medium")
    parser.add_argument("--dtypes", default="float32,bfloat16", help="float32 comes first")
    parser.add_argument(
        "--try-compile", action=argparse.BooleanOptionalAction, default=True, help="torch.compile, once"
    )
    parser.add_argument("--rounds", type=int, default=5, help="at most; the time decides")
    parser.add_argument("--minutes", type=float, default=13.0, help="no round begins that would end later")
    parser.add_argument("--repeats", type=int, default=3, help="timed calls of each work in a process")
    parser.add_argument("--seconds", type=float, default=8.0, help="of repeats of one work in a process")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--keep-memory", default="ours", help="programs whose malloc keeps its memory (see README), joined by commas"
    )
    parser.add_argument("--show", action="store_true", help="print the table of the results file and measure nothing")
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "results.json")
    options = parser.parse_args()
    if options.quick:
        options.sizes, options.dtypes, options.rounds, options.repeats = "small", "float32", 2, 2
    return options


def main() -> None:
    options = parse_options()
    if options.show:
        print(aggregate.table(json.loads(options.out.read_text())))
        return
    prepare()
    checked = check()
    print(f"control check: worst relative difference {checked['relative']:.1e} ({checked['worst']})", file=sys.stderr)
    with tempfile.TemporaryDirectory() as cache:
        benchmark = Benchmark(options, cache)
        if not options.quick and options.try_compile:
            benchmark.try_compile()
        benchmark.first_round()
        benchmark.rounds()
    if benchmark.disturbance > IDLE:
        benchmark.note(f"disturbed: other processes used up to {benchmark.disturbance:.0%} of the CPUs")
    print(aggregate.table(write(benchmark, checked, options.out)))


if __name__ == "__main__":
    main()
