"""The input pipeline: records -> documents -> packed rows -> numpy batches, made ahead by one background thread.

The batches depend on (config, spec, batch size, seed) only. Row r of the global batch is lane r of `packing`; a host
makes the rows that its devices hold, so that one host and many make the same global batches. The state is JSON: per
lane a cursor and the indices of the documents in open bins.
"""

import collections
import concurrent.futures
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from transfusion.batch import Batch
from transfusion.codecs.text import BYTES, Tokenizer
from transfusion.data import documents
from transfusion.data.config import DataConfig, Record
from transfusion.data.packing import Bad, Lane, Row, Snapshot
from transfusion.data.randomness import scramble
from transfusion.data.records import BadRecords, Cache, Records
from transfusion.data.sources import Source
from transfusion.errors import UsageError, nearest
from transfusion.rows import Expanded, assemble, expand
from transfusion.sequence import SequenceSpec

_TURN = 1 << 32  # keeps these numbers apart from the draws of documents


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
        encode: documents.Encode = documents.pixels,
        opened: Mapping[str, Source] | None = None,
        tokenizer: Tokenizer = BYTES,
    ):
        """`batch_size` is that of all hosts; `rows` are those of this one, all by default. `encode` is called in this
        pipeline's threads.

        Raises:
          UsageError: if the config cannot work.
        """
        for name in config.drop_conditions:
            if name not in spec.streams:
                raise UsageError(f"data.drop_conditions: no stream {name!r}{nearest(name, spec.streams)}")
        self._config, self._spec, self._batch_size, self._seed = config, spec, batch_size, seed
        self._encode, self._tokenizer = encode, tokenizer
        self._records = Records(config, seed, opened)
        # Expanding takes most of the time; a record has few forms, so that they all fit unless the data is large.
        self._expansions = Cache(config.cache_megabytes * 2**19) if config.cache else None
        self._rows = range(batch_size) if rows is None else list(rows)
        self._reader: _ReadAhead | None = None
        self._worker: _Worker | None = None
        self._closed = False
        self._reset(None)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """Raises UsageError when too many records are bad; what the background thread raises is raised here."""
        if self._closed:
            raise RuntimeError("this Pipeline is closed")
        if self._worker is None and self._config.prefetch:
            self._worker = _Worker(self._make, self._config.prefetch)
        batch, self._delivered, self._stats = self._worker.get() if self._worker else self._make()
        return batch

    def __enter__(self) -> "Pipeline":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def state(self) -> dict:
        """JSON: where to continue after the batch delivered last, whatever was made ahead. Has the lanes of this host;
        `merge_states` joins those of all hosts."""
        lanes = {str(row): lane.to_json() for row, lane in zip(self._rows, self._delivered, strict=True)}
        return {"batch_size": self._batch_size, "seed": self._seed, "lanes": lanes}

    def restore(self, state: Mapping) -> None:
        """Continues after the batch that was delivered last when `state` was taken, on any number of hosts.

        Raises:
          UsageError: if the state is of another batch size or seed, or lacks lanes of this host.
        """
        for name, ours in (("batch_size", self._batch_size), ("seed", self._seed)):
            if state.get(name) != ours:
                raise UsageError(
                    f"the data position was saved with {name}={state.get(name)}, not {ours}: resume with that value"
                )
        missing = [row for row in self._rows if str(row) not in state["lanes"]]
        if missing:
            raise UsageError(f"the saved data position lacks rows {missing[:5]}: it was saved by other hosts only")
        self._reset(state["lanes"])

    def stats(self) -> dict:
        """Of the batches delivered since the start or `restore`: 'documents' (packed), 'records' (read), 'bad' (count),
        'efficiency' ({stream: used / slots} and 'all'), 'mean_cost' ({stream: tokens per packed document}); and
        'errors' ({name: why}) of everything read so far."""
        return self._stats | {"errors": dict(self._bad.errors)}

    def fingerprint(self) -> dict[str, str]:
        """See `Records.fingerprint`."""
        return self._records.fingerprint()

    def close(self) -> None:
        """Ends the background threads; `state` and `stats` can still be asked, batches cannot."""
        self._closed = True
        self._stop_threads()

    def _stop_threads(self) -> None:
        for thread in (self._worker, self._reader):
            if thread:
                thread.close()
        self._worker = self._reader = None

    def _reset(self, lanes: Mapping[str, Mapping] | None) -> None:
        self._stop_threads()
        config, example = self._config, self._example
        if config.read_threads:
            self._reader = _ReadAhead(self._example, config.read_threads, config.read_ahead, self._batch_size)
            example = self._reader
        self._bad = BadRecords(config.max_bad_share, config.max_bad_after)
        self._used: collections.Counter[str] = collections.Counter()
        self._made = self._documents = 0
        self._lanes = []
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
                lane.restore(lanes[str(row)])
            self._lanes.append(lane)
        self._delivered = [lane.snapshot() for lane in self._lanes]
        self._stats = self._count()

    def _example(self, index: int) -> Expanded | Bad:
        # Lanes step by B through a mixture that repeats a pattern: without a turn, some would never meet a source.
        step, row = divmod(index, self._batch_size)
        index = step * self._batch_size + (row + scramble(self._seed, step, _TURN)) % self._batch_size
        record = self._records[index]
        if "error" in record:
            return Bad(str(record["id"]), str(record["error"]))
        choice = documents.choose(record, self._config, (self._seed, index))
        if self._expansions is None:
            return make_example(record, choice, self._spec, self._encode, self._tokenizer)
        key = (record["id"], choice)
        return self._expansions.get(
            key, lambda: make_example(record, choice, self._spec, self._encode, self._tokenizer), _bytes_of
        )

    def _on_bad(self, bad: Bad) -> None:
        self._bad.add(bad)
        # Checked here too: where every record is bad, no row is ever finished.
        self._bad.check(sum(lane.read for lane in self._lanes))

    def _make(self) -> tuple[Batch, list[Snapshot], dict]:
        rows = [lane.next_row() for lane in self._lanes]
        self._made += len(rows)
        for row in rows:
            self._documents += len(row)
            for piece in row:
                self._used.update(piece.item.cost)
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
            "efficiency": efficiency,
            "mean_cost": {name: self._used[name] / max(self._documents, 1) for name in budgets},
        }


