"""The mixture: endless, shuffled, weighted, addressed by one global index; with a cache and a count of bad records."""

import hashlib
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

T = TypeVar("T")


class Records:
    """`records[i]`, i = 0, 1, 2, ...: the sources of `config`, each shuffled anew in every epoch, mixed by weight."""

    def __init__(self, config: DataConfig, seed: int, opened: Mapping[str, sources.Source] | None = None):
        """`opened` replaces sources of the config by ready ones (anything with `len` and `[i]` that gives records)."""
        config.validate()
        cache = Cache(config.cache_megabytes * 2**19) if config.cache else None
        parts, weights = [], []
        self._sources: dict[str, sources.Source] = {}
        for number, (name, source) in enumerate(config.sources.items()):
            data = (opened or {}).get(name) or sources.open_source(source, config.data_dir, config.pixel_limit)
            self._sources[name] = data
            indexed = _Cached(data, name, cache) if cache else data
            parts.append(grain.MapDataset.source(indexed).seed(_mixed_seed(seed, number)).shuffle().repeat())
            weights.append(source.weight)
        self._data = parts[0] if len(parts) == 1 else grain.MapDataset.mix(parts, weights)

    def __getitem__(self, index: int) -> Record:
        return self._data[index]

    def fingerprint(self) -> dict[str, str]:
        """Of each source: how many records it has, and a digest of up to eight of them, evenly spaced."""
        return {name: f"{len(source)}, {_digest(source)[:12]}" for name, source in self._sources.items()}


def _digest(source: Sequence[Record]) -> str:
    digest, last = hashlib.sha256(), len(source) - 1
    for index in sorted({i * last // 7 for i in range(8)}):
        for key, value in sorted(source[index].items()):
            if key not in ("id", "error"):  # they may hold paths, which need not be the same on all machines
                digest.update(f"{key} {getattr(value, 'shape', '')} ".encode())
                digest.update(value.tobytes() if isinstance(value, np.ndarray) else str(value).encode())
    return digest.hexdigest()


def _mixed_seed(seed: int, number: int) -> int:
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


class Cache:
    """Values in memory, up to a number of bytes in all; those that come later are made again each time."""

    def __init__(self, limit: int):
        self._left, self._values = limit, {}
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], T], size: Callable[[T], int]) -> T:
        """Returns the value of `key`: the kept one, else what `make` gives, kept if its `size` in bytes has room."""
        if key in self._values:
            return self._values[key]
        value = make()
        with self._lock:
            if key not in self._values and (count := size(value)) <= self._left:
                self._left -= count
                self._values[key] = value
        return value


class _Cached:
    def __init__(self, source: Sequence[Record], name: str, cache: Cache):
        self._source, self._name, self._cache = source, name, cache

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Record:
        return self._cache.get((self._name, int(index)), lambda: self._source[int(index)], _size)


def _size(record: Record) -> int:
    return 500 + sum(getattr(value, "nbytes", 0) or len(str(value)) for value in record.values())


class BadRecords:
    """Counts and names bad records, each logged once; stops the run when they are too many."""

    def __init__(self, max_share: float, after: int):
        self._max_share, self._after = max_share, after
        self.count = 0
        self.errors: dict[str, str] = {}  # the first thousand names

    def add(self, bad: Bad) -> None:
        self.count += 1
        if bad.name not in self.errors and len(self.errors) < 1000:
            self.errors[bad.name] = bad.error
            logging.warning("skipped %s: %s", bad.name, bad.error)

    def check(self, read: int) -> None:
        """Raises UsageError if, of at least `after` records `read`, more than the allowed share was bad."""
        if read < self._after or self.count <= self._max_share * read:
            return
        first = "; ".join(f"{name}: {error}" for name, error in list(self.errors.items())[:5])
        raise UsageError(
            f"{self.count} of {read} records cannot be used, more than data.max_bad_share={self._max_share}: "
            f"mend them or raise it. The first: {first}"
        )
