"""Cosmos3's mixture of two experts of diffusers.

It predicts noise - data and calls noise t = 1: its last layer changes sign and its times are reversed.
"""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from transfusion.config import Experiment
from transfusion.errors import UsageError
from transfusion.interop.converts import matrix, negated, same
from transfusion.interop.family import Imported
from transfusion.interop.fields import fields, given, positive, whole_numbers
from transfusion.interop.leaves import Leaf
from transfusion.interop.modules import (
    GENERATION,
    IMAGE,
    UNDERSTANDING,
    block_leaves,
    claims_of,
    dense_leaves,
    embedder_leaves,
    imported,
    layer_keys,
)
from transfusion.interop.opening import short
from transfusion.model.config import ReleasedTrunk, TransformerConfig
from transfusion.sequence import TEXT, Released, Run, Stream, TimeConfig

claims = claims_of("Cosmos3OmniTransformer")


def _sections(config: Mapping[str, Any], half: int) -> tuple[int, ...]:
    """How many of a head's `half` frequencies turn with each of three axes."""
    sections = whole_numbers(config, "rope_axes_dim")
    if not sections:
        table = given(config, "rope_scaling", dict, {})
        fields(table, ("mrope_section",), (), _MROPE, "config.json, rope_scaling")
        sections = whole_numbers(table, "mrope_section", "config.json, rope_scaling") or (24, 20, 20)
    if len(sections) != 3 or sum(sections) != half:
        raise UsageError(f"config.json: the rotary axes {short(list(sections))} must be three that sum to {half}")
    return sections


_MROPE = {"rope_type": "default", "type": ("default", "mrope"), "mrope_interleaved": True}


def build(config: Mapping[str, Any], keys: Collection[str]) -> Imported:
    """Cosmos3OmniTransformer: causal text and noised frames that see everything, an expert each."""
    used = (
        "attention_bias head_dim hidden_size intermediate_size latent_channel latent_patch_size num_attention_heads "
        "num_hidden_layers num_key_value_heads patch_latent_dim rms_norm_eps rope_theta timestep_scale vocab_size "
        "rope_axes_dim rope_scaling qk_norm_for_text"
    )
    harmless = (
        "base_fps enable_fps_modulation unified_3d_mrope_reset_spatial_ids unified_3d_mrope_temporal_modality_margin "
        "action_dim num_embodiment_domains sound_dim sound_latent_fps"
    )
    fixed = {
        "action_gen": False, "sound_gen": False, "hidden_act": "silu",
        "use_und_k_norm_for_gen": False, "joint_attn_implementation": "two_way",
    }  # fmt: skip
    fields(config, used.split(), harmless.split(), fixed)
    heads, d = given(config, "num_attention_heads"), given(config, "hidden_size")
    n, patch = given(config, "num_hidden_layers"), given(config, "latent_patch_size")
    text_norm, size = given(config, "qk_norm_for_text", bool, True), given(config, "head_dim")
    model = TransformerConfig(
        width=d, layers=n, heads=heads, kv_heads=given(config, "num_key_value_heads"),
        head_size=size, ffn=given(config, "intermediate_size"),
        norm_epsilon=positive(config, "rms_norm_eps", 1e-6), qk_norm="rms",
        biases=("qkv", "out") if given(config, "attention_bias", bool, False) else (),
        rope_theta=positive(config, "rope_theta", 5e6), rope_axes=3, rope_interleaved=True,
        released=ReleasedTrunk(
            qk_norm_absent=() if text_norm else (UNDERSTANDING,), rope_sections=_sections(config, size // 2)
        ),
    )  # fmt: skip
    channels = given(config, "latent_channel")
    if given(config, "patch_latent_dim", default=channels * patch**2) != channels * patch**2:
        raise UsageError("config.json: patch_latent_dim must be latent_channel * latent_patch_size ** 2")
    text = Stream(vocabulary=given(config, "vocab_size"), budget=512, expert=UNDERSTANDING)
    image = Stream(
        embed="linear", head="linear", objective="continuous", attention="block", time="added", expert=GENERATION,
        released=Released(
            time=TimeConfig(scale=1000 * positive(config, "timestep_scale", 0.001), reversed=True)
        ),
        channels=channels, patch=patch, items=8, budget=4096,
    )  # fmt: skip
    experiment = Experiment(
        model=model, streams={TEXT: text, IMAGE: image},
        layout={TEXT: (Run(TEXT),), IMAGE: (Run(IMAGE, position="grid"),)},
    )  # fmt: skip
    return imported(experiment, _leaves(model, text_norm))


def _leaves(model: TransformerConfig, text_norm: bool) -> list[Leaf]:
    layer = layer_keys("layers", model.layers)
    names = {
        "attention_norm": "input_layernorm", "q": "self_attn.to_q", "k": "self_attn.to_k", "v": "self_attn.to_v",
        "o": "self_attn.to_out", "q_norm": "self_attn.norm_q", "k_norm": "self_attn.norm_k",
        "ffn_norm": "post_attention_layernorm", "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj",
    }  # fmt: skip
    generation = {
        "attention_norm": "input_layernorm_moe_gen", "q": "self_attn.add_q_proj", "k": "self_attn.add_k_proj",
        "v": "self_attn.add_v_proj", "o": "self_attn.to_add_out", "q_norm": "self_attn.norm_added_q",
        "k_norm": "self_attn.norm_added_k", "ffn_norm": "post_attention_layernorm_moe_gen",
        "gate": "mlp_moe_gen.gate_proj", "up": "mlp_moe_gen.up_proj", "down": "mlp_moe_gen.down_proj",
    }  # fmt: skip
    words = model if text_norm else dataclasses.replace(model, qk_norm="none")
    leaves = block_leaves(words, ("trunk", "blocks", UNDERSTANDING), layer, names)
    leaves += block_leaves(model, ("trunk", "blocks", GENERATION), layer, generation)
    leaves += [
        Leaf(("trunk", "final_norm", UNDERSTANDING), "norm.weight", same()),
        Leaf(("trunk", "final_norm", GENERATION), "norm_moe_gen.weight", same()),
        Leaf(("parts", TEXT, "embed", "table"), "embed_tokens.weight", same()),
        Leaf(("parts", TEXT, "head", "kernel"), "lm_head.weight", matrix()),
        Leaf(("parts", IMAGE, "head", "kernel"), "proj_out.weight", negated(matrix())),
        Leaf(("parts", IMAGE, "head", "bias"), "proj_out.bias", negated(same())),
    ]
    leaves += dense_leaves(("parts", IMAGE, "embed"), "", "proj_in")
    leaves += embedder_leaves(("parts", IMAGE, "time"), "time_embedder")
    return leaves
