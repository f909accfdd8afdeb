"""Compares a run with the experiment that is to continue it, before anything is written in the workdir.

Fields that give the weights their meaning must stay as they were; all other changes are logged. The run's fields are
read from the config inside its newest intact checkpoint, because the weights were trained with those, whatever
config.json says now.
"""

import dataclasses
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from absl import logging

from transfusion.config import Experiment, from_config, from_json, to_json
from transfusion.errors import UsageError, nearest
from transfusion.optim import learning_rate
from transfusion.running.restore import find_newest
from transfusion.workdir import portable
from transfusion.workdir.changes import Change, Rule, differences, listed, tables
from transfusion.workdir.config_file import read_experiment
from transfusion.workdir.place import check_folder


@dataclasses.dataclass(frozen=True)
class Continuation:
    """How an experiment continues a run.

    Attributes:
      step: the step of the checkpoint that it continues.
      trained: the experiment that the checkpoint's weights were trained with; its paths are those of the checkpoint.
      changes: the fields that differ from now on.
    """

    step: int
    trained: Experiment
    changes: tuple[Change, ...]


# --- what a checkpoint was trained with -------------------------------------------------------------------------------


def trained_with(config: Mapping[str, Any]) -> Experiment:
    """The experiment in the config of a checkpoint.

    Raises:
      UsageError: if this version cannot read it.
    """
    text = config.get("experiment")
    if isinstance(text, str):
        return from_json(text)
    if "task" not in config:
        raise UsageError("it holds no experiment")
    return from_config(config)  # of imported weights


def as_trained(experiment: Experiment, config: Mapping[str, Any], workdir: str | os.PathLike) -> Experiment:
    """The experiment to build a model with for the weights of a checkpoint.

    That is `experiment`, from config.json, unless the weights were trained with one in which they mean something else.

    Args:
      config: the config of the checkpoint. If it is of an older version, or empty, it is not compared.
    """
    try:
        trained = trained_with(config)
    except UsageError:
        return experiment
    wrong = [change for change in differences(trained, experiment) if change.rule is Rule.MEANING]
    if not wrong:
        return experiment
    logging.warning(
        "%s is not what the checkpoint was trained with (%s): the checkpoint's own config is used",
        os.path.join(workdir, portable.CONFIG), listed(wrong),
    )  # fmt: skip
    return portable.resolved(trained, workdir)


# --- going on ---------------------------------------------------------------------------------------------------------


def compare(experiment: Experiment, workdir: str | os.PathLike, allowed: Sequence[str] = ()) -> Continuation | None:
    """Compares an experiment with the workdir's newest intact checkpoint; all processes call it. It writes nothing.

    Args:
      allowed: fields that may differ though they give the weights their meaning, or tables of such fields.

    Returns:
      How the experiment continues the run; None if there is no checkpoint.

    Raises:
      UsageError: naming the fields that may not differ, or if more steps are made than `experiment.steps`.
    """
    if jax.process_index() == 0:
        check_folder(workdir)
    newest = find_newest(workdir)
    if newest is None:
        return None
    step, config = newest
    trained = _believed(step, config, workdir)
    changes = differences(trained, experiment)
    changes += [Change(*differing) for differing in portable.differing_codecs(trained, experiment, workdir)]
    _check_allowed(allowed, experiment, trained)
    _refuse(changes, step, workdir, allowed)
    if step > experiment.steps:
        raise UsageError(
            f"{workdir} has made {step} steps, and --config.steps={experiment.steps} are fewer: give at least "
            f"{step}, or another --workdir"
        )
    return Continuation(step, trained, tuple(changes))


def _believed(step: int, config: Mapping[str, Any], workdir: str | os.PathLike) -> Experiment:
    """The checkpoint's experiment, or that of config.json, which a user can mend, if this version cannot read it."""
    try:
        return trained_with(config)
    except UsageError as error:
        logging.warning("the config in checkpoint %d is of another version (%s): config.json is compared instead",
                        step, error)  # fmt: skip
        return read_experiment(workdir)


def _refuse(changes: Sequence[Change], step: int, workdir: str | os.PathLike, allowed: Sequence[str]) -> None:
    """Raises UsageError if a change may not be."""
    bound = [c for c in changes if c.rule in (Rule.POSITION, Rule.GROWS)]
    if bound:
        useless = any(_covers(a, c.field) for a in allowed for c in bound)
        raise UsageError(
            f"{listed(bound)} (the checkpoint of step {step} -> now): the position in the data is counted with it, so "
            f"this run needs the old value; to take its weights, give a new --workdir and --config.init.path={workdir}"
            + ("; --allow_change never helps for such a field" if useless else "")
        )
    wrong = [
        c for c in changes
        if c.rule in (Rule.MEANING, Rule.BY_CONTENT) and not any(_covers(a, c.field) for a in allowed)
    ]  # fmt: skip
    if wrong:
        flags = ",".join(change.field for change in wrong[:3])
        raise UsageError(
            f"{listed(wrong)} (the checkpoint of step {step} -> now): the weights in {workdir} are trained with the "
            f"old value; give it, or another --workdir, or --allow_change={flags} if that is meant"
        )


def _covers(allowed: str, field: str) -> bool:
    """Whether `allowed` is the field, or a table that holds it."""
    return field == allowed or field.startswith((f"{allowed}.", f"{allowed}["))


def _check_allowed(allowed: Sequence[str], *experiments: Experiment) -> None:
    """Refuses names that are no field of any of the experiments."""
    known = {name for one in experiments for name in _names("", json.loads(to_json(one)))}
    for name in allowed:
        if re.sub(r"\[\d+\]", "", name) not in known:
            raise UsageError(f"--allow_change: there is no field {name!r}{nearest(name, known)}")


def _names(field: str, value: Any) -> Iterator[str]:
    """The names of a field and of all fields below it, without places in lists."""
    if field:
        yield field
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _names(f"{field}.{name}" if field else name, inner)
    for inner in value if tables(value) else ():
        yield from (name for name in _names(field, inner) if name != field)


def log_changes(continued: Continuation, experiment: Experiment) -> None:
    """Logs each change in a line of its own, and a learning rate that jumps."""
    for change in continued.changes:
        logging.info("%s from step %d", change, continued.step)
    old, new = continued.trained, experiment
    before, after = (float(learning_rate(e.optim, e.steps)(continued.step)) for e in (old, new))
    if abs(after - before) > 0.01 * max(before, after):
        logging.info(
            "learning rate goes from %.2e (step %d, %s over %d steps) to %.2e (%s over %d steps)",
            before, continued.step, old.optim.schedule, old.steps, after, new.optim.schedule, new.steps,
        )  # fmt: skip


def change_rows(continued: Continuation | None) -> list[dict[str, Any]]:
    """The changes as commands.jsonl holds them; [] for a new run."""
    changes = continued.changes if continued else ()
    return [{"field": c.field, "old": c.old, "new": c.new, "step": continued.step} for c in changes]
