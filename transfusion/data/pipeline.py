"""The input pipeline: records -> documents -> packed rows -> numpy batches, made ahead by one background thread.

The batches depend on (config, spec, batch size, seed) only. Row r of the global batch is packed by lane r (`packing`).
Each host makes the rows that its devices hold, so that one host and many hosts make the same global batches. The state
is JSON: for each lane a cursor, and the indices of the documents in rows that are not full yet.
"""

import collections
import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence

from absl import logging

from transfusion.data import documents
from transfusion.data.config import DataConfig, Record
from transfusion.data.examples import bytes_of, make_example
from transfusion.data.packing import Bad, Lane, Row, Snapshot
from transfusion.data.position import check_same_batches, warn_of_changes
from transfusion.data.records import BadRecords, Cache, Records
from transfusion.data.sources import Source
from transfusion.data.threads import ReadAhead, Worker
from transfusion.errors import UsageError, nearest
from transfusion.sequence import SequenceSpec
from transfusion.sequence.batch import Batch
from transfusion.sequence.rows import Expanded, assemble
from transfusion.sequence.text import BYTES, Tokenizer

_TURN = 1 << 32  # a draw that no document uses (see `documents.choose_document`)


class Pipeline:
    """An endless iterator of numpy Batches [rows, ...] with an exact state.

    Use it as a context manager, or call `close`, so that its thread ends.
    """

    def __init__(
        self,
        config: DataConfig,
        spec: SequenceSpec,
        batch_size: int,
        seed: int = 0,
        rows: Sequence[int] | None = None,
        encode: documents.Encode = documents.as_pixels,
        opened: Mapping[str, Source] | None = None,
        tokenizer: Tokenizer = BYTES,
    ):
        """Opens the sources; nothing is read before the first batch is asked for.

        Args:
          config: see `DataConfig`.
          spec: streams and layout of the documents.
          batch_size: rows of the global batch, on all hosts together.
          seed: decides the order of the records and the form of each document.
          rows: the rows of the global batch that this host makes; all by default.
          encode: the codecs, which are called in this pipeline's threads.
          opened: sources that are used in place of the config's.
          tokenizer: makes ids of texts.

        Raises:
          UsageError: if the config cannot work.
        """
        for name in config.drop_conditions:
            if name not in spec.streams:
                raise UsageError(f"data.drop_conditions: no stream {name!r}{nearest(name, spec.streams)}")
        self._config, self._spec, self._batch_size, self._seed = config, spec, batch_size, seed
        self._make_example = functools.partial(
            make_example, spec=spec, encode=encode, tokenizer=tokenizer, split_text=config.split_text,
            truncate=config.truncate,
        )  # fmt: skip
        self._records = Records(config, seed, opened)
        self._bad = BadRecords(config, self._records.epoch)
        # Making tokens takes most of the time. A record has few forms, so that all fit in memory unless the data is
        # large.
        self._expansions = Cache(config.cache_megabytes * 2**19) if config.cache else None
        self._rows = range(batch_size) if rows is None else list(rows)
        self._reader: ReadAhead | None = None
        self._worker: Worker | None = None
        self._closed = False
        self._reset(None)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """The next batch.

        Whatever the background thread raises is raised here; a UsageError if too many records are bad.
        """
        if self._closed:
            raise RuntimeError("this Pipeline is closed")
        if self._worker is None and self._config.prefetch:
            self._worker = Worker(self._make, self._config.prefetch)
        batch, self._delivered, self._stats = self._worker.get() if self._worker else self._make()
        return batch

    def __enter__(self) -> "Pipeline":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def state(self) -> dict:
        """Where to continue after the batch that was delivered last, as JSON. Batches made ahead do not count.

        It holds the lanes of this host; `merge_states` joins the states of all hosts.
        """
        lanes = {str(row): lane.to_json() for row, lane in zip(self._rows, self._delivered, strict=True)}
        data = self._records.identity()
        return {"batch_size": self._batch_size, "seed": self._seed, "data": data, "lanes": lanes}

    def restore(self, state: Mapping) -> None:
        """Continues after the batch that was delivered last when `state` was taken, on any number of hosts.

        If the data is unchanged, the same batches follow as without the interruption. If sources, their shares or their
        records have changed, a line of the log says what has, and the lanes continue at the same places in the new
        data's order, without the documents of unfinished rows. A state without a fingerprint, as old runs saved it, is
        taken to be of this data.

        Raises:
          UsageError: if the state is of another batch size or seed, or lacks lanes of this host.
        """
        check_same_batches(state, self._batch_size, self._seed)
        missing = [row for row in self._rows if str(row) not in state.get("lanes", ())]
        if missing:
            raise UsageError(f"the saved data position lacks rows {missing[:5]}: it has rows of other hosts only")
        self._reset(state["lanes"], reopen=not warn_of_changes(state, self._records))

    def stats(self) -> dict:
        """Counts of the batches that were delivered since the start or the last `restore`.

        'documents' were packed and 'records' read, of which 'bad' could not be used; the text of 'truncated' documents
        was cut. 'efficiency' is {stream: used / slots}, with 'all' for all streams together, and 'mean_cost' is
        {stream: tokens per packed document}. 'errors' is {name: what is wrong}, for all records that were read so far.
        """
        return self._stats | {"errors": dict(self._bad.errors)}

    def fingerprint(self) -> dict[str, str]:
        """See `Records.fingerprint`."""
        return self._records.fingerprint()

    def example_of(self, record: Record) -> Expanded | Bad:
        """The tokens of a record with its caption, as packing gets them; a Bad if it cannot be used."""
        config = dataclasses.replace(self._config, drop_caption=0.0)
        return self._make_example(record, documents.choose_document(record, config, (self._seed, 0)))

    def close(self) -> None:
        """Ends the background threads; `state` and `stats` can still be asked, batches cannot."""
        self._closed = True
        self._stop_threads()

    def _stop_threads(self) -> None:
        for thread in (self._worker, self._reader):
            if thread:
                thread.close()
        self._worker = self._reader = None

    @property
    def sources(self) -> Mapping[str, Source]:
        """The opened sources."""
        return self._records.sources

    def _reset(self, lanes: Mapping[str, Mapping] | None, reopen: bool = True) -> None:
        self._stop_threads()
        config, example = self._config, self._example
        if config.read_threads:
            self._reader = ReadAhead(self._example, config.read_threads, config.read_ahead, self._batch_size)
            example = self._reader
        self._bad.restart()
        self._used: collections.Counter[str] = collections.Counter()
        self._made = self._documents = self._truncated = 0
        self._lanes: list[Lane] = []
        lost: list[str] = []
        for row in self._rows:
            lane = Lane(
                example,
                self._spec.budgets,
                row,
                self._batch_size,
                config.open_rows,
                config.split_text,
                config.min_piece,
                self._on_bad,
            )
            if lanes is not None:
                lost += lane.restore(lanes[str(row)], reopen)
            self._lanes.append(lane)
        if lost:
            logging.warning(
                "%d documents of unfinished rows have changed since the checkpoint was saved and are left out; reading "
                "continues behind them. The first: %s", len(lost), lost[0],
            )  # fmt: skip
        self._delivered = [lane.snapshot() for lane in self._lanes]
        self._stats = self._count()

    def _example(self, index: int) -> Expanded | Bad:
        # Lanes move in steps of B through a mixture that repeats a pattern. Unless their order is turned at each step,
        # some lanes would never meet some source.
        step, row = divmod(index, self._batch_size)
        index = step * self._batch_size + (row + documents.scramble(self._seed, step, _TURN)) % self._batch_size
        record = self._records[index]
        if "error" in record:
            return Bad(str(record["id"]), str(record["error"]))
        choice = documents.choose_document(record, self._config, (self._seed, index))
        if self._expansions is None:
            return self._make_example(record, choice)
        key, age = (record["id"], choice), self._records.age(index)
        return self._expansions.get(key, lambda: self._make_example(record, choice), bytes_of, age)

    def _on_bad(self, bad: Bad) -> None:
        self._bad.add(bad)
        # Checked here and not once per row, because no row is ever finished if every record is bad.
        self._bad.check(sum(lane.read for lane in self._lanes))

    def _make(self) -> tuple[Batch, list[Snapshot], dict]:
        rows = [lane.next_row() for lane in self._lanes]
        self._made += len(rows)
        for row in rows:
            self._documents += len(row)
            for piece in row:
                self._used.update(piece.item.cost)
                self._truncated += piece.item.truncated
        batch = assemble([[piece.item for piece in row] for row in rows], self._spec)
        return batch, [lane.snapshot() for lane in self._lanes], self._count()

    def _count(self) -> dict:
        budgets = {name: self._spec.streams[name].budget for name in self._spec.streams}
        made = max(self._made, 1)
        efficiency = {name: self._used[name] / (made * budget) for name, budget in budgets.items()}
        efficiency["all"] = sum(self._used[name] for name in budgets) / (made * sum(budgets.values()))
        return {
            "documents": self._documents,
            "records": sum(lane.read for lane in self._lanes),
            "bad": self._bad.count,
            "truncated": self._truncated,
            "efficiency": efficiency,
            "mean_cost": {name: self._used[name] / max(self._documents, 1) for name in budgets},
        }


