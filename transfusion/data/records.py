"""Mixes the sources of a config into one endless, shuffled sequence of records, and counts the bad ones among them.

A record is addressed by one global index, which decides the source, the epoch and the place in it.
"""

import bisect
import dataclasses
import hashlib
import math
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

import grain
import numpy as np
from absl import logging

from transfusion.data import sources
from transfusion.data.config import DataConfig, Record
from transfusion.data.packing import Bad
from transfusion.errors import UsageError

_T = TypeVar("_T")
_NAMES = 1000  # bad records that are named in the log; further ones are only counted
# A run stops after so many bad records in a row, counted in epochs or in records, whichever are fewer.
_EPOCHS, _PATIENCE = 20, 20_000


class Records:
    """An endless sequence of records: `records[i]` for i = 0, 1, 2, ...

    Each source is shuffled anew in every epoch, and the sources are mixed by their weights.
    """

    def __init__(self, config: DataConfig, seed: int, opened: Mapping[str, sources.Source] | None = None):
        """Opens the sources of the config, except those that are in `opened`.

        An opened source is anything with `len(source)` and `source[i]` that gives records.
        """
        config.validate()
        if seed < 0:
            raise UsageError(f"seed must be 0 or more, not {seed}")
        self.sources: dict[str, sources.Source] = {}
        for name, source in config.sources.items():
            data = (opened or {}).get(name) or sources.open_source(source, config.data_dir, config.pixel_limit)
            self.sources[name] = data
        weights = [source.weight for source in config.sources.values()]
        self._shares = {name: weight / sum(weights) for name, weight in zip(self.sources, weights, strict=True)}
        cache = Cache(config.cache_megabytes * 2**19) if config.cache else None
        stages = {name: sources.stages_of(source) for name, source in self.sources.items()}
        self._starts = sorted({start for some in stages.values() for start, _ in some})
        self._grown = 0  # the highest age that was read
        self._data = [_mixed(stages, i, start, weights, seed, cache) for i, start in enumerate(self._starts)]
        # Computed now, because a checkpoint may be saved when the data can no longer be read.
        self._found = {name: f"{len(source)}, {_digest(source)[:12]}" for name, source in self.sources.items()}

    def __getitem__(self, index: int) -> Record:
        if (age := self.age(index)) > self._grown:
            self._grown = age
            logging.info("images are larger from record %d of the mixture on", self._starts[age])
        return self._data[age][index]

    def age(self, index: int) -> int:
        """How often the images of some source have grown before this record. What is made of a record depends on it."""
        return bisect.bisect_right(self._starts, index) - 1

    @property
    def epoch(self) -> int:
        """How many records are read until every source has given each of its records once."""
        return max(math.ceil(len(source) / self._shares[name]) for name, source in self.sources.items())

    def fingerprint(self) -> dict[str, str]:
        """For each source the number of its records and a digest of up to eight of them, evenly spaced."""
        return dict(self._found)

    def identity(self) -> list[list]:
        """[name, share, fingerprint] of each source, as JSON. Equal identities give the records in the same order."""
        found = self.fingerprint()
        return [[name, round(share, 9), found[name]] for name, share in self._shares.items()]


def _mixed(
    stages: Mapping[str, Sequence[tuple[int, sources.Source]]],
    age: int,
    start: int,
    weights: Sequence[float],
    seed: int,
    cache: "Cache | None",
) -> grain.MapDataset:
    """The mixture of the sources as they are from record `start` on, in the same order at any `age`."""
    parts = []
    for number, (name, some) in enumerate(stages.items()):
        data = next(source for first, source in reversed(some) if first <= start)
        data = _Cached(data, name, age, cache) if cache else data
        parts.append(grain.MapDataset.source(data).seed(_mixed_seed(seed, number)).shuffle().repeat())
    return parts[0] if len(parts) == 1 else grain.MapDataset.mix(parts, weights)


