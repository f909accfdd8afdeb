"""What happens when the process dies, losses are no numbers, records are broken, users mistype."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import tiny
from PIL import Image
from program import Result, run_program, start_program

from transfusion import programs
from transfusion import train as train_module
from transfusion.config import to_config_dict
from transfusion.errors import UsageError
from transfusion.running.checkpoint import CheckpointConfig, Checkpoints
from transfusion.running.guard import GuardConfig
from transfusion.running.jax_setup import set_up_jax
from transfusion.running.metrics import read_metrics
from transfusion.running.own_files import sole_use
from transfusion.tasks import SequenceTask
from transfusion.training.step import make_init, make_step

CONFIG = """
import sys
sys.path.insert(0, {tests!r})
import tiny
from transfusion.config import to_config_dict

def get_config():
    return to_config_dict(tiny.experiment({folder!r}))
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """The path of a config file on a user's folder of images."""
    root = tmp_path_factory.mktemp("faults")
    folder = tiny.write_folder(root / "images")
    file = root / "small.py"
    file.write_text(CONFIG.format(tests=os.path.dirname(__file__), folder=folder))
    return file


# --- the process dies -------------------------------------------------------------------------------------------------


def losses(workdir):
    rows = read_metrics(workdir / "metrics.jsonl")
    return {row["step"]: [row["loss"], row["text_loss"], row["image_loss"], row["grad_norm"]] for row in rows}


def wait_for_step(workdir, process, step):
    end = time.time() + 240
    while time.time() < end and process.poll() is None:
        rows = losses(workdir) if (workdir / "metrics.jsonl").exists() else {}
        if rows and max(rows) >= step:
            return
        time.sleep(0.005)
    raise AssertionError(f"the run ended before step {step}: {process.communicate()[1]}")


def finish(process):
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return errors


@pytest.mark.slow
def test_a_killed_run_goes_on_as_if_nothing_had_happened(config, tmp_path):
    steps, every, log_every = 120, 20, 7
    arguments = [
        f"--config={config}", f"--config.steps={steps}", f"--config.checkpoint.every={every}",
        f"--config.log_every={log_every}",
    ]  # fmt: skip
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    finish(start_program("transfusion.train", *arguments, f"--workdir={whole}"))
    wanted = losses(whole)
    assert len(wanted) == -(-steps // log_every)

    killed = start_program("transfusion.train", *arguments, f"--workdir={broken}")
    wait_for_step(broken, killed, 2 * every + 10)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    reached = max(losses(broken))
    assert reached < steps

    # Stopped politely on the way, too.
    stopped = start_program("transfusion.train", *arguments, f"--workdir={broken}")
    wait_for_step(broken, stopped, reached + every // 2)
    stopped.send_signal(signal.SIGTERM)
    errors = finish(stopped)
    with Checkpoints(broken) as checkpoints:
        last = checkpoints.steps()[-1]
    assert reached < last < steps
    assert f"stopped at step {last}" in errors
    errors = finish(start_program("transfusion.train", *arguments, f"--workdir={broken}"))
    assert "continuing" in errors
    assert losses(broken) == wanted  # to the last bit


# --- losses that are no numbers ---------------------------------------------------------------------------------------


class _Numbered:
    """Fake batches, counted; those in `bad` hold a NaN. `served` is the count of every batch that was asked for."""

    def __init__(self, task, rows, bad, served, stop):
        self._task, self._rows, self._bad, self._served, self._stop = task, rows, bad, served, stop
        self._next = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def __next__(self):
        number, self._next = self._next, self._next + 1
        self._served.append(number)
        batch = self._task.fake_batch(self._rows, number)
        if number == self._stop:
            os.kill(os.getpid(), signal.SIGTERM)
        if number in self._bad:
            batch["image"].values[:] = np.nan
        return batch

    def state(self):
        return {"next": self._next}

    def restore(self, state):
        self._next = state["next"]

    def stats(self):
        return {"bad": 0, "efficiency": {}}


@pytest.fixture
def diverging(monkeypatch, tmp_path):
    """`run(bad, **changes)` trains ten steps on batches of which those numbered in `bad` are NaN; a SIGTERM comes while
    batch `stop` is read. Gives the state, or the error, and which batches were served."""
    set_up_jax()

    def run(bad, stop=None, **changes):
        experiment = tiny.experiment("", steps=10, log_every=1, batch_size=2, **changes)
        served = []

        class Task(SequenceTask):
            def open_data(self, experiment, rows):
                return _Numbered(self, 2, bad, served, stop)

        task = Task(experiment.model, experiment.spec, experiment.objectives)
        monkeypatch.setattr(train_module, "make_task", lambda _: task)
        try:
            return train_module.train(experiment, tmp_path / "run"), served
        except UsageError as error:
            return error, served

    return run


def test_an_update_that_is_no_number_is_skipped_and_counted():
    experiment = tiny.experiment("", batch_size=2)
    task = SequenceTask(experiment.model, experiment.spec, experiment.objectives)
    step = jax.jit(make_step(task, experiment))
    before = jax.jit(make_init(task, experiment))()
    before = step(before, task.fake_batch(2, 0))  # the optimizer's moments are not zero
    batch = task.fake_batch(2, 1)
    batch["image"].values[0, 0, 0] = np.inf
    after = step(before, batch)
    assert int(after.step) == int(before.step) + 1
    assert jax.tree.map(int, after.skips) == {"skipped": 1, "in_a_row": 1}
    kept = [(s.params, s.ema, s.opt_state, s.log) for s in (before, after)]
    jax.tree.map(np.testing.assert_array_equal, *kept)


def test_a_run_of_bad_updates_goes_back_and_leaves_out_the_data(diverging, tmp_path):
    state, served = diverging(bad={7, 8, 9}, checkpoint=CheckpointConfig(every=5), guard=GuardConfig(max_consecutive=3))
    # Steps 1 to 10 saw batches 0 to 9; after the rollback to step 5 training goes on with batch 10.
    assert served == list(range(15))
    assert int(state.step) == 10
    assert int(state.skips["skipped"]) == 3
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 11))
    assert all(row["loss"] is not None for row in rows)
    with Checkpoints(tmp_path / "run") as checkpoints:
        *_, position, _ = checkpoints.restore(state)
    assert position["guard"]["rollbacks"] == 1


