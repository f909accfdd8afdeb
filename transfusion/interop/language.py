"""Text models of transformers: Llama, Qwen2, Qwen3, Qwen3-MoE, and Emu3's text model."""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

from transfusion.config import Experiment
from transfusion.errors import UsageError
from transfusion.interop.converts import matrix, same
from transfusion.interop.family import Imported
from transfusion.interop.fields import class_names, fields, given, positive
from transfusion.interop.leaves import Leaf
from transfusion.interop.modules import LAYER_NAMES, block_leaves, layer_keys, token_leaves
from transfusion.interop.opening import short
from transfusion.model.block import FFN_WEIGHTS
from transfusion.model.config import ReleasedTrunk, TransformerConfig
from transfusion.model.experts import FeedForwardConfig
from transfusion.model.rope import RopeScaling
from transfusion.model.unified import model_template
from transfusion.sequence import TEXT, Released, Run, Stream

# Defaults of Qwen3MoeConfig in transformers.
QWEN3_MOE = {
    "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768, "norm_topk_prob": False,
    "decoder_sparse_step": 1, "mlp_only_layers": [],
}  # fmt: skip
# For each class what its config.json does not say: biases, norms of queries and keys, and the class's own defaults.
TEXT_MODELS: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {"model_type": "llama", "qk_norm": "none", "biased": False},
    "Qwen2ForCausalLM": {"model_type": "qwen2", "qk_norm": "none", "biased": True},
    "Qwen3ForCausalLM": {"model_type": "qwen3", "qk_norm": "rms", "biased": False},
    "Qwen3MoeForCausalLM": {"model_type": "qwen3_moe", "qk_norm": "rms", "biased": False, "defaults": QWEN3_MOE},
    "Emu3ForCausalLM": {
        "model_type": "emu3_text_model", "qk_norm": "none", "biased": False, "defaults": {
            "vocab_size": 184622, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 9216,
            "rms_norm_eps": 1e-5, "rope_theta": 1e6,
        },
    },
}  # fmt: skip
_USED = """
    vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim
    rms_norm_eps rope_theta rope_scaling rope_parameters tie_word_embeddings attention_bias mlp_bias layer_types
    max_position_embeddings original_max_position_embeddings
    num_experts num_local_experts num_experts_per_tok moe_intermediate_size norm_topk_prob decoder_sparse_step
    mlp_only_layers
""".split()  # noqa: SIM905 - a list would be one name a line
_HARMLESS = ("max_window_layers", "sliding_window", "pretraining_tp", "image_area")
_HARMLESS += ("output_router_logits", "router_aux_loss_coef", "router_jitter_noise")
_FIXED = {
    "hidden_act": ("silu", "swish"),  # two names of one function in transformers
    "use_sliding_window": False,
    "is_causal": True,
    "causal": True,
    "use_rope": True,
    "partial_rotary_factor": 1.0,
}
EXPERTS = "experts"  # the name of the routed feed-forward layer
# Buffers that old checkpoints hold.
IGNORED = (r".*rotary_emb\.inv_freq",)


def text_model_of(config: Mapping[str, Any]) -> str | None:
    """The class of `TEXT_MODELS` that a config names; None if it names none of them."""
    for name, facts in TEXT_MODELS.items():
        if name in class_names(config) or (not class_names(config) and config.get("model_type") == facts["model_type"]):
            return name
    return None


def claims(config: Mapping[str, Any], keys: Collection[str]) -> bool:
    return text_model_of(config) is not None


