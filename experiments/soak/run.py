"""Does a training survive whatever happens to its processes and its disk, and end as if nothing had happened?

python experiments/soak/run.py                      # 200 faults
python experiments/soak/run.py --faults=10 --workdir=runs/short_soak --out=runs/short_soak/results.json
python experiments/soak/run.py --show               # prints the table of results.json

Two ranks of `transfusion.train --supervise` train the digits' debug form on real digits. Meanwhile random faults, fixed
by a seed, happen to random ranks at random moments; each fault has its own share of the steps. A second run of the same
command is left alone, and the first one must end with its numbers.
"""

import argparse
import contextlib
import datetime
import json
import os
import pathlib
import platform
import random
import re
import shlex
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

from transfusion.data import builders
from transfusion.running import seals
from transfusion.running.metrics import read_metrics

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]
RANKS, EVERY, SHARE = 2, 20, 30  # a fault every 30 steps, a checkpoint every 20
TOLERANCE = 1e-5
PATIENCE = 1800.0  # seconds after which any wait here fails
KINDS = {
    "kill -9 in a step": "a rank, at a random step",
    "kill -9 in a save": "a rank, while a checkpoint is written",
    "kill -9 at the start": "a rank, 0 to 6 seconds after it was started (by another fault)",
    "SIGTERM": "to a rank, at a random step",
    "SIGSTOP": "of a rank, at a random step",
    "damaged checkpoint": "a byte of a file of the newest checkpoint is changed, then kill -9",
    "failing storage": "1 to 4 seconds in which no file of the checkpoints can be opened, made, moved or listed",
}


def steps(faults: int) -> int:
    """The number of steps: each fault has its share, and some steps come after the last fault."""
    return faults * SHARE + 2 * EVERY


class Run:
    """A supervised training, and what its processes report."""

    def __init__(self, workdir: pathlib.Path, options: argparse.Namespace, hang_after: float):
        self.workdir, self.checkpoints = workdir, workdir / "checkpoints"
        self._said, self._temporary = workdir / "supervisor.log", workdir / "tmp"
        self.storage_fails = workdir / "storage_fails"
        self._temporary.mkdir(parents=True, exist_ok=True)
        self.command = [
            "-m", "transfusion.train", f"--config={ROOT / 'configs' / 'digits.py'}:debug", f"--workdir={workdir}",
            "--supervise", f"--processes={RANKS}", "--backoff=0.1", f"--max_failures={options.max_failures}",
            f"--hang_after={hang_after}", "--start_after=1200", f"--config.steps={steps(options.faults)}",
            f"--config.checkpoint.every={EVERY}", "--config.log_every=10", "--config.eval.every=0",
            f"--config.data.data_dir={options.data_dir}",
        ]  # fmt: skip
        extra = {
            "JAX_PLATFORMS": "cpu",
            # Each start compiles: on CPUs jax keeps compiled programs only for the first process.
            "XLA_FLAGS": "--xla_backend_optimization_level=0",
            "TMPDIR": str(self._temporary),
            "SOAK_STORAGE_FAILS": str(self.storage_fails),
            "PYTHONPATH": os.pathsep.join([str(HERE / "storage"), str(ROOT)]),
        }
        with open(self._said, "a") as log:
            self.process = subprocess.Popen(
                [sys.executable, *self.command], stdout=log, stderr=log, env=os.environ | extra
            )

    def said(self) -> str:
        return self._said.read_text()

    def attempt(self) -> tuple[int, list[int]]:
        """The number of the running attempt, and the process ids of its ranks."""
        found = re.findall(r"attempt (\d+): (.*)", self.said())
        if not found:
            return 0, []
        return int(found[-1][0]), [int(pid) for pid in re.findall(r"is process (\d+)", found[-1][1])]

    def step(self) -> int:
        """The last step that a rank of this attempt reported; -1 before the first."""
        steps = []
        for beat in self._temporary.glob("transfusion-*/*"):
            with contextlib.suppress(OSError):
                fields = beat.read_text().split("|")
                steps += [int(fields[0])] if len(fields) > 2 and fields[2] == "True" else []
        return max(steps, default=-1)

    def wait(self, what: Callable[[], object]) -> None:
        end = time.monotonic() + PATIENCE
        while not what():
            if self.process.poll() is not None:
                raise RuntimeError(f"the supervisor ended with code {self.process.returncode}: {self.said()[-2000:]}")
            if time.monotonic() > end:
                raise RuntimeError(f"nothing for {PATIENCE:g} s: {self.said()[-2000:]}")
            time.sleep(0.005)