def test_rollbacks_before_a_resume_count(diverging):
    changes = dict(checkpoint=CheckpointConfig(every=2), guard=GuardConfig(max_consecutive=2, max_rollbacks=1))
    state, served = diverging(bad={3, 4}, stop=7, **changes)
    assert 2 < int(state.step) < 8
    error, served = diverging(bad={9, 10}, **changes)
    assert served[0] == 8
    assert isinstance(error, UsageError)
    assert "after 1 rollbacks" in str(error)


def test_nothing_to_go_back_to(diverging):
    error, _ = diverging(bad=range(100), guard=GuardConfig(max_consecutive=2))
    assert isinstance(error, UsageError)
    assert "there is no checkpoint to go back to" in str(error)


# --- broken records ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def broken_folder(tmp_path_factory):
    """40 images, of which one is cut short, one has floating-point pixels, and one has no caption."""
    folder = tmp_path_factory.mktemp("broken") / "images"
    tiny.write_folder(folder, 40)
    (folder / "3.png").write_bytes((folder / "3.png").read_bytes()[:40])
    Image.fromarray(np.full((8, 8), 0.5, np.float32)).save(folder / "11.png", "TIFF")
    lines = (folder / "captions.jsonl").read_text().splitlines()
    lines[20] = json.dumps({"file_name": "20.png"})
    (folder / "captions.jsonl").write_text("\n".join(lines))
    return str(folder)


def test_broken_records_are_counted_and_named(config, broken_folder, tmp_path):
    arguments = [f"--config.data.sources.mine.path={broken_folder}", "--config.data.max_bad_share=0.5"]
    result = run_program(tmp_path, "transfusion.train", f"--config={config}", f"--workdir={tmp_path}", *arguments)
    assert result.code == 0, result.err
    row = read_metrics(tmp_path / "metrics.jsonl")[-1]
    assert row["bad_records"] >= 3
    assert row["loss"] > 0
    for name, reason in (("3.png", "not a readable image"), ("11.png", "F pixels"), ("20.png", "caption")):
        named = [line for line in result.err.splitlines() if f"/{name}" in line]
        assert len(named) == 1, result.err  # once, however often it comes by
        assert reason in named[0]


