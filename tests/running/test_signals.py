"""Signals at awkward moments: twice, before the loop, while a checkpoint is written."""

import os
import signal
import time

import pytest
import tiny
from program import start_program
from test_faults import CONFIG, finish, wait_for_step

from transfusion.running.checkpoint import Checkpoints
from transfusion.running.interruption import Interruption
from transfusion.train import train


@pytest.fixture(autouse=True)
def heard():
    """Lets SIGINT be heard, by programs that are started too: a shell's job in the background has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def kill():
    """Sends this process a signal, and waits until its handler has run."""

    def send(number: int) -> None:
        os.kill(os.getpid(), number)
        time.sleep(0.01)

    return send


def test_terminated_any_number_of_times_is_asked_once(kill):
    before = signal.getsignal(signal.SIGTERM)
    with Interruption() as interruption:
        assert signal.getsignal(signal.SIGTERM) is before  # nothing to save yet
        interruption.listen()
        assert not interruption.reached(1)
        for _ in range(3):
            kill(signal.SIGTERM)
        assert interruption.reached(2)
        kill(signal.SIGTERM)  # while it saves
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_second_ctrl_c_ends_at_once_and_a_terminate_before_is_none(kill, capfd):
    with pytest.raises(KeyboardInterrupt), Interruption() as interruption:
        interruption.listen()
        kill(signal.SIGTERM)
        kill(signal.SIGINT)
        assert interruption.reached(1)
        assert capfd.readouterr().err == "\ninterrupted: saves after this step and ends; once more ends it at once\n"
        kill(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_signal_during_each_save_leaves_it_whole(tmp_path, monkeypatch, kill):
    """Twice while a checkpoint is written on the way, twice while the last one is written at the end."""
    experiment = tiny.experiment(tiny.write_folder(tmp_path / "images"), steps=6, log_every=2)
    close = Checkpoints.close

    def closing(self):
        kill(signal.SIGTERM)
        kill(signal.SIGTERM)
        close(self)

    save = Checkpoints.save

    def saving(self, step, *given, **options):
        kill(signal.SIGTERM)
        kill(signal.SIGTERM)
        return save(self, step, *given, **options)

    monkeypatch.setattr(Checkpoints, "close", closing)
    monkeypatch.setattr(Checkpoints, "save", saving)
    train(experiment, tmp_path / "run")
    with monkeypatch.context() as patch, Checkpoints(tmp_path / "run") as checkpoints:
        patch.setattr(Checkpoints, "close", close)
        assert checkpoints.steps()[-1] == 6


@pytest.mark.slow
def test_signals_to_a_whole_program(tmp_path):
    """Ctrl-C before the first step is one line; two SIGTERMs in a row save; Ctrl-C twice leaves what was saved."""
    folder = tiny.write_folder(tmp_path / "images")
    (tmp_path / "small.py").write_text(CONFIG.format(tests=os.path.dirname(os.path.dirname(__file__)), folder=folder))
    flags = [f"--config={tmp_path / 'small.py'}", "--config.steps=100000", "--config.checkpoint.every=100000"]
    run = tmp_path / "run"

    early = start_program("transfusion.train", *flags, f"--workdir={run}")
    while not (run / ".lock").exists():
        assert early.poll() is None
        time.sleep(0.001)
    early.send_signal(signal.SIGINT)
    _, errors = early.communicate(timeout=120)
    assert early.returncode == -signal.SIGINT, errors
    assert "Traceback" not in errors and errors.strip().splitlines()[-1] == "interrupted"

    stopped = start_program("transfusion.train", *flags, f"--workdir={run}")
    wait_for_step(run, stopped, 2)
    for _ in range(3):
        stopped.send_signal(signal.SIGTERM)
        time.sleep(0.01)
    assert "the same command continues" in finish(stopped)
    with Checkpoints(run) as checkpoints:
        (step,) = checkpoints.steps()

    again = start_program("transfusion.train", *flags, f"--workdir={run}")
    wait_for_step(run, again, step + 5)
    again.send_signal(signal.SIGINT)
    again.send_signal(signal.SIGINT)
    time.sleep(0.05)
    again.send_signal(signal.SIGINT)
    _, errors = again.communicate(timeout=120)
    assert again.returncode in (0, -signal.SIGINT) and "Traceback" not in errors, errors
    with Checkpoints(run) as checkpoints:
        assert checkpoints.steps()[0] == step
