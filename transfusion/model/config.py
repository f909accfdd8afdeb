"""The shape of the trunk, its sizes in the Transfusion paper, and further trunks behind it."""

import dataclasses
from collections.abc import Mapping

import jax

from transfusion.errors import UsageError, check, nearest
from transfusion.model.attention import AUTO, BACKENDS
from transfusion.model.block import BIASES, FFN_KINDS, FFN_WEIGHTS, GROUPS, NORMS, QK_NORMS
from transfusion.model.experts import FeedForwardConfig
from transfusion.model.rope import RopeScaling
from transfusion.model.vit import ViTConfig

REMAT = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


TABLES = {
    "dtype": ("float32", "bfloat16"),
    "remat": REMAT,
    "attention": (AUTO, *BACKENDS),
    "ffn_kind": FFN_KINDS,
    "norm": NORMS,
    "norm_place": ("pre", "post"),
    "qk_norm": QK_NORMS,
    "biases": BIASES,
    "untied": GROUPS,
    "cross_gate": ("none", "tanh"),
}


@dataclasses.dataclass(frozen=True)
class ReleasedTrunk:
    """Settings of a trunk that only released weights need.

    The importers (`transfusion.interop`) set them; the defaults have no effect.

    Attributes:
      ffn_norm_epsilon: epsilon of the feed-forward layer's norm; 0 means that of the other norms (DiT).
      qk_norm_absent: experts whose queries and keys are not normed all the same (the text of some Cosmos 3 models).
      rope_sections: how many frequencies turn with each axis, see `transfusion.model.rope.axis_of`.
      rope_scaling: how frequencies are stretched for longer contexts.
      dual_layers: layers in which the tokens of `dual_expert` attend once more, to each other only, with weights of
        their own (Stable Diffusion 3.5).
      dual_expert: the expert whose tokens attend once more.
    """

    ffn_norm_epsilon: float = 0.0
    qk_norm_absent: tuple[str, ...] = ()
    rope_sections: tuple[int, ...] = ()
    rope_scaling: RopeScaling = RopeScaling()
    dual_layers: tuple[int, ...] = ()
    dual_expert: str = ""


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Shape of the trunk.

    Attributes:
      width, layers, heads: D, depth, H.
      kv_heads: G; 0 means H.
      head_size: K; 0 means D / H.
      ffn: F; 0 means 8/3 D rounded up to a multiple of `ffn_multiple`.
      ffn_multiple: what F is a multiple of where `ffn` is 0.
      ffn_kind: 'swiglu', or one hidden layer of 'gelu' or 'gelu_tanh'.
      feed_forwards: further feed-forward layers, by a name of one's own. They are added to that of a stream's expert.
      ffn_absent: experts (`Stream.expert`) without a feed-forward layer of their own, beside which others must be.
      norm: 'rms', 'layer' (LayerNorm with scale and bias) or 'plain' (LayerNorm without weights).
      norm_place: 'pre', or 'post': x + norm(sublayer(x)), as published for Mixture-of-Transformers, equation 1.
      norm_epsilon: epsilon of the norms.
      final_norm: whether the trunk's outputs are normed.
      biases: which of 'qkv', 'out', 'ffn' have biases.
      qk_norm: a key of `transfusion.model.block.QK_NORMS`: 'none', 'rms' (RMSNorm of queries and keys over the head
        size), 'layer' (LayerNorm, each head with scale and bias of its own; Chameleon), or 'l2' (both have length 1 per
        head, and a learned factor per head, 4 at first and 100 at most, takes the place of 1 / sqrt(K); VAR).
      untied: the groups of weights that each expert owns (see `transfusion.model.block.GROUPS`); all experts share the
        rest, which are the first expert's.
      rope_theta: base of the wave lengths of the rotary positions, see `transfusion.model.rope`; 0: no rotation.
      rope_axes: number of coordinates of a position, as many as the sequence has.
      rope_interleaved: whether the axes take turns in the frequencies.
      streams: the streams that enter this trunk; () means all.
      causal: streams that are causal in this trunk, whatever their `attention`: learned queries are read like text by a
        language model, and see each other in the connector behind it.
      cross: streams that this trunk leaves as they are; the others see them by a cross-attention in every layer (see
        `transfusion.model.cross`), and not by self-attention.
      cross_gate: what multiplies the output of that cross-attention: 'none', or 'tanh', the tanh of a learned number
        per layer that is 0 at first (Flamingo), so that a frozen language model begins as it was.
      stages: further trunks behind this one, in order (see `Stage`).
      towers: the Vision Transformers of streams with embed 'vit', by the stream's name.
      dtype: dtype of the computation ('float32' or 'bfloat16'); parameters stay float32.
      remat: 'none', 'full' (keep nothing of a layer) or 'dots' (keep its matrix products).
      scan: whether one compiled layer serves all (fast compilation); unrolled is a few per cent faster on tiny models.
      attention: 'dense' (all scores at once), 'blockwise' (in blocks, on any device), 'triton' (on GPUs) or 'mosaic'
        (on TPUs), see `transfusion.model.attention.BACKENDS`; 'auto' takes the kernel of the device, 'dense' on a CPU.
      released: settings that only released weights need, see `ReleasedTrunk`.
    """

    width: int = 256
    layers: int = 6
    heads: int = 4
    kv_heads: int = 0
    head_size: int = 0
    ffn: int = 0
    ffn_multiple: int = 64
    ffn_kind: str = "swiglu"
    feed_forwards: Mapping[str, FeedForwardConfig] = dataclasses.field(default_factory=dict)
    ffn_absent: tuple[str, ...] = ()
    norm: str = "rms"
    norm_place: str = "pre"
    final_norm: bool = True
    biases: tuple[str, ...] = ()
    qk_norm: str = "none"
    untied: tuple[str, ...] = GROUPS
    norm_epsilon: float = 1e-5
    rope_theta: float = 10_000.0
    rope_axes: int = 1
    rope_interleaved: bool = False
    towers: Mapping[str, ViTConfig] = dataclasses.field(default_factory=dict)
    streams: tuple[str, ...] = ()
    causal: tuple[str, ...] = ()
    cross: tuple[str, ...] = ()
    cross_gate: str = "none"
    stages: Mapping[str, "Stage"] = dataclasses.field(default_factory=dict)
    dtype: str = "float32"
    remat: str = "none"
    scan: bool = True
    attention: str = "auto"
    released: ReleasedTrunk = ReleasedTrunk()

    def __post_init__(self):
        for field, known in TABLES.items():
            values = getattr(self, field)
            for value in values if isinstance(values, tuple) else (values,):
                check(f"model.{field}", value, known)
        if self.released.qk_norm_absent and {*self.untied} != {*GROUPS}:
            raise UsageError("model.released.qk_norm_absent: the experts must own all of their weights (model.untied)")
        if min(self.width, self.layers, self.heads) < 1:
            raise UsageError("model: width, layers and heads must be positive")
        if not self.head_size and self.width % self.heads:
            raise UsageError(f"model: {self.heads} heads do not divide width {self.width}; set model.head_size")
        if self.heads % self.groups:
            raise UsageError(f"model: kv_heads {self.groups} does not divide heads {self.heads}")
        if self.size % 2:
            raise UsageError(f"model: head_size {self.size} must be even (rotary pairs)")

    @property
    def groups(self) -> int:
        """G, key-value heads."""
        return self.kv_heads or self.heads

    @property
    def size(self) -> int:
        """K, head size."""
        return self.head_size or self.width // self.heads

    @property
    def hidden(self) -> int:
        """F, hidden width of the feed-forward layer."""
        return self.ffn or -(-(8 * self.width) // (3 * self.ffn_multiple)) * self.ffn_multiple

    def absent(self, expert: str) -> tuple[str, ...]:
        """The weights that the blocks of an expert do not have and do not share either."""
        return FFN_WEIGHTS if expert in self.ffn_absent else ()

    @property
    def hidden_of_token(self) -> int:
        """The hidden widths of all feed-forward layers that a token passes at most."""
        added = sum((layer.ffn or self.hidden) * max(layer.choices, 1) for layer in self.feed_forwards.values())
        return added + (0 if self.ffn_absent else self.hidden)


@dataclasses.dataclass(frozen=True)
class Stage:
    """A trunk behind another: a flow head over the whole sequence (Show-o2), a connector, a trunk that diffuses.

    Attributes:
      trunk: the shape of this stage's trunk, through which its `streams` pass. A stream that was not in the trunk
        before begins here, and its embed has this width. A stream with a modulation is modulated in its last stage.
      bridge: how the streams of the trunk before come in: 'none' (equal widths), 'linear', or 'mlp' (two layers with
        biases and a GELU between them).
    """

    trunk: TransformerConfig
    bridge: str = "linear"

    def __post_init__(self):
        if self.bridge not in BRIDGES:
            hint = nearest(self.bridge, BRIDGES)
            raise UsageError(f"model.stages: bridge {self.bridge!r} is none of {', '.join(BRIDGES)}{hint}")
        if not self.trunk.streams:
            raise UsageError("model.stages: the trunk of a stage must name its `streams`")


BRIDGES = ("none", "linear", "mlp")

# Table 2 of the Transfusion paper; F is Llama's: 8/3 D rounded up to a multiple of 256.
# To recompute all ('full') costs a third of the FLOPs once more. To keep the products of tokens and matrices ('dots')
# takes (5 D + 2 F) numbers per token and layer: for a row of 4,096 tokens 1.0, 2.0, 2.9, 3.9 and 10.4 GiB by size. That
# is eight rows on a chip of 80 GB up to 1.4B. Of 7B such a chip takes a row or two, and one of 32 GB none.
PRESETS: dict[str, TransformerConfig] = {
    name: TransformerConfig(width=d, layers=n, heads=h, ffn_multiple=256, dtype="bfloat16", remat=remat)
    for name, n, d, h, remat in (
        ("0.16B", 16, 768, 12, "dots"),
        ("0.37B", 24, 1024, 16, "dots"),
        ("0.76B", 24, 1536, 24, "dots"),
        ("1.4B", 24, 2048, 16, "dots"),
        ("7B", 32, 4096, 32, "full"),
    )
}
