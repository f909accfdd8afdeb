"""Trains and evaluates one member, each in a process of its own, and goes on where it was interrupted."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import IO, Any

from absl import logging

from transfusion import storage
from transfusion.config import Experiment, from_config, to_json
from transfusion.errors import PassingError, UsageError
from transfusion.evaluation.results import read_evaluation
from transfusion.evaluation.sweep_table import SCORES_OF_TASK
from transfusion.running import provenance
from transfusion.running.metrics import read_metrics, training_flops
from transfusion.sweep.locks import claimed
from transfusion.sweep.members import Member
from transfusion.tasks import flops_of_data, make_task
from transfusion.workdir import json_file
from transfusion.workdir.changes import Change, differences
from transfusion.workdir.config_file import read_experiment

ROW = "sweep.json"  # of a member's folder: its seconds so far, and why it failed


class Stopped(Exception):
    """The sweep was interrupted while a process ran, which has saved what it had."""


class Busy(PassingError):
    """Another program works on the member."""


class Running:
    """The processes that run now, which all can be told to end."""

    def __init__(self):
        self._lock, self._now, self.stopped = threading.Lock(), set(), False

    def wait(self, command: Sequence[str], **options) -> int:
        """Runs a command to its end; returns its exit code.

        Raises:
          Stopped: if it was told to end, or `stop` was called before.
        """
        with self._lock:
            if self.stopped:
                raise Stopped
            process = subprocess.Popen(command, **options)
            self._now.add(process)
        try:
            code = process.wait()
        finally:
            with self._lock:
                self._now.discard(process)
        if self.stopped:
            raise Stopped
        return code

    def stop(self) -> None:
        """Asks all processes to save and end, and lets no other begin."""
        with self._lock:
            self.stopped = True
            for process in self._now:
                process.send_signal(signal.SIGTERM)


@dataclasses.dataclass(frozen=True)
class Launch:
    """How the processes of a member are started.

    Attributes:
      environment: variables that they get beside those of this process.
      judges: a folder of judges that members share; '' if each trains its own.
      running: where they are known while they run.
      keep: file descriptors that they inherit.
    """

    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    judges: str = ""
    running: Running = dataclasses.field(default_factory=Running)
    keep: tuple[int, ...] = ()


def run_member(member: Member, launch: Launch = Launch()) -> dict[str, Any]:
    """Trains and evaluates a member, unless that is done; returns its row of the table.

    Raises:
      Busy: if another program works on it.
      Stopped: if it was interrupted.
    """
    if is_finished(member):
        return member_row(member, seconds_of(member))
    storage.make_folder(member.workdir)
    with claimed(member.workdir) as lock:
        if lock is None:
            raise Busy(f"{member.name}: another program is at work in {member.workdir}")
        if is_finished(member):  # it has just ended
            return member_row(member, seconds_of(member))
        return _run(member, dataclasses.replace(launch, keep=(lock,)))


def commands(member: Member, judges: str = "") -> list[tuple[str, ...]]:
    """The modules and arguments that train and evaluate a member; writes the config that they read."""
    wanted = member.workdir / "sweep_config.json"
    storage.make_folder(member.workdir)
    storage.write_whole(wanted, to_json(member.experiment))
    workdir, shared = f"--workdir={member.workdir}", [f"--judges={judges}"] if judges else []
    return [
        ("transfusion.train", f"--config={json_file.__file__}:{wanted}", workdir),
        ("transfusion.evaluate", workdir, *shared),
    ]


def _run(member: Member, launch: Launch) -> dict[str, Any]:
    reason, seconds = _another_run(member), seconds_of(member)
    train, evaluate = commands(member, launch.judges) if reason is None else ((), ())
    if reason is None and not _trained(member):
        start = time.perf_counter()
        try:
            reason = _process(member, launch, *train) or _unfinished(member)
        finally:  # an interruption, too: what was trained so far counts
            seconds += time.perf_counter() - start
            _write_row(member, seconds, reason)
    if reason is None:
        reason = _process(member, launch, *evaluate)
    _write_row(member, seconds, reason)
    return member_row(member, seconds, reason)


def is_finished(member: Member) -> bool:
    """Whether this very experiment has been trained to its end and evaluated."""
    evaluation, _ = read_evaluation(member.workdir / "evaluation.json")
    if evaluation is None or evaluation["step"] != member.experiment.steps:
        return False
    missing = [name for name in member.measures if name.split(".")[0] not in evaluation]
    # An earlier version did not measure it. This one would, unless it is the same.
    if missing and (evaluation.get("code") or {}).get("source") != provenance.source_code():
        return False
    if member.digest:  # the folder's name says which experiment it is
        return True
    try:
        return not _changes(from_config(evaluation.get("config")), member)
    except (UsageError, ValueError, TypeError):  # of another version
        return False


def _trained(member: Member) -> bool:
    """Whether only the evaluation is missing. Training would find that, too, but takes seconds to start."""
    evaluation, _ = read_evaluation(member.workdir / "evaluation.json")
    return bool(member.digest and evaluation and evaluation["step"] == member.experiment.steps)


def _read_row(member: Member) -> dict[str, Any]:
    path = member.workdir / ROW
    try:
        found = storage.read_json(path)
    except ValueError as error:
        logging.warning("%s is damaged (%s): the time of earlier attempts is not counted", path, error)
        found = None
    return found if isinstance(found, dict) else {}


def _write_row(member: Member, seconds: float, reason: str | None) -> None:
    content = json.dumps({"seconds": seconds, "error": reason}, indent=2)
    storage.write_whole(member.workdir / ROW, content)


def seconds_of(member: Member) -> float:
    """How long the member has been trained so far."""
    seconds = _read_row(member).get("seconds")
    return float(seconds) if type(seconds) in (int, float) and 0 <= seconds < 1e12 else 0.0


def found_row(member: Member) -> dict[str, Any]:
    """The row of a member as its folder tells it, without running anything."""
    reason = None
    if not is_finished(member):
        said = _read_row(member).get("error")
        started = (member.workdir / "metrics.jsonl").is_file() or (member.workdir / ROW).is_file()
        reason = said if isinstance(said, str) else "not finished" if started else "not run"
    return member_row(member, seconds_of(member), reason)


def member_row(member: Member, seconds: float, reason: str | None = None) -> dict[str, Any]:
    """The entry of a member in sweep.json; a score that was not measured is None."""
    logged = read_metrics(member.workdir / "metrics.jsonl")
    last = logged[-1] if logged else {}
    held_out = [row["held_out_loss"] for row in logged if row.get("held_out_loss") is not None]
    evaluation = (None if reason else read_evaluation(member.workdir / "evaluation.json")[0]) or {}
    return {
        "name": member.name,
        "parameters": member.parameters,
        "steps": last.get("step", 0),
        "training_flops": _training_flops(member, logged),
        "seconds": round(seconds, 1),
        "loss": last.get("loss"),
        "held_out_loss": held_out[-1] if held_out else None,
        **{name: evaluation.get(name) for name in SCORES_OF_TASK[member.experiment.task]},
        "error": reason,
    }


def _training_flops(member: Member, logged: Sequence[Mapping[str, Any]]) -> float | None:
    """The model FLOPs of the steps so far, as the run has counted them on its own rows.

    If a run of an earlier version has not, the first rows of its data tell; None if those cannot be read.
    """
    counted, experiment = training_flops(logged), member.experiment
    if counted is not None:
        return counted
    try:
        return flops_of_data(make_task(experiment), experiment) * experiment.batch_size * logged[-1]["step"]
    except UsageError as error:
        logging.warning("%s: its FLOPs are not counted: %s", member.name, error)
        return None


def _another_run(member: Member) -> str | None:
    """Why the member cannot continue what is in its workdir, such as a run of other settings; None if it can."""
    if member.digest or not (member.workdir / "config.json").is_file():
        return None
    try:
        there = read_experiment(member.workdir)
    except UsageError as error:
        return f"{member.workdir} holds a run that this version cannot read ({error}): remove it"
    for change in _changes(there, member):
        if change.field.partition(".")[0] not in ("steps", "eval", "log_every", "checkpoint", "sampling"):
            return f"{member.workdir} holds a run with another {change.field!r}: remove it, or choose another name"
    return None


def _changes(there: Experiment, member: Member) -> list[Change]:
    """The fields in which the member differs from a run, without the tokenizer's hash, which training checks."""
    return [change for change in differences(there, member.experiment) if change.field != "tokenizer.sha256"]


