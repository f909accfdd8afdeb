"""Sweeps: each member in its own process, resumable, one table."""

import dataclasses
import json
import os
import signal
import subprocess
import threading
import time

import pytest
import tiny
from program import run_program, start_program

from transfusion.config import to_json
from transfusion.data.config import SourceConfig
from transfusion.errors import PassingError, UsageError
from transfusion.evaluation.charts import Dot
from transfusion.evaluation.sweep_table import sweep_table
from transfusion.running.metrics import FLOPS_PER_STEP
from transfusion.sweep import RunOf, grid, members, process, queue, seeds
from transfusion.sweep import __main__ as program
from transfusion.sweep.forecast import forecast, forecast_table
from transfusion.sweep.page import frontier, sweep_page
from transfusion.sweep.pins import Slot, slots
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
    return members.Member("small", tiny.experiment("folder", steps=10), tmp_path / "small")


@pytest.fixture
def processes(monkeypatch, member):
    """What was started; training logs the steps in `trains`, evaluating writes evaluation.json."""
    started, trains = [], [10]

    def run(member, launch, module, *arguments):
        started.append(module.split(".")[-1])
        if started[-1] == "train":
            (member.workdir / "config.json").write_text(to_json(member.experiment))
            (member.workdir / "metrics.jsonl").write_text(json.dumps({"step": trains[0], "loss": 2.5}) + "\n")
        else:
            config = dataclasses.asdict(member.experiment)
            score = {"value": 0.5, "low": 0.4, "high": 0.6, "count": 80}
            content = {"step": member.experiment.steps, "config": config, "caption_accuracy": score}
            (member.workdir / "evaluation.json").write_text(json.dumps(content))

    monkeypatch.setattr(process, "_process", run)
    return started, trains


def test_what_is_finished_is_skipped(member, processes):
    started, _ = processes
    first = process.run_member(member)
    assert started == ["train", "evaluate"]
    assert first["error"] is None and first["caption_accuracy"]["value"] == 0.5
    assert process.run_member(member) == first
    assert started == ["train", "evaluate"]


def test_what_was_interrupted_goes_on(member, processes):
    started, trains = processes
    trains[0] = 6
    assert process.run_member(member)["error"] == "stopped at step 6; the same command continues"
    assert started == ["train"]
    trains[0] = 10
    assert process.run_member(member)["error"] is None
    assert started == ["train", "train", "evaluate"]


def test_more_steps_continue_and_other_settings_do_not(member, processes):
    started, trains = processes
    process.run_member(member)
    trains[0] = 20
    longer = dataclasses.replace(member, experiment=dataclasses.replace(member.experiment, steps=20))
    assert process.run_member(longer)["steps"] == 20
    other = dataclasses.replace(member, experiment=dataclasses.replace(member.experiment, seed=1))
    assert "holds a run with another 'seed'" in process.run_member(other)["error"]
    assert started == ["train", "evaluate"] * 2


