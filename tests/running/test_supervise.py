"""What a supervisor does, with ranks that only play the part: they die, hang, are stopped, and are named."""

import contextlib
import math
import os
import pathlib
import re
import signal
import sys
import threading
import time

import pytest
from absl import flags

from transfusion.errors import UsageError
from transfusion.running.ranks import Fault
from transfusion.running.supervise import Patience, Supervisor, from_flags

ROOT = pathlib.Path(__file__).parents[2]

# A rank of three steps. `act` is called after each with (rank, attempt, step); attempts are counted in a file.
RANK = """
import pathlib, os, signal, subprocess, sys, time
from transfusion.running import heartbeat
rank, workdir = int(sys.argv[1]), pathlib.Path(sys.argv[2])
counter = workdir / f"attempts_{rank}"
attempt = len(counter.read_text()) + 1 if counter.exists() else 1
counter.write_text("x" * attempt)

def checkpoint(step):
    (workdir / "checkpoints" / str(step)).mkdir(parents=True, exist_ok=True)
    (workdir / "checkpoints" / f".seal-{step}.json").write_text("{}")

def say(line):
    print(line, file=sys.stderr, flush=True)

def wait_for_data():
    time.sleep(60)

def wait_for_other():
    while not (workdir / "hung").exists():
        pulse.beat(1, heartbeat.COMPUTES)
        time.sleep(0.02)
    time.sleep(60)

ACT
pulse = heartbeat.Pulse()
for step in range(3):
    pulse.beat(step, heartbeat.READS)
    pulse.beat(step, heartbeat.COMPUTES)
    pulse.stepped(lambda: None)
    act(rank, attempt, step)
pulse.beat(3, heartbeat.DONE)
"""


def supervisor(folder, act, ranks=(0,), **patience):
    """A supervisor of ranks that do `act`."""
    program = folder / "rank.py"
    program.write_text(RANK.replace("ACT", f"def act(rank, attempt, step):\n    {act}"))
    patience = Patience(**{"backoff": 0.0, "hang_after": 30.0} | patience)
    return Supervisor(lambda rank, _: [sys.executable, str(program), str(rank), str(folder)], folder, ranks, patience)


