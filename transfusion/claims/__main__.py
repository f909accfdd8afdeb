"""Claims of the literature, tested: each is a file, its runs are shared, and it gets a verdict with an interval.

  python -m transfusion.claims list [NAME ...]
  python -m transfusion.claims run [NAME ...] --parallel 2
  python -m transfusion.claims match NAME --field steps

`list` shows each claim with its verdict, and what is missing. `run` works through all runs of all claims that are not
finished, --parallel at a time, and writes each verdict as soon as its runs are there; it may be stopped at any time,
and the same command goes on. `match` finds the value of a field with which the systems of a claim are equal. The files
are --claims/NAME/claim.toml (see `transfusion.claims.claim`). What a finished run has measured is kept in --records; a
run whose record is there is not trained again, unless another begins with its weights. With --records of an empty
folder all runs are trained.
"""

import json
import os
import pathlib
import signal
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from absl import flags, logging

from transfusion import programs, storage
from transfusion.claims.claim import Claim, read_claims
from transfusion.claims.equal import check_equal, match_lines
from transfusion.claims.ledger import Claimed, runs_of, shared, work
from transfusion.claims.page import claims_page
from transfusion.claims.table import lines, write_readme
from transfusion.claims.verdict import record, recorded, verdict
from transfusion.errors import UsageError, nearest
from transfusion.running import provenance
from transfusion.sweep.forecast import forecast, forecast_table
from transfusion.sweep.pins import PINS, Slot, slots
from transfusion.sweep.process import is_finished
from transfusion.sweep.queue import Row
from transfusion.sweep.records import keep, restore

ACTIONS = ("list", "run", "match")


