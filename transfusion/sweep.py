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
from collections.abc import Iterable, Mapping, Sequence
from typing import IO, Any

import jax
import ml_collections
from absl import flags, logging

from transfusion import programs, storage
from transfusion.config import Experiment, from_config, to_json
from transfusion.config.explain import load_config, walk
from transfusion.errors import UsageError, nearest
from transfusion.evaluation.results import read_evaluation
from transfusion.model.unified import parameter_count
from transfusion.running.metrics import human, read_metrics
from transfusion.tasks import make_task
from transfusion.workdir import json_file as json_config
from transfusion.workdir.changes import Change, differences
from transfusion.workdir.config_file import read_experiment

# The scores of the table, by the task of the members.
SCORES = {
    "sequence": ("generation_accuracy", "caption_accuracy", "text_bits_per_byte"),
    "autoencoder": ("bits_per_image", "psnr", "psnr_drawn", "ssim", "codebook_use"),
}
HEADINGS = ("name", "parameters", "steps", "training FLOPs", "seconds", "loss")


@dataclasses.dataclass(frozen=True)
class Member:
    """One experiment of a sweep and its workdir."""

    name: str
    experiment: Experiment
    workdir: pathlib.Path

    @property
    def log(self) -> pathlib.Path:
        """What its processes say."""
        return self.workdir / "sweep.log"

    @property
    def parameters(self) -> int:
        return parameter_count(make_task(self.experiment).template.shapes)

    @property
    def flops(self) -> float:
        """Model FLOPs of the whole training."""
        return make_task(self.experiment).flops(self.experiment.batch_size) * self.experiment.steps


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
            raise UsageError(f"{path}: {name!r} is no name of its own for a folder")
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


def run(member: Member) -> dict[str, Any]:
    """Trains and evaluates a member unless that is done; its row of the table."""
    seconds = _seconds(member)
    if finished(member):
        return row(member, seconds)
    storage.make_folder(member.workdir)
    reason = _another_run(member)
    if reason is None:
        wanted = member.workdir / "sweep_config.json"
        storage.write_whole(wanted, to_json(member.experiment))
        start = time.perf_counter()
        config = f"--config={json_config.__file__}:{wanted}"
        try:
            reason = _process(member, "transfusion.train", config, f"--workdir={member.workdir}") or _unfinished(member)
        finally:  # an interruption, too: what was trained so far counts
            seconds += time.perf_counter() - start
            storage.write_whole(member.workdir / "sweep.json", json.dumps({"seconds": seconds}, indent=2))
    if reason is None:
        reason = _process(member, "transfusion.evaluate", f"--workdir={member.workdir}")
    return row(member, seconds, reason)


def finished(member: Member) -> bool:
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
        logging.warning("%s is damaged (%s): the time before counts as none", path, error)
        found = None
    seconds = found.get("seconds") if isinstance(found, dict) else None
    return float(seconds) if type(seconds) in (int, float) and 0 <= seconds < 1e12 else 0.0


def row(member: Member, seconds: float, reason: str | None = None) -> dict[str, Any]:
    """What sweep.json holds of a member; scores that were not measured are None."""
    logged = read_metrics(member.workdir / "metrics.jsonl")
    last = logged[-1] if logged else {}
    evaluation = (None if reason else read_evaluation(member.workdir / "evaluation.json")[0]) or {}
    return {
        "name": member.name,
        "parameters": member.parameters,
        "steps": last.get("step", 0),
        "training_flops": member.flops,
        "seconds": round(seconds, 1),
        "loss": last.get("loss"),
        "held_out_loss": last.get("held_out_loss"),
        **{name: evaluation.get(name) for name in SCORES[member.experiment.task]},
        "error": reason,
    }


def _another_run(member: Member) -> str | None:
    """Why the workdir cannot be continued: it holds a run of other settings."""
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
    """What the member has other than a run; of its tokenizer only a run knows the hash, which training checks."""
    return [change for change in differences(there, member.experiment) if change.field != "tokenizer.sha256"]


def _unfinished(member: Member) -> str | None:
    logged = read_metrics(member.workdir / "metrics.jsonl")
    step = logged[-1]["step"] if logged else 0
    return None if step >= member.experiment.steps else f"stopped at step {step}; the same command continues"


def _process(member: Member, module: str, *arguments: str) -> str | None:
    """Runs a program with its output in the member's log; None, or in one line why it failed."""
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


# --- the table --------------------------------------------------------------------------------------------------------


def table(rows: Iterable[Mapping[str, Any]]) -> str:
    """The rows as markdown; scores with their 95 per cent intervals, a failed member with its reason."""
    rows = list(rows)
    scores = [name for names in SCORES.values() for name in names if any(name in entry for entry in rows)]
    headings = (*HEADINGS, *(name.replace("_", " ") for name in scores))
    lines = [headings, ("---",) * len(headings)]
    for entry in rows:
        cells = [
            entry["name"], human(entry["parameters"]), str(entry["steps"]), human(entry["training_flops"]),
            f"{entry['seconds']:.0f}",
            "" if entry["loss"] is None else f"{entry['loss']:.4g}",
        ]  # fmt: skip
        if entry["error"]:
            cells += ["failed: " + entry["error"].replace("|", "/")] + [""] * (len(scores) - 1)
        else:
            cells += [_score(name, entry.get(name)) for name in scores]
        lines.append(tuple(cells))
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _score(name: str, score: Mapping[str, float] | None) -> str:
    if score is None:
        return "not measured"
    form = "{:.1%}" if "accuracy" in name or name == "codebook_use" else "{:.4g}"
    if score["low"] == score["high"]:
        return form.format(score["value"])  # counted, not sampled
    return " ".join([form.format(score["value"]), f"({form.format(score['low'])} to {form.format(score['high'])})"])


def sweep(members: Sequence[Member], workdir: str | os.PathLike) -> list[dict[str, Any]]:
    """Runs all members; writes and prints the table after each, so that it is there whatever happens later."""
    rows: list[dict[str, Any]] = []
    workdir = pathlib.Path(workdir)
    storage.make_folder(workdir)
    for name in ("sweep.json", "sweep.md"):
        storage.check_writable(workdir / name)  # before a member is trained
    for member in members:
        rows.append(run(member))
        storage.write_whole(workdir / "sweep.json", json.dumps(rows, indent=2))
        storage.write_whole(workdir / "sweep.md", table(rows) + "\n")
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
    print(table(rows))
    print(f"written to {pathlib.Path(FLAGS.workdir) / 'sweep.json'} and sweep.md")
    if any(entry["error"] for entry in rows):
        sys.exit(1)


FLAGS = flags.FLAGS

if __name__ == "__main__":
    flags.DEFINE_string("workdir", "runs/sweep", "Folder that receives a workdir per member, sweep.json and sweep.md.")
    flags.DEFINE_string("data_dir", None, "Where the datasets are; default: as the configs say.")
    programs.run(main, files=1)