def make_example(
    record: Record,
    choice: documents.Choice,
    spec: SequenceSpec,
    encode: documents.Encode = documents.pixels,
    tokenizer: Tokenizer = BYTES,
) -> Expanded | Bad:
    """A record as packable tokens, or why it cannot be used."""
    if "error" in record:
        return Bad(str(record["id"]), str(record["error"]))
    try:
        frames = "video" not in spec.layout
        document = documents.to_document(record, choice, encode, spec.reads_pixels, frames, tokenizer)
        return expand(document, spec)
    except UsageError as error:  # an image of another size than the stream's: this record's fault
        return Bad(str(record["id"]), str(error))


def _bytes_of(example: Expanded | Bad) -> int:
    if isinstance(example, Bad):
        return 500
    return 1000 + sum(array.nbytes + 200 for piece in example.pieces.values() for array in piece.values())


def merge_states(states: Iterable[Mapping]) -> dict:
    """Joins the states of all hosts, of this or of `ImageBatches`, into one that any number of hosts can restore."""
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
    encode: documents.Encode = documents.pixels,
    tokenizer: Tokenizer = BYTES,
) -> Iterator[Batch]:
    """Yields batches with every usable record once, in order, for held-out losses; the last rows may be empty."""
    bad = BadRecords(config.max_bad_share, config.max_bad_after)

    def example(index: int) -> Expanded | Bad:
        if index >= len(records):
            raise _Exhausted
        choice = documents.choose(records[index], config, (seed, index))
        return make_example(records[index], choice, spec, encode, tokenizer)

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
    pass


def _rows_of(lane: Lane) -> Iterator[Row]:
    try:
        while True:
            yield lane.next_row()
    except _Exhausted:
        while (row := lane.drain()) is not None:
            yield row


class _ReadAhead:
    """Calls `example` in threads for the indices that lanes of this stride will ask for next."""

    def __init__(self, example: Callable[[int], Expanded | Bad], threads: int, ahead: int, stride: int):
        self._example, self._ahead, self._stride = example, ahead, stride
        self._pool = concurrent.futures.ThreadPoolExecutor(threads, "transfusion-read")
        self._pending: dict[int, concurrent.futures.Future] = {}

    def __call__(self, index: int) -> Expanded | Bad:
        for later in range(index, index + (self._ahead + 1) * self._stride, self._stride):
            if later not in self._pending:
                self._pending[later] = self._pool.submit(self._example, later)
        return self._pending.pop(index).result()

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


class _Worker:
    """Calls `make` in a thread and holds at most `ahead` results ready."""

    def __init__(self, make: Callable[[], tuple], ahead: int):
        self._queue: queue.Queue = queue.Queue(maxsize=ahead)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(make,), name="transfusion-data", daemon=True)
        self._thread.start()

    def get(self) -> tuple:
        result, error = self._queue.get()
        if error is not None:
            self._queue.put((None, error))  # asked again, it fails again
            raise error
        return result

    def close(self) -> None:
        self._stop.set()
        while self._thread.is_alive():
            try:
                self._queue.get(timeout=0.05)
            except queue.Empty:
                continue
        self._thread.join()

    def _run(self, make: Callable[[], tuple]) -> None:
        while not self._stop.is_set():
            try:
                result = (make(), None)
            except BaseException as error:  # handed to the consumer, which raises it
                result = (None, error)
            self._put(result)
            if result[1] is not None:
                return

    def _put(self, result: tuple) -> None:
        while not self._stop.is_set():
            try:
                return self._queue.put(result, timeout=0.1)
            except queue.Full:
                continue