def test_too_many_broken_records_stop_the_run_with_the_list(config, broken_folder, tmp_path):
    arguments = [f"--config.data.sources.mine.path={broken_folder}", "--config.data.max_bad_after=40"]
    result = run_program(tmp_path, "transfusion.train", f"--config={config}", f"--workdir={tmp_path}", *arguments)
    assert result.code == 2
    line = result.err.splitlines()[-1]
    assert line.startswith("error: ")
    assert "data.max_bad_share=0.01" in line
    assert all(f"/{name}: " in line for name in ("3.png", "11.png", "20.png"))
    assert "Traceback" not in result.err


# --- mistakes of the user ---------------------------------------------------------------------------------------------

SYNTAX = "def get_config(:\n    pass\n"
RAISES = "def get_config():\n    return 1 / 0\n"
MISTAKES = {
    "unknown field": (["--config.modle.width=3"], "unknown field 'modle' (did you mean 'model'?)"),
    "unknown inner field": (["--config.model.witdh=3"], "--config.model: unknown field 'witdh' (did you mean 'width'"),
    "wrong type": (["--config.steps=abc"], "--config.steps must be of type int, not 'abc'"),
    "unknown flag": (["--stepz=3"], "unknown flag --stepz (did you mean --config.steps?)"),
    "misspelt flag": (["--wokdir=x"], "unknown flag --wokdir (did you mean --workdir?)"),
    "stray word": (["now"], "unexpected argument 'now'"),
    "heads": (["--config.model.heads=3"], "3 heads do not divide width 16"),
    "patch": (["--config.streams.image.patch=3"], "patch 3 does not divide the latent grid (8, 8)"),
    "mesh": (["--config.mesh.fsdp=3"], "does not multiply to 1 devices"),
    "accumulate": (["--config.optim.accumulate=3"], "accumulate 3 does not divide batch_size 4"),
    "objective": (
        ["--config.streams.image.objective=continuos"],
        "streams.image.objective: 'continuos' is none of none, next_token, next_scale, masked, continuous, "
        "token_flow, masked_flow, shortcut, mean_flow, clip, siglip (did you mean 'continuous'?)",
    ),
    "patience without --supervise": (["--hang_after=0"], "--hang_after and --start_after must be positive"),
    "missing folder": (["--config.data.sources.mine.path=nowhere"], "no folder 'nowhere'"),
    "missing data": (
        [f"--config.data.sources.mine.{field}" for field in ("kind=tfds", "name=digits", "path=")],
        "run `python -m transfusion.prepare --data_dir",
    ),
}  # fmt: skip


def one_line_error(result):
    """The error, if it is the only thing that the program said."""
    assert result.code == 2, result
    lines = result.err.splitlines()
    assert len(lines) == 1, result.err
    assert lines[0].startswith("error: ")
    assert result.out == ""
    return lines[0]


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_that_says_what_to_do(config, tmp_path, name):
    arguments, wanted = MISTAKES[name]
    workdir = tmp_path / "run"
    arguments = [
        f"--config={config}",
        f"--workdir={workdir}",
        f"--config.data.data_dir={tmp_path / 'none'}",
        *arguments,
    ]
    assert wanted in one_line_error(run_program(tmp_path, "transfusion.train", *arguments))


