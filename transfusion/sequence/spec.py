"""Streams, segments, documents, and the layout of one in the other.

A document is a list of segments in reading order. The layout table says into which runs of tokens a segment turns;
a run belongs to a stream. A packed row is stored stream by stream (`[text tokens | image tokens | ...]`, each slice of
the static length `budget`), so that routing to embeddings, experts, heads and losses is a static slice. Attention needs
only the per-token metadata, in which the reading order is one field.

Shape letters: B rows of a batch, N tokens of a stream, M items (images, clips, sounds) of a stream, A rotary axes, S
sides of an item (1 of a series, 2 of an image, 3 of a clip), E numbers of a patch.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from transfusion.errors import UsageError, check, nearest
from transfusion.sequence.spelling import Spelling

POSITIONS = ("advance", "item", "hold", "grid", "grid_hold", "advance_hold", "frame", "frame_hold")
ATTENTIONS = ("causal", "block", "frame")
SOURCES = ("value", "pixels", "none")
MASKED = -1  # the id that stands for a hidden code
TEXT = "text"  # the stream that holds openers, closers, begin and end of a document


@dataclasses.dataclass(frozen=True)
class TimeConfig:
    """How a noise level becomes a vector: sines and cosines of scaled times, then a two-layer perceptron (DiT).

    Attributes:
      features: number of cosines and sines together.
      scale: factor of the time in [0, 1] (1000 for models trained on 1000 steps).
      reversed: the time is 1 - t, 1 for noise (released weights of BAGEL, DiT, Stable Diffusion 3, OmniGen).
      ends: the wave lengths reach 10,000 exactly (exponents i / (n - 1) instead of i / n).
      per_layer: every layer of the trunk has an embedding of its own (DiT as released for diffusers).
    """

    features: int = 256
    scale: float = 1000.0
    reversed: bool = False
    ends: bool = False
    per_layer: bool = False


@dataclasses.dataclass(frozen=True)
class ConnectorConfig:
    """The dense layers between what a stream's embed looks up or sees and the trunk: how many, and what is between them
    (a key of `transfusion.model.vit.ACTIVATIONS`)."""

    depth: int = 2
    activation: str = "gelu_tanh"


@dataclasses.dataclass(frozen=True)
class Stream:
    """All that differs between modalities and between papers (design: 'a model is a set of streams over one trunk').

    Attributes:
      parts: the stream whose embed, head and tables it uses; '' means that it has its own (BAGEL's clean copy).
      source: what of a segment its tokens hold: 'value' (latents or ids), 'pixels' (of an image that has both) or
        'none' (learned queries: `grid` says how many come with a segment, whatever its size).
      embed: how its tokens enter the trunk; a key of `transfusion.model.embeds.EMBEDS`.
      head: how they leave it; a key of `transfusion.model.heads.HEADS`.
      objective: a key of `transfusion.objectives.OBJECTIVES`.
      attention: 'causal', 'block': bidirectional inside one item, or 'frame': bidirectional inside a frame of a clip (a
        step of a series), causal over the frames.
      expert: the set of trunk weights its tokens use; one name for all is a dense model.
      connector: the dense layers of embeds 'vit' and 'codes'; the hidden layer of head 'mlp' has their activation.
      head_after: the stage (a key of `model.stages`, or 'trunk') that its head reads; '' means its last.
      time: how an item's noise level enters: 'added' to its tokens, 'coder' (inside the U-Net or ConvNeXt coder),
        'adaln' (modulates every layer), 'token' (one token before the item's patches, inside its span), 'token_before'
        (the same, outside of its span), 'token_adaln' (a token, and modulates the stream's last stage), 'token_coder'
        (a token, and inside the coder) or 'none'.
      time_embedding: see `TimeConfig`.
      condition: the stream whose item modulates this stream's tokens; '' means none (Stable Diffusion 3's text).
      labels: number of classes of a class-conditional stream ('adaln' only); class `labels` stands for no class.
      pooled: size of a vector per item that joins the condition ('adaln' only).
      visible_to: the streams that may see it; () means all.
      budget, weight: tokens in a packed row; factor of its loss (the Transfusion paper's lambda for images, section 3).
      vocabulary: number of ids of a discrete stream: of text, or, with a `grid`, of the codes of images.
      channels, patch, patch_frames: latent channels C, patch side P and, of clips, frames F of continuous streams; a
        token holds E = P P C values, of a series P C, of a clip F P P C. With embed 'codes' C is a code's size.
      out_channels: channels that the head predicts; 0 means C (released models that predict a variance too have 2 C).
      grid: sides of an item's latents: (T,) of a series (sound), (h, w) of an image, (T, h, w) of a clip. Linear
        patches may mix sizes: then all are 0, and `items` bounds them. Of codes: (h, w), a token each.
      scales: sides of square grids of codes at growing scales, the last one that of `grid` (VAR, arXiv 2404.02905). An
        item is flat then, scale after scale, and each scale is a frame of its 'frame' attention.
      items: how many items a row holds at most; 0: as many as fit the budget (fixed grid only).
      table: additive position inside an image: 'none', 'sincos' (fixed 2-D sine and cosine; y first), 'sincos_xy' (x
        first, as in DiT), 'learned' (a parameter of `table_grid` places) or 'centred' (the same, its middle cut out).
      table_grid: rows and columns of a learned table, or that the places of a fixed one are stretched to.
      tied: whether the token head is the transposed token table.
      coder_width: channels of the first blocks of a coder (embed and head 'unet' or 'convnext').
    """

    parts: str = ""
    source: str = "value"
    embed: str = "token"
    head: str = "token"
    connector: ConnectorConfig = ConnectorConfig()
    head_after: str = ""
    objective: str = "next_token"
    attention: str = "causal"
    expert: str = "trunk"
    time: str = "none"
    time_embedding: TimeConfig = TimeConfig()
    condition: str = ""
    labels: int = 0
    pooled: int = 0
    visible_to: tuple[str, ...] = ()
    budget: int = 0
    weight: float = 1.0
    vocabulary: int = 0
    channels: int = 0
    out_channels: int = 0
    patch: int = 1
    patch_frames: int = 1
    grid: tuple[int, ...] = (0, 0)
    scales: tuple[int, ...] = ()
    items: int = 0
    table: str = "none"
    table_grid: tuple[int, int] = (0, 0)
    tied: bool = False
    coder_width: int = 64

    def __post_init__(self):
        check("streams: attention", self.attention, ATTENTIONS)
        check("streams: source", self.source, SOURCES)
        if self.budget <= 0:
            raise UsageError(f"streams: budget must be positive, not {self.budget}")
        if not self.media:
            return
        if self.codes:
            self._check_codes()
        if not 1 <= len(self.grid) <= 3 or (0 in self.grid and any(self.grid)):
            raise UsageError(f"streams: grid is 1 to 3 sides, all positive or all 0, not {self.grid}")
        if any(side % p for side, p in zip(self.grid, self.patch_sides, strict=True)):
            raise UsageError(f"streams: patch {self.patch} does not divide the latent grid {self.grid}")
        if self.attention == "frame" and len(self.grid) == 2 and not self.codes:
            raise UsageError("streams: attention 'frame' is for clips and series; an image is one 'block'")
        if self.mixed_sizes and not self.items:
            raise UsageError("streams: a stream of mixed sizes (grid 0, 0) needs `items`, the most items of a row")
        if self.aligned and self.budget % self.tokens_per_item:
            raise UsageError(f"streams: budget {self.budget} is no multiple of an item's {self.tokens_per_item} tokens")

    def _check_codes(self) -> None:
        if self.patch != 1 or self.tied or self.time != "none":
            raise UsageError("streams: a code is a token: patch 1, time 'none', and a head that is not tied")
        if (self.attention == "frame") != bool(self.scales):
            raise UsageError("streams: `scales` of codes and attention 'frame' go together")
        if self.scales and tuple(self.grid) != (self.scales[-1],) * 2:
            raise UsageError(f"streams: grid {tuple(self.grid)} is not the square of the last scale, {self.scales[-1]}")

    @property
    def discrete(self) -> bool:
        return self.vocabulary > 0

    @property
    def media(self) -> bool:
        """Whether its tokens are those of items, latents or codes, and not text."""
        return not self.discrete or any(self.grid)

    @property
    def codes(self) -> bool:
        return self.discrete and any(self.grid)

    @property
    def predicts_itself(self) -> bool:
        """Whether a token's target is its own id, and not that of the token after it."""
        return self.objective in ("masked", "next_scale")

    @property
    def may_hide(self) -> bool:
        """Whether the id of a code may be `MASKED`."""
        return self.objective == "masked"

    @property
    def start_tokens(self) -> int:
        """Tokens before the codes of an item: where codes follow one another, the opener stands in their stream, for
        its head predicts the first of them."""
        return int(self.codes and self.objective == "next_token")

    @property
    def patch_sides(self) -> tuple[int, ...]:
        """Sides of a patch [S], in the order of `grid`."""
        return (self.patch_frames, self.patch, self.patch) if len(self.grid) == 3 else (self.patch,) * len(self.grid)

    @property
    def features(self) -> int:
        """Numbers of one continuous token (E)."""
        return self.channels * math.prod(self.patch_sides)

    @property
    def predicted(self) -> int:
        """Numbers that the head predicts per continuous token."""
        return (self.out_channels or self.channels) * math.prod(self.patch_sides)

    @property
    def tokens_per_item(self) -> int:
        sides = [s // p for s, p in zip(self.grid, self.patch_sides, strict=True)]
        return self.lead_tokens + (sum(s * s for s in self.scales) or math.prod(sides))

    @property
    def lead_tokens(self) -> int:
        """Tokens of an item that are neither a patch nor a code; they stand before these, and their place is -1."""
        return self.time_tokens + self.start_tokens

    @property
    def place_axes(self) -> int:
        """Numbers of a token's place in its item."""
        return 3 if self.scales else len(self.grid)

    def item_shape(self, sides: Sequence[int] = ()) -> tuple[int, ...]:
        """The shape of an item of these sides (default: `grid`): [*sides, C] of latents, [h, w] or [n] of ids."""
        if self.scales:
            return (sum(s * s for s in self.scales),)
        return tuple(sides or self.grid) + (() if self.discrete else (self.channels,))

    @property
    def time_tokens(self) -> int:
        """Tokens before the patches of an item."""
        return int(self.time in ("token", "token_before", "token_adaln", "token_coder"))

    @property
    def modulates(self) -> bool:
        """Whether its noise level modulates it."""
        return self.time in ("adaln", "token_adaln")

    @property
    def mixed_sizes(self) -> bool:
        return not self.discrete and not any(self.grid)

    @property
    def aligned(self) -> bool:
        """Whether the m-th item of a row owns the m-th `tokens_per_item` slots."""
        return any(self.grid)

    @property
    def span_tokens(self) -> int:
        """Tokens that see each other whatever their order: of an item, or of a frame of one; 1 of causal streams."""
        if self.attention == "causal":
            return 1
        item = self.tokens_per_item if self.aligned else self.budget // self.max_items
        return item // max(self.grid[0] // self.patch_sides[0], 1) if self.attention == "frame" else item

    @property
    def max_items(self) -> int:
        """Items of a packed row (M)."""
        return self.items or self.budget // max(self.tokens_per_item, 1)


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of tokens that a segment yields.

    Attributes:
      stream: its stream.
      opener, closer: ids of the text stream put before and after it; -1 means none. The text before a stream with
        `start_tokens` predicts the opener, but the start token stands in its place.
      boundary: 'outside' (Transfusion) or 'inside' (BAGEL, Show-o) the run's bidirectional span.
      private: visible only inside its own span (BAGEL's noised copy).
      time_low: the least noise level t of its items: 0 samples all of [0, 1], 1 is clean, 0.5 is the Transfusion
        paper's cap (section 4.3.4) on images that precede their caption.
      position: 'advance' one by one, 'item' one index for the whole item, 'hold' the same without moving the counter,
        'grid' index + place in the item: (y, x) on the last two rotary axes, (t, y, x) of a clip on the last three, t
        of a series on the first; 'frame' is 'item' with the place added: the next image has the next index in time;
        'grid_hold', 'advance_hold' and 'frame_hold': the same without moving the counter.
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


@dataclasses.dataclass(frozen=True)
class Segment:
    """A part of a document.

    Attributes:
      kind: of the layout table.
      value: text ids int32 [n], latents float32 [T, C], [h, w, C] or [T, h, w, C], or codes, int32 without C ([n] of
        several scales).
      role: in the document: 'context', 'target' or 'both'.
      label: class, for class-conditional streams; -1: none.
      pixels: float32 [H, W, C] in [-1, 1], for streams that read the image itself; None: they read `value`.
      dropped: streams whose runs are left out, as if the document had them: what follows keeps its positions (BAGEL's
        condition dropout).
      pooled: float32 [C], for streams with a pooled vector; None: zeros.
    """

    kind: str
    value: np.ndarray
    role: str = "both"
    label: int = -1
    pixels: np.ndarray | None = None
    dropped: tuple[str, ...] = ()
    pooled: np.ndarray | None = None

    def of(self, source: str) -> np.ndarray:
        """What a stream with this `source` reads."""
        return self.value if source == "value" or self.pixels is None else self.pixels


Document = tuple[Segment, ...]


@dataclasses.dataclass(frozen=True)
class SequenceSpec:
    """The two tables of a config: the streams, and the layout `kind` or `kind/role` -> runs; with bos and eos ids.

    Ids of the text stream below `words` are text, which the decoder may emit; 0: all are.
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
                if run.stream not in self.streams:
                    raise UsageError(f"layout {where!r}: no stream {run.stream!r}{nearest(run.stream, self.streams)}")
                if run.position not in POSITIONS:
                    hint = f"{', '.join(POSITIONS)}{nearest(run.position, POSITIONS)}"
                    raise UsageError(f"layout {where!r}: position {run.position!r} is none of {hint}")
                sides = self.streams[run.stream].place_axes
                if run.position.startswith(("grid", "frame")) and self.axes < sides:
                    needed = " or ".join(map(str, range(sides, 4)))
                    raise UsageError(
                        f"layout {where!r}: position {run.position!r} needs {needed} rotary axes, not {self.axes}"
                    )
                if run.spelling.codes:
                    _check_spelling(f"layout {where!r}", run, self.streams)
        for name, stream in self.streams.items():
            for field, other in (("parts", stream.parts), ("condition", stream.condition)):
                if other and other not in self.streams:
                    raise UsageError(f"streams.{name}.{field}: no stream {other!r}{nearest(other, self.streams)}")
            for other in stream.visible_to:
                if other not in self.streams:
                    raise UsageError(f"streams.{name}.visible_to: no stream {other!r}{nearest(other, self.streams)}")

    def runs(self, segment: Segment) -> tuple[Run, ...]:
        """The runs of a segment: the layout of its kind and role, else of its kind."""
        for key in (f"{segment.kind}/{segment.role}", segment.kind):
            if key in self.layout:
                return self.layout[key]
        raise UsageError(f"layout: no entry for {segment.kind!r}{nearest(segment.kind, self.layout)}")

    def sides(self, run: Run) -> int:
        """How many sides an item of a run has; 0 of text."""
        if run.spelling.codes:
            return len(run.spelling.grids[0])
        stream = self.streams[run.stream]
        return len(stream.grid) if stream.media else 0

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
        return any(self.reads(kind) for kind in {key.partition("/")[0] for key in self.layout} - {TEXT})

    @property
    def reads_pixels(self) -> bool:
        """Whether a stream reads images besides their latents."""
        return any(stream.source == "pixels" for stream in self.streams.values())

    @property
    def budgets(self) -> dict[str, int]:
        """What a row holds of each resource: tokens per stream and, where sizes are mixed, items."""
        result = {name: stream.budget for name, stream in self.streams.items()}
        result |= {f"{name}:items": s.max_items for name, s in self.streams.items() if s.mixed_sizes}
        return result

    @property
    def visibility(self) -> np.ndarray | None:
        """`may[stream of the query, stream of the key]`, bool; None if every stream sees every other."""
        names = list(self.streams)
        if not any(s.visible_to for s in self.streams.values()):
            return None
        may = [[not s.visible_to or q in s.visible_to for s in self.streams.values()] for q in names]
        return np.array(may)


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
