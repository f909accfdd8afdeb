"""From documents to packed rows: the one place that turns the layout table into tokens.

Shape letters: see `transfusion.sequence`.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from transfusion.errors import UsageError
from transfusion.sequence.batch import Batch, empty_batch
from transfusion.sequence.content import TEXT, Content, Tokens
from transfusion.sequence.position import POSITIONS
from transfusion.sequence.segment import Document, Segment
from transfusion.sequence.spans import ATTENTIONS
from transfusion.sequence.spec import Run, SequenceSpec


@dataclasses.dataclass(frozen=True)
class Expanded:
    """A document, or a part of one, as tokens.

    Attributes:
      pieces: of each stream the arrays of a `StreamSlice` without the row axis. Items and places in the reading order
        are numbered from 0, spans from 1 (0: causal), items of spelled codes from 1 (-1: text of no item).
      cost: what it takes of a row, see `SequenceSpec.budgets`.
      length, spans, items: how many tokens, spans and, of each stream, items it has.
      counter: the rotary index of what would follow.
      truncated: whether a part of its text was left out.
    """

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
        self.items: dict[str, list[dict[str, np.ndarray]]] = {}  # what a row knows of each item of a stream
        self.order = self.spans = 0
        self.counter = 0  # the running rotary index
        self.opened: list[tuple[int, int, float]] = []  # start tokens: their order, the opener, the factor of its loss

    def append(self, stream: str, n: int, **columns) -> None:
        """Appends n tokens; a scalar column holds for all of them."""
        columns |= {"order": np.arange(self.order, self.order + n)}
        self.runs.setdefault(stream, []).append(
            {name: x if isinstance(x, np.ndarray) else np.full(n, x) for name, x in columns.items()}
        )
        self.order += n

    def edge(
        self, number: int, loss: float = 1.0, item: int = -1, span: int = 0, private: bool = False, takes: int = 1
    ) -> None:
        """Appends the id of an opener, a closer, the begin or the end of the document; nothing where it is -1.

        Args:
          loss: factor of its loss where it is a target.
          takes: how many rotary indices it takes, 0 where it shares that of an item.
        """
        if number >= 0:
            self.append(
                TEXT, 1, tokens=np.array([number]), position=np.full((1, self.spec.axes), self.counter), span=span,
                private=int(private), item=item, predictable=float(loss),
            )  # fmt: skip
            self.counter += takes

    def opener(self, run: Run, content: Content, item: int, loss: float, **edge) -> None:
        """Appends what opens a run. A start token comes with the item, and only its target is the opener."""
        if content.starts:
            self.opened.append((self.order, run.opener, loss * (run.opener >= 0)))
        else:
            self.edge(run.opener, loss, content.opener(item), **edge)

    def body(self, run: Run, tokens: Tokens, item: int, spans: np.ndarray, loss: float) -> None:
        """Appends the tokens of a run, without its edges."""
        rule = POSITIONS[run.position]
        self.append(
            run.stream, len(tokens.places), position=rule.at(self.counter, tokens.places, self.spec.axes), span=spans,
            private=int(run.private), item=item, predictable=np.float32(loss) * tokens.predictable, **tokens.columns,
        )  # fmt: skip
        self.counter += rule.extent(tokens.places)

    def segment(self, segment: Segment, run: Run) -> None:
        """Appends a run of a segment: its opener, its tokens and its closer."""
        content, rule, loss = self.spec.content(run), POSITIONS[run.position], float(run.loss * segment.weight)
        tokens = content.tokens(segment)
        blocks = ATTENTIONS[self.spec.streams[run.stream].attention].blocks(tokens.places)
        blocks[: tokens.outside] = 0
        spans = np.where(blocks > 0, self.spans + blocks, 0)
        first, last = (self.spans + 1, int(spans.max())) if blocks.any() else (0, 0)
        self.spans = max(self.spans, last)
        item = content.add_item(self.items, run.stream, segment, run.time_low)
        if run.boundary == "inside":
            # One shared index covers the edges too where they lie inside the item's span (BAGEL).
            edge, start = {"private": run.private, "takes": int(not rule.one)}, self.counter
            self.opener(run, content, item, loss, span=first, **edge)
            self.body(run, tokens, item, spans, loss)
            self.edge(run.closer, loss, span=last, **edge)
            self.counter = rule.behind(start, self.counter)
        else:
            self.opener(run, content, item, loss)
            start = self.counter
            self.body(run, tokens, item, spans, loss)
            self.counter = rule.behind(start, self.counter)
            self.edge(run.closer, loss)

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
            piece |= stream.content.targets(piece, follows.get(stream.parts or name))
            del piece["predictable"]
        for name, items in self.items.items():
            for field in items[0]:
                result[name][field] = np.stack([item[field] for item in items])
        return result

    def _follows(self, pieces: dict[str, dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """Tables [2, order + 1] of the ids in reading order, and of the factors of their losses, one table for each
        stream and those that share its parts; zeros where another stream's tokens stand.

        A token's target is its successor in its table. In that of text the opener stands where a start token is.
        """
        follows: dict[str, np.ndarray] = {}
        for name, piece in pieces.items():
            if "tokens" in piece:
                table = follows.setdefault(self.spec.streams[name].parts or name, np.zeros((2, self.order + 1)))
                table[:, piece["order"]] = piece["tokens"], piece["predictable"]
        for order, opener, loss in self.opened if TEXT in follows else ():
            follows[TEXT][:, order] = opener, loss
        return follows


_DTYPES = {"values": np.float32, "predictable": np.float32}
_OF_ITEMS = ("time_low", "label", "pooled")


def expand(document: Document, spec: SequenceSpec, *, begin: bool = True, end: bool = True) -> Expanded:
    """Turns a document into tokens by the layout table, with begin and end of document around it.

    The decoder leaves out the end of a prompt, and both of a part that it appends: numbered from 0, a part's order and
    positions are added to where the document stands.

    Next-token targets follow the reading order: a token whose successor lies in a stream with other parts (BOI before
    an image) has no target (the Transfusion paper's footnote 8), and nothing predicts EOI there, which the decoder
    appends. BOI is a target of the text before an image that is drawn (a run with `loss`), so that the model learns
    when to draw. Codes that are spelled in the text's vocabulary are predicted like text, and so is the EOI after them.
    The end of a document has the weight of its last segment.

    A masked code and one at several scales is its own target. Codes that follow one another do as text does, and their
    stream holds a start token in BOI's place, which predicts the first.

    Raises:
      UsageError: if an item's size does not fit its stream.
    """
    builder = _Builder(spec)
    if begin:
        builder.edge(spec.bos)
    for segment in document:
        for run in spec.runs(segment):
            spec.content(run).check(segment)
            (builder.skip if run.stream in segment.dropped else builder.segment)(segment, run)
    if end:
        builder.edge(spec.eos, float(document[-1].weight) if document else 1.0)
    pieces = builder.pieces()
    items = {name: len(facts) for name, facts in builder.items.items()}
    tokens = {name: len(piece["order"]) for name, piece in pieces.items()}
    cost = spec.resources(tokens, items)
    return Expanded(pieces, cost, builder.order, builder.spans, items, builder.counter)


def assemble(rows: Sequence[Sequence[Expanded]], spec: SequenceSpec) -> Batch:
    """Lays documents out as packed rows: [[documents of row 0], [documents of row 1], ...] -> numpy Batch.

    Raises:
      UsageError: if a row's documents exceed a stream's budget, or a bidirectional block is torn apart.
    """
    batch = empty_batch(spec, len(rows))
    for r, row in enumerate(rows):
        filled, items = dict.fromkeys(spec.streams, 0), dict.fromkeys(spec.streams, 0)
        order = spans = 0
        for number, document in enumerate(row, start=1):
            check_order(document, f"row {r}, document {number}")
            for name, piece in document.pieces.items():
                stream, start, n = spec.streams[name], filled[name], len(piece["order"])
                if start + n > stream.budget:
                    raise UsageError(f"row {r}: more than {stream.budget} tokens of stream {name!r}")
                first = items[spec.counted_in(name)]
                none = first if stream.released.condition else 0  # what modulates it is the document's first item
                columns = piece | {
                    "document": np.full(n, number),
                    "order": piece["order"] + order,
                    "span": np.where(piece["span"] > 0, piece["span"] + spans, 0),
                    "item": np.where(piece["item"] >= 0, piece["item"] + first, none),
                }
                for field, column in columns.items():
                    at = items[name] if field in _OF_ITEMS else start
                    getattr(batch[name], field)[r, at : at + len(column)] = column
                filled[name] = start + n
            order += document.length
            spans += document.spans
            for name, count in document.items.items():
                items[name] += count
    return batch


def check_order(document: Expanded, where: str) -> None:
    """Refuses a document whose tokens `transfusion.sequence.masks.intervals` would not describe.

    Raises:
      UsageError: if the tokens of a bidirectional block do not follow one another in the reading order, or orders lie
        outside of the document.
    """
    order = np.concatenate([piece["order"] for piece in document.pieces.values()])
    span = np.concatenate([piece["span"] for piece in document.pieces.values()])
    if not len(order):
        return
    if order.min() < 0 or order.max() >= document.length:
        raise UsageError(
            f"{where}: its reading order runs from {order.min()} to {order.max()}, not over {document.length} tokens"
        )
    by_order = span[np.argsort(order, kind="stable")]
    begins = by_order[np.flatnonzero(np.diff(by_order, prepend=0))]
    begins = begins[begins > 0]
    if len(begins) != len(np.unique(begins)):
        raise UsageError(
            f"{where}: the tokens of a bidirectional block must follow one another in the reading order, with no "
            "others between them; see `attention` of the streams, and `boundary` of the runs with a time token"
        )
