"""Sweeps: each member in its own process, resumable, one table."""

import dataclasses
import json
import os
import signal
import threading
import time

import pytest
import tiny
from program import run_program, start_program

from transfusion import sweep
from transfusion.config import to_json
from transfusion.data.config import SourceConfig
from transfusion.errors import UsageError
from transfusion.evaluation.sweep_table import sweep_table
from transfusion.running.metrics import FLOPS_PER_STEP
from transfusion.tasks import flops_of_data, make_task

SWEEP = """
import dataclasses, sys
sys.path.insert(0, {tests!r})
import tiny
from transfusion.config import EvalConfig, to_config_dict
from transfusion.data.config import SourceConfig

def get_sweep():
    held_out = {{"mine": SourceConfig(kind="folder", path={folder!r})}}
    evaluation = EvalConfig(every=0, sources=held_out, samples=2, captions=2)
    small = tiny.experiment({folder!r}, steps=4, log_every=2, eval=evaluation)
    broken = tiny.experiment({folder!r} + "/nowhere", steps=4)
    return {{"broken": to_config_dict(broken), "small": to_config_dict(small)}}
"""


@pytest.mark.slow
def test_members_are_trained_evaluated_and_tabled_and_one_failure_stops_no_other(tmp_path):
    folder = tiny.write_folder(tmp_path / "images", 6)
    file = tmp_path / "sweep.py"
    file.write_text(SWEEP.format(tests=os.path.dirname(__file__), folder=folder))
    process = start_program("transfusion.sweep", str(file), f"--workdir={tmp_path / 'runs'}")
    out, errors = process.communicate(timeout=600)
    assert process.returncode == 1, errors
    broken, small = json.loads((tmp_path / "runs" / "sweep.json").read_text())
    assert broken["name"] == "broken" and "no folder" in broken["error"]
    assert small["error"] is None, (tmp_path / "runs" / "small" / "sweep.log").read_text()
    assert small["steps"] == 4 and small["loss"] > 0 and small["seconds"] > 0
    assert (
        small["text_bits_per_byte"]["low"] < small["text_bits_per_byte"]["value"] < small["text_bits_per_byte"]["high"]
    )
    assert (tmp_path / "runs" / "small" / "evaluation.json").is_file()
    table = (tmp_path / "runs" / "sweep.md").read_text()
    assert table.strip() in out
    lines = table.splitlines()
    assert len(lines) == 4 and len({line.count("|") for line in lines}) == 1
    assert "failed: no folder" in lines[2] and "small" in lines[3]


# --- the rest without processes ---------------------------------------------------------------------------------------


@pytest.fixture
def member(tmp_path):
    return sweep.Member("small", tiny.experiment("folder", steps=10), tmp_path / "small")


@pytest.fixture
def processes(monkeypatch, member):
    """What was started; training logs the steps in `trains`, evaluating writes evaluation.json."""
    started, trains = [], [10]

    def process(member, module, *arguments):
        started.append(module.split(".")[-1])
        if started[-1] == "train":
            (member.workdir / "config.json").write_text(to_json(member.experiment))
            (member.workdir / "metrics.jsonl").write_text(json.dumps({"step": trains[0], "loss": 2.5}) + "\n")
        else:
            config = dataclasses.asdict(member.experiment)
            score = {"value": 0.5, "low": 0.4, "high": 0.6, "count": 80}
            content = {"step": member.experiment.steps, "config": config, "caption_accuracy": score}
            (member.workdir / "evaluation.json").write_text(json.dumps(content))

    monkeypatch.setattr(sweep, "_process", process)
    return started, trains


def test_what_is_finished_is_skipped(member, processes):
    started, _ = processes
    first = sweep.run_member(member)
    assert started == ["train", "evaluate"]
    assert first["error"] is None and first["caption_accuracy"]["value"] == 0.5
    assert sweep.run_member(member) == first
    assert started == ["train", "evaluate"]


def test_what_was_interrupted_goes_on(member, processes):
    started, trains = processes
    trains[0] = 6
    assert sweep.run_member(member)["error"] == "stopped at step 6; the same command continues"
    assert started == ["train"]
    trains[0] = 10
    assert sweep.run_member(member)["error"] is None
    assert started == ["train", "train", "evaluate"]


def test_more_steps_continue_and_other_settings_do_not(member, processes):
    started, trains = processes
    sweep.run_member(member)
    trains[0] = 20
    longer = dataclasses.replace(member, experiment=dataclasses.replace(member.experiment, steps=20))
    assert sweep.run_member(longer)["steps"] == 20
    other = dataclasses.replace(member, experiment=dataclasses.replace(member.experiment, seed=1))
    assert "holds a run with another 'seed'" in sweep.run_member(other)["error"]
    assert started == ["train", "evaluate"] * 2