def _digest(source: Sequence[Record]) -> str:
    digest, last = hashlib.sha256(), len(source) - 1
    for index in sorted({i * last // 7 for i in range(8)}):
        record = source[index]
        for key, value in sorted(record.items()):
            if key not in ("id", "error", "segments"):  # the first two may hold paths, which differ between machines
                _add(digest, key, value)
        for segment in record.get("segments", ()):
            for key, value in dataclasses.asdict(segment).items():
                _add(digest, key, value)
    return digest.hexdigest()


def _add(digest: "hashlib._Hash", key: str, value: object) -> None:
    digest.update(f"{key} {getattr(value, 'shape', '')} ".encode())
    array = isinstance(value, np.ndarray)
    digest.update(value.tobytes() if array else str(value).encode(errors="surrogatepass"))


def _mixed_seed(seed: int, number: int) -> int:
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


class Cache:
    """Keeps values in memory up to a number of bytes in all.

    Values for which no room is left are made again each time. Once one of a higher age is asked for, all are
    dropped.
    """

    def __init__(self, limit: int):
        self._limit = self._left = limit
        self._values, self._age = {}, 0
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], _T], size: Callable[[_T], int], age: int = 0) -> _T:
        """The value of `key` at this age: the kept one, else that of `make()`, which is kept if its `size` in bytes has
        room."""
        found = self._values.get((key, age), self)  # one look-up, as another thread may drop all values
        if found is not self:
            return found
        value = make()
        with self._lock:
            if age > self._age:
                self._values, self._left, self._age = {}, self._limit, age
            if (key, age) not in self._values and (count := size(value)) <= self._left:
                self._left -= count
                self._values[key, age] = value
        return value


class _Cached:
    def __init__(self, source: Sequence[Record], name: str, age: int, cache: Cache):
        self._source, self._name, self._age, self._cache = source, name, age, cache

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Record:
        return self._cache.get((self._name, int(index)), lambda: self._source[int(index)], _size, self._age)


def _size(record: Record) -> int:
    segments = record.get("segments", ())
    values = [value for key, value in record.items() if key != "segments"] + [segment.value for segment in segments]
    return 500 + 300 * len(segments) + sum(getattr(value, "nbytes", 0) or len(str(value)) for value in values)


class BadRecords:
    """Counts bad records, logs each of them once, and stops the run when there are too many.

    Every read counts: a bad record that is read in each epoch counts in each epoch, as a good one does.
    """

    def __init__(self, config: DataConfig, epoch: int):
        """`epoch` is how many records are read until each was read once.

        A lane reads only a share of the records, so that it may wait for some epochs until a single good one comes.
        After `_EPOCHS` epochs or `_PATIENCE` records without one, none will come.
        """
        self._max_share, self._after = config.max_bad_share, config.max_bad_after
        self._patience = max(self._after, min(_EPOCHS * epoch, _PATIENCE))
        self.count = self._in_a_row = self._last = 0
        self.errors: dict[str, str] = {}  # the first thousand names

    def restart(self) -> None:
        """Counts from 0 again, without logging again what was logged."""
        self.count = self._in_a_row = self._last = 0

    def add(self, bad: Bad) -> None:
        self.count += 1
        if bad.name not in self.errors and len(self.errors) < _NAMES:
            self.errors[bad.name] = bad.error
            logging.warning("skipped %s: %s", bad.name, bad.error)
            if len(self.errors) == _NAMES:
                logging.warning("%d records were skipped: those that follow are counted, not named", _NAMES)

    def check(self, read: int) -> None:
        """Stops the run if too many records are bad. Called after every bad record; `read` counts all that were read.

        Raises:
          UsageError: if more than the allowed share of at least `max_bad_after` records was bad, or if so many records
            in a row were bad that no good one will come.
        """
        self._in_a_row = self._in_a_row + 1 if read == self._last + 1 else 1
        self._last = read
        first = "; ".join(f"{name}: {error}" for name, error in list(self.errors.items())[:5])
        if read >= self._after and self.count > self._max_share * read:
            raise UsageError(
                f"{self.count} of {read} records cannot be used, more than data.max_bad_share={self._max_share}: "
                f"fix these records or raise data.max_bad_share. The first: {first}"
            )
        if self._in_a_row >= self._patience:
            raise UsageError(f"none of the last {self._in_a_row} records can be used. The first: {first}")