def test_flops_are_what_the_run_counted_or_of_an_earlier_version_what_its_data_say(tmp_path, processes):
    experiment = tiny.experiment(tiny.write_folder(tmp_path / "images", 6), steps=10)
    member = members.Member("small", experiment, tmp_path / "small")
    row = process.run_member(member)  # its rows of metrics have no count
    assert row["training_flops"] == flops_of_data(make_task(experiment), experiment) * experiment.batch_size * 10 > 0
    rows = [{"step": 4, FLOPS_PER_STEP: 3.0}, {"step": 10, FLOPS_PER_STEP: 2.0}]
    (member.workdir / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    assert process.run_member(member)["training_flops"] == 4 * 3.0 + 6 * 2.0
    away = dataclasses.replace(member, experiment=tiny.experiment("nowhere", steps=10), workdir=tmp_path / "away")
    row = process.run_member(away)
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
    one, two = members.read_sweep(str(file), tmp_path, {"data.data_dir": "there"})
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
        members.read_sweep(str(tmp_path / "sweep.py"), tmp_path, {})
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
    member = members.Member("a", tiny.experiment(""), tmp_path)
    assert process._process(member, process.Launch(), "transfusion.nothing") == (
        f"transfusion.nothing ended with exit code 1: {member.log.read_text().splitlines()[-1]} (see {member.log})"
    )


# --- several at a time ------------------------------------------------------------------------------------------------

WAITING = """
import os, pathlib, signal, sys, time
name = sys.argv[1]
def stop(*_):
    pathlib.Path(f"saved {name}").touch()
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
pathlib.Path(f"ready {name}").write_text(f"{len(os.sched_getaffinity(0))} {os.environ.get('OMP_NUM_THREADS')}")
time.sleep(60)
"""


@pytest.fixture
def two(tmp_path):
    experiment = tiny.experiment("folder", steps=10)
    return [members.Member(name, experiment, tmp_path / name) for name in ("a", "b")]


def test_an_interrupt_lets_all_running_members_save_and_each_has_its_own_cores(tmp_path, monkeypatch, two):
    (tmp_path / "waiting.py").write_text(WAITING)
    monkeypatch.chdir(tmp_path)
    whole = process._process
    monkeypatch.setattr(process, "_process", lambda member, launch, *_: whole(member, launch, "waiting", member.name))
    # A process that was started in the background may ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupt():
        while not all((tmp_path / f"ready {name}").exists() for name in "ab"):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    cores = len(os.sched_getaffinity(0))
    try:
        with pytest.raises(KeyboardInterrupt):
            queue.run_all(two, slots(2, "cpu"))
    finally:
        signal.signal(signal.SIGINT, before)
    for name in "ab":
        assert (tmp_path / f"saved {name}").exists()
        each = max(1, cores // 2)
        assert (tmp_path / f"ready {name}").read_text() == f"{each} {each}"
    assert len(os.sched_getaffinity(0)) == cores  # the sweep itself keeps all


def test_a_member_that_another_program_works_on_is_waited_for(monkeypatch, two, processes):
    started, _ = processes
    monkeypatch.setattr(queue, "PATIENCE", 0.05)
    two[0].workdir.mkdir()
    with process.claimed(two[0].workdir) as lock:
        assert lock is not None
        with pytest.raises(process.Busy, match="another program is at work"):
            process.run_member(two[0])
        # A process that inherits the lock keeps it when this one lets go of it, or dies.
        left = subprocess.Popen(["sleep", "0.5"], pass_fds=(lock,))
    began = time.monotonic()
    rows = queue.run_all(two, [Slot()])
    assert time.monotonic() - began > 0.3 and left.wait() == 0
    assert [row["name"] for row in rows] == ["a", "b"] and not any(row["error"] for row in rows)
    assert started == ["train", "evaluate"] * 2


def test_members_wait_for_the_runs_that_they_begin_with(tmp_path, monkeypatch):
    held_out, order = tiny.experiment("folder", steps=10), []
    entries = [("late", held_out, {"init.path": RunOf("early")}), ("other", held_out, {}), ("early", held_out, {})]
    made = members.make_members(entries, tmp_path)
    assert [member.name for member in made] == ["early", "late", "other"] and made[1].needs == ("early",)
    assert made[1].experiment.init.path == str(tmp_path / "early")

    def run(member, launch):
        order.append(member.name)
        time.sleep(0.05)
        return {"name": member.name, "error": "no room" if member.name == "early" else None}

    monkeypatch.setattr(queue, "run_member", run)
    early, late, other = queue.run_all(made, [Slot(), Slot()])
    assert order == ["early", "other"] and late["error"] == "it begins with 'early', which has failed"
    # A path that names another member's folder says the same.
    entries = [("early", held_out, {}), ("late", held_out, {"init.path": str(tmp_path / "early")})]
    assert members.make_members(entries, tmp_path)[1].needs == ("early",)
    circle = [("a", held_out, {"init.path": RunOf("b")}), ("b", held_out, {"init.path": RunOf("a")})]
    for wrong, message in (
        (circle, "a begins with b begins with a"),
        ([("a", held_out, {"init.path": RunOf("c")})], "'c'"),
    ):
        with pytest.raises(UsageError, match=message):
            members.make_members(wrong, tmp_path)


def test_grids_and_seeds():
    entries = grid("x.py", {("model.width", "model.heads"): ((32, 1), (64, 2)), "optim.learning_rate": (1e-3, 2e-3)})
    assert [name for name, *_ in entries] == [
        "width_32-learning_rate_0.001", "width_32-learning_rate_0.002",
        "width_64-learning_rate_0.001", "width_64-learning_rate_0.002",
    ]  # fmt: skip
    assert entries[2][2] == {"model.width": 64, "model.heads": 2, "optim.learning_rate": 1e-3}
    both = seeds(2, [("text", "x.py", {}), ("whole", "y.py", {"init.path": RunOf("text"), "codec.path": RunOf("vq")})])
    assert [(name, changes["seed"]) for name, _, changes in both] == [
        ("text-seed_0", 0), ("text-seed_1", 1), ("whole-seed_0", 0), ("whole-seed_1", 1),
    ]  # fmt: skip
    assert both[3][2] == {"init.path": RunOf("text-seed_1"), "codec.path": RunOf("vq"), "seed": 1}
    with pytest.raises(UsageError, match="must have a value for each of a, b"):
        grid("x.py", {("a", "b"): (1,)})


def test_one_command_per_member_then_one_that_gathers(tmp_path, monkeypatch, processes):
    experiment = tiny.experiment("folder", steps=10)
    made = members.make_members([("b", experiment, {"init.path": RunOf("a")}), ("a", experiment, {})], tmp_path)
    with pytest.raises(PassingError, match="b needs a, which is not finished: run --member=a"):
        program.run_one(made, "b", tmp_path)
    with pytest.raises(UsageError, match="neither a member nor an index below 2"):
        program.run_one(made, "2", tmp_path)
    first, second = program.lines_of(made, tmp_path / "w s")
    assert f"json_file.py:{tmp_path}/a/sweep_config.json" in first and " && python -m transfusion.evaluate" in first
    assert "'--judges=" in second and (tmp_path / "b" / "sweep_config.json").is_file()
    assert program.run_one(made, "0", tmp_path)["error"] is None
    rows = [process.found_row(member) for member in made]
    assert [row["error"] for row in rows] == [None, "not run"]
    program.write(made, rows, tmp_path)
    page = (tmp_path / "sweep.html").read_text()
    assert "not run" in page and "<script" not in page and "50.0%" in page


def test_a_store_shares_runs_of_the_same_config(tmp_path, processes):
    started, _ = processes
    experiment = tiny.experiment("folder", steps=10)
    one = members.make_members([("x", experiment, {})], tmp_path / "one", store=tmp_path / "store")
    two = members.make_members([("y", experiment, {"log_every": 3})], tmp_path / "two", store=tmp_path / "store")
    program.sweep(one, tmp_path / "one")
    (row,) = program.sweep(two, tmp_path / "two")
    assert started == ["train", "evaluate"] and row["name"] == "y" and row["error"] is None
    assert (tmp_path / "one" / "x").resolve() == (tmp_path / "two" / "y").resolve() == one[0].workdir.resolve()
    # A path of a member's folder means its run, wherever that is.
    entries = [("x", experiment, {}), ("z", experiment, {"init.path": str(tmp_path / "three" / "x")})]
    x, z = members.make_members(entries, tmp_path / "three", store=tmp_path / "store")
    assert z.needs == ("x",) and z.experiment.init.path == str(x.workdir) == str(one[0].workdir)
    # A score that an earlier version did not measure is measured, without training.
    more = dataclasses.replace(two[0], measures=("caption_accuracy", "scenes.generation"))
    assert process.run_member(more)["error"] is None and started == ["train", "evaluate", "evaluate"]


# --- what it will cost, and what it gave ------------------------------------------------------------------------------


def test_hours_are_measured_or_at_a_stated_rate_or_not_known(tmp_path, two):
    unknown = forecast(two)
    assert [one.counted for one in unknown] == ["rows", "rows"] and unknown[0].hours is None
    assert "not known" in forecast_table(unknown) and "full rows" in forecast_table(unknown)
    stated = forecast(two, rate=unknown[0].flops / 3600)
    assert stated[0].hours == pytest.approx(1.0) and "as stated" in stated[0].timed
    two[0].workdir.mkdir()
    row = {"step": 5, "steps_per_second": 0.01, FLOPS_PER_STEP: unknown[0].flops / 10}
    (two[0].workdir / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    measured, other = forecast(two)
    assert measured.counted == "counted" and measured.hours == pytest.approx(10 / 0.01 / 3600)
    assert other.hours == pytest.approx(measured.hours) and "as measured of the others" in other.timed


def test_the_frontier_holds_what_no_other_beats():
    places = {"a": (1, 5), "b": (2, 4), "c": (2, 6), "d": (4, 6), "e": (5, 9)}
    dots = [Dot(name, x, y, y, y) for name, (x, y) in places.items()]
    assert [dot.name for dot in frontier(dots, lower=False)] == ["a", "c", "e"]
    assert [dot.name for dot in frontier(dots, lower=True)] == ["a", "b"]


def test_the_page_names_what_differs(two):
    wider = dataclasses.replace(two[1].experiment, batch_size=8)
    made = [two[0], dataclasses.replace(two[1], experiment=wider)]
    rows = [process.found_row(member) for member in made]
    made_page = sweep_page(made, rows, "a <sweep>")
    assert "batch_size" in made_page and "a &lt;sweep&gt;" in made_page and "model.width" not in made_page
    assert "Means over seeds" not in made_page
    made = members.make_members(seeds(2, [("small", two[0].experiment, {})]), two[0].workdir.parent)
    score = {"low": 0.0, "high": 1.0, "count": 5}
    rows = [process.found_row(m) | {"error": None, "caption_accuracy": score | {"value": v}}
            for m, v in zip(made, (0.25, 0.75), strict=True)]  # fmt: skip
    made_page = sweep_page(made, rows, "seeds")
    assert "Means over seeds" in made_page and "50.0%" in made_page and "25.0% to 75.0%" in made_page
