"""How many pairs of tokens the attention rule (`masks.see`) allows, counted without a table of all pairs.

Both functions count the pairs of one trunk: its queries are tokens of some streams, its keys those of others.
"""

from collections.abc import Collection

import numpy as np

from transfusion.sequence.arrays import Int
from transfusion.sequence.batch import Batch
from transfusion.sequence.spec import SequenceSpec


def allowed_pairs(
    batch: Batch, spec: SequenceSpec, queries: Collection[str], keys: Collection[str], causal: Collection[str] = ()
) -> Int[np.ndarray, "B"]:
    """Counts the pairs (a token of the streams `queries`, one of `keys`) that `see` allows, for each packed row.

    It is exact for rows that `rows.assemble` makes, in which documents and spans are contiguous in reading order. Then
    a token sees all of its own span, and besides that, back to the beginning of its document, the public tokens. Both
    are differences of running counts, so that the time grows with the number of tokens and not with its square: about
    150 microseconds for a row of 4,096 tokens. Between two tokens of a span there may be tokens of `causal` streams.

    Args:
      batch: packed rows, as numpy arrays.
      spec: the streams, and which stream may see which.
      queries, keys: names of streams.
      causal: streams whose spans do not count, see `masks.causal`.

    Returns:
      int64 [B].
    """
    inside = {name: batch[name] for name in dict.fromkeys((*queries, *keys))}
    rows = len(next(iter(inside.values())).document)
    span = {name: np.zeros_like(part.span) if name in causal else part.span for name, part in inside.items()}
    real = {name: part.document > 0 for name, part in inside.items()}
    places = 1 + max(int(part.order.max(initial=0)) for part in inside.values())
    document_start = _first({name: (part.document, part.order) for name, part in inside.items()}, rows, places)
    span_start = _first({name: (span[name], part.order) for name, part in inside.items()}, rows, places)
    spans = span_start.shape[1]
    public, public_of_spans, of_span = {}, {}, np.zeros((rows, spans), np.int64)
    for name in keys:
        part = inside[name]
        is_public = real[name] & (part.private == 0)
        public[name] = _count(part.order, is_public, places)
        public_of_spans[name] = _count(part.order, is_public & (span[name] > 0), places)
        of_span += _count(span[name], real[name] & (span[name] > 0), spans)
    may, numbers, total = spec.visibility, {name: i for i, name in enumerate(spec.streams)}, np.zeros(rows, np.int64)
    for name in queries:
        part = inside[name]
        seen = [key for key in keys if may is None or may[numbers[name], numbers[key]]]
        before, before_of_spans = (
            _running([table[key] for key in seen], rows, places) for table in (public, public_of_spans)
        )
        until = part.order + 1
        found = np.take_along_axis(before, until, 1)
        found -= np.take_along_axis(before, np.take_along_axis(document_start, part.document, 1), 1)
        # Those of the own span are counted below, all of them.
        start = np.where(span[name] > 0, np.take_along_axis(span_start, span[name], 1), until)
        found -= np.take_along_axis(before_of_spans, until, 1) - np.take_along_axis(before_of_spans, start, 1)
        found += np.take_along_axis(of_span, span[name], 1)
        total += np.sum(found, axis=1, where=real[name])
    return total


def _count(numbers: np.ndarray, counted: np.ndarray, most: int) -> np.ndarray:
    """Counts how often each number below `most` is in a row: [B, N] -> [B, most]; only where `counted`."""
    rows = len(numbers)
    flat = (numbers + most * np.arange(rows)[:, None])[counted]
    return np.bincount(flat, minlength=rows * most).reshape(rows, most)


def _running(counts: list[np.ndarray], rows: int, places: int) -> np.ndarray:
    """Sums counts [B, places] over all earlier places: [B, places + 1]."""
    before = np.zeros((rows, places + 1), np.int64)
    np.cumsum(sum(counts, np.zeros((rows, places), np.int64)), axis=1, out=before[:, 1:])
    return before


def _first(parts: dict[str, tuple[np.ndarray, np.ndarray]], rows: int, most: int) -> np.ndarray:
    """The first place in each row of every number, [rows, numbers], from pairs of arrays (numbers, places) [B, N].

    The places of a number ascend within a slice. Numbers that a row lacks have the place `most`.
    """
    size = 1 + max(int(numbers.max(initial=0)) for numbers, _ in parts.values())
    first = np.full(rows * size, most)
    for numbers, places in parts.values():
        flat = (numbers + size * np.arange(rows)[:, None]).ravel()
        one = np.full(rows * size, most)
        one[flat[::-1]] = places.ravel()[::-1]  # of several values for one index, numpy keeps the last, here the first
        np.minimum(first, one, out=first)
    return first.reshape(rows, size)


def pairs_of_one_document(
    spec: SequenceSpec, queries: Collection[str], keys: Collection[str], causal: Collection[str] = ()
) -> float:
    """Pairs of tokens (one of the streams `queries`, one of `keys`) that `see` allows in a row of one full document.

    Its streams mix evenly. It is for plans without data: documents that share a row do not see each other, so packed
    rows have fewer pairs, often a tenth. How many, `allowed_pairs` counts.

    Args:
      spec: the streams and their layout.
      queries, keys: names of streams.
      causal: streams whose spans do not count, see `masks.causal`.
    """
    runs = [run for row in spec.layout.values() for run in row]
    public = {run.stream for run in runs if not run.private}
    private = {run.stream for run in runs} - public
    names, may, total = list(spec.streams), spec.visibility, 0.0
    for q in queries:
        for k in keys:
            n, m = spec.streams[q].budget, spec.streams[k].budget
            if k not in private and (may is None or may[names.index(q), names.index(k)]):
                total += n * m / 2
            if q == k:
                span = 1 if q in causal else spec.streams[q].span_tokens
                total += n * (span if k in private else span / 2)
    return total
