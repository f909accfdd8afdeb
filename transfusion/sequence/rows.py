"""From documents to packed rows: the one place that turns the layout table into tokens.

Shape letters: see `transfusion.sequence`.
"""

import dataclasses
import math
import operator
from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from transfusion.errors import UsageError
from transfusion.sequence.arrays import Array, Int, Shaped
from transfusion.sequence.batch import Batch, empty_batch
from transfusion.sequence.spec import TEXT, Document, Run, Segment, SequenceSpec, Stream


@dataclasses.dataclass(frozen=True)
class Expanded:
    """A document as tokens: per stream the arrays of a StreamSlice without the row axis, numbered from 0 (items, order)
    and 1 (spans). `cost` counts what it takes of a row; `length`, `spans` and `items` are its totals; `counter` is the
    rotary index of what would follow; `truncated` says that a part of its text was left out."""

    pieces: dict[str, dict[str, np.ndarray]]
    cost: dict[str, int]
    length: int
    spans: int
    items: dict[str, int]
    counter: int
    truncated: bool = False

    def split(self, budget: Mapping[str, int]) -> tuple["Expanded", "Expanded"] | None:
        """Cuts a document of causal text only so that the head fits `budget`; None if it must not or cannot be cut.
        The tail starts at position 0 again, as a document of its own."""
        room = budget.get(TEXT, 0)
        if set(self.pieces) != {TEXT} or self.spans or self.items or not 1 < room < self.length:
            return None
        return self._part(0, room), self._part(room, self.length)

    def _part(self, start: int, stop: int) -> "Expanded":
        piece = {name: array[start:stop] for name, array in self.pieces[TEXT].items()}
        piece["order"] = piece["order"] - start
        piece["position"] = piece["position"] - start
        return Expanded({TEXT: piece}, {TEXT: stop - start}, stop - start, 0, {}, stop - start)


