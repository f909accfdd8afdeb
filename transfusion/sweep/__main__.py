"""Several experiments, and one table and one page of their scores.

  python -m transfusion.sweep experiments/first_sweep/sweep.py --workdir runs/first_sweep --parallel 2

The file's `get_sweep()` returns {name: config}, or a list of (name, config file, {field: value}), such as `grid` and
`seeds` of `transfusion.sweep` make. Each member is trained and evaluated in processes of its own, in the folder
WORKDIR/name. The same command again skips what is finished and continues what was interrupted. A member that fails is
shown with its reason and stops no other; the exit code is then 1.

--dry_run lists the members with their FLOPs and hours. --member NAME, or its index, runs one of them, as in the array
of a cluster: --member "$SLURM_ARRAY_TASK_ID"; --commands prints a line of a shell for each, for other launchers.
--gather then writes the table of what is there.
"""

import dataclasses
import json
import os
import pathlib
import shlex
import signal
import sys
from collections.abc import Sequence
from typing import Any

import jax
from absl import flags, logging

from transfusion import programs, storage
from transfusion.errors import PassingError, UsageError, nearest
from transfusion.evaluation.sweep_table import sweep_table
from transfusion.sweep.forecast import forecast, forecast_table
from transfusion.sweep.members import Member, read_sweep
from transfusion.sweep.page import sweep_page
from transfusion.sweep.pins import PINS, Slot, slots
from transfusion.sweep.process import commands, found_row, is_finished
from transfusion.sweep.queue import run_all
from transfusion.sweep.records import keep, restore

JUDGES = "judges"


def sweep(
    members: Sequence[Member],
    workdir: str | os.PathLike,
    places: Sequence[Slot] = (Slot(),),
    records: str | os.PathLike | None = None,
) -> list[dict]:
    """Runs all members; writes the table after each, so that it is there whatever happens later.

    Args:
      records: a folder of what runs of a store have measured (`transfusion.sweep.records`), used and added to.
    """
    workdir = pathlib.Path(workdir)
    storage.make_folder(workdir)
    for name in ("sweep.json", "sweep.md", "sweep.html"):
        storage.check_writable(workdir / name)  # before a member is trained
    _link(members, workdir)
    found: dict[str, dict[str, Any]] = {}
    by_name = {member.name: member for member in members}
    if records is not None:
        restore(members, records)

    def report(row: dict[str, Any]) -> None:
        found[row["name"]] = row
        if records is not None:
            keep(by_name[row["name"]], records)
        write(members, [found[member.name] for member in members if member.name in found], workdir)

    return run_all(members, places, workdir / JUDGES, report)


def write(members: Sequence[Member], rows: Sequence[dict[str, Any]], workdir: pathlib.Path) -> None:
    """Writes the table and the page of the rows that there are."""
    storage.write_whole(workdir / "sweep.json", json.dumps(rows, indent=2))
    storage.write_whole(workdir / "sweep.md", sweep_table(rows) + "\n")
    storage.write_whole(workdir / "sweep.html", sweep_page(members, rows, f"Sweep: {workdir.resolve().name}"))


def _link(members: Sequence[Member], workdir: pathlib.Path) -> None:
    """Links the members' names to their runs in a store."""
    for member in members:
        link = workdir / member.name
        if member.digest and not link.exists():
            link.unlink(missing_ok=True)
            link.symlink_to(os.path.relpath(member.workdir.absolute(), workdir.absolute()))