@pytest.fixture
def supervised(tmp_path, monkeypatch):
    """`run(act, ranks=(0,), **patience)`: the exit code of a supervisor of ranks that do `act`."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return lambda *arguments, **options: supervisor(tmp_path, *arguments, **options).run()


def test_ranks_that_end_well_are_left_alone(supervised, tmp_path, capfd):
    assert supervised("say(f'{step} on {rank}')", ranks=(0, 1)) == 0
    for rank in (0, 1):
        header, *lines = (tmp_path / "logs" / f"rank_{rank}.log").read_text().splitlines()
        assert header.startswith(f"=== attempt 1 of rank {rank}, 20")
        assert lines == [f"{step} on {rank}" for step in range(3)]
    assert "supervisor: done at step 3" in capfd.readouterr().err


def test_gives_up_after_failures_without_progress_and_says_why(supervised, tmp_path, capfd):
    start = time.monotonic()
    act = "rank == 1 and step == 1 and (say('the sky fell'), os.kill(os.getpid(), signal.SIGKILL)); time.sleep(rank)"
    assert supervised(act, ranks=(0, 1), max_failures=3, backoff=0.2) == 1
    assert time.monotonic() - start > 0.2 + 0.4
    *said, last = capfd.readouterr().err.splitlines()
    assert last.startswith("error: given up after 3 failures without a newer checkpoint since the start: rank 1 was ")
    assert last.endswith("killed by SIGKILL; the last line of " + str(tmp_path / "logs/rank_1.log") + ": the sky fell")
    assert sum("all start again in" in line for line in said) == 2
    assert (tmp_path / "logs" / "rank_1.log").read_text().count("=== attempt") == 3


def test_a_newer_checkpoint_is_progress(supervised, tmp_path, capfd):
    act = "attempt < 6 and step == 1 and (attempt % 2 or checkpoint(10 * attempt), sys.exit(1))"
    assert supervised(act, max_failures=3) == 0
    said = capfd.readouterr().err
    counts = re.findall(r"ended with exit code 1: all start again in 0 s \((.*)\)", said)
    assert counts == [
        "failure 1 of 3 since the start",
        "failure 1 of 3 since step 20",
        "failure 2 of 3 since step 20",
        "failure 1 of 3 since step 40",
        "failure 2 of 3 since step 40",
    ]


def test_a_mistake_of_the_user_is_not_tried_again(supervised, capfd):
    # Rank 0 fails of the loss of rank 1, and is seen first.
    act = "rank and time.sleep(0.4); say('error: no such folder' if rank else 'lost a peer'); sys.exit(1 + rank)"
    assert supervised(act, ranks=(0, 1)) == 2
    *said, last = capfd.readouterr().err.splitlines()
    assert len(said) == 1
    assert last == "error: no such folder"


HANGS = {
    "stopped": ("os.kill(os.getpid(), signal.SIGSTOP)", "computes"),
    "waiting": ("(pulse.beat(1, heartbeat.READS), wait_for_data())", "waits for data"),
}


@pytest.mark.parametrize("name", HANGS)
def test_a_rank_that_hangs_is_named_and_all_start_again(name, supervised, tmp_path, capfd):
    hangs, doing = HANGS[name]
    act = f"attempt == step == 1 and (((workdir / 'hung').touch(), {hangs}) if rank else wait_for_other())"
    assert supervised(act, ranks=(0, 1), hang_after=2.0, start_after=60.0) == 0
    said = capfd.readouterr().err
    assert re.search(rf"rank 1 hangs: nothing for \d+ s after step 1, where it {doing}", said)
    log = (tmp_path / "logs" / "rank_1.log").read_text()
    assert ("does not answer" in said) == (name == "stopped")
    assert ("in wait_for_data" in log) == (name == "waiting")  # the stacks show where
    assert said.endswith("supervisor: done at step 3\n")


def test_the_first_step_may_take_longer(supervised, capfd):
    assert supervised("step == 0 and time.sleep(4)", hang_after=3.0, start_after=60.0) == 0
    assert "hangs" not in capfd.readouterr().err


def test_a_signal_is_passed_on_and_the_save_waited_for(supervised, tmp_path, capfd):
    save = "lambda *_: (time.sleep(0.7), checkpoint(7), os._exit(0))"
    act = f"signal.signal(signal.SIGTERM, {save}); (workdir / f'ready_{{rank}}').touch(); time.sleep(60)"

    def terminate():
        while not all((tmp_path / f"ready_{rank}").exists() for rank in (0, 1)):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    threading.Thread(target=terminate).start()
    assert supervised(act, ranks=(0, 1)) == 0
    assert (tmp_path / "checkpoints" / "7").is_dir()
    assert "stopped; the same command continues" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before


def test_ranks_that_were_stopped_by_somebody_else_go_on(supervised, capfd):
    act = "attempt == 1 and step == 1 and (checkpoint(1), os._exit(0))"
    assert supervised(act, ranks=(0, 1), max_failures=1) == 0
    assert "all start again from step 1" in capfd.readouterr().err


def test_what_a_rank_has_started_ends_with_it(supervised, tmp_path):
    child = "subprocess.Popen(['sleep', '60']).pid"
    assert supervised(f"(workdir / 'child').write_text(str({child})); sys.exit(1)", max_failures=1) == 1
    assert _ended(int((tmp_path / "child").read_text()))


def test_a_rank_whose_supervisor_was_killed_saves_and_leaves(supervised, tmp_path):
    leave = "signal.signal(signal.SIGTERM, lambda *_: ((workdir / 'saved').touch(), os._exit(0)))"
    act = f"{leave}; (workdir / 'ready').touch(); [(pulse.beat(i, 'x'), time.sleep(.01)) for i in range(6000)]"
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            supervised(act)
        os._exit(0)
    _wait_for(tmp_path / "ready")
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    _wait_for(tmp_path / "saved")


def _wait_for(path: pathlib.Path) -> None:
    end = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end, f"no {path}"
        time.sleep(0.02)


def _ended(pid: int) -> bool:
    for _ in range(100):
        stat = pathlib.Path(f"/proc/{pid}/stat")
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize(
    "patience",
    [
        {"max_failures": 0},
        {"backoff": -1.0},
        {"hang_after": 0.0},
        *({name: value} for name in ("backoff", "hang_after", "start_after") for value in (math.nan, math.inf)),
    ],
)
def test_patience_is_checked(patience):
    with pytest.raises(UsageError, match="--max_failures.* must be positive|must be finite"):
        Patience(**patience)


def test_failures_may_be_many(supervised, monkeypatch, capfd):
    """Twice the wait 1100 times over is more than a float holds."""
    monkeypatch.setattr(Supervisor, "_start", lambda *_: Fault(0, "fell", None, "its log", "nothing"))
    assert supervised("0", max_failures=1100, backoff=0.0) == 1
    assert "given up after 1100 failures" in capfd.readouterr().err


def test_a_signal_without_a_name_is_named_by_its_number(supervised, capfd):
    assert supervised("os.kill(os.getpid(), signal.SIGRTMIN + 5)", max_failures=1) == 1
    assert f"rank 0 was killed by signal {signal.SIGRTMIN + 5}" in capfd.readouterr().err


def test_a_heartbeat_that_cannot_be_read_is_none(supervised, capfd):
    act = "step == 1 and (open(os.environ['TRANSFUSION_HEARTBEAT'], 'w').write('xx|'), time.sleep(0.5))"
    assert supervised(act) == 0
    assert "done at step 3" in capfd.readouterr().err


def test_signals_before_a_rank_starts_or_while_it_is_waited_for_are_one_line(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    early = supervisor(tmp_path, "0")
    start = Supervisor._start

    def signalled(self, beats):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        return start(self, beats)

    monkeypatch.setattr(Supervisor, "_start", signalled)
    assert early.run() == 0
    assert capfd.readouterr().err.splitlines()[-1] == "supervisor: stopped; the same command continues"
    assert not (tmp_path / "attempts_0").exists()

    monkeypatch.setattr(Supervisor, "_start", start)
    waiting = supervisor(tmp_path, "sys.exit(1)", backoff=60.0)
    threading.Thread(
        target=lambda: (_wait_for(tmp_path / "attempts_0"), time.sleep(1.5), os.kill(os.getpid(), 15))
    ).start()
    assert waiting.run() == 0
    said = capfd.readouterr().err.splitlines()
    assert "all start again in 60 s" in said[-2] and said[-1] == "supervisor: stopped; the same command continues"


def test_more_ranks_than_a_machine_takes_are_refused(monkeypatch, tmp_path):
    given = flags.FlagValues()
    monkeypatch.setattr(flags, "FLAGS", given)
    for name, value in {"processes": 10_000, "process_id": -1, "coordinator": "", "max_failures": 5, "backoff": 1.0,
                        "hang_after": 1.0, "start_after": 1.0, "workdir": str(tmp_path)}.items():  # fmt: skip
        flags.DEFINE_string(name, None, "", flag_values=given)
        given[name].value = value
    given.mark_as_parsed()
    with pytest.raises(UsageError, match="would start all of them on this machine, which takes at most 256"):
        from_flags("transfusion.train")
    given["coordinator"].value = "host:99999"
    with pytest.raises(UsageError, match="port from 1 to 65535"):
        from_flags("transfusion.train")
