"""A supervised training of two processes: whatever happens to them, the losses are those of one left alone."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest
import tiny
from program import environment
from test_faults import CONFIG, losses

EVERY = 20


class Training:
    """`transfusion.train --supervise --processes=2`, running."""

    def __init__(self, config, workdir, *arguments):
        self.workdir, self.checkpoints = workdir, workdir / "checkpoints"
        workdir.mkdir(exist_ok=True)
        self._said = workdir / "said"
        command = [
            sys.executable, "-m", "transfusion.train", f"--config={config}", f"--workdir={workdir}", "--supervise",
            "--processes=2", f"--config.checkpoint.every={EVERY}", "--config.log_every=5", "--backoff=0.1", *arguments,
        ]  # fmt: skip
        with open(self._said, "w") as said:
            self.process = subprocess.Popen(command, stderr=said, stdout=said, env=environment())

    def said(self) -> str:
        return self._said.read_text()

    def wait(self, what, seconds=240):
        """Waits until `what()` is true, and returns it."""
        end = time.monotonic() + seconds
        while not (value := what()):
            assert self.process.poll() is None and time.monotonic() < end, self.said()
            time.sleep(0.002)
        return value

    def step(self) -> int:
        return max(losses(self.workdir), default=0)

    def fault(self, rank: int, number: int) -> None:
        """Sends a signal to a rank of this attempt, and waits for the next."""
        *_, (attempt, line) = re.findall(r"attempt (\d+): (.*)", self.said())
        pids = dict(re.findall(r"rank (\d) is process (\d+)", line))
        os.kill(int(pids[str(rank)]), number)
        self.wait(lambda: f"attempt {int(attempt) + 1}:" in self.said())

    def kill_during_a_save(self, rank: int) -> None:
        while True:
            known = {int(path.name) for path in self.checkpoints.glob("[0-9]*") if path.name.isdecimal()}
            (unfinished,) = self.wait(lambda: list(self.checkpoints.glob("*.orbax-checkpoint-tmp*"))[:1])
            step = int(unfinished.name.partition(".")[0])
            self.fault(rank, signal.SIGKILL)
            if step not in known and not (self.checkpoints / f".seal-{step}.json").exists():
                return

    def finish(self) -> str:
        assert self.process.wait(300) == 0, self.said()
        return self.said()


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    root = tmp_path_factory.mktemp("supervise")
    file = root / "small.py"
    file.write_text(
        CONFIG.format(tests=os.path.dirname(os.path.dirname(__file__)), folder=tiny.write_folder(root / "images"))
    )
    return file


STEPS = 160


@pytest.fixture(scope="module")
def undisturbed(config, tmp_path_factory):
    """The losses of a run to which nothing happens."""
    training = Training(config, tmp_path_factory.mktemp("whole") / "run", f"--config.steps={STEPS}")
    assert training.finish().count("attempt") == 1
    wanted = losses(training.workdir)
    assert len(wanted) == STEPS / 5
    return wanted


@pytest.mark.soak
def test_kill_minus_9_of_any_rank_loses_nothing(config, undisturbed, tmp_path):
    """Of the coordinator in a step, and of the other in the middle of a save."""
    training = Training(config, tmp_path / "run", f"--config.steps={STEPS}")
    training.wait(lambda: training.step() >= EVERY + 10)
    training.fault(0, signal.SIGKILL)
    training.kill_during_a_save(1)
    said = training.finish()
    assert "rank 0 was killed by SIGKILL: all start again in 0.1 s" in said
    assert re.search(r"rank 1 was killed by SIGKILL: all start again in 0\.\d s", said)
    assert losses(training.workdir) == undisturbed  # to the last bit
    log = (training.workdir / "logs" / "rank_0.log").read_text()
    assert log.count("=== attempt") == said.count("attempt ") >= 3
    assert "continuing" in log


@pytest.mark.soak
def test_a_hung_rank_is_named_and_the_run_goes_on(config, undisturbed, tmp_path):
    training = Training(config, tmp_path / "run", f"--config.steps={STEPS}", "--hang_after=15")
    for rank in (1, 0):
        step = training.step()
        training.wait(lambda: training.step() >= step + EVERY + 10)  # noqa: B023
        training.fault(rank, signal.SIGSTOP)
        assert re.search(rf"rank {rank} hangs: nothing for \d+ s after step \d+.*does not answer", training.said())
    training.finish()
    assert losses(training.workdir) == undisturbed


@pytest.mark.soak
def test_kill_minus_9_of_each_rank_during_saves(config, undisturbed, tmp_path):
    training = Training(config, tmp_path / "run", f"--config.steps={STEPS}")
    training.kill_during_a_save(0)
    training.kill_during_a_save(1)
    training.finish()
    assert losses(training.workdir) == undisturbed


@pytest.mark.soak
def test_a_signal_to_the_supervisor_saves_and_the_same_command_continues(config, undisturbed, tmp_path):
    training = Training(config, tmp_path / "run", f"--config.steps={STEPS}")
    training.wait(lambda: training.step() >= EVERY + 5)
    training.process.send_signal(signal.SIGTERM)
    assert "stopped; the same command continues" in training.finish()
    logs = [(training.workdir / "logs" / f"rank_{rank}.log").read_text() for rank in range(2)]
    (step,) = {number for log in logs for number in re.findall(r"stopped at step (\d+)", log)}
    assert (training.checkpoints / f".seal-{step}.json").exists()
    Training(config, tmp_path / "run", f"--config.steps={STEPS}").finish()
    assert losses(training.workdir) == undisturbed


@pytest.mark.soak
def test_a_run_survives_a_fault_of_every_kind(data_dir, tmp_path):
    out = tmp_path / "results.json"
    program = pathlib.Path(__file__).parents[2] / "experiments" / "soak" / "run.py"
    flags = ["--faults=7", f"--workdir={tmp_path / 'runs'}", f"--data_dir={data_dir}", f"--out={out}"]
    done = subprocess.run([sys.executable, str(program), *flags], env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len({row["kind"] for row in json.loads(out.read_text())["faults"]}) == 7
