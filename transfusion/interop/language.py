"""Text models of transformers: Llama, Qwen2 and Qwen3."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from transfusion.config import Experiment
from transfusion.errors import UsageError
from transfusion.interop.family import Imported, class_names, fields, given
from transfusion.interop.leaves import Convert, Leaf, matrix, matrix_from, same
from transfusion.model.config import TransformerConfig
from transfusion.model.rope import RopeScaling
from transfusion.model.unified import model_template
from transfusion.sequence import TEXT, Run, Stream

# Class -> what its config.json does not say: biases, whether queries and keys are normed, and defaults of its own.
KINDS: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {"model_type": "llama", "qk_norm": "none", "biased": False},
    "Qwen2ForCausalLM": {"model_type": "qwen2", "qk_norm": "none", "biased": True},
    "Qwen3ForCausalLM": {"model_type": "qwen3", "qk_norm": "rms", "biased": False},
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
""".split()  # noqa: SIM905 - a list would be one name a line
_HARMLESS = ("max_window_layers", "sliding_window", "pretraining_tp", "image_area")
_HARMLESS += tuple(f"{name}_token_id" for name in ("img", "boi", "eoi", "eol", "eof"))  # Emu3's own
_FIXED = {"hidden_act": "silu", "use_sliding_window": False}
# Buffers that old checkpoints carry, and a head that is the table of tokens again.
IGNORED = (r".*rotary_emb\.inv_freq",)


def kind_of(config: Mapping[str, Any]) -> str | None:
    """The class of `KINDS` that a config names."""
    for name, facts in KINDS.items():
        if name in class_names(config) or (not class_names(config) and config.get("model_type") == facts["model_type"]):
            return name
    return None


def claims(config: Mapping[str, Any], keys: Collection[str]) -> bool:
    return kind_of(config) is not None


def build(config: Mapping[str, Any], keys: Collection[str]) -> Imported:
    """See `transfusion.interop.family.Family`."""
    model = trunk_config(config, kind_of(config))
    config = with_defaults(config, KINDS[kind_of(config)].get("defaults", {}))
    # A head that is there is read, whatever the config says: it is then a copy, or not tied.
    tied = given(config, "tie_word_embeddings", bool, False) and "lm_head.weight" not in keys
    text = Stream(vocabulary=given(config, "vocab_size"), budget=2048, tied=tied)
    experiment = Experiment(model=model, streams={TEXT: text}, layout={TEXT: (Run(TEXT),)})
    leaves = token_leaves("model.embed_tokens.weight", None if tied else "lm_head.weight")
    leaves += block_leaves(model, ("trunk", "blocks", text.expert), layer_keys("model.layers", model.layers))
    leaves.append(Leaf(("trunk", "final_norm", text.expert), "model.norm.weight", same()))
    return Imported(model_template(model, experiment.spec), leaves, experiment, IGNORED)