def build(config: Mapping[str, Any], keys: Collection[str]) -> Imported:
    """See `transfusion.interop.family.Family`."""
    model = trunk_config(config, text_model_of(config))
    config = with_defaults(config, TEXT_MODELS[text_model_of(config)].get("defaults", {}))
    # If the files hold a head it is read, whatever the config says: it is a copy of the table, or not tied to it.
    tied = given(config, "tie_word_embeddings", bool, False) and "lm_head.weight" not in keys
    text = Stream(vocabulary=given(config, "vocab_size"), budget=2048, released=Released(tied=tied))
    experiment = Experiment(model=model, streams={TEXT: text}, layout={TEXT: (Run(TEXT),)})
    leaves = token_leaves("model.embed_tokens.weight", "lm_head.weight", tied)
    keys_of = layer_keys("model.layers", model.layers)
    names = {ours: theirs for ours, theirs in LAYER_NAMES.items() if not (model.ffn_absent and ours in FFN_WEIGHTS)}
    leaves += block_leaves(model, ("trunk", "blocks", text.expert), keys_of, names) + expert_leaves(model, keys_of)
    leaves.append(Leaf(("trunk", "final_norm", text.expert), "model.norm.weight", same()))
    return Imported(model_template(model, experiment.spec), leaves, experiment, IGNORED)


