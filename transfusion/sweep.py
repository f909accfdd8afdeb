"""Several experiments one after the other, and one table of their scores.

  python -m transfusion.sweep experiments/first_sweep/sweep.py --workdir runs/first_sweep

The file's `get_sweep()` returns {name: config}, or a list of (name, config file, {field: value}). Each member is
trained and evaluated in processes of its own, in the folder WORKDIR/name. The same command again skips what is finished
and continues what was interrupted. A member that fails is shown with its reason and stops no other; the exit code is
then 1.
"""

import dataclasses
import json
import os
import pathlib
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import IO, Any

import jax
import ml_collections
from absl import flags, logging

from transfusion import programs, storage
from transfusion.config import Experiment, from_config, to_json
from transfusion.config.explain import load_config, walk
from transfusion.errors import UsageError, nearest
from transfusion.evaluation.results import read_evaluation
from transfusion.evaluation.sweep_table import SCORES_OF_TASK, sweep_table
from transfusion.model.unified import parameter_count
from transfusion.running.metrics import read_metrics, training_flops
from transfusion.tasks import flops_of_data, make_task
from transfusion.workdir import json_file
from transfusion.workdir.changes import Change, differences
from transfusion.workdir.config_file import read_experiment


@dataclasses.dataclass(frozen=True)
class Member:
    """One experiment of a sweep and its workdir."""

    name: str
    experiment: Experiment
    workdir: pathlib.Path

    @property
    def log(self) -> pathlib.Path:
        """The file that gets the output of its processes."""
        return self.workdir / "sweep.log"

    @property
    def parameters(self) -> int:
        return parameter_count(make_task(self.experiment).template.shapes)


def read_sweep(path: str, workdir: str | os.PathLike, fields: Mapping[str, Any]) -> list[Member]:
    """The members of a sweep file; `fields` ({'data.data_dir': ...}) are set in all of them.

    Every config is checked here, before any time is spent.

    Raises:
      UsageError: naming the member that cannot work.
    """
    if not os.path.isfile(path):
        raise UsageError(f"the sweep file {path} does not exist")
    try:
        module = runpy.run_path(path, run_name="sweep")
        if "get_sweep" not in module:
            raise UsageError(f"{path}: no function get_sweep{nearest('get_sweep', module)}")
        sweep = module["get_sweep"]()
    except UsageError:
        raise
    except Exception as error:  # the file is the user's code and raises what it likes
        raise UsageError(f"{path}: {type(error).__name__}: {error}") from error
    if isinstance(sweep, Mapping):
        sweep = [(name, config, {}) for name, config in sweep.items()]
    members = []
    for name, config, changes in sweep:
        try:
            experiment = _experiment(config, {**changes, **fields})
            make_task(experiment)
        except UsageError as error:
            raise UsageError(f"{path}, {name}: {error}") from error
        if any(member.name == name for member in members) or pathlib.Path(name).name != name:
            raise UsageError(f"{path}: {name!r} cannot be the name of a member's folder: use plain names that differ")
        members.append(Member(name, experiment, pathlib.Path(workdir) / name))
    if not members:
        raise UsageError(f"{path}: get_sweep() names no experiment")
    return members


def _experiment(config: Any, changes: Mapping[str, Any]) -> Experiment:
    if isinstance(config, str):
        config = load_config(*config.split(":", 1))
    if isinstance(config, Experiment):
        config = dataclasses.asdict(config)
    config = ml_collections.ConfigDict(config)
    for field, value in changes.items():
        walk(config, f"config.{field}")
        *parents, last = field.split(".")
        node = config
        for name in parents:
            node = node[name]
        with node.ignore_type():
            node[last] = value
    return from_config(config)


# --- one member -------------------------------------------------------------------------------------------------------


def run_member(member: Member) -> dict[str, Any]:
    """Trains and evaluates a member, unless that is done; returns its row of the table."""
    seconds = _seconds(member)
    if is_finished(member):
        return member_row(member, seconds)
    storage.make_folder(member.workdir)
    reason = _another_run(member)
    if reason is None:
        wanted = member.workdir / "sweep_config.json"
        storage.write_whole(wanted, to_json(member.experiment))
        start = time.perf_counter()
        config = f"--config={json_file.__file__}:{wanted}"
        try:
            reason = _process(member, "transfusion.train", config, f"--workdir={member.workdir}") or _unfinished(member)
        finally:  # an interruption, too: what was trained so far counts
            seconds += time.perf_counter() - start
            storage.write_whole(member.workdir / "sweep.json", json.dumps({"seconds": seconds}, indent=2))
    if reason is None:
        reason = _process(member, "transfusion.evaluate", f"--workdir={member.workdir}")
    return member_row(member, seconds, reason)


