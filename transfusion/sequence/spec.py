"""The layout table: into which runs of tokens a segment turns, and of which streams they are.

A packed row is stored stream by stream (`[text tokens | image tokens | ...]`, each slice of the static length
`budget`), so that routing to embeddings, experts, heads and losses is a static slice. Attention needs only the
per-token metadata, in which the reading order is one field.

Shape letters: see `transfusion.sequence`.
"""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from transfusion.errors import UsageError, check, nearest
from transfusion.sequence.content import TEXT, Content, Spelled
from transfusion.sequence.position import POSITIONS
from transfusion.sequence.segment import Segment
from transfusion.sequence.spelling import Spelling
from transfusion.sequence.stream import Stream


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of tokens that a segment yields.

    Attributes:
      stream: its stream.
      opener, closer: ids of the text stream put before and after it; -1 means none. Where the stream's items begin with
        a start token, the text before predicts the opener, but the start token stands in its place.
      boundary: 'outside' (Transfusion) or 'inside' (BAGEL, Show-o) the run's bidirectional span.
      private: visible only inside its own span (BAGEL's noised copy).
      time_low: the least noise level t of its items: 0 samples all of [0, 1], 1 is clean, 0.5 is the Transfusion
        paper's cap (section 4.3.4) on images that precede their caption.
      position: a key of `POSITIONS`: 'advance' one by one, 'item' one index for the whole item, 'grid' index + place in
        the item: (y, x) on the last two rotary axes, (t, y, x) of a clip on the last three, t of a series on the first;
        'frame' is 'item' with the place added: the next image has the next index in time. 'hold' (of 'item'),
        'advance_hold', 'grid_hold' and 'frame_hold' are the same, but what follows stands where the item began.
      loss: whether it is a target.
      spelling: how a discrete codec's codes become ids of its stream, which has the text's vocabulary.
    """

    stream: str
    opener: int = -1
    closer: int = -1
    boundary: str = "outside"
    private: bool = False
    time_low: float = 0.0
    position: str = "advance"
    loss: bool = True
    spelling: Spelling = Spelling()

    def __post_init__(self):
        check("layout: boundary", self.boundary, ("outside", "inside"))


class Entry(NamedTuple):
    """A row of the layout table, its key 'kind' or 'kind/role' taken apart; the role '' is that of all others."""

    kind: str
    role: str
    runs: tuple[Run, ...]


@dataclasses.dataclass(frozen=True)
class SequenceSpec:
    """The two tables of a config: the streams, and the layout 'kind' or 'kind/role' -> runs.

    Attributes:
      streams, layout: the tables.
      bos, eos: ids of the begin and end of a document.
      axes: rotary axes (A).
      words: ids of the text stream below it are text, which the decoder may emit; 0: all are.
    """

    streams: Mapping[str, Stream]
    layout: Mapping[str, tuple[Run, ...]]
    bos: int
    eos: int
    axes: int = 1
    words: int = 0

    def __post_init__(self):
        for where, runs in self.layout.items():
            for run in runs:
                self._check_run(f"layout {where!r}", run)
        for name, stream in self.streams.items():
            named = {"parts": (stream.parts,), "released.condition": (stream.released.condition,)}
            for field, others in (named | {"visible_to": stream.visible_to}).items():
                for other in filter(None, others):
                    _check_stream(f"streams.{name}.{field}", other, self.streams)

    def _check_run(self, where: str, run: Run) -> None:
        _check_stream(where, run.stream, self.streams)
        if run.position not in POSITIONS:
            hint = f"{', '.join(POSITIONS)}{nearest(run.position, POSITIONS)}"
            raise UsageError(f"{where}: position {run.position!r} is none of {hint}")
        placed, sides = POSITIONS[run.position].placed, self.streams[run.stream].content.axes
        if placed and not sides:
            raise UsageError(f"{where}: position {run.position!r} is for items; a token of text has no place")
        if placed and self.axes < sides:
            needed = " or ".join(map(str, range(sides, 4)))
            raise UsageError(f"{where}: position {run.position!r} needs {needed} rotary axes, not {self.axes}")
        if run.spelling.codes:
            _check_spelling(where, run, self.streams)

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The rows of the layout table, in its order."""
        parted = ((key.partition("/"), runs) for key, runs in self.layout.items())
        return tuple(Entry(kind, role, runs) for (kind, _, role), runs in parted)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of segments that the layout table knows, in its order."""
        return tuple(dict.fromkeys(entry.kind for entry in self.entries))

    def runs(self, segment: Segment) -> tuple[Run, ...]:
        """The runs of a segment: the layout of its kind and role, else of its kind."""
        for key in (f"{segment.kind}/{segment.role}", segment.kind):
            if key in self.layout:
                return self.layout[key]
        raise UsageError(f"layout: no entry for {segment.kind!r}{nearest(segment.kind, self.layout)}")

    def content(self, run: Run) -> Content:
        """What the tokens of a run hold: what its stream says, unless the run spells codes as text."""
        return Spelled(run.spelling) if run.spelling.codes else self.streams[run.stream].content

    def counted_in(self, name: str) -> str:
        """The stream whose items a stream's column `item` counts: those that modulate it, or its own, or of a stream
        of ids the items that are spelled in the text's vocabulary."""
        return self.streams[name].released.condition or self.streams[name].content.counted_in(name)

    @property
    def spelling(self) -> Spelling | None:
        """How items are spelled in the text's vocabulary, if some are."""
        return next((run.spelling for runs in self.layout.values() for run in runs if run.spelling.codes), None)

    def reads(self, kind: str) -> bool:
        """Whether a segment of this kind that a prompt holds yields tokens."""
        return bool(self.layout.get(f"{kind}/context", self.layout.get(kind)))

    @property
    def reads_media(self) -> bool:
        """Whether a prompt may hold anything but text."""
        return any(self.reads(kind) for kind in self.kinds if kind != TEXT)

    @property
    def reads_pixels(self) -> bool:
        """Whether a stream reads images besides their latents."""
        return any(stream.source == "pixels" for stream in self.streams.values())

    @property
    def budgets(self) -> dict[str, int]:
        """What a row holds of each resource, see `resources`."""
        tokens = {name: stream.budget for name, stream in self.streams.items()}
        return self.resources(tokens, {name: stream.max_items for name, stream in self.streams.items()})

    def resources(self, tokens: Mapping[str, int], items: Mapping[str, int]) -> dict[str, int]:
        """What so many tokens and items of each stream take of a row: tokens and, where sizes are mixed, items."""
        found = (self.streams[name].content.resources(name, n, items.get(name, 0)) for name, n in tokens.items())
        return {name: count for one in found for name, count in one.items()}

    @property
    def visibility(self) -> np.ndarray | None:
        """`may[stream of the query, stream of the key]`, bool; None if every stream sees every other."""
        names = list(self.streams)
        if not any(s.visible_to for s in self.streams.values()):
            return None
        may = [[not s.visible_to or q in s.visible_to for s in self.streams.values()] for q in names]
        return np.array(may)


def _check_stream(where: str, name: str, streams: Mapping[str, Stream]) -> None:
    if name not in streams:
        raise UsageError(f"{where}: no stream {name!r}{nearest(name, streams)}")


def _check_spelling(where: str, run: Run, streams: Mapping[str, Stream]) -> None:
    """Raises UsageError, beginning with `where`, if the run's stream cannot hold the ids of its spelling."""
    stream, text, spelling = streams[run.stream], streams[TEXT], run.spelling
    if TEXT not in (run.stream, stream.parts) or stream.attention != "causal" or run.position != "advance":
        raise UsageError(
            f"{where}: codes are spelled in the stream 'text' or in a causal stream with its parts, and have the "
            "position 'advance'"
        )
    if stream.vocabulary != text.vocabulary or spelling.last >= text.vocabulary:
        raise UsageError(f"{where}: id {spelling.last} is outside of a vocabulary of {stream.vocabulary} ids")
    if spelling.size and run.stream != TEXT:
        raise UsageError(f"{where}: a size is spelled in the stream 'text' only")
