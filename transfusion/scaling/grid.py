"""A grid of trainings: what is trained, for how long, and what was measured of it.

A grid file is Python and has `get_scaling() -> Grid`. Every run has an `Experiment` of its own; how many steps it takes
follows from its FLOPs. The held-out losses that the training itself measures, always of the same records with the same
noise and times, are the measurements. Under a constant learning rate, with an average of the parameters in place of a
falling rate, every one of them counts, and not the last alone (Haegele et al., arXiv 2405.18392): a run gives a whole
column of the grid.

Each run is trained in a process of its own, longest first, several at a time; the same call continues what was
interrupted.
"""

import collections
import concurrent.futures
import dataclasses
import itertools
import os
import pathlib
import subprocess
import sys
from collections.abc import Mapping, Sequence

import numpy as np
from absl import logging

from transfusion import storage
from transfusion.config import Experiment, from_config, to_config_dict, to_json
from transfusion.errors import UsageError, nearest
from transfusion.programs import call_in_file
from transfusion.running.metrics import FLOPS_PER_STEP, read_metrics
from transfusion.scaling.points import LOSS, NEEDED, TOKENS, Points, points_of
from transfusion.sequence.batch import Batch
from transfusion.tasks import Task, flops_of_data, make_task
from transfusion.workdir import json_file

ROWS = 32  # of the data, from which FLOPs and tokens of a step are told
LEAST_SHARE = 0.05  # of a modality in the tokens of the held-out batches