def is_finished(member: Member) -> bool:
    """Whether this very experiment has been trained to its end and evaluated."""
    evaluation, _ = read_evaluation(member.workdir / "evaluation.json")
    if evaluation is None or evaluation["step"] != member.experiment.steps:
        return False
    try:
        return not _changes(from_config(evaluation.get("config")), member)
    except (UsageError, ValueError, TypeError):  # of another version
        return False


def _seconds(member: Member) -> float:
    """How long the member has been trained before."""
    path = member.workdir / "sweep.json"
    try:
        found = storage.read_json(path)
    except ValueError as error:
        logging.warning("%s is damaged (%s): the time of earlier attempts is not counted", path, error)
        found = None
    seconds = found.get("seconds") if isinstance(found, dict) else None
    return float(seconds) if type(seconds) in (int, float) and 0 <= seconds < 1e12 else 0.0


def member_row(member: Member, seconds: float, reason: str | None = None) -> dict[str, Any]:
    """The entry of a member in sweep.json; a score that was not measured is None."""
    logged = read_metrics(member.workdir / "metrics.jsonl")
    last = logged[-1] if logged else {}
    evaluation = (None if reason else read_evaluation(member.workdir / "evaluation.json")[0]) or {}
    return {
        "name": member.name,
        "parameters": member.parameters,
        "steps": last.get("step", 0),
        "training_flops": _training_flops(member, logged),
        "seconds": round(seconds, 1),
        "loss": last.get("loss"),
        "held_out_loss": last.get("held_out_loss"),
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
    if not (member.workdir / "config.json").is_file():
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


def _process(member: Member, module: str, *arguments: str) -> str | None:
    """Runs a program with its output in the member's log; returns why it failed, in one line, or None."""
    logging.info("%s: %s", member.name, module)
    with (
        _open_log(member.log) as log,
        subprocess.Popen([sys.executable, "-m", module, *arguments], stdout=log, stderr=log) as process,
    ):
        try:
            code = process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGTERM)  # it saves a checkpoint and ends
            process.wait()
            raise
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


# --- all members ----------------------------------------------------------------------------------------------------


def sweep(members: Sequence[Member], workdir: str | os.PathLike) -> list[dict[str, Any]]:
    """Runs all members; writes the table after each, so that it is there whatever happens later."""
    rows: list[dict[str, Any]] = []
    workdir = pathlib.Path(workdir)
    storage.make_folder(workdir)
    for name in ("sweep.json", "sweep.md"):
        storage.check_writable(workdir / name)  # before a member is trained
    for member in members:
        rows.append(run_member(member))
        storage.write_whole(workdir / "sweep.json", json.dumps(rows, indent=2))
        storage.write_whole(workdir / "sweep.md", sweep_table(rows) + "\n")
        if rows[-1]["error"]:
            logging.error("%s failed: %s", member.name, rows[-1]["error"])
    return rows


def _interrupt(number, frame) -> None:
    raise KeyboardInterrupt


def main(argv: Sequence[str]) -> None:
    if len(argv) != 2:
        raise UsageError(
            "give one sweep file, for example: python -m transfusion.sweep experiments/first_sweep/sweep.py"
        )
    fields = {"data.data_dir": FLAGS.data_dir} if FLAGS.data_dir else {}
    # Here configs are only checked; the accelerator belongs to the members' processes.
    jax.config.update("jax_platforms", "cpu")
    logging.get_absl_handler().setFormatter(None)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        rows = sweep(read_sweep(argv[1], FLAGS.workdir, fields), FLAGS.workdir)
    except KeyboardInterrupt:
        raise UsageError("interrupted; the same command continues") from None
    print(sweep_table(rows))
    print(f"written to {pathlib.Path(FLAGS.workdir) / 'sweep.json'} and sweep.md")
    if any(entry["error"] for entry in rows):
        sys.exit(1)


FLAGS = flags.FLAGS

if __name__ == "__main__":
    flags.DEFINE_string("workdir", "runs/sweep", "Folder that receives a workdir per member, sweep.json and sweep.md.")
    flags.DEFINE_string("data_dir", None, "Where the datasets are; default: as the configs say.")
    programs.run(main, files=1)