def merge_states(states: Iterable[Mapping]) -> dict:
    """Joins the states that all hosts took of their pipelines into one that any number of hosts can restore."""
    merged: dict = {}
    for state in states:
        for name, value in state.items():
            merged[name] = merged.get(name, {}) | value if isinstance(value, Mapping) else value
    return merged


def epoch_batches(
    records: Sequence[Record],
    config: DataConfig,
    spec: SequenceSpec,
    batch_size: int,
    seed: int = 0,
    encode: documents.Encode = documents.as_pixels,
    tokenizer: Tokenizer = BYTES,
) -> Iterator[Batch]:
    """Yields batches that hold every usable record once, in order, for held-out losses. The last rows may be empty."""
    bad = BadRecords(config, len(records))

    def example(index: int) -> Expanded | Bad:
        if index >= len(records):
            raise _Exhausted
        record = records[index]
        choice = documents.choose_document(record, config, (seed, index))
        return make_example(record, choice, spec, encode, tokenizer, config.split_text, config.truncate)

    rows: list[Row] = []
    lane = Lane(example, spec.budgets, 0, 1, config.open_rows, config.split_text, config.min_piece, bad.add)
    for row in _rows_of(lane):
        rows.append(row)
        if len(rows) == batch_size:
            yield assemble([[piece.item for piece in row] for row in rows], spec)
            rows = []
    bad.check(max(len(records), config.max_bad_after))
    if rows:
        rows += [()] * (batch_size - len(rows))
        yield assemble([[piece.item for piece in row] for row in rows], spec)


class _Exhausted(Exception):
    """All records of a finite sequence were read."""


def _rows_of(lane: Lane) -> Iterator[Row]:
    try:
        while True:
            yield lane.next_row()
    except _Exhausted:
        while (row := lane.drain()) is not None:
            yield row