@dataclasses.dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
      name: of its folder.
      system: what is trained, such as 'dense'; each system has laws of its own.
      experiment: the config; `steps`, `log_every`, `eval.every` and `checkpoint` follow from the grid.
      flops: for how many FLOPs it is trained.
    """

    name: str
    system: str
    experiment: Experiment
    flops: float


@dataclasses.dataclass(frozen=True)
class Grid:
    """All trainings of a file.

    Attributes:
      runs: the trainings, whose names differ.
      modalities: the stream whose held-out loss and learned tokens are those of a modality, by its name.
      measurements: of each run, evenly over its steps.
      settled: measurements after fewer steps are left out: the warm-up and the start of the average last so long.
    """

    runs: Sequence[Run]
    modalities: Mapping[str, str]
    measurements: int = 10
    settled: int = 0


@dataclasses.dataclass(frozen=True)
class Planned:
    """A training with its folder and what its data say.

    Attributes:
      run: with the steps in its experiment.
      workdir: its folder.
      parameters: the weights that a token passes, on average.
      flops_per_step: as the first rows of its data need.
      tokens: how many tokens of each modality are learned in a step, as in those rows.
    """

    run: Run
    workdir: pathlib.Path
    parameters: float
    flops_per_step: float
    tokens: dict[str, float]

    @property
    def steps(self) -> int:
        return self.run.experiment.steps

    @property
    def flops(self) -> float:
        return self.flops_per_step * self.steps

    @property
    def done(self) -> int:
        """The last step that was logged."""
        rows = read_metrics(self.workdir / "metrics.jsonl")
        return rows[-1]["step"] if rows else 0


def read_grid(path: str | os.PathLike) -> Grid:
    """The grid of a file.

    Raises:
      UsageError: if the file has none, or one that cannot work.
    """
    grid = call_in_file(path, "get_scaling")
    if not isinstance(grid, Grid) or not grid.runs or not grid.modalities:
        raise UsageError(f"{path}: get_scaling() must return a transfusion.scaling.Grid with runs and modalities")
    names = [run.name for run in grid.runs]
    for run in grid.runs:
        if names.count(run.name) > 1 or pathlib.Path(run.name).name != run.name:
            raise UsageError(f"{path}: {run.name!r} cannot be the name of a run's folder: use plain names that differ")
        if not run.experiment.eval.sources:
            raise UsageError(f"{path}, {run.name}: eval.sources is empty: nothing would be measured")
        for modality, stream in grid.modalities.items():
            if stream not in run.experiment.streams:
                known = nearest(stream, run.experiment.streams)
                raise UsageError(f"{path}, {run.name}: no stream {stream!r} for the modality {modality!r}{known}")
    return grid


def plan(grid: Grid, workdir: str | os.PathLike) -> list[Planned]:
    """The trainings with their steps; it reads the first rows of each one's data, and the held-out data of the first.

    Raises:
      UsageError: if data cannot be used, or a modality has too few held-out tokens.
    """
    # As the trainings' processes will read them from files: tables are then in the order of their names.
    experiments = [from_config(to_config_dict(run.experiment)) for run in grid.runs]
    runs = [dataclasses.replace(run, experiment=e) for run, e in zip(grid.runs, experiments, strict=True)]
    _check_held_out(grid, runs[0])
    return [_planned(grid, run, pathlib.Path(workdir)) for run in runs]


def _check_held_out(grid: Grid, run: Run) -> None:
    """Refuses a grid whose held-out batches, which are read source by source, leave a modality without tokens."""
    experiment, task = run.experiment, make_task(run.experiment)
    batches = itertools.islice(task.held_out(experiment), experiment.eval.batches)
    found = sum((collections.Counter(_targets(batch)) for batch in batches), collections.Counter())
    for modality, stream in grid.modalities.items():
        if found[stream] < LEAST_SHARE * found.total():
            raise UsageError(
                f"{run.name}: only {found[stream]} of {found.total()} held-out tokens are of {modality}: the sources "
                f"are read one after the other, by their names, and eval.batches={experiment.eval.batches} are too few"
            )


def _targets(batch: Batch) -> dict[str, int]:
    """How many tokens of each stream have a loss."""
    return {name: int((np.asarray(part.loss_weight) > 0).sum()) for name, part in batch.items()}


def _planned(grid: Grid, run: Run, workdir: pathlib.Path) -> Planned:
    try:
        task = make_task(run.experiment)
        per_step = flops_of_data(task, run.experiment, ROWS) * run.experiment.batch_size
        tokens = _learned(task, run.experiment)
    except UsageError as error:
        raise UsageError(f"{run.name}: {error}") from error
    every = max(round(run.flops / per_step / grid.measurements), 1)
    experiment = dataclasses.replace(
        run.experiment,
        steps=every * grid.measurements,
        log_every=every,
        eval=dataclasses.replace(run.experiment.eval, every=every),
        checkpoint=dataclasses.replace(run.experiment.checkpoint, every=every * max(grid.measurements // 2, 1), keep=1),
    )
    found = {modality: tokens[stream] for modality, stream in grid.modalities.items()}
    return Planned(
        dataclasses.replace(run, experiment=experiment), workdir / run.name, task.weights_per_token, per_step, found
    )


def _learned(task: Task, experiment: Experiment) -> dict[str, float]:
    """How many tokens of each stream have a loss in a step, as the mean over the first rows of the data."""
    experiment = dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, prefetch=0))
    steps = -(-ROWS // experiment.batch_size)
    with task.open_data(experiment, range(experiment.batch_size)) as data:
        found = sum((collections.Counter(_targets(next(data))) for _ in range(steps)), collections.Counter())
    return {name: found[name] / steps for name in experiment.streams}


# --- training ---------------------------------------------------------------------------------------------------------


def train_all(planned: Sequence[Planned], processes: int = 1) -> dict[str, str]:
    """Trains what is not finished, so many at a time; returns why runs failed, by name."""
    waiting = sorted((one for one in planned if one.done < one.steps), key=lambda one: -one.flops)
    failed: dict[str, str] = {}
    running: list[subprocess.Popen] = []
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    places = [cores[i::processes] for i in range(processes)] if len(cores) >= processes > 1 else [[]] * processes

    def work(place: list[int]) -> None:
        while waiting:
            one = waiting.pop(0)
            logging.info("%s: %d steps, %.2g FLOPs", one.run.name, one.steps, one.flops)
            reason = _train(one, place, running)
            if reason:
                failed[one.run.name] = reason
                logging.error("%s failed: %s", one.run.name, reason)

    with concurrent.futures.ThreadPoolExecutor(processes) as pool:
        try:
            for future in [pool.submit(work, place) for place in places]:
                future.result()
        except BaseException:  # an interruption: the trainings that run save and end, and no other begins
            waiting.clear()
            for process in list(running):
                process.terminate()
            raise
    return failed


def _train(one: Planned, cores: list[int], running: list[subprocess.Popen]) -> str:
    """Trains one run in a process of its own, on these cores; returns why it failed, or ''. It is one of `running`
    meanwhile."""
    storage.make_folder(one.workdir)
    wanted, log = one.workdir / "scaling_config.json", one.workdir / "scaling.log"
    storage.write_whole(wanted, to_json(one.run.experiment))
    arguments = [f"--config={json_file.__file__}:{wanted}", f"--workdir={one.workdir}"]
    with open(log, "ab", opener=storage.own_file) as out:
        process = subprocess.Popen([sys.executable, "-m", "transfusion.train", *arguments], stdout=out, stderr=out)
        if cores:
            os.sched_setaffinity(process.pid, cores)  # before it has made its threads
        running.append(process)
        code = process.wait()
        running.remove(process)
    if code == 0 and one.done >= one.steps:
        return ""
    said = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return f"exit code {code} after {one.done} of {one.steps} steps: {said[-1] if said else 'no output'} (see {log})"


# --- measurements -----------------------------------------------------------------------------------------------------


def measured(grid: Grid, planned: Sequence[Planned]) -> Points:
    """The measurements of all runs so far.

    Raises:
      UsageError: if there are none.
    """
    rows = [row for one in planned for row in _rows(grid, one)]
    columns = ["system", "run", *NEEDED, *(f"{m}{end}" for end in (TOKENS, LOSS) for m in grid.modalities)]
    if not rows:
        raise UsageError(f"no run has measurements after {grid.settled} steps or more")
    return points_of(enumerate(rows, 1), columns, "the measurements of the grid")


def _rows(grid: Grid, one: Planned) -> list[dict[str, str]]:
    rows, flops, before = [], 0.0, 0
    for row in read_metrics(one.workdir / "metrics.jsonl"):
        step = row["step"]
        flops, before = flops + (row.get(FLOPS_PER_STEP) or one.flops_per_step) * (step - before), step
        losses = {m: row.get(f"held_out_{stream}_loss") for m, stream in grid.modalities.items()}
        if step < max(grid.settled, 1) or None in losses.values():
            continue
        found = {"parameters": one.parameters, "tokens": sum(one.tokens.values()) * step, "flops": flops}
        found |= {f"{m}{TOKENS}": count * step for m, count in one.tokens.items()}
        found |= {f"{m}{LOSS}": loss for m, loss in losses.items()}
        rows.append({"system": one.run.system, "run": one.run.name} | {k: repr(v) for k, v in found.items()})
    return rows
