"""Janus and Janus-Pro (arXiv 2410.13848, 2501.17811): a text model that reads images by a SigLIP tower and draws codes.

The codes have an embed and a head of their own.
"""

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any

from transfusion.config import Experiment
from transfusion.errors import UsageError
from transfusion.interop.converts import matrix, same
from transfusion.interop.family import Imported
from transfusion.interop.fields import class_names, fields, given, positive
from transfusion.interop.language import IGNORED, text_model_of, trunk_config, with_defaults
from transfusion.interop.leaves import Leaf
from transfusion.interop.modules import IMAGE, SEMANTIC, block_leaves, dense_leaves, imported, layer_keys, token_leaves
from transfusion.interop.opening import short
from transfusion.interop.siglip import ACTIVATION_NAMES, vit_config, vit_leaves
from transfusion.interop.vq import part
from transfusion.model.vit import ViTConfig
from transfusion.sequence import TEXT, ConnectorConfig, Released, Stream, layouts

_HEAD = "lm_head.weight"
# Defaults of the classes, which configs leave out.
_LLAMA = {
    "model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
    "num_hidden_layers": 32, "num_attention_heads": 32, "rms_norm_eps": 1e-6, "max_position_embeddings": 2048,
}  # fmt: skip
_VISION = {
    "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "num_channels": 3, "image_size": 384,
    "patch_size": 16, "hidden_act": "gelu", "layer_norm_eps": 1e-6, "mlp_ratio": 4.0, "attention_bias": True,
    "projection_dim": 2048, "depth": 2,
}  # fmt: skip
_CODES = {
    "num_embeddings": 16384, "embed_dim": 8, "projection_dim": 2048, "num_hidden_layers": 2, "hidden_act": "gelu",
    "image_token_embed_dim": 2048,
}  # fmt: skip


def claims(config: Mapping[str, Any], keys: Collection[str]) -> bool:
    names = class_names(config)
    return "JanusForConditionalGeneration" in names or (not names and config.get("model_type") == "janus")


def build(config: Mapping[str, Any], keys: Collection[str]) -> Imported:
    """See `transfusion.interop.family.Family`; in the form of transformers."""
    fields(config, ("text_config", "vision_config", "vq_config", "tie_word_embeddings"), ("image_token_id",))
    text, vision, codes = (
        with_defaults(given(config, field, dict, {}), defaults)
        for field, defaults in (("text_config", _LLAMA), ("vision_config", _VISION), ("vq_config", _CODES))
    )
    where = "config.json, text_config"
    kind = text_model_of({"model_type": given(text, "model_type", str, where=where)})
    if kind is None:
        raise UsageError(f"{where}: model_type {short(text['model_type'])} is not understood")
    model = trunk_config(text, kind, where)
    tower, reads = _tower(vision, model.width)
    model = dataclasses.replace(model, towers={SEMANTIC: tower})
    where = "config.json, vq_config"
    for name in ("projection_dim", "image_token_embed_dim"):
        _equal(codes, name, model.width, where)
    depth = given(codes, "num_hidden_layers", where=where)
    draws = ConnectorConfig(depth, _activation(codes, where))
    # The flag is in the text model's config or in that of the whole. If the files hold a head, it is read.
    tied = any(given(table, "tie_word_embeddings", bool, False) for table in (config, text)) and _HEAD not in keys
    grid = tuple(tower.patch * side for side in tower.grid)
    streams = {
        TEXT: Stream(vocabulary=given(text, "vocab_size"), budget=2048, released=Released(tied=tied)),
        SEMANTIC: Stream(
            embed="vit", head="none", objective="none", source="pixels", channels=tower.channels, patch=tower.patch,
            grid=grid, budget=math.prod(tower.grid), connector=reads,
        ),
        IMAGE: Stream(
            embed="codes", head="mlp", objective="none", vocabulary=given(codes, "num_embeddings", where=where),
            visible_to=(IMAGE,), channels=given(codes, "embed_dim", where=where), grid=tower.grid,
            budget=math.prod(tower.grid), connector=draws,
        ),
    }  # fmt: skip
    # Codes can be computed, but not drawn: which token begins an image is said by Janus's tokenizer and not here.
    experiment = Experiment(model=model, streams=streams, layout=layouts.janus(drawn=""))
    codec = part("JanusVQVAE", given(config, "vq_config", dict, {}), where, "model.vqmodel.")
    return dataclasses.replace(imported(experiment, _leaves(experiment), IGNORED), codec=codec)