class Book:
    """All claims of a folder with their runs in a store, and the files that tell their verdicts.

    Args:
      fields: fields that are set in all runs, such as data.data_dir.
      records: the folder of the records of runs; None: 'records' in the folder of the claims.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        store: str | os.PathLike,
        fields: Mapping[str, Any] = {},
        records: str | os.PathLike | None = None,
    ):
        self.folder, self.store = pathlib.Path(folder), pathlib.Path(store)
        self.records = self.folder / "records" if records is None else pathlib.Path(records)
        self.claims = read_claims(folder)
        made = {(c.name, size): runs_of(c, size, store, fields) for c in self.claims for size in c.sizes}
        self.runs: dict[tuple[str, str], Claimed] = {key: one for key, one in made.items() if one is not None}

    def chosen(self, names: Sequence[str], size: str) -> list[Claimed]:
        """The runs of the named claims, in this order, at a size; of all without names, those without a verdict first.

        Raises:
          UsageError: if there is no claim of a name, or none of this size.
        """
        known = [claim.name for claim in self.claims]
        for name in names:
            if name not in known:
                raise UsageError(f"there is no claim {name!r} in {self.folder}{nearest(name, known)}")
        found = [self.runs[name, size] for name in names or known if (name, size) in self.runs]
        if not found:
            raise UsageError(f"no claim has the size {size!r}: {', '.join(dict.fromkeys(at for _, at in self.runs))}")
        return found if names else sorted(found, key=lambda one: size in recorded(one.claim))

    def verdicts(self, names: Sequence[str] = ()) -> list[tuple[Claim, dict[str, Any]]]:
        """Each claim with its verdicts by size, as recorded; without one, with what is missing."""
        found = []
        for claim in self.claims:
            if not names or claim.name in names:
                known = recorded(claim)
                sizes = {size: known.get(size) or verdict(self.runs[claim.name, size]) for size in claim.sizes}
                found.append((claim, sizes))
        return found

    def begin(self, claimed: Claimed) -> dict[str, Any]:
        """What is noted when a claim is first run: its digest, with the thresholds, and the date."""
        path = self.store / "claims" / f"{claimed.claim.name}-{claimed.size}.json"
        noted = storage.read_json(path)
        if noted is None:
            noted = {"claim": claimed.claim.digest, "date": provenance.now()}
            storage.make_folder(path.parent)
            storage.write_whole(path, json.dumps(noted))
        return noted

    def decide(self, claimed: Claimed) -> bool:
        """Records the verdict on a claim if all of its runs are there; says whether they are."""
        if claimed.missing:
            return False
        noted = self.begin(claimed)
        changed = None if noted["claim"] == claimed.claim.digest else noted["date"]
        record(claimed.claim, claimed.size, verdict(claimed) | {"fixed": noted["date"], "changed_after": changed})
        return True

    def write(self) -> None:
        """Writes the table into the README beside the claims, and the page beside the store."""
        found = self.verdicts()
        if (self.folder / "README.md").is_file():
            write_readme(self.folder / "README.md", found)
        storage.make_folder(self.store)
        storage.write_whole(self.store.parent / "claims.html", claims_page(found, self.runs))


def run(book: Book, claimed: Sequence[Claimed], places: Sequence[Slot]) -> bool:
    """Works through the runs of claims; returns whether none has failed.

    Raises:
      UsageError: if the systems of a claim differ in what they should have equal.
    """
    members = shared(claimed)
    restore(members, book.records)
    left = [member for member in members if not is_finished(member)]
    logging.info("%d runs of %d claims, of which %d are left", len(members), len(claimed), len(left))
    for one in claimed:
        book.begin(one)
        if not book.decide(one):
            for line in check_equal(one):
                logging.info("%s: %s", one.claim.name, line)
    book.write()

    def done(one: Claimed, row: Row) -> None:
        for member in one.members:
            keep(member, book.records)
        if not row["error"] and book.decide(one):
            book.write()
            print(lines([(one.claim, recorded(one.claim))]), flush=True)

    rows = work(claimed, places, book.store / "judges", done)
    book.write()
    return not any(row["error"] for row in rows)


def _interrupt(number, frame) -> None:
    signal.signal(number, signal.SIG_IGN)  # what runs saves already
    raise KeyboardInterrupt


def main(argv: Sequence[str]) -> None:
    action, *names = argv[1:] or ["list"]
    if action not in ACTIONS:
        raise UsageError(f"give one of {', '.join(ACTIONS)}, not {action!r}{nearest(action, ACTIONS)}")
    # Here configs are only counted; the accelerator belongs to the runs' processes.
    jax.config.update("jax_platforms", "cpu")
    logging.get_absl_handler().setFormatter(None)
    places = slots(FLAGS.parallel, FLAGS.pin)
    fields = {"data.data_dir": FLAGS.data_dir} if FLAGS.data_dir else {}
    book = Book(FLAGS.claims, FLAGS.store, fields, FLAGS.records)
    chosen = book.chosen(names, FLAGS.size)
    if action != "run" or FLAGS.dry_run:
        logging.set_verbosity(logging.WARNING)  # data sets tell at length that they are opened
    if action == "match":
        for one in chosen:
            print("\n".join(match_lines(one, FLAGS.field, FLAGS.multiple)))
        return
    if action == "list":
        print(lines(book.verdicts(names)))
        return
    if FLAGS.dry_run:
        print(forecast_table(forecast(shared(chosen), FLAGS.rate), FLAGS.parallel, differing=False))
        return
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _interrupt)
    try:
        well = run(book, chosen, places)
    except KeyboardInterrupt:
        raise UsageError("interrupted; the same command continues") from None
    print(lines(book.verdicts(names)))
    if not well:
        raise SystemExit(1)


FLAGS = flags.FLAGS

if __name__ == "__main__":
    flags.DEFINE_string("claims", "experiments/claims", "Folder of the claims.")
    flags.DEFINE_string("store", "runs/store", "Folder of the runs, which claims and sweeps share.")
    flags.DEFINE_string("records", None, "Folder of what finished runs have measured; default: that of the claims.")
    flags.DEFINE_string("size", "cpu", "Size of the runs, one of those in the claims' files.")
    flags.DEFINE_string("data_dir", None, "Where the datasets are; default: as the configs say.")
    flags.DEFINE_integer("parallel", 1, "Runs at a time, each with its share of cores or an accelerator.")
    flags.DEFINE_enum("pin", "auto", ["auto", *PINS], "What each of several runs gets for itself.")
    flags.DEFINE_string("field", "steps", "match: the field that may change, such as steps or model.ffn.")
    flags.DEFINE_integer("multiple", 1, "match: the field's value is a multiple of this.")
    flags.DEFINE_bool("dry_run", False, "run: list the runs with their FLOPs and hours, and run nothing.")
    flags.DEFINE_float("rate", None, "FLOP/s of one process, from which hours are told where nothing is measured yet.")
    programs.run(main, files=1000)
