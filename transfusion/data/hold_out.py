"""Holds out a share of a source's records, chosen by a hash of their names, so that they are always the same.

Training and evaluation open the same source with the same `hold_out`: training with `part='train'`, evaluation with
`part='held_out'`. A record stays in its part when others are added and when the folder moves; when the share grows, no
held-out record returns to training. All rows of one file are in the same part.
"""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np

from transfusion.data.config import HELD_OUT, Record, SourceConfig
from transfusion.errors import UsageError


class Subset:
    """The records of a source at the places `indices`, in this order."""

    def __init__(self, source: Sequence[Record], indices: np.ndarray):
        self._source, self._indices = source, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Record:
        return self._source[int(self._indices[index])]


def part_of(source: Sequence[Record], config: SourceConfig) -> Sequence[Record]:
    """The part of a source that its config names; the source itself if nothing is held out.

    A source may have `key(index)`, which names a record without reading it. The name must not change when records are
    added or the data moves. In a source without `key`, the place of a record is its name.

    Raises:
      UsageError: if one of the two parts would be empty.
    """
    if not config.hold_out:
        return source
    key: Callable[[int], str] = getattr(source, "key", str)
    held_out = np.fromiter((fraction(key(i)) < config.hold_out for i in range(len(source))), bool, len(source))
    if len(source) and held_out.all() | ~held_out.any():
        raise UsageError(
            f"hold_out={config.hold_out} of the {len(source)} records at {config.path or config.name} holds out "
            f"{'all' if held_out.all() else 'none'}: use another share, or more records"
        )
    return Subset(source, np.flatnonzero(held_out if config.part == HELD_OUT else ~held_out))


def fraction(key: str) -> float:
    """A fixed number from 0 up to 1 for a name, evenly spread."""
    data = key.encode("utf-8", errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big") / 2**64