def with_defaults(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The config, with a default where a field is missing or null.

    A part of a config often leaves out fields that equal the defaults of its class.
    """
    return {**defaults, **{name: value for name, value in config.items() if value is not None}}


def trunk_config(
    config: Mapping[str, Any], kind: str, where: str = "config.json", qk_norm: str = ""
) -> TransformerConfig:
    """Our trunk of a text model's config. `qk_norm` replaces that of its class.

    Raises:
      UsageError: naming the field that is not understood.
    """
    fields(config, _USED, _HARMLESS, _FIXED, where)
    config = with_defaults(config, TEXT_MODELS[kind].get("defaults", {}))
    if any(layer != "full_attention" for layer in given(config, "layer_types", list, [], where)):
        raise UsageError(f"{where}: layer_types may name full_attention only")
    facts = TEXT_MODELS[kind]
    heads = given(config, "num_attention_heads", where=where)
    width = given(config, "hidden_size", where=where)
    biased = facts["biased"] or given(config, "attention_bias", bool, False, where)
    biases = ("qkv",) if biased else ()
    if biased and not facts["biased"]:  # Llama and Qwen3 have a bias after attention too
        biases += ("out",)
    if given(config, "mlp_bias", bool, False, where):
        biases += ("ffn",)
    theta, scaling = rotary(config, where)
    if width // heads == 0:
        raise UsageError(f"{where}: num_attention_heads {heads} is more than hidden_size {width}")
    size = given(config, "head_dim", default=128 if kind == "Qwen3ForCausalLM" else width // heads, where=where)
    routed = _routed(config, where)
    check_factors(scaling, size, where)
    return TransformerConfig(
        width=width,
        layers=given(config, "num_hidden_layers", where=where),
        heads=heads,
        kv_heads=given(config, "num_key_value_heads", default=heads, where=where),
        head_size=size,
        ffn=given(config, "intermediate_size", where=where),
        norm_epsilon=positive(config, "rms_norm_eps", 1e-6, where),
        qk_norm=qk_norm or facts["qk_norm"],
        biases=biases,
        feed_forwards={EXPERTS: routed} if routed else {},
        ffn_absent=(Stream.expert,) if routed else (),
        rope_theta=theta,
        released=ReleasedTrunk(rope_scaling=scaling),
    )


def _routed(config: Mapping[str, Any], where: str) -> FeedForwardConfig | None:
    """The experts of a layer; None if the config has none.

    Raises:
      UsageError: if some layers have experts and others have none.
    """
    if not {"num_experts", "num_local_experts"} & config.keys():
        return None
    some = given(config, "mlp_only_layers", list, [], where) or given(config, "decoder_sparse_step", int, 1, where) != 1
    if some:
        raise UsageError(f"{where}: all layers must have experts: mlp_only_layers [] and decoder_sparse_step 1")
    return FeedForwardConfig(
        ffn=given(config, "moe_intermediate_size", where=where),
        experts=given(config, "num_local_experts" if "num_local_experts" in config else "num_experts", where=where),
        top=given(config, "num_experts_per_tok", where=where),
        renormalise=given(config, "norm_topk_prob", bool, False, where),
        balance=0.0,
    )


def expert_leaves(model: TransformerConfig, keys: Callable[[str], tuple[str, ...]]) -> list[Leaf]:
    """The router and the experts of all layers, as Qwen3-MoE names them."""
    leaves = []
    for name, layer in model.feed_forwards.items():
        at = ("trunk", "feed_forwards", name)
        leaves.append(Leaf((*at, "router"), keys("mlp.gate.weight"), matrix()))
        leaves += [
            Leaf((*at, ours), keys(f"mlp.experts.{i}.{ours}_proj.weight"), matrix(), at=(i,))
            for ours in ("gate", "up", "down")
            for i in range(layer.experts)
        ]
    return leaves


def rotary(config: Mapping[str, Any], where: str = "config.json") -> tuple[float, RopeScaling]:
    """The rotary base and scaling, from `rope_parameters` or the older `rope_theta` and `rope_scaling`.

    Raises:
      UsageError: naming the kind or field of scaling that is not understood.
    """
    table = {}
    for name in ("rope_scaling", "rope_parameters"):
        table |= {key: value for key, value in given(config, name, dict, {}, where).items() if value is not None}
    theta = positive(table if "rope_theta" in table else config, "rope_theta", 10_000.0, where)
    maximum = given(config, "max_position_embeddings", default=2048, where=where)
    own = "original_max_position_embeddings"
    original = given(table if own in table else config, own, default=maximum, where=where)
    kinds = {given(table, name, str, "default", where) for name in ("rope_type", "type") if name in table} or {
        "default"
    }
    if len(kinds) > 1 or not kinds <= _SCALINGS.keys():
        raise UsageError(
            f"{where}: the rotary scaling {' and '.join(sorted(map(short, kinds)))} is not understood; there are "
            f"{', '.join(_SCALINGS)}"
        )
    (kind,) = kinds
    read = _SCALINGS[kind]
    for name in table.keys() - {"rope_theta", "rope_type", "type", own, *read.fields}:
        if table[name] is not False and (name, table[name]) != ("partial_rotary_factor", 1.0):
            raise UsageError(f"{where}: the field {short(name)} of the rotary scaling {kind!r} is not understood")
    return theta, read(table, f"{where}, rotary scaling {kind!r}", original, maximum)


@dataclasses.dataclass(frozen=True)
class _Scaling:
    """A kind of rotary scaling; `fields` are the fields that their table has for it."""

    name: str
    fields: tuple[str, ...] = ()

    def __call__(self, table: Mapping[str, Any], where: str, original: int, maximum: int) -> RopeScaling:
        if self.name == "none":
            return RopeScaling()
        if self.name == "longrope":
            short, long = (_factors(table, name, where) for name in self.fields)
            if original < 2:
                raise UsageError(f"{where}: original_max_position_embeddings must be at least 2, not {original}")
            return RopeScaling("longrope", original=original, maximum=maximum, short=short, long=long)
        factor, *ends = (positive(table, name, where=where) for name in self.fields)
        if not ends:
            return RopeScaling(self.name, factor=factor)
        if ends[0] >= ends[1]:
            raise UsageError(f"{where}: low_freq_factor {ends[0]} must be below high_freq_factor {ends[1]}")
        return RopeScaling(self.name, factor=factor, low=ends[0], high=ends[1], original=original)


_SCALINGS = {
    "default": _Scaling("none"),
    "linear": _Scaling("linear", ("factor",)),
    "llama3": _Scaling("llama3", ("factor", "low_freq_factor", "high_freq_factor")),
    **dict.fromkeys(("longrope", "su"), _Scaling("longrope", ("short_factor", "long_factor"))),
}


def _factors(table: Mapping[str, Any], name: str, where: str) -> tuple[float, ...]:
    """The numbers above 0 of a table, one for each frequency."""
    values = given(table, name, list, where=where)
    return tuple(positive({name: value}, name, where=where) for value in values)


def check_factors(scaling: RopeScaling, head_size: int, where: str) -> None:
    """Refuses a scaling that does not have one factor for each pair of a head's numbers."""
    for name, values in (("short_factor", scaling.short), ("long_factor", scaling.long)):
        if scaling.kind == "longrope" and len(values) != head_size // 2:
            raise UsageError(f"{where}: {name} has {len(values)} values, and a head of {head_size} asks for half of it")