@pytest.mark.parametrize(
    "content, wanted",
    [
        (SYNTAX, "wrong.py, line 1: "),
        (RAISES, "wrong.py, line 2: ZeroDivisionError"),
        ("import nonsens\n", "wrong.py, line 1: ModuleNotFoundError: No module named 'nonsens'"),
        ("x = 1\n", "wrong.py: no function get_config"),
        ("import sys\nsys.exit(0)\n", "wrong.py, line 2: SystemExit: 0"),
        ("def get_config():\n    raise KeyboardInterrupt\n", "wrong.py, line 2: KeyboardInterrupt"),
        ("def get_config():\n    raise GeneratorExit\n", "wrong.py, line 2: GeneratorExit"),
        (None, "wrong.py does not exist (did you mean"),
    ],
)
def test_a_config_file_that_cannot_be_read(tmp_path, content, wanted):
    (tmp_path / "wrongs.py").write_text("")
    if content is not None:
        (tmp_path / "wrong.py").write_text(content)
    result = run_program(tmp_path, "transfusion.train", f"--config={tmp_path / 'wrong.py'}", f"--workdir={tmp_path}")
    assert wanted in one_line_error(result)


def test_a_config_file_that_returns_nothing(tmp_path):
    (tmp_path / "empty.py").write_text("def get_config():\n    pass\n")
    result = run_program(tmp_path, "transfusion.train", f"--config={tmp_path / 'empty.py'}", f"--workdir={tmp_path}")
    assert result.code == 2 and "its get_config returns None" in result.err


def test_a_run_that_cannot_begin_leaves_config_json_alone(config, tmp_path):
    (tmp_path / "run" / "commands.jsonl").mkdir(parents=True)
    result = run_program(tmp_path, "transfusion.train", f"--config={config}", f"--workdir={tmp_path / 'run'}")
    assert result.code == 2 and "commands.jsonl: Is a directory" in result.err
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_missing_flag(config, tmp_path):
    assert "--workdir is missing" in one_line_error(run_program(tmp_path, "transfusion.train", f"--config={config}"))
    assert "--config is missing" in one_line_error(run_program(tmp_path, "transfusion.train", f"--workdir={tmp_path}"))


def test_no_noise_about_hardware_that_is_not_there(config, tmp_path):
    arguments = [f"--config={config}", f"--workdir={tmp_path}", "--config.data.sources.mine.path=nowhere"]
    environment = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    command = [sys.executable, "-m", "transfusion.train", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert one_line_error(Result(done.returncode, done.stdout, done.stderr)).startswith("error: no folder 'nowhere'")


def test_a_second_training_in_the_same_workdir_is_refused(config, tmp_path):
    with sole_use(tmp_path / "run"):
        result = run_program(tmp_path, "transfusion.train", f"--config={config}", f"--workdir={tmp_path / 'run'}")
    assert "another program is at work in" in one_line_error(result)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_another_model_on_a_workdir_that_holds_one(config, tmp_path):
    arguments = [f"--config={config}", f"--workdir={tmp_path}", "--config.steps=2"]
    assert run_program(tmp_path, "transfusion.train", *arguments).code == 0
    changed = [*arguments, "--config.model.width=32", "--config.steps=4"]
    line = one_line_error(run_program(tmp_path, "transfusion.train", *changed))
    assert "model.width: 16 -> 32 (the checkpoint of step 2 -> now)" in line
    line = one_line_error(run_program(tmp_path, "transfusion.train", *changed, "--allow_change=seed,model"))
    assert "checkpoint 2 does not fit this config" in line
    assert "in the checkpoint and" in line


def test_an_experiment_in_python_is_checked_as_strictly(tmp_path):
    config = to_config_dict(tiny.experiment(str(tmp_path)))
    with config.unlocked():
        config.model.withd = 3
    with pytest.raises(UsageError, match=r"config.model: unknown field 'withd' \(did you mean 'width'\?\)"):
        programs.experiment_of(config)


WAITING = """
import threading
from transfusion import programs
from transfusion.errors import UsageError

class Waiting(threading.Thread):
    __module__ = "orbax.checkpoint"  # of a save that failed before it had begun its threads' work

    def run(self):
        threading.Event().wait(300)

def main(argv):
    Waiting().start()
    {last}

programs.run(main)
"""


@pytest.mark.parametrize(
    "last, code, said",
    [("raise UsageError('the disk is full')", 2, "error: the disk is full"), ("print('done')", 0, ""),
     ("raise KeyError('a fault of ours')", 1, "KeyError")],
)  # fmt: skip
def test_a_program_ends_although_threads_of_a_failed_save_wait(last, code, said):
    command = [sys.executable, "-c", WAITING.format(last=last)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