def run_one(
    members: Sequence[Member], wanted: str, workdir: str | os.PathLike, records: str | os.PathLike | None = None
) -> dict[str, Any]:
    """Runs one member, by its name or its index; returns its row. `records` as in `sweep`.

    Raises:
      UsageError: if there is no such member.
      PassingError: if another member, which it begins with, is not finished.
    """
    names = [member.name for member in members]
    if wanted not in names and not (wanted.isdecimal() and int(wanted) < len(members)):
        said = f"--member: {wanted!r} is neither a member{nearest(wanted, names)} nor an index below {len(members)}"
        raise UsageError(said)
    member = members[names.index(wanted) if wanted in names else int(wanted)]
    if records is not None:
        restore(members, records)
    for other in members:
        if other.name in member.needs and not is_finished(other):
            raise PassingError(f"{member.name} needs {other.name}, which is not finished: run --member={other.name}")
    storage.make_folder(workdir)
    _link([member], pathlib.Path(workdir))
    (row,) = run_all([dataclasses.replace(member, needs=())], [Slot()], pathlib.Path(workdir) / JUDGES)
    if records is not None:
        keep(member, records)
    return row


def lines_of(members: Sequence[Member], workdir: pathlib.Path) -> list[str]:
    """One line of a shell for each member, for launchers of their own, such as that of a TPU pod, which starts a
    training on all of its machines. Writes the configs that the lines read."""
    storage.make_folder(workdir)
    _link(members, workdir)
    return [
        " && ".join(shlex.join(("python", "-m", *command)) for command in commands(member, str(workdir / JUDGES)))
        for member in members
    ]


def _interrupt(number, frame) -> None:
    signal.signal(number, signal.SIG_IGN)  # what runs saves already
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
    places = slots(FLAGS.parallel, FLAGS.pin)
    members, workdir = read_sweep(argv[1], FLAGS.workdir, fields, FLAGS.store), pathlib.Path(FLAGS.workdir)
    if FLAGS.records is not None and not FLAGS.store:
        raise UsageError("--records needs --store: a record is known by the digest of its run")
    if FLAGS.dry_run:
        logging.set_verbosity(logging.WARNING)  # data sets tell at length that they are opened
        return print(forecast_table(forecast(members, FLAGS.rate), FLAGS.parallel))
    if FLAGS.commands:
        return print("\n".join(lines_of(members, workdir)))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _interrupt)
    try:
        if FLAGS.gather:
            if FLAGS.records is not None:
                restore(members, FLAGS.records)
            rows = [found_row(member) for member in members]
            storage.make_folder(workdir)
            write(members, rows, workdir)
        elif FLAGS.member:
            rows = [run_one(members, FLAGS.member, workdir, FLAGS.records)]
        else:
            rows = sweep(members, workdir, places, FLAGS.records)
    except KeyboardInterrupt:
        raise UsageError("interrupted; the same command continues") from None
    print(sweep_table(rows))
    if not FLAGS.member:
        print(f"written to {workdir / 'sweep.json'}, sweep.md and sweep.html")
    if any(entry["error"] for entry in rows):
        sys.exit(1)


FLAGS = flags.FLAGS

if __name__ == "__main__":
    flags.DEFINE_string("workdir", "runs/sweep", "Folder that receives a workdir per member, and the table of all.")
    flags.DEFINE_string("data_dir", None, "Where the datasets are; default: as the configs say.")
    flags.DEFINE_string("store", None, "Folder of runs by the digest of their config, which sweeps and claims share.")
    flags.DEFINE_string("records", None, "Folder of what runs of the store have measured, which need not run again.")
    flags.DEFINE_integer("parallel", 1, "Members that run at a time, each with its share of cores or an accelerator.")
    flags.DEFINE_enum("pin", "auto", ["auto", *PINS], "What each of several members gets for itself.")
    flags.DEFINE_string("member", None, "Run this member alone, by its name or its index.")
    flags.DEFINE_bool("commands", False, "Run nothing; write each member's config, and print its command in a line.")
    flags.DEFINE_bool("gather", False, "Run nothing; write the table and the page of what is there.")
    flags.DEFINE_bool("dry_run", False, "Run nothing; list the members with their FLOPs and hours.")
    flags.DEFINE_float("rate", None, "FLOP/s of one process, from which hours are told where nothing is measured yet.")
    programs.run(main, files=1)
