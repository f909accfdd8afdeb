"""What the tokens of a stream hold, and all that follows from it.

`Stream.content` chooses a class of this module or of `items`, and `SequenceSpec.content` one for each run. Whoever
needs to know how an item becomes tokens, what they predict, or what a packed batch stores of them, asks the content. So
a new kind of content is a new class, and a condition on kinds anywhere else is a question that is missing here.

Shape letters: see `transfusion.sequence`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from transfusion.errors import UsageError
from transfusion.sequence.segment import Segment
from transfusion.sequence.spelling import Spelling

TEXT = "text"  # the stream that holds openers, closers, begin and end of a document
MASKED = -1  # the id that stands for a hidden code; a hidden patch is no number (NaN)

Columns = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Tokens:
    """The tokens of a segment in one stream.

    Attributes:
      columns: fields of a `StreamSlice` without the row axis: what they hold, and of an item the places.
      places: int32 [n, S], the place of each token in its item; -1 of tokens that are no patch and no code. Text has
        none: [n, 0].
      predictable: float32 [n], the factor of the loss of each token where it is a target; 0 if it never is one.
      outside: how many of the first tokens lie outside of the item's bidirectional span.
    """

    columns: dict[str, np.ndarray]
    places: np.ndarray
    predictable: np.ndarray
    outside: int = 0


def successors(piece: Columns, follows: np.ndarray | None) -> Columns:
    """Each token predicts the one that follows it in reading order, if that is of a stream with the same parts.

    A private token predicts nothing: no token behind it sees it, and the decoder does not ask it.
    """
    ids, weight = follows[:, piece["order"] + 1]
    return _learned(ids, weight * (piece["private"] == 0))


def themselves(piece: Columns, follows: np.ndarray | None) -> Columns:
    """Each token predicts its own id, which the model does not see."""
    return _learned(piece["tokens"], piece["predictable"])


def _learned(ids: np.ndarray, weight: np.ndarray) -> Columns:
    weight = weight.astype(np.float32)
    return {"loss_weight": weight, "targets": np.where(weight > 0, ids, 0).astype(np.int32)}


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a packed row knows of each item besides its tokens: the least noise level, and where the stream has them
    its class (`classes` is how many there are, and stands for none) and a vector of `pooled` numbers."""

    classes: int = 0
    pooled: int = 0

    def check(self, segment: Segment) -> None:
        """Raises UsageError if the segment has another class or vector than the stream takes."""
        if self.classes and segment.label >= self.classes:
            raise UsageError(f"{segment.kind}: class {segment.label} of a stream of {self.classes} classes")
        if self.pooled and segment.pooled is not None and np.shape(segment.pooled) != (self.pooled,):
            found = list(np.shape(segment.pooled))
            raise UsageError(f"{segment.kind}: the pooled vector has shape {found}, not [{self.pooled}]")

    def of(self, segment: Segment, time_low: float) -> dict[str, np.ndarray]:
        """The facts of one item, by fields of a `StreamSlice`."""
        pooled = np.zeros(self.pooled, np.float32) if segment.pooled is None else segment.pooled
        asked = self.asked(np.int32(segment.label), np.asarray(pooled, np.float32))
        return {"time_low": np.float32(time_low)} | asked

    def asked(self, label: Any, pooled: Any, xp: Any = np) -> dict[str, Any]:
        """The fields of a `StreamSlice` that say what is asked of items, where this stream has them.

        Args:
          label: classes [...], -1 for none.
          pooled: vectors [..., C].
          xp: the module of the arrays, numpy or jax.numpy.
        """
        fields = {"label": xp.where(label < 0, self.classes, label)} if self.classes else {}
        return fields | ({"pooled": pooled} if self.pooled else {})

    def empty(self, rows: int, items: int) -> dict[str, np.ndarray]:
        """Those of rows without an item: clean, of no class."""
        facts = {"time_low": np.ones((rows, items), np.float32)}
        if self.classes:
            facts["label"] = np.full((rows, items), self.classes, np.int32)
        if self.pooled:
            facts["pooled"] = np.zeros((rows, items, self.pooled), np.float32)
        return facts


