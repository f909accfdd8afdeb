"""Streams, segments, documents, and the packed batch that every model, loss and decoder reads.

A document is a list of segments in reading order. The layout table says into which runs of tokens a segment turns;
a run belongs to a stream. A packed row is stored stream by stream (`[text tokens | image tokens | ...]`, each slice of
the static length `budget`), so that routing to embeddings, experts, heads and losses is a static slice. Attention needs
only the per-token metadata, in which the reading order is one field.

Shape letters: B rows of a batch, N tokens of a stream, M items (images, clips, sounds) of a stream, A rotary axes, S
sides of an item (1 of a series, 2 of an image, 3 of a clip), E numbers of a patch.
"""

import dataclasses
import math
from collections.abc import Mapping

import jax
import numpy as np

from transfusion.errors import UsageError, check, nearest

POSITIONS = ("advance", "item", "hold", "grid", "grid_hold", "advance_hold", "frame", "frame_hold")
ATTENTIONS = ("causal", "block", "frame")
SOURCES = ("value", "pixels", "none")
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
      budget: tokens of this stream in a packed row.
      weight: factor of its loss (the Transfusion paper's lambda for images, section 3).
      vocabulary: number of ids (discrete streams).
      channels, patch: latent channels C and patch side P of continuous streams; a token of an image holds E = P P C
        values, one of a series P C.
      patch_frames: frames of a clip that a patch spans; its tokens hold that many times P P C values.
      out_channels: channels that the head predicts; 0 means C (released models that predict a variance too have 2 C).
      grid: sides of an item's latents: (T,) of a series (sound), (h, w) of an image, (T, h, w) of a clip. Linear
        patches may mix sizes: then all are 0, and `items` bounds them.
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
        if self.discrete:
            return
        if not 1 <= len(self.grid) <= 3 or (0 in self.grid and any(self.grid)):
            raise UsageError(f"streams: grid is 1 to 3 sides, all positive or all 0, not {self.grid}")
        if any(side % p for side, p in zip(self.grid, self.patch_sides, strict=True)):
            raise UsageError(f"streams: patch {self.patch} does not divide the latent grid {self.grid}")
        if self.attention == "frame" and len(self.grid) == 2:
            raise UsageError("streams: attention 'frame' is for clips and series; an image is one 'block'")
        if self.mixed_sizes and not self.items:
            raise UsageError("streams: a stream of mixed sizes (grid 0, 0) needs `items`, the most items of a row")
        if self.aligned and self.budget % self.tokens_per_item:
            raise UsageError(
                f"streams: budget {self.budget} is no multiple of the {self.tokens_per_item} tokens of an item"
            )

    @property
    def discrete(self) -> bool:
        return self.vocabulary > 0

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
        return self.time_tokens + math.prod(s // p for s, p in zip(self.grid, self.patch_sides, strict=True))

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
      opener, closer: ids of the text stream put before and after it; -1 means none.
      boundary: 'outside' (Transfusion) or 'inside' (BAGEL, Show-o) the run's bidirectional span.
      private: visible only inside its own span (BAGEL's noised copy).
      time_low: the least noise level t of its items: 0 samples all of [0, 1], 1 is clean, 0.5 is the Transfusion
        paper's cap (section 4.3.4) on images that precede their caption.
      position: 'advance' one by one, 'item' one index for the whole item, 'hold' the same without moving the counter,
        'grid' index + place in the item: (y, x) on the last two rotary axes, (t, y, x) of a clip on the last three, t
        of a series on the first; 'frame' is 'item' with the place added: the next image has the next index in time;
        'grid_hold', 'advance_hold' and 'frame_hold': the same without moving the counter.
      loss: whether it is a target.
    """

    stream: str
    opener: int = -1
    closer: int = -1
    boundary: str = "outside"
    private: bool = False
    time_low: float = 0.0
    position: str = "advance"
    loss: bool = True


@dataclasses.dataclass(frozen=True)
class Segment:
    """A part of a document.

    Attributes:
      kind: of the layout table.
      value: text ids int32 [n], or latents float32 [T, C], [h, w, C] or [T, h, w, C].
      role: in the document: 'context', 'target' or 'both'.
      label: class, for class-conditional streams; -1: none.
      pixels: float32 [H, W, C] in [-1, 1], for streams that read the image itself; None: they read `value`.
      dropped: streams whose runs are left out, as if the document had them: what follows keeps its positions (BAGEL's
        condition dropout).
    """

    kind: str
    value: np.ndarray
    role: str = "both"
    label: int = -1
    pixels: np.ndarray | None = None
    dropped: tuple[str, ...] = ()

    def of(self, source: str) -> np.ndarray:
        """What a stream with this `source` reads."""
        return self.value if source == "value" or self.pixels is None else self.pixels


Document = tuple[Segment, ...]


@dataclasses.dataclass(frozen=True)
class SequenceSpec:
    """The two tables of a config: the streams, and the layout `kind` or `kind/role` -> runs; with bos and eos ids."""

    streams: Mapping[str, Stream]
    layout: Mapping[str, tuple[Run, ...]]
    bos: int
    eos: int
    axes: int = 1

    def __post_init__(self):
        for where, runs in self.layout.items():
            for run in runs:
                if run.stream not in self.streams:
                    raise UsageError(f"layout {where!r}: no stream {run.stream!r}{nearest(run.stream, self.streams)}")
                if run.position not in POSITIONS:
                    hint = f"{', '.join(POSITIONS)}{nearest(run.position, POSITIONS)}"
                    raise UsageError(f"layout {where!r}: position {run.position!r} is none of {hint}")
                sides = len(self.streams[run.stream].grid)
                if run.position.startswith(("grid", "frame")) and self.axes < sides:
                    needed = " or ".join(map(str, range(sides, 4)))
                    raise UsageError(
                        f"layout {where!r}: position {run.position!r} needs {needed} rotary axes, not {self.axes}"
                    )
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


# --- packed batches ---------------------------------------------------------------------------------------------------


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StreamSlice:
    """One stream of B packed rows. Integers are int32, the rest float32.

    Attributes:
      document: [B, N] number of the document in the row; 0 is padding.
      order: [B, N] place in the reading order of the row.
      span: [B, N] number of the bidirectional block; 0 is a causal token.
      private: [B, N] nonzero: visible only inside its own span.
      position: [B, N, A] rotary coordinates.
      item: [B, N] which item of the row (indexes time_low), 0 for discrete streams.
      loss_weight: [B, N].
      tokens, targets: [B, N] ids, and the ids to predict (discrete streams).
      values: [B, N, E] patches of latents (continuous streams).
      place: [B, N, S] (y, x) of the patch in its image, t in a series, (t, y, x) in a clip (continuous streams).
      time_low: [B, M] least noise level of each item (continuous streams).
      label: [B, M] class of each item (class-conditional streams).
      pooled: [B, M, C] vector of each item (streams with `pooled`).
    """

    document: jax.Array
    order: jax.Array
    span: jax.Array
    private: jax.Array
    position: jax.Array
    item: jax.Array
    loss_weight: jax.Array
    tokens: jax.Array | None = None
    targets: jax.Array | None = None
    values: jax.Array | None = None
    place: jax.Array | None = None
    time_low: jax.Array | None = None
    label: jax.Array | None = None
    pooled: jax.Array | None = None


Batch = dict[str, StreamSlice]


def batch_spec(spec: SequenceSpec, rows: int) -> Batch:
    """Shapes and dtypes of a packed batch of `rows` rows, as a Batch of jax.ShapeDtypeStruct."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct((rows, *a.shape[1:]), a.dtype), empty_batch(spec, 1))


def empty_batch(spec: SequenceSpec, rows: int) -> Batch:
    """All padding. Padding tokens have document 0; their items are clean."""
    result = {}
    for name, stream in spec.streams.items():
        n, m = stream.budget, stream.max_items
        zeros = {f: np.zeros((rows, n), np.int32) for f in ("document", "order", "span", "private", "item")}
        kind = (
            {"tokens": np.zeros((rows, n), np.int32), "targets": np.zeros((rows, n), np.int32)}
            if stream.discrete
            else {
                "values": np.zeros((rows, n, stream.features), np.float32),
                "place": np.zeros((rows, n, len(stream.grid)), np.int32),
                "time_low": np.ones((rows, m), np.float32),
            }
        )
        if stream.labels:
            kind["label"] = np.full((rows, m), stream.labels, np.int32)
        if stream.pooled:
            kind["pooled"] = np.zeros((rows, m, stream.pooled), np.float32)
        result[name] = StreamSlice(
            **zeros,
            position=np.zeros((rows, n, spec.axes), np.int32),
            loss_weight=np.zeros((rows, n), np.float32),
            **kind,
        )
    return result