def test_flops_are_what_the_run_counted_or_of_an_earlier_version_what_its_data_say(tmp_path, processes):
    experiment = tiny.experiment(tiny.write_folder(tmp_path / "images", 6), steps=10)
    member = sweep.Member("small", experiment, tmp_path / "small")
    row = sweep.run_member(member)  # its rows of metrics have no count
    assert row["training_flops"] == flops_of_data(make_task(experiment), experiment) * experiment.batch_size * 10 > 0
    rows = [{"step": 4, FLOPS_PER_STEP: 3.0}, {"step": 10, FLOPS_PER_STEP: 2.0}]
    (member.workdir / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    assert sweep.run_member(member)["training_flops"] == 4 * 3.0 + 6 * 2.0
    away = dataclasses.replace(member, experiment=tiny.experiment("nowhere", steps=10), workdir=tmp_path / "away")
    row = sweep.run_member(away)
    assert row["training_flops"] is None and "| not counted |" in sweep_table([row])


def test_the_table_shows_intervals_and_reasons():
    entry = {
        "name": "a",
        "parameters": 1_234_567,
        "steps": 10,
        "training_flops": 4.2e15,
        "seconds": 12.3,
        "loss": 2.54321,
        "error": None,
    }
    score = {"value": 0.5, "low": 0.4, "high": 0.6, "count": 80}
    entry |= {"generation_accuracy": score, "caption_accuracy": None, "text_bits_per_byte": score | {"value": 1.23456}}
    lines = sweep_table([entry, entry | {"name": "b", "error": "no | room", "loss": None}]).splitlines()
    assert (
        lines[2]
        == "| a | 1.23M | 10 | 4.2P | 12 | 2.543 | 50.0% (40.0% to 60.0%) | not measured | 1.235 (0.4 to 0.6) |"
    )
    assert lines[3] == "| b | 1.23M | 10 | 4.2P | 12 |  | failed: no / room |  |  |"


def test_a_list_of_names_files_and_changes(tmp_path):
    (tmp_path / "config.py").write_text(
        f"import sys\nsys.path.insert(0, {os.path.dirname(__file__)!r})\nimport tiny\n"
        "from transfusion.config import to_config_dict\n"
        "def get_config(form=''):\n    return to_config_dict(tiny.experiment(form))\n"
    )
    file = tmp_path / "sweep.py"
    changes = [{"model.width": 32, "data.sources.mine.path": "x"}, {"optim.learning_rate": 1}]
    file.write_text(
        f"def get_sweep():\n    return [(str(i), {str(tmp_path / 'config.py')!r} + ':folder', c) "
        f"for i, c in enumerate({changes!r})]\n"
    )
    one, two = sweep.read_sweep(str(file), tmp_path, {"data.data_dir": "there"})
    assert one.experiment.model.width == 32 and two.experiment.model.width == 16
    assert one.experiment.data.sources["mine"] == SourceConfig(kind="folder", path="x")
    assert two.experiment.data.sources["mine"].path == "folder"
    assert two.experiment.optim.learning_rate == 1.0
    assert {m.experiment.data.data_dir for m in (one, two)} == {"there"}
    assert one.parameters > two.parameters


@pytest.mark.parametrize(
    "content, message",
    [
        ("def get_swep(): pass", "no function get_sweep (did you mean 'get_swep'?)"),
        ("def get_sweep(): return {}", "names no experiment"),
        ("def get_sweep(): return 1 / 0", "ZeroDivisionError"),
        ("def get_sweep(): return {'a': {'stepz': 3}}", "a: config: unknown field 'stepz' (did you mean 'steps'?)"),
        ("def get_sweep(): return {'a': {'steps': 3}}", "a: streams: a sequence needs at least the stream 'text'"),
        ("def get_sweep(): return [('a', 'nowhere.py', {})]", "a: the config file nowhere.py does not exist"),
    ],
)
def test_a_sweep_that_cannot_work_is_refused_before_it_starts(tmp_path, content, message):
    (tmp_path / "sweep.py").write_text(content)
    with pytest.raises(UsageError) as error:
        sweep.read_sweep(str(tmp_path / "sweep.py"), tmp_path, {})
    assert message in str(error.value)


def test_mistakes_on_the_command_line(tmp_path):
    for arguments, wanted in (
        ([], "give one sweep file"),
        (["nowhere.py"], "the sweep file nowhere.py does not exist"),
        (["a.py", "b.py"], "unexpected argument 'b.py'"),
        (["a.py", "--workdri=x"], "unknown flag --workdri (did you mean --workdir?)"),
    ):
        result = run_program(tmp_path, "transfusion.sweep", *arguments)
        assert (result.code, len(result.err.splitlines())) == (2, 1), result
        assert wanted in result.err


def test_a_dead_process_is_named_with_its_last_words(tmp_path):
    member = sweep.Member("a", tiny.experiment(""), tmp_path)
    assert sweep._process(member, "transfusion.nothing") == (
        f"transfusion.nothing ended with exit code 1: {member.log.read_text().splitlines()[-1]} (see {member.log})"
    )


WAITING = """
import pathlib, signal, sys, time
def stop(*_):
    pathlib.Path("saved").touch()
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
pathlib.Path("ready").touch()
time.sleep(60)
"""


def test_an_interrupt_lets_the_running_member_save(tmp_path, monkeypatch):
    (tmp_path / "waiting.py").write_text(WAITING)
    monkeypatch.chdir(tmp_path)
    # A process that was started in the background may ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupt():
        while not (tmp_path / "ready").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            sweep._process(sweep.Member("a", tiny.experiment(""), tmp_path), "waiting")
    finally:
        signal.signal(signal.SIGINT, before)
    assert (tmp_path / "saved").exists()