# --- faults -----------------------------------------------------------------------------------------------------------


def inject(run: Run, kind: str, random_: random.Random) -> str:
    """Lets a fault of `kind` happen now, and returns what happened, in a few words."""
    rank = random_.randrange(RANKS)
    if kind == "kill -9 in a save":
        run.wait(lambda: list(run.checkpoints.glob("*.orbax-checkpoint-tmp*")))
    elif kind == "failing storage":
        seconds = random_.uniform(1, 4)
        run.storage_fails.touch()
        time.sleep(seconds)
        run.storage_fails.unlink()
        return f"for {seconds:.1f} s"
    elif kind == "damaged checkpoint":
        what = damage(run, random_)
        kill(run, rank, signal.SIGKILL)
        return f"{what}, rank {rank} killed"
    kill(run, rank, {"SIGTERM": signal.SIGTERM, "SIGSTOP": signal.SIGSTOP}.get(kind, signal.SIGKILL))
    return f"rank {rank}"


def kill(run: Run, rank: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(run.attempt()[1][rank], number)


def damage(run: Run, random_: random.Random) -> str:
    """Changes a byte of the newest sealed checkpoint, once there is an older one to go back to."""
    run.wait(lambda: len(sealed(run)) > 1)
    while True:
        newest = run.checkpoints / str(sealed(run)[-1])
        with contextlib.suppress(FileNotFoundError):  # a newer checkpoint has replaced it meanwhile
            file = random_.choice(sorted(p for p in newest.rglob("*") if p.is_file() and p.stat().st_size))
            content = bytearray(file.read_bytes())
            content[random_.randrange(len(content))] ^= 1 << random_.randrange(8)
            file.write_bytes(content)
            return f"{file.relative_to(run.checkpoints)} changed"


def sealed(run: Run) -> list[int]:
    steps = seals.steps_on_disk(run.checkpoints) if run.checkpoints.exists() else []
    return [step for step in steps if seals.seal_path(run.checkpoints, step).exists()]


def schedule(count: int, seed: int) -> Iterator[tuple[str, int, float]]:
    """(kind, step, seconds after a start) of each fault. All kinds are equally frequent, in random order."""
    random_ = random.Random(seed)
    kinds = [list(KINDS)[i % len(KINDS)] for i in range(count)]
    random_.shuffle(kinds)
    for i, kind in enumerate(kinds):
        yield kind, EVERY + i * SHARE + random_.randrange(SHARE), random_.uniform(0, 6)


def soak(run: Run, options: argparse.Namespace) -> list[dict]:
    """Lets all faults happen, one after the other. Returns [{kind, step, what, seconds to recover, ...}]."""
    random_, rows = random.Random(options.seed + 1), []
    for kind, step, delay in schedule(options.faults, options.seed):
        if kind == "kill -9 at the start":
            # This fault kills a start: one that follows another kill, which is a part of the fault.
            run.wait(lambda step=step: run.step() >= step)
            before, _ = run.attempt()
            kill(run, random_.randrange(RANKS), signal.SIGKILL)
            run.wait(lambda before=before: run.attempt()[0] > before)
            time.sleep(delay)
        else:
            run.wait(lambda step=step: run.step() >= step)
        before, reached, start = run.attempt()[0], max(run.step(), step), time.monotonic()
        what = inject(run, kind, random_)
        if kind != "failing storage":  # a rank may survive it
            run.wait(lambda before=before: run.attempt()[0] > before)
        run.wait(lambda reached=reached: run.step() > reached)
        rows.append({
            "kind": kind, "step": reached, "what": what, "seconds": round(time.monotonic() - start, 2),
            "attempts": run.attempt()[0] - before,
        })  # fmt: skip
        print(f"{len(rows)} of {options.faults}: {rows[-1]}", flush=True)
    return rows


# --- results ----------------------------------------------------------------------------------------------------------


def compare(broken: pathlib.Path, whole: pathlib.Path) -> dict:
    """The losses of the two runs, row by row."""
    rows = [{row["step"]: row["loss"] for row in read_metrics(folder / "metrics.jsonl")} for folder in (broken, whole)]
    last = max(rows[1])
    return {
        "same_steps": rows[0].keys() == rows[1].keys(),
        "rows": len(rows[1]),
        "greatest_difference": max(abs(rows[0].get(step, float("inf")) - loss) for step, loss in rows[1].items()),
        "final_loss": rows[0].get(last),
        "final_loss_undisturbed": rows[1][last],
    }


def table(result: dict) -> str:
    lines = ["| fault | happens | survived | median s to recover | most |", "|" + "---|" * 5]
    for kind, note in KINDS.items():
        seconds = [row["seconds"] for row in result["faults"] if row["kind"] == kind]
        if seconds:
            cells = f"{len(seconds)} of {len(seconds)}", f"{statistics.median(seconds):.1f}", f"{max(seconds):.1f}"
            lines.append(f"| {kind} | {note} | {' | '.join(cells)} |")
    return "\n".join(lines)


def report(result: dict) -> str:
    losses, faults = result["losses"], result["faults"]
    equal = "equal" if within(losses) else "NOT equal"
    return "\n".join([
        f"{result['date']}, {result['machine']}, `{result['command']}`: {len(faults)} faults in "
        f"{result['seconds'] / 60:.0f} minutes and {result['steps']:,} steps, {result['attempts']} starts. Final loss "
        f"{losses['final_loss']:.7f}, undisturbed {losses['final_loss_undisturbed']:.7f}; over all {losses['rows']} "
        f"rows of metrics greatest difference {losses['greatest_difference']:.1e}: {equal} within {TOLERANCE:g}.",
        "", table(result),
    ])  # fmt: skip


def within(losses: dict) -> bool:
    return losses["same_steps"] and losses["greatest_difference"] <= TOLERANCE


def write_readme(text: str) -> None:
    """Puts the text between the marks of README.md."""
    path = HERE / "README.md"
    begin, end = "<!-- results -->", "<!-- end of results -->"
    before, _, rest = path.read_text().partition(begin)
    path.write_text(f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/soak"))
    parser.add_argument("--data_dir", type=pathlib.Path, default=pathlib.Path("data"))
    parser.add_argument("--hang_after", type=float, default=5.0, help="seconds without a step")
    parser.add_argument("--max_failures", type=int, default=20)
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "results.json")
    parser.add_argument("--show", action="store_true")
    options = parser.parse_args()
    if options.show:
        print(report(json.loads(options.out.read_text())))
        return 0
    options.data_dir, workdir = options.data_dir.absolute(), options.workdir.absolute()
    if (workdir / "broken" / "checkpoints").exists():  # the run that is left alone may continue or be complete
        raise SystemExit(f"error: {workdir} holds a soak already: give another --workdir")
    builders.prepare("digits", str(options.data_dir))
    whole = Run(workdir / "whole", options, 600)
    if whole.process.wait():
        raise SystemExit(f"error: the undisturbed run failed: {whole.said()[-2000:]}")
    start = time.monotonic()
    broken = Run(workdir / "broken", options, options.hang_after)
    try:
        faults = soak(broken, options)
        code = broken.process.wait(PATIENCE)
    finally:
        broken.process.terminate()
        broken.process.wait(60)
    result = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{processor()}, {len(os.sched_getaffinity(0))} cores",
        "command": shlex.join(
            ["python", "experiments/soak/run.py", f"--faults={options.faults}", f"--seed={options.seed}"]
        ),
        "seconds": round(time.monotonic() - start, 1),
        "steps": steps(options.faults),
        "attempts": broken.attempt()[0],
        "exit_code": code,
        "losses": compare(broken.workdir, whole.workdir),
        "faults": faults,
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(report(result))
    if options.out.parent == HERE:
        write_readme(report(result))
    return 0 if code == 0 and within(result["losses"]) else 1


def processor() -> str:
    """The processor's name as Linux tells it."""
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    sys.exit(main())
