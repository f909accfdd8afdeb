"""Scaling laws of every modality, from a table of losses or from a grid of trainings.

  python -m transfusion.scaling losses.csv --workdir runs/scaling
  python -m transfusion.scaling experiments/scaling/grid.py --workdir runs/scaling --processes 2

A CSV has the columns parameters, tokens, flops and NAME_loss for each modality (see `transfusion.scaling.points`). A
grid file is Python: its trainings are run first, and the same command continues them; `--dry_run` only says what they
cost. Then the laws L(N, D) of each modality and system are fitted with bootstrap intervals, the largest run is left out
and predicted, and scaling.json, scaling.html and, of a grid, scaling.csv are written into the workdir.
"""

import csv
import io
import json
import pathlib
import signal
import sys
from collections.abc import Sequence
from typing import Any

import jax
from absl import flags, logging

from transfusion import programs, storage
from transfusion.errors import UsageError
from transfusion.running import provenance
from transfusion.running.metrics import human
from transfusion.scaling import grid as grids
from transfusion.scaling.figure import figure
from transfusion.scaling.points import Points, read_csv
from transfusion.scaling.study import LARGEST, as_json, between_systems, study
from transfusion.scaling.table import study_table


def costs(planned: Sequence[grids.Planned], rate: float) -> str:
    """A line for each training, with its cost at `rate` FLOPs per second, and their sum."""
    lines = [f"{'run':<24} {'weights':>8} {'steps':>7} {'FLOPs':>8} {'minutes':>8}  state"]
    for one in planned:
        state = "finished" if one.done >= one.steps else f"at step {one.done}"
        cells = f"{human(one.parameters):>8} {one.steps:>7} {one.flops:>8.1e} {one.flops / rate / 60:>8.1f}"
        lines.append(f"{one.run.name:<24} {cells}  {state}")
    total = sum(one.flops for one in planned)
    lines.append(f"{'all':<24} {'':>8} {'':>7} {total:>8.1e} {total / rate / 60:>8.1f}")
    return "\n".join(lines)


def points_of_grid(path: str, workdir: pathlib.Path) -> Points | None:
    """Trains what is left of a grid, and returns its measurements; None after a dry run."""
    jax.config.update("jax_platforms", "cpu")  # the accelerator belongs to the trainings' processes
    grid = grids.read_grid(path)
    planned = grids.plan(grid, workdir)
    print(costs(planned, FLAGS.flops_per_second), flush=True)
    if FLAGS.dry_run:
        return None
    storage.make_folder(workdir)
    failed = grids.train_all(planned, FLAGS.processes)
    if failed:
        name, reason = next(iter(failed.items()))
        raise UsageError(f"{len(failed)} of {len(planned)} trainings are not finished, such as {name}: {reason}")
    points = grids.measured(grid, planned)
    out = io.StringIO()
    rows = points.rows()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    storage.write_whole(workdir / "scaling.csv", out.getvalue())
    return points


def about(path: str) -> dict[str, Any]:
    """Where the numbers come from."""
    origin = {"command": provenance.command(), "versions": provenance.versions(), "code": provenance.code()}
    return {"file": path, "seed": FLAGS.seed, "resamples": FLAGS.resamples, "date": provenance.now()} | origin


def _interrupt(number, frame) -> None:
    raise KeyboardInterrupt


def main(argv: Sequence[str]) -> None:
    if len(argv) != 2:
        raise UsageError("give one file, a CSV or a grid: python -m transfusion.scaling losses.csv")
    path, workdir = argv[1], pathlib.Path(FLAGS.workdir)
    if FLAGS.resamples < 20 or FLAGS.processes < 1 or not FLAGS.flops_per_second > 0:
        raise UsageError("--resamples must be at least 20, --processes at least 1, --flops_per_second positive")
    logging.get_absl_handler().setFormatter(None)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        points = points_of_grid(path, workdir) if path.endswith(".py") else read_csv(path)
    except KeyboardInterrupt:
        raise UsageError("interrupted; the same command continues") from None
    if points is None:
        sys.exit(0)
    storage.make_folder(workdir)
    for name in ("scaling.json", "scaling.html"):
        storage.check_writable(workdir / name)
    found = study(points, path, FLAGS.held_out, FLAGS.resamples, FLAGS.seed)
    result = about(path) | {"systems": as_json(found), "between_systems": between_systems(found)}
    storage.write_whole(workdir / "scaling.json", json.dumps(result, indent=2, allow_nan=False))
    storage.write_whole(workdir / "scaling.html", figure(found, f"Scaling laws: {pathlib.Path(path).name}"))
    print(study_table(found))
    print(f"written to {workdir / 'scaling.json'} and scaling.html")


FLAGS = flags.FLAGS

if __name__ == "__main__":
    flags.DEFINE_string("workdir", "runs/scaling", "Folder that receives the results, and a grid's runs.")
    flags.DEFINE_string("held_out", LARGEST, "The run that is left out and predicted: its name, 'largest' or 'none'.")
    flags.DEFINE_integer("resamples", 200, "Of the bootstrap.")
    flags.DEFINE_integer("seed", 0, "Of the bootstrap.")
    flags.DEFINE_integer("processes", 1, "Trainings of a grid at the same time; each gets its share of the cores.")
    flags.DEFINE_bool("dry_run", False, "Only say what the trainings of a grid cost.")
    flags.DEFINE_float("flops_per_second", 1e10, "Of one process, for the minutes of a grid.")
    programs.run(main, files=1)