class _Builder:
    """Collects the tokens of one document in reading order, run by run."""

    def __init__(self, spec: SequenceSpec):
        self.spec = spec
        self.runs: dict[str, list[dict[str, np.ndarray]]] = {}
        self.items: dict[str, list[dict[str, np.ndarray]]] = {}  # what belongs to an item, not to its tokens
        self.order = self.spans = self.spelled = 0
        self.counter = 0  # the running rotary index
        self.opened: list[tuple[int, int, bool]] = []  # start tokens: their order, the opener, whether it is a target

    def append(self, stream: str, n: int, position: np.ndarray, **fields) -> None:
        """Appends n tokens; a scalar field holds for all of them."""
        columns = {"order": np.arange(self.order, self.order + n), "position": position} | fields
        self.runs.setdefault(stream, []).append(
            {name: np.broadcast_to(x, (n,)) if np.ndim(x) == 0 else np.asarray(x) for name, x in columns.items()}
        )
        self.order += n

    def positions(self, n: int, index: int | None) -> np.ndarray:
        """[n, A]: the next n indices, or n times the shared `index`."""
        line = np.arange(self.counter, self.counter + n) if index is None else np.full(n, index)
        self.counter += n if index is None else 0
        return np.repeat(line[:, None], self.spec.axes, axis=1)

    def placed(self, places: np.ndarray, index: int) -> np.ndarray:
        """[n, A]: `index` plus the places [n, S] in an item; time is the first axis, y and x are the last two."""
        position = np.full((len(places), self.spec.axes), index)
        if places.shape[1] == 1:
            position[:, :1] += places
        else:
            position[:, -places.shape[1] :] += places
        return position

    def ids(
        self, ids: Sequence[int] | np.ndarray, span: int = 0, private: bool = False, loss: bool | np.ndarray = True,
        stream: str = TEXT, index: int | None = None, item: int = 0,
    ) -> None:  # fmt: skip
        """Appends tokens of a discrete stream; `loss` is one for all or the factor of each one's."""
        n = len(ids)
        # `loss_weight` here says whether the token may be predicted; `targets` turns it round.
        self.append(
            stream, n, self.positions(n, index), tokens=np.asarray(ids, np.int32),
            span=span, private=int(private), item=item, loss_weight=np.asarray(loss, np.float32),
        )  # fmt: skip

    def item(self, segment: Segment, run: Run, span: int, index: int | None) -> None:
        """Appends the patches [..., C] or codes of one item in raster order, after its time or start token if it has
        one."""
        stream = self.spec.streams[run.stream]
        field, tokens_of = ("tokens", _coded) if stream.codes else ("values", _patched)
        content, places = tokens_of(segment, stream)
        weight = np.full(len(content), float(run.loss))
        if stream.lead_tokens:  # their place says that they are no patches
            extra = (stream.lead_tokens, 0)
            content = np.pad(content, (extra, *[(0, 0)] * (content.ndim - 1)))
            places, weight = np.pad(places, (extra, (0, 0)), constant_values=-1), np.pad(weight, extra)
        spans = np.full(len(content), span)
        if stream.attention == "frame":
            spans += np.maximum(places[:, 0], 0)
        if stream.time == "token_before":
            spans[: stream.time_tokens] = 0
        of_item = {}
        if stream.labels:
            of_item["label"] = np.int32(stream.labels if segment.label < 0 else segment.label)
        if stream.pooled:
            zeros = np.zeros(stream.pooled, np.float32)
            of_item["pooled"] = zeros if segment.pooled is None else np.asarray(segment.pooled, np.float32)
        n, start = len(content), self.counter
        if run.position in ("grid", "grid_hold"):
            position = self.placed(places, start)
            self.counter = start if run.position == "grid_hold" else start + int(places.max()) + 1
        elif run.position in ("frame", "frame_hold"):
            position = self.placed(places, index)
        else:
            position = self.positions(n, index)
        items = self.items.setdefault(run.stream, [])
        self.append(
            run.stream, n, position, place=places, span=spans, private=int(run.private), item=len(items),
            loss_weight=weight, **{field: content},
        )  # fmt: skip
        items.append({"time_low": np.float32(run.time_low)} | of_item)

    def segment(self, segment: Segment, run: Run) -> None:
        stream = self.spec.streams[run.stream]
        spans = self.spans + 1, self.spans + _spans(segment, stream)  # the first and the last
        self.spans = spans[1]
        first, last = spans if stream.attention != "causal" else (0, 0)
        # One shared index covers the openers too where they lie inside the item's span (BAGEL).
        inside, start = run.boundary == "inside", self.counter
        index = self.counter if run.position in _ONE_INDEX else None
        edge = (run.private, run.loss, TEXT, index) if inside else (False, run.loss, TEXT, None)
        self.spelled += run.spelling.codes > 0
        item = self.spelled if run.spelling.codes else 0
        if run.opener >= 0 and stream.start_tokens:
            self.opened.append((self.order, run.opener, run.loss))
        elif run.opener >= 0:
            self.ids([run.opener], first if inside else 0, *edge, item)
            index = index if inside or index is None else self.counter
            start = start if inside else self.counter
        if item:
            ids, weight = run.spelling.spell(segment.value)
            self.ids(ids, first, run.private, run.loss * weight, run.stream, index, item)
        elif stream.media:
            self.item(segment, run, first, index)
        else:
            self.ids(segment.value, first, run.private, run.loss, run.stream, index)
        if not inside:
            self._move_on(run, start)
        if run.closer >= 0:
            self.ids([run.closer], last if inside else 0, *edge)
        if inside:
            self._move_on(run, start)

    def _move_on(self, run: Run, start: int) -> None:
        """Sets the rotary index behind an item that began at `start`, by the rule of its run."""
        if run.position in ("item", "frame"):
            self.counter += 1
        elif run.position == "advance_hold":
            self.counter = start

    def skip(self, segment: Segment, run: Run) -> None:
        """Leaves a run out: only the rotary index moves on."""
        elsewhere = _Builder(self.spec)
        elsewhere.counter = self.counter
        elsewhere.segment(segment, run)
        self.counter = elsewhere.counter

    def pieces(self) -> dict[str, dict[str, np.ndarray]]:
        """The columns of each stream."""
        result = {
            stream: {
                name: np.concatenate([run[name] for run in runs]).astype(_DTYPES.get(name, np.int32))
                for name in runs[0]
            }
            for stream, runs in self.runs.items()
        }
        follows = self._follows(result)
        for name, piece in result.items():
            stream = self.spec.streams[name]
            if stream.predicts_itself:
                piece["targets"] = np.where(piece["loss_weight"] > 0, piece["tokens"], 0).astype(np.int32)
            elif stream.discrete:
                ids, weight = follows[stream.parts or name][:, piece["order"] + 1]
                # A private token has none: nothing that follows sees it, and the decoder does not ask it.
                piece["loss_weight"] = (weight * (piece["private"] == 0)).astype(np.float32)
                piece["targets"] = np.where(piece["loss_weight"] > 0, ids, 0).astype(np.int32)
        for name, items in self.items.items():
            result[name] |= {field: np.stack([item[field] for item in items]) for field in items[0]}
        return result

    def _follows(self, pieces: dict[str, dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """Of each parts [2, order + 1]: what stands at each place in reading order, its id and its weight; of text, the
        opener too whose place a start token takes. A token's target is its successor, if that has the same parts."""
        follows: dict[str, np.ndarray] = {}
        for name, piece in pieces.items():
            if self.spec.streams[name].discrete:
                table = follows.setdefault(self.spec.streams[name].parts or name, np.zeros((2, self.order + 1)))
                table[:, piece["order"]] = piece["tokens"], piece["loss_weight"]
        for order, opener, loss in self.opened if TEXT in follows else ():
            follows[TEXT][:, order] = opener, loss
        return follows


def _spans(segment: Segment, stream: Stream) -> int:
    """How many bidirectional blocks an item of this stream is."""
    if stream.attention == "frame":
        return len(stream.scales) or len(segment.of(stream.source)) // stream.patch_sides[0]
    return int(stream.attention == "block")


_ONE_INDEX = ("item", "hold", "frame", "frame_hold")  # of `Run.position`: the whole item has one index in time
_DTYPES = {"values": np.float32, "loss_weight": np.float32}
_OF_ITEMS = ("time_low", "label", "pooled")


def expand(document: Document, spec: SequenceSpec, *, begin: bool = True, end: bool = True) -> Expanded:
    """Turns a document into tokens by the layout table, with begin and end of document around it.

    The decoder leaves out the end of a prompt, and both of a part that it appends: numbered from 0, a part's order and
    positions are added to where the document stands.

    Next-token targets follow the reading order: a token whose successor lies in a stream with other parts (BOI before
    an image) has no target (the Transfusion paper's footnote 8), and nothing predicts EOI there, which the decoder
    appends. BOI is a target of the text before an image that is drawn (a run with `loss`), so that the model learns
    when to draw. Codes that are spelled in the text's vocabulary are predicted like text, and so is the EOI after them.

    A masked code and one at several scales is its own target. Codes that follow one another do as text does, and their
    stream holds a start token in BOI's place, which predicts the first.

    Raises:
      UsageError: if an item's size does not fit its stream.
    """
    builder = _Builder(spec)
    if begin:
        builder.ids([spec.bos])
    for segment in document:
        for run in spec.runs(segment):
            if not run.spelling.codes:  # which checks its own
                _check_value(segment, spec.streams[run.stream])
            (builder.skip if run.stream in segment.dropped else builder.segment)(segment, run)
    if end:
        builder.ids([spec.eos])
    pieces = builder.pieces()
    items = {name: len(parts) for name, parts in builder.items.items()}
    items |= {TEXT: builder.spelled} if builder.spelled else {}
    cost = {name: len(piece["order"]) for name, piece in pieces.items()}
    cost |= {f"{name}:items": count for name, count in items.items() if spec.streams[name].mixed_sizes}
    return Expanded(pieces, cost, builder.order, builder.spans, items, builder.counter)


def _content(segment: Segment, stream: Stream) -> np.ndarray:
    """What a stream holds of a segment."""
    if stream.source == "none":
        return np.zeros((*stream.grid, stream.channels), np.float32)
    return segment.of(stream.source)


def _patched(segment: Segment, stream: Stream) -> tuple[np.ndarray, np.ndarray]:
    return patchify(_content(segment, stream), stream.patch_sides)


def _coded(segment: Segment, stream: Stream) -> tuple[np.ndarray, np.ndarray]:
    """Ids of an item in raster order, scale after scale, and their places int32 [n, S]."""
    codes = np.asarray(segment.value, np.int32).reshape(-1)
    if not stream.scales:
        return codes, np.indices(stream.grid).reshape(len(stream.grid), -1).T.astype(np.int32)
    places = [np.insert(np.indices((s, s)).reshape(2, -1).T, 0, k, axis=1) for k, s in enumerate(stream.scales)]
    return codes, np.concatenate(places).astype(np.int32)


def _check_codes(segment: Segment, stream: Stream) -> None:
    codes, wanted = np.asarray(segment.value), stream.item_shape()
    if codes.shape != wanted or codes.dtype.kind not in "iu":
        found = f"{codes.dtype} {list(codes.shape)}"
        raise UsageError(f"{segment.kind}: codes are whole numbers {list(wanted)}, not {found}: see codec.kind")
    if codes.size and not 0 <= codes.min() <= codes.max() < stream.vocabulary:
        raise UsageError(f"{segment.kind}: a code is outside of 0 to {stream.vocabulary - 1}")


def _check_value(segment: Segment, stream: Stream) -> None:
    if stream.codes:
        return _check_codes(segment, stream)
    shape = np.shape(_content(segment, stream))
    if stream.labels and segment.label >= stream.labels:
        raise UsageError(f"{segment.kind}: class {segment.label} of a stream of {stream.labels} classes")
    if stream.pooled and segment.pooled is not None and np.shape(segment.pooled) != (stream.pooled,):
        found = list(np.shape(segment.pooled))
        raise UsageError(f"{segment.kind}: the pooled vector has shape {found}, not [{stream.pooled}]")
    if stream.discrete:
        if len(shape) != 1:
            raise UsageError(f"segment {segment.kind!r} holds ids [n], not an array of shape {shape}")
        return
    patch = stream.patch_sides
    if len(shape) != len(patch) + 1 or shape[-1] != stream.channels or any(map(operator.mod, shape, patch)):
        raise UsageError(
            f"{segment.kind} of shape {shape} does not fit patches of {stream.patch} and {stream.channels} channels"
        )
    if stream.aligned and shape[:-1] != tuple(stream.grid):
        raise UsageError(f"{segment.kind} of shape {shape} does not fit the stream's grid {tuple(stream.grid)}")


def assemble(rows: Sequence[Sequence[Expanded]], spec: SequenceSpec) -> Batch:
    """Lays documents out as packed rows: [[documents of row 0], [documents of row 1], ...] -> numpy Batch.

    Raises:
      UsageError: if a row's documents exceed a stream's budget.
    """
    batch = empty_batch(spec, len(rows))
    for r, row in enumerate(rows):
        filled = dict.fromkeys(spec.streams, 0)
        items = dict.fromkeys(spec.streams, 0)
        order = spans = 0
        for number, document in enumerate(row, start=1):
            for name, piece in document.pieces.items():
                start, n = filled[name], len(piece["order"])
                if start + n > spec.streams[name].budget:
                    raise UsageError(f"row {r}: more than {spec.streams[name].budget} tokens of stream {name!r}")
                stream = spec.streams[name]
                # Where another stream's item modulates it: the document's first.
                item = items[stream.condition or (name if stream.media else TEXT)]
                shifts = {
                    "order": order,
                    "span": np.where(piece["span"] > 0, spans, 0),
                    "item": item if stream.media or stream.condition else np.where(piece["item"] > 0, item, 0),
                }
                arrays = batch[name]
                arrays.document[r, start : start + n] = number
                for field, column in piece.items():
                    if field in _OF_ITEMS:
                        getattr(arrays, field)[r, items[name] : items[name] + len(column)] = column
                    else:
                        getattr(arrays, field)[r, start : start + n] = column + shifts.get(field, 0)
                filled[name] = start + n
            order += document.length
            spans += document.spans
            for name, count in document.items.items():
                items[name] += count
    return batch


def patchify(
    latents: Shaped[np.ndarray, "*sides C"], patch: int | Sequence[int]
) -> tuple[Shaped[np.ndarray, "n E"], Int[np.ndarray, "n S"]]:
    """Latents [*sides, C] -> patches [n, E] in raster order and their places int32 [n, S].

    Args:
      latents: [T, C], [h, w, C] or [T, h, w, C].
      patch: its sides [S], or one number for all.
    """
    *sides, c = latents.shape
    patch = _patch_sides(patch, len(sides))
    counts = [side // p for side, p in zip(sides, patch, strict=True)]
    split = latents.reshape(*(n for pair in zip(counts, patch, strict=True) for n in pair), c)
    places = np.stack(np.meshgrid(*map(np.arange, counts), indexing="ij"), -1).reshape(-1, len(sides))
    axes = (*range(0, 2 * len(sides), 2), *range(1, 2 * len(sides), 2), 2 * len(sides))
    return split.transpose(axes).reshape(len(places), math.prod(patch) * c), places.astype(np.int32)


def unpatchify(
    patches: Shaped[Array, "*lead n E"], grid: Sequence[int], patch: int | Sequence[int]
) -> Shaped[Array, "*lead_and_grid C"]:
    """[..., n, E] patches in raster order -> latents [..., *grid, C]; inverse of `patchify`, batched."""
    patch = _patch_sides(patch, len(grid))
    counts = [side // p for side, p in zip(grid, patch, strict=True)]
    lead, s = patches.shape[:-2], len(grid)
    x = patches.reshape(*lead, *counts, *patch, patches.shape[-1] // math.prod(patch))
    axes = [axis for i in range(s) for axis in (i, s + i)] + [2 * s]
    return x.transpose(*range(len(lead)), *(len(lead) + axis for axis in axes)).reshape(*lead, *grid, x.shape[-1])


def _patch_sides(patch: int | Sequence[int], count: int) -> Sequence[int]:
    return (patch,) * count if isinstance(patch, int) else patch


def split_items(x: Shaped[Array, "B N E"], stream: Stream) -> Shaped[Array, "items n E"]:
    """Tokens [B, N, E] of a stream of one fixed grid -> its patches [B * M, n, E], time tokens left out."""
    return x.reshape(-1, stream.tokens_per_item, x.shape[-1])[:, stream.time_tokens :]


def join_items(items: Shaped[Array, "items n E"], stream: Stream, rows: int) -> Shaped[Array, "{rows} N E"]:
    """Patches of items [B * M, n, E] -> tokens [B, N, E], zeros for time tokens; inverse of `split_items`."""
    tokens = jnp.pad(items, ((0, 0), (stream.time_tokens, 0), (0, 0)))
    return tokens.reshape(rows, -1, items.shape[-1])