class Content:
    """What every content answers. The values here are those of plain text.

    Attributes:
      source: what of a segment it reads: 'value', 'pixels' (of an image that has both) or 'none'.
      field: the field of a `StreamSlice` that holds it, 'tokens' or 'values'.
      dtype: of `field`.
      token_shape: the shape of what one token holds: () of an id, (E,) of a patch.
      sides: how many sides an item has; 0: it has no items.
      axes: how many numbers the place of a token in its item has (S).
      lead: tokens of an item before its first patch or code: one for its noise level, or one from which the first code
        is predicted. Their place is -1.
      per_item: tokens of an item, `lead` included; of items of different sizes `lead` alone.
      aligned: the m-th item of a row owns the m-th `per_item` slots.
      mixed: items have different sizes, so that a row counts them besides their tokens.
      starts: the first token of an item is a learned start token, which takes the place of the opener and predicts the
        first code.
      hides: a code or a patch may be hidden, see `hidden`.
      nothing: what a hidden token holds.
      left_out: the share of fake documents without such an item.
      words: what it is, for people.
    """

    source: str = "value"
    field: ClassVar[str] = "tokens"
    dtype: ClassVar[type] = np.int32
    token_shape: tuple[int, ...] = ()
    sides: int = 0
    axes: int = 0
    lead: int = 0
    per_item: int = 0
    aligned: bool = False
    mixed: bool = False
    starts: bool = False
    hides: bool = False
    nothing: ClassVar[float] = MASKED
    left_out: ClassVar[float] = 0.0
    words: str = ""

    def check(self, segment: Segment) -> None:
        """Raises UsageError if the segment is nothing that this content can hold."""

    def tokens(self, segment: Segment) -> Tokens:
        """The segment as tokens."""
        raise NotImplementedError

    def add_item(self, items: dict[str, list], stream: str, segment: Segment, time_low: float) -> int:
        """Adds an item to those of its stream in `items`, the facts of each, and returns its number for the column
        `item`; -1 of tokens that belong to no item."""
        return -1

    def counted_in(self, stream: str) -> str:
        """The stream whose items the column `item` of such a stream counts."""
        return TEXT

    def opener(self, item: int) -> int:
        """The column `item` of the opener of that item; -1: it is text of no item."""
        return -1

    def asked(self, label: Any, pooled: Any, xp: Any = np) -> dict[str, Any]:
        """See `Facts.asked`."""
        return {}

    def usual_tokens(self, budget: int, items: int) -> int:
        """Tokens of an item, on average where items differ, of a row that holds so many tokens and items."""
        return budget // items

    def slots(self, tokens: int, items: int) -> int:
        """How many slots of a row hold so many tokens, of so many items."""
        return tokens

    def resources(self, name: str, tokens: int, items: int) -> dict[str, int]:
        """What tokens and items of a stream of this name take of a row."""
        return {name: tokens}

    def hidden(self, held: Any, xp: Any = np) -> Any:
        """Which tokens are hidden, bool [...], of what they hold, [..., *token_shape]."""
        return held == MASKED

    def targets(self, piece: Columns, follows: np.ndarray | None) -> Columns:
        """The columns that say what the tokens of a document learn.

        Args:
          piece: the columns of the tokens, `predictable` among them.
          follows: [2, order + 1], what stands at each place in the reading order of all streams with the same parts:
            its id, and the factor of its loss.
        """
        return successors(piece, follows)

    def empty(self, rows: int, n: int, items: int) -> dict[str, np.ndarray]:
        """The fields of a `StreamSlice` that this content has, for rows of n slots of padding and clean items."""
        return {name: np.zeros((rows, n), np.int32) for name in ("tokens", "targets")}

    def offered(self, size: tuple[int, ...]) -> tuple[int, ...] | None:
        """The size of an item that the decoder may open where a call names this `size`: zeros leave it to the model;
        None if nothing says how large it is."""
        return (0, 0)

    def fake(self, rng: np.random.Generator) -> np.ndarray:
        """A random item."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Text(Content):
    """Ids in reading order, of which each predicts the next."""

    vocabulary: int

    @property
    def words(self) -> str:
        return f"{self.vocabulary:,} ids"

    def check(self, segment: Segment) -> None:
        if np.ndim(segment.value) != 1:
            shape = np.shape(segment.value)
            raise UsageError(f"segment {segment.kind!r} holds ids [n], not an array of shape {shape}")

    def tokens(self, segment: Segment) -> Tokens:
        return _text(np.asarray(segment.value, np.int32), np.ones(len(segment.value), np.float32))


@dataclasses.dataclass(frozen=True)
class Spelled(Content):
    """Codes that a run spells in the vocabulary of text. They are text, but a row counts the items from 1 on, together
    with those of the stream 'text': their ids and the opener before them have its number, all other text has 0."""

    spelling: Spelling

    @property
    def sides(self) -> int:
        return len(self.spelling.grids[0])

    def tokens(self, segment: Segment) -> Tokens:
        return _text(*self.spelling.spell(segment.value))

    def add_item(self, items: dict[str, list], stream: str, segment: Segment, time_low: float) -> int:
        items.setdefault(TEXT, []).append({})
        return len(items[TEXT])

    def opener(self, item: int) -> int:
        return item

    def offered(self, size: tuple[int, ...]) -> tuple[int, ...] | None:
        return size if size in self.spelling.grids else (0, 0)

    def fake(self, rng: np.random.Generator) -> np.ndarray:
        spelling = self.spelling
        return rng.integers(0, spelling.codes, spelling.grids[rng.integers(len(spelling.grids))], np.int32)


def _text(ids: np.ndarray, predictable: np.ndarray) -> Tokens:
    return Tokens({"tokens": ids}, np.zeros((len(ids), 0), np.int32), predictable)