def _tower(vision: dict[str, Any], width: int) -> tuple[ViTConfig, ConnectorConfig]:
    """The vision tower, and the dense layers behind it."""
    where = "config.json, vision_config"
    own = ("mlp_ratio", "attention_bias", "projection_dim", "depth")
    rest = {name: value for name, value in vision.items() if name not in own}
    fixed = {"use_qk_norm": False}
    fields(vision, (*_VISION, *fixed), ("num_image_tokens", "hidden_dropout_rate", "projection_dropout"), fixed, where)
    for name in (*fixed, "num_image_tokens", "hidden_dropout_rate", "projection_dropout"):
        rest.pop(name, None)
    ratio = positive(vision, "mlp_ratio", where=where)
    ffn = int(given(vision, "hidden_size", where=where) * ratio)
    tower = vit_config(rest | {"intermediate_size": ffn, "vision_use_head": False}, where)
    _equal(vision, "projection_dim", width, where)
    tower = dataclasses.replace(tower, qkv_biases=given(vision, "attention_bias", bool, where=where))
    return tower, ConnectorConfig(given(vision, "depth", where=where), _activation(vision, where))


def _equal(config: Mapping[str, Any], name: str, width: int, where: str) -> None:
    if given(config, name, where=where) != width:
        raise UsageError(f"{where}: {name} must be the text model's width {width}, not {config[name]}")


def _activation(config: Mapping[str, Any], where: str) -> str:
    name = given(config, "hidden_act", str, where=where)
    if name not in ACTIVATION_NAMES:
        raise UsageError(f"{where}: hidden_act {short(name)} is none of {', '.join(ACTIVATION_NAMES)}")
    return ACTIVATION_NAMES[name]


def connector_leaves(at: tuple[str, ...], config: ConnectorConfig, theirs: str) -> list[Leaf]:
    """A `Connector` at the path `at`, made of their 'fc1' and the list 'hidden_layers'."""
    keys = [f"{theirs}.fc1", *(f"{theirs}.hidden_layers.{i}" for i in range(config.depth - 1))]
    leaves = dense_leaves(at, "out", keys[-1])
    if config.depth > 1:
        leaves += dense_leaves(at, "hidden", keys[0])
    if config.depth > 2:
        leaves.append(Leaf((*at, "between"), tuple(f"{key}.weight" for key in keys[1:-1]), matrix()))
        leaves.append(Leaf((*at, "between_bias"), tuple(f"{key}.bias" for key in keys[1:-1]), same()))
    return leaves


def _leaves(experiment: Experiment) -> list[Leaf]:
    model, streams = experiment.model, experiment.streams
    prefix, expert = "model.language_model", streams[TEXT].expert
    leaves = token_leaves(f"{prefix}.embed_tokens.weight", _HEAD, streams[TEXT].released.tied)
    leaves += block_leaves(model, ("trunk", "blocks", expert), layer_keys(f"{prefix}.layers", model.layers))
    leaves.append(Leaf(("trunk", "final_norm", expert), f"{prefix}.norm.weight", same()))
    embed = ("parts", SEMANTIC, "embed")
    for leaf in vit_leaves(model.towers[SEMANTIC], "model.vision_model.", (*embed, "tower")):
        keys = leaf.theirs
        if not isinstance(keys, str):
            keys = tuple(key.replace("self_attn.out_proj", "self_attn.projection_layer") for key in keys)
        leaves.append(dataclasses.replace(leaf, theirs=keys))
    leaves += connector_leaves((*embed, "connector"), streams[SEMANTIC].connector, "model.aligner")
    embed, head = ("parts", IMAGE, "embed"), ("parts", IMAGE, "head")
    leaves.append(Leaf((*embed, "table"), "model.generation_embeddings.weight", same()))
    leaves += connector_leaves((*embed, "connector"), streams[IMAGE].connector, "model.generation_aligner")
    leaves += dense_leaves(head, "hidden", "model.generation_head.proj_out")
    return leaves + dense_leaves(head, "", "model.generation_head.vision_head")