def with_defaults(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The config, with a default where a field is missing or null (what equals its class's default is often left out
    of a part of a config)."""
    return {**defaults, **{name: value for name, value in config.items() if value is not None}}


def trunk_config(
    config: Mapping[str, Any], kind: str, where: str = "config.json", qk_norm: str = ""
) -> TransformerConfig:
    """Our trunk of a text model's config; `qk_norm` replaces what its class has.

    Raises:
      UsageError: naming the field that is not understood.
    """
    fields(config, _USED, _HARMLESS, _FIXED, where)
    config = with_defaults(config, KINDS[kind].get("defaults", {}))
    if any(layer != "full_attention" for layer in config.get("layer_types") or ()):
        raise UsageError(f"{where}: layer_types may name full_attention only")
    facts = KINDS[kind]
    heads = given(config, "num_attention_heads", where=where)
    width = given(config, "hidden_size", where=where)
    biased = facts["biased"] or given(config, "attention_bias", bool, False, where)
    biases = ("qkv",) if biased else ()
    if biased and not facts["biased"]:  # Llama and Qwen3 have a bias after attention too
        biases += ("out",)
    if given(config, "mlp_bias", bool, False, where):
        biases += ("ffn",)
    theta, scaling = rotary(config, where)
    return TransformerConfig(
        width=width,
        layers=given(config, "num_hidden_layers", where=where),
        heads=heads,
        kv_heads=given(config, "num_key_value_heads", default=heads, where=where),
        head_size=config.get("head_dim") or (width // heads if kind != "Qwen3ForCausalLM" else 128),
        ffn=given(config, "intermediate_size", where=where),
        norm_epsilon=given(config, "rms_norm_eps", float, 1e-6, where),
        qk_norm=qk_norm or facts["qk_norm"],
        biases=biases,
        rope_theta=theta,
        rope_scaling=scaling,
    )


def rotary(config: Mapping[str, Any], where: str = "config.json") -> tuple[float, RopeScaling]:
    """theta and the scaling, from `rope_parameters` or the older `rope_theta` and `rope_scaling`.

    Raises:
      UsageError: naming the kind or field of scaling that is not understood.
    """
    table = dict(config.get("rope_scaling") or {}) | dict(config.get("rope_parameters") or {})
    theta = float(table.pop("rope_theta", None) or config.get("rope_theta") or 10_000.0)
    kind = table.pop("rope_type", None) or table.pop("type", None) or "default"
    table.pop("type", None)
    original = table.pop("original_max_position_embeddings", None) or config.get("original_max_position_embeddings")
    maximum = given(config, "max_position_embeddings", default=2048, where=where)
    if kind == "default":
        scaling = RopeScaling()
    elif kind == "linear":
        scaling = RopeScaling("linear", factor=float(table.pop("factor")))
    elif kind == "llama3":
        names = {"factor": "factor", "low": "low_freq_factor", "high": "high_freq_factor"}
        values = {ours: float(table.pop(theirs)) for ours, theirs in names.items()}
        scaling = RopeScaling("llama3", original=int(original or maximum), **values)
    elif kind in ("longrope", "su"):
        short, long = (tuple(map(float, table.pop(name))) for name in ("short_factor", "long_factor"))
        scaling = RopeScaling("longrope", original=int(original or maximum), maximum=maximum, short=short, long=long)
    else:
        raise UsageError(f"{where}: rotary scaling {kind!r} is not understood")
    if table:
        raise UsageError(f"{where}: the field {next(iter(table))!r} of the rotary scaling {kind!r} is not understood")
    return theta, scaling


def token_leaves(table: str, head: str | None) -> list[Leaf]:
    """The table and head (None: tied) of the text stream."""
    leaves = [Leaf(("parts", TEXT, "embed", "table"), table, same())]
    return leaves + ([] if head is None else [Leaf(("parts", TEXT, "head", "kernel"), head, matrix())])


def layer_keys(prefix: str, layers: int) -> Callable[[str], tuple[str, ...]]:
    """The keys of one array of all layers: 'self_attn.q_proj.weight' -> ('PREFIX.0.self_attn...', ...)."""
    return lambda name: tuple(f"{prefix}.{i}.{name}" for i in range(layers))


NAMES = {
    "attention_norm": "input_layernorm",
    "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj",
    "q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj",
}  # fmt: skip


def block_leaves(
    model: TransformerConfig,
    at: tuple[str, ...],
    keys: Callable[[str], tuple[str, ...]],
    names: Mapping[str, str] = NAMES,
) -> list[Leaf]:
    """The leaves of one expert's block at the path `at`; `names` are theirs without '.weight' and '.bias'."""
    h, g, k = model.heads, model.groups, model.size
    heads = {"q": (h, k), "k": (g, k), "v": (g, k)}
    bias = {"q": "qkv", "k": "qkv", "v": "qkv", "o": "out", "gate": "ffn", "up": "ffn", "down": "ffn"}
    leaves = []

    def add(ours: str, theirs: str, convert: Convert) -> None:
        leaves.append(Leaf((*at, ours), keys(theirs), convert))

    for ours, theirs in names.items():
        if (ours in ("q_norm", "k_norm") and model.qk_norm == "none") or (
            ours == "gate" and model.ffn_kind != "swiglu"
        ):
            continue
        if ours.endswith("norm"):
            if model.norm == "plain" and ours not in ("q_norm", "k_norm"):
                continue
            add(ours, f"{theirs}.weight", same())
            if (model.qk_norm if ours in ("q_norm", "k_norm") else model.norm) == "layer":
                add(f"{ours}_bias", f"{theirs}.bias", same())
            continue
        add(ours, f"{theirs}.weight", matrix_from(h, k) if ours == "o" else matrix(*heads.get(ours, ())))
        if bias[ours] in model.biases:
            add(f"{ours}_bias", f"{theirs}.bias", same(*heads.get(ours, ())))
    return leaves