def _unfinished(member: Member) -> str | None:
    logged = read_metrics(member.workdir / "metrics.jsonl")
    step = logged[-1]["step"] if logged else 0
    return None if step >= member.experiment.steps else f"stopped at step {step}; the same command continues"


def _process(member: Member, launch: Launch, module: str, *arguments: str) -> str | None:
    """Runs a program with its output in the member's log; returns why it failed, in one line, or None."""
    logging.info("%s: %s", member.name, module)
    command = [sys.executable, "-m", module, *arguments]
    with _open_log(member.log) as log:
        code = launch.running.wait(
            command, stdout=log, stderr=log, env={**os.environ, **launch.environment}, pass_fds=launch.keep
        )
    if code == 0:
        return None
    said = [line.strip() for line in _tail(member.log).splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in said[-1:] if line.startswith("error: ")]
    if errors:
        return errors[0]
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return f"{module} ended with {how}: {said[-1] if said else 'no output'} (see {member.log})"


def _open_log(path: pathlib.Path) -> IO[bytes]:
    return storage.attempt(f"cannot write {path}", lambda: open(path, "ab", opener=storage.own_file))


def _tail(path: pathlib.Path, most: int = 2**16) -> str:
    """The end of a log, which may be long."""
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - most))
        return file.read(most).decode(errors="replace")
