"""Maps the arrays of a released checkpoint to ours and back: a list of `Leaf`, read in both directions.

A leaf says where one array of ours comes from and how it is converted (`converts`). The arrays of all layers are one
array of ours, stacked along a leading axis.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from transfusion.errors import UsageError, nearest
from transfusion.interop.converts import Convert
from transfusion.interop.files import FLOATS, Checkpoint

BLOCK_BYTES = 2**22  # so many bytes (as float32) of a leaf are converted at a time
ParamPath = tuple[str | int, ...]


@dataclasses.dataclass(frozen=True)
class Leaf:
    """Where an array of ours comes from.

    Attributes:
      ours: the path of the array in our nested dict of parameters.
      theirs: the array's key in the checkpoint. If ours is stacked along its first axis, a tuple of keys, one per
        layer; None stands for a layer that has no such array, where ours stays zero.
      convert: the conversion of each array.
      rows: (start, stop) takes only these rows of theirs. The leaves that share a key must cover its rows. If several
        leaves have the same key and no rows, they are tied: each gets the whole array, and export wants them equal.
      at: the static index into ours (behind the layer) that is filled. The leaves of one array must cover it.
    """

    ours: ParamPath
    theirs: str | tuple[str | None, ...]
    convert: Convert
    rows: tuple[int, int] | None = None
    at: tuple[int | slice, ...] = ()


@dataclasses.dataclass(frozen=True)
class _Piece:
    """The part of one array of ours that comes from one key."""

    key: str
    leaf: Leaf
    index: tuple[int | slice, ...]

    def of(self, tree: Mapping) -> Any:
        """This part of our parameters, as a view."""
        return lookup(tree, self.leaf.ours)[(*self.index, ...)]


def pieces(leaves: Sequence[Leaf]) -> list[_Piece]:
    """The pieces of all leaves: one for each key and place, in the order of the leaves."""
    found = []
    for leaf in leaves:
        keys = [leaf.theirs] if isinstance(leaf.theirs, str) else leaf.theirs
        for layer, key in enumerate(keys):
            if key is not None:
                index = () if isinstance(leaf.theirs, str) else (layer,)
                found.append(_Piece(key, leaf, (*index, *leaf.at)))
    return found


def lookup(tree: Any, path: ParamPath) -> Any:
    """The node at a path. Numbers in it may have become strings on disk."""
    for name in path:
        tree = tree[name if name in tree else str(name)]
    return tree


def _blank(shape: tuple[int, ...]) -> np.ndarray:
    """An array of this shape that takes no memory."""
    return np.broadcast_to(np.float32(0), shape)


def their_shapes(leaves: Sequence[Leaf], shapes: Mapping) -> dict[str, tuple[int, ...]]:
    """The shape of each key that the leaves ask for, told from our template's shapes.

    Raises:
      ValueError: if the leaves do not cover the template, or the rows of a key: a mistake in the family's code.
    """
    blanks = jax.tree.map(lambda s: _blank(s.shape), dict(shapes))
    wanted: dict[str, tuple[int, ...]] = {}
    parts: dict[str, list[tuple[int, int]]] = {}
    _check_cover(leaves, blanks)
    for piece in pieces(leaves):
        shape = piece.leaf.convert.to_theirs(piece.of(blanks)).shape
        if piece.leaf.rows is not None:
            start, stop = piece.leaf.rows
            if stop - start != shape[0]:
                raise ValueError(f"{piece.key}: rows {piece.leaf.rows} for {shape[0]} rows of {piece.leaf.ours}")
            parts.setdefault(piece.key, []).append((start, stop))
            shape = (max(stop for _, stop in parts[piece.key]), *shape[1:])
        elif wanted.get(piece.key, shape) != shape:
            raise ValueError(f"{piece.key} is tied and has two shapes, {wanted[piece.key]} and {shape}")
        wanted[piece.key] = shape
    for key, spans in parts.items():
        if sum(stop - start for start, stop in spans) != wanted[key][0]:
            raise ValueError(f"the rows of {key} are covered in part or twice: {sorted(spans)}")
    return wanted


def _check_cover(leaves: Sequence[Leaf], blanks: Mapping) -> None:
    """Raises ValueError unless the leaves fill every number of ours exactly once."""
    filled: dict[str, list[int]] = {}  # numbers filled, per layer
    empty: dict[str, set[int]] = {}  # layers that have no such array
    for leaf in leaves:
        whole, stacked = lookup(blanks, leaf.ours), not isinstance(leaf.theirs, str)
        keys = leaf.theirs if stacked else (leaf.theirs,)
        if stacked and whole.shape[0] != len(keys):
            raise ValueError(f"{leaf.ours} has {whole.shape[0]} layers and {len(keys)} keys")
        part = (whole[0] if stacked else whole)[(*leaf.at, ...)]
        name = "/".join(map(str, leaf.ours))
        counts = filled.setdefault(name, [0] * len(keys))
        for layer, key in enumerate(keys):
            counts[layer] += part.size if key is not None else 0
            if key is None:
                empty.setdefault(name, set()).add(layer)
    for path, whole in jax.tree_util.tree_leaves_with_path(blanks):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        counts = filled.get(name, [0])
        size = whole.size // len(counts)
        for layer, count in enumerate(counts):
            if count > size or (count < size and layer not in empty.get(name, ())):
                raise ValueError(f"the leaves fill {count} of {size} numbers of {name}, layer {layer}")


def check_keys(
    checkpoint: Checkpoint, leaves: Sequence[Leaf], shapes: Mapping, ignore: Sequence[str] = ()
) -> list[str]:
    """Checks that a checkpoint holds the arrays that the leaves ask for. Returns the keys that no leaf asks for.

    Args:
      ignore: regular expressions of whole keys that no leaf needs to ask for.

    Raises:
      UsageError: naming the key, if one is missing, has another shape or holds no floats, or if no leaf asks for it and
        `ignore` does not match it.
    """
    # This comes before any array is made of the shapes, even one without memory: NumPy has no arrays of 2^63 numbers.
    asked = sum(math.prod(shape.shape) for shape in jax.tree.leaves(dict(shapes)))
    held = sum(math.prod(entry.shape) for entry in checkpoint.entries.values())
    if asked > 100 * held + 1_000_000:
        raise UsageError(
            f"{checkpoint.folder}: config.json asks for {asked:,} numbers in all, and the files hold {held:,}"
        )
    wanted = their_shapes(leaves, shapes)
    unclaimed = [key for key in checkpoint.entries if key not in wanted]
    for key, shape in wanted.items():
        if key not in checkpoint.entries:
            raise UsageError(f"{checkpoint.folder} has no key {key}{nearest(key, unclaimed)}")
        if checkpoint.shape(key) != shape:
            raise UsageError(
                f"{checkpoint.folder}: key {key} has the shape {list(checkpoint.shape(key))}, and config.json asks for "
                f"{list(shape)}"
            )
        if checkpoint.entry(key).dtype not in FLOATS:
            raise UsageError(f"{checkpoint.folder}: key {key} holds {checkpoint.entry(key).dtype}, not floats")
    unknown = [key for key in unclaimed if not any(re.fullmatch(pattern, key) for pattern in ignore)]
    if unknown:
        more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
        raise UsageError(f"{checkpoint.folder}: key {unknown[0]} is not understood{more}")
    return unclaimed


def fill(checkpoint: Checkpoint, leaves: Sequence[Leaf], targets: Mapping) -> None:
    """Writes every leaf into `targets`, a nested dict of arrays (NumPy's or on disk), some rows at a time."""
    for leaf in leaves:  # layers without such an array become zero, unless another leaf fills them below
        for layer, key in enumerate(() if isinstance(leaf.theirs, str) else leaf.theirs):
            if key is None:
                whole = lookup(targets, leaf.ours)
                whole[(layer, ...)] = _blank(whole.shape[1:])
    for piece in pieces(leaves):
        view, convert = piece.of(targets), piece.leaf.convert
        for rows, where in _blocks(checkpoint.shape(piece.key), piece.leaf):
            view[(*where, ...)] = np.ascontiguousarray(convert.to_ours(checkpoint.read(piece.key, rows)))


def _blocks(shape: tuple[int, ...], leaf: Leaf) -> Iterator[tuple[tuple[int, int] | None, tuple[slice, ...]]]:
    """Yields (rows of theirs, or None for all; where they go in ours)."""
    convert = leaf.convert
    if not shape or (convert.axis is None and leaf.rows is None):
        yield None, ()
        return
    start, stop = leaf.rows or (0, shape[0])
    row = 4 * math.prod(shape[1:])
    size = max(1, BLOCK_BYTES // max(row * convert.step, 1)) if convert.axis is not None else stop - start
    for first in range(start, stop, size * convert.step):
        last = min(first + size * convert.step, stop)
        if convert.axis is None:
            yield (first, last), ()
        else:
            span = slice((first - start) // convert.step, (last - start) // convert.step)
            yield (first, last), (*(slice(None),) * convert.axis, span)


def read_params(checkpoint: Checkpoint, leaves: Sequence[Leaf], shapes: Mapping, ignore: Sequence[str] = ()) -> dict:
    """Reads our parameters: a nested dict of float32 arrays with the template's `shapes`.

    Raises:
      UsageError: as `check_keys` does.
    """
    check_keys(checkpoint, leaves, shapes, ignore)
    params = jax.tree.map(lambda s: np.zeros(s.shape, np.float32), dict(shapes))
    fill(checkpoint, leaves, params)
    return params


def theirs_from(params: Mapping, leaves: Sequence[Leaf]) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (key, float32 array) of the released form, one key after the other.

    A large array comes in several parts, which are its rows in order, under the same key. Fused keys are joined again.
    `params` are nested dicts of arrays (NumPy's or on disk), which are read a part at a time.

    Raises:
      UsageError: if arrays that are tied in the released form are no longer equal.
    """
    by_key: dict[str, list[_Piece]] = {}
    for piece in pieces(leaves):
        by_key.setdefault(piece.key, []).append(piece)
    for key, group in by_key.items():
        fused = group[0].leaf.rows is not None
        tied = [] if fused else group[1:]
        for piece in sorted(group, key=lambda p: p.leaf.rows) if fused else group[:1]:
            shape = piece.leaf.convert.to_theirs(_blank(piece.of(params).shape)).shape
            for rows, _ in _blocks(shape, dataclasses.replace(piece.leaf, rows=None)):
                part = _rows_of(piece, params, rows)
                for other in tied:
                    if not np.array_equal(_rows_of(other, params, rows), part):
                        first, second = ("/".join(map(str, p.leaf.ours)) for p in (piece, other))
                        raise UsageError(
                            f"{first} and {second} are one array {key} in the released form, and now differ"
                        )
                yield key, part


def _rows_of(piece: _Piece, params: Mapping, rows: tuple[int, int] | None) -> np.ndarray:
    """The given rows of a piece in the released form; None gives all of it."""
    convert, ours = piece.leaf.convert, piece.of(params)
    if rows is None or convert.axis is None or any(row % convert.step for row in rows):
        whole = convert.to_theirs(np.asarray(ours[(...,)]))
        return whole if rows is None else whole[slice(*rows)]
    span = slice(*(row // convert.step for row in rows))
    return convert.to_theirs(np.asarray(ours[(*(slice(None),) * convert.axis, span, ...)]))


def chunks(leaves: Sequence[Leaf], shapes: Mapping) -> dict[str, tuple[int, ...]]:
    """The shape that `fill` writes at a time, for each array of ours by its path joined with dots."""
    blanks, found = jax.tree.map(lambda s: _blank(s.shape), dict(shapes)), {}
    for leaf in leaves:
        whole, stacked = lookup(blanks, leaf.ours), not isinstance(leaf.theirs, str)
        lead = (1,) if stacked else ()
        shape = whole.shape[len(lead) :]
        if not leaf.at:
            part = _blank(shape)
            _, where = next(iter(_blocks(leaf.convert.to_theirs(part).shape, dataclasses.replace(leaf, rows=None))))
            shape = part[(*where, ...)].shape
        found[".".join(map(str, leaf.ours))] = (*lead, *(max(n, 1) for n in shape))
    return found
