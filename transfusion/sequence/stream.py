"""Streams: all that differs between modalities and between papers.

Shape letters: see `transfusion.sequence`.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import cached_property

from transfusion.errors import UsageError, check
from transfusion.sequence.code_items import Codes
from transfusion.sequence.content import Content, Facts, Text
from transfusion.sequence.items import PREDICTIONS, Prediction
from transfusion.sequence.latent_items import Latents, Queries
from transfusion.sequence.spans import ATTENTIONS
from transfusion.sequence.times import AHEAD, TIMES

_SOURCES = ("value", "pixels", "none")


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
    """The dense layers between what a stream's embed looks up or sees and the trunk.

    Attributes:
      depth: how many there are.
      activation: what is between them; a key of `transfusion.model.block.ACTIVATIONS`.
    """

    depth: int = 2
    activation: str = "gelu_tanh"


@dataclasses.dataclass(frozen=True)
class Released:
    """What only released weights need of a stream. The importers set it (`transfusion.interop`), and configs that have
    the exact sizes of a release; it has no effect where it is not set. A slower `time.scale` also suits 'mean_flow',
    which differentiates the model by its times.

    Attributes:
      time: how a noise level becomes a vector.
      condition: the stream whose item modulates this stream's tokens; '' means none (Stable Diffusion 3's text).
      pooled: size of a vector per item that joins the condition, where the noise level modulates the stream.
      out_channels: channels that the head predicts; 0 means those of the latents (models that predict a variance too
        have twice as many).
      tied: the token head is the transposed token table.
      table_grid: rows and columns of a learned table, or that the places of a fixed one are stretched to.
      centred: an item's places are the middle of a learned table, not its first rows and columns.
      x_first: a table of sines and cosines has those of x before those of y (DiT).
    """

    time: TimeConfig = TimeConfig()
    condition: str = ""
    pooled: int = 0
    out_channels: int = 0
    tied: bool = False
    table_grid: tuple[int, int] = (0, 0)
    centred: bool = False
    x_first: bool = False


@dataclasses.dataclass(frozen=True)
class Stream:
    """All that differs between modalities and between papers (design: 'a model is a set of streams over one trunk').

    Attributes:
      parts: the stream whose embed, head and tables it uses; '' means that it has its own (BAGEL's clean copy).
      source: what of a segment its tokens hold: 'value' (latents or ids), 'pixels' (of an image that has both) or
        'none' (learned queries: `grid` says how many come with a segment, whatever its size).
      embed: how its tokens enter the trunk; a key of `transfusion.model.embeds.EMBEDS`.
      head: how they leave it; a key of `transfusion.model.heads.HEADS`.
      connector: the dense layers of embeds 'vit' and 'codes'; the hidden layer of head 'mlp' has their activation.
      head_after: the stage (a key of `model.stages`, or 'trunk') that its head reads; '' means its last.
      objective: what it learns; a key of `transfusion.objectives.OBJECTIVES`.
      attention: how the tokens of an item see each other; a key of `transfusion.sequence.spans.ATTENTIONS`: 'causal',
        'block' (bidirectional inside one item) or 'frame' (bidirectional inside a frame of a clip, a step of a series
        or a scale of codes, and causal over them).
      expert: the set of trunk weights its tokens use; one name for all is a dense model.
      time: how an item's noise level enters; a key of `transfusion.sequence.times.TIMES`: 'added' to its tokens,
        'coder' (inside the U-Net or ConvNeXt coder), 'adaln' (modulates every layer), 'token' (one token before the
        item's patches, inside its span), 'token_before' (the same, outside of its span), 'token_adaln' (a token, and
        modulates the stream's last stage), 'token_coder' (a token, and inside the coder) or 'none'.
      labels: number of classes of a class-conditional stream ('adaln' only); class `labels` stands for no class.
      visible_to: the streams that may see it; () means all.
      budget: tokens in a packed row.
      weight: factor of its loss (the Transfusion paper's lambda for images, section 3).
      vocabulary: number of ids of a discrete stream: of text, or, with a `grid`, of the codes of images.
      channels: channels C of its latents; with embed 'codes', numbers that stand for a code.
      patch: side P of a patch. A token holds P P C values of an image, P C of a series.
      patch_frames: frames F of a patch of a clip, of which a token holds F P P C values.
      grid: sides of an item's latents: (T,) of a series (sound), (h, w) of an image, (T, h, w) of a clip. Linear
        patches may mix sizes: then all are 0, and `items` bounds them. Of codes: (h, w), a token each.
      scales: sides of square grids of codes at growing scales, the last one that of `grid` (VAR, arXiv 2404.02905). An
        item is flat then, scale after scale, and each scale is a frame of its 'frame' attention.
      fill: the id in the places behind codes that are fewer than the (T,) of `grid`, such as the end of text behind
        the ids of an answer (LLaDA); -1: there are always T.
      items: how many items a row holds at most; 0: as many as fit the budget (fixed grid only).
      table: additive position inside an item: 'none', 'sincos' (fixed sines and cosines of its sides; y first) or, of
        images, 'learned'.
      coder_width: channels of the first blocks of a coder (embed and head 'unet' or 'convnext'); numbers to which embed
        'narrow' maps a patch.
      released: what only released weights need, see `Released`.
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
    labels: int = 0
    visible_to: tuple[str, ...] = ()
    budget: int = 0
    weight: float = 1.0
    vocabulary: int = 0
    channels: int = 0
    patch: int = 1
    patch_frames: int = 1
    grid: tuple[int, ...] = (0, 0)
    scales: tuple[int, ...] = ()
    fill: int = -1
    items: int = 0
    table: str = "none"
    coder_width: int = 64
    released: Released = Released()

    def __post_init__(self):
        check("streams: attention", self.attention, ATTENTIONS)
        check("streams: source", self.source, _SOURCES)
        check("streams: time", self.time, TIMES)
        if self.budget <= 0:
            raise UsageError(f"streams: budget must be positive, not {self.budget}")
        for fits in _FITS[type(self.content)]:
            fits(self)

    @cached_property
    def content(self) -> Content:
        """What its tokens hold: the only place that chooses among the kinds."""
        facts, time = Facts(self.labels, self.released.pooled), TIMES[self.time]
        if self.vocabulary and not any(self.grid):
            return Text(self.vocabulary)
        prediction = PREDICTIONS.get(self.objective, Prediction())
        if self.vocabulary:
            return Codes(self.grid, facts, self.vocabulary, self.scales, prediction, self.fill)
        kind = Queries if self.source == "none" else Latents
        # The default objective is of ids: latents that name none are only read.
        starts = prediction.starts and self.objective != "next_token"
        return kind(
            self.grid, facts, self.channels, self.patch_sides, source=self.source,
            lead=int(time.token or starts), starts=starts, hides=prediction.hides, inside=time.inside,
        )  # fmt: skip

    @property
    def ahead(self) -> bool:
        """Whether its items have a second time, see `transfusion.sequence.times.AHEAD`."""
        return self.objective in AHEAD

    @property
    def patch_sides(self) -> tuple[int, ...]:
        """Sides of a patch [S], in the order of `grid`."""
        return (self.patch_frames, self.patch, self.patch)[3 - len(self.grid) :]

    @property
    def features(self) -> int:
        """Numbers of one continuous token (E)."""
        return self.channels * math.prod(self.patch_sides)

    @property
    def predicted(self) -> int:
        """Numbers that the head predicts per continuous token."""
        return (self.released.out_channels or self.channels) * math.prod(self.patch_sides)

    @property
    def tokens_per_item(self) -> int:
        return self.content.per_item

    @property
    def span_tokens(self) -> int:
        """Tokens that see each other whatever their order: of an item, or of a frame of one; 1 of causal streams."""
        item = self.content.usual_tokens(self.budget, self.max_items)
        return ATTENTIONS[self.attention].size(item, max(self.grid[0] // self.patch_sides[0], 1))

    @property
    def max_items(self) -> int:
        """Items of a packed row (M)."""
        return self.items or self.budget // max(self.tokens_per_item, 1)


def _fits_text(stream: Stream) -> None:
    if stream.attention == "frame":
        raise UsageError("streams: attention 'frame' is for clips, series and scales of codes, not for text")


def _fits_codes(stream: Stream) -> None:
    if stream.patch != 1 or stream.released.tied or stream.time != "none":
        raise UsageError("streams: a code is a token: patch 1, time 'none', and a head that is not tied")
    if (stream.attention == "frame") != bool(stream.scales):
        raise UsageError("streams: `scales` of codes and attention 'frame' go together")
    if stream.fill >= stream.vocabulary or (stream.fill >= 0 and len(stream.grid) != 1):
        raise UsageError("streams: fill is an id of the vocabulary, and for codes with the one side (T,) only")
    if stream.scales and tuple(stream.grid) != (stream.scales[-1],) * 2:
        raise UsageError(f"streams: grid {tuple(stream.grid)} is not the square of the last scale, {stream.scales[-1]}")


def _fits_items(stream: Stream) -> None:
    grid, content = stream.grid, stream.content
    if not 1 <= len(grid) <= 3 or (0 in grid and any(grid)):
        raise UsageError(f"streams: grid is 1 to 3 sides, all positive or all 0, not {grid}")
    if any(side % p for side, p in zip(grid, stream.patch_sides, strict=True)):
        raise UsageError(f"streams: patch {stream.patch} does not divide the latent grid {grid}")
    if stream.ahead and stream.time == "none":
        raise UsageError(f"streams: objective {stream.objective!r} needs a `time`, such as 'added', not 'none'")
    if content.hides and (stream.time != "none" or not content.aligned):
        raise UsageError(f"streams: objective {stream.objective!r} needs a fixed `grid`, and time 'none'")
    if stream.attention == "frame" and len(grid) == 2 and not stream.scales:
        raise UsageError("streams: attention 'frame' is for clips and series; an image is one 'block'")
    if content.mixed and not stream.items:
        raise UsageError("streams: a stream of mixed sizes (grid 0, 0) needs `items`, the most items of a row")
    if content.aligned and stream.budget % content.per_item:
        raise UsageError(f"streams: budget {stream.budget} is no multiple of an item's {content.per_item} tokens")


# What the other fields of a stream must be, by its content. Each raises a UsageError.
_FITS: dict[type[Content], tuple[Callable[[Stream], None], ...]] = {
    Text: (_fits_text,),
    Codes: (_fits_codes, _fits_items),
    Latents: (_fits_items,),
    Queries: (_fits_items,),
}
