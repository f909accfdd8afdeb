"""SigLIP vision towers: transformers' SiglipVisionModel, or the vision part of a SiglipModel."""

import functools
from collections.abc import Collection, Mapping
from typing import Any

from transfusion.errors import UsageError
from transfusion.interop.converts import Convert, matrix, matrix_from, patches, reshaped, same
from transfusion.interop.family import Imported
from transfusion.interop.fields import class_names, fields, given, positive
from transfusion.interop.leaves import Leaf
from transfusion.interop.opening import short
from transfusion.model.parameters import Template
from transfusion.model.vit import ViT, ViTConfig

ACTIVATION_NAMES = {
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu": "gelu",
    "quick_gelu": "quick_gelu",
    "silu": "silu",
}
MODELS = ("SiglipVisionModel", "SiglipModel")
# The arrays of a SiglipModel besides its vision tower.
_REST = (r"text_model\..*", "logit_scale", "logit_bias", r"(vision_model\.)?embeddings\.position_ids")


def claims(config: Mapping[str, Any], keys: Collection[str]) -> bool:
    return any(name in MODELS for name in class_names(config)) or (
        not class_names(config) and config.get("model_type") in ("siglip", "siglip_vision_model")
    )


def build(config: Mapping[str, Any], keys: Collection[str]) -> Imported:
    """See `transfusion.interop.family.Family`."""
    where = "config.json"
    if "vision_config" in config:
        fields(config, ("vision_config",), ("text_config", "tie_word_embeddings"))
        config, where = given(config, "vision_config", dict), "config.json, vision_config"
    prefix = "vision_model." if any(key.startswith("vision_model.") for key in keys) else ""
    ours = vit_config(config, where)
    return Imported(Template(lambda rngs: ViT(ours, rngs=rngs)), vit_leaves(ours, prefix), ignore=_REST)


def vit_config(config: Mapping[str, Any], where: str = "config.json") -> ViTConfig:
    """Our config of a SiglipVisionConfig (its defaults are those of the base model of 224 pixels).

    Raises:
      UsageError: naming the field that is not understood.
    """
    used = ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_channels"]
    used += ["image_size", "patch_size", "hidden_act", "layer_norm_eps", "vision_use_head"]
    fields(config, used, where=where)
    number = functools.partial(given, config, where=where)
    image, patch = number("image_size", default=224), number("patch_size", default=16)
    if image < patch:
        raise UsageError(f"{where}: image_size {image} holds no patch of patch_size {patch}")
    activation = number("hidden_act", str, "gelu_pytorch_tanh")
    if activation not in ACTIVATION_NAMES:
        raise UsageError(f"{where}: hidden_act {short(activation)} is none of {', '.join(ACTIVATION_NAMES)}")
    return ViTConfig(
        width=number("hidden_size", default=768),
        ffn=number("intermediate_size", default=3072),
        layers=number("num_hidden_layers", default=12),
        heads=number("num_attention_heads", default=12),
        patch=patch,
        channels=number("num_channels", default=3),
        grid=(image // patch, image // patch),
        activation=ACTIVATION_NAMES[activation],
        epsilon=positive(config, "layer_norm_eps", 1e-6, where),
        pool=number("vision_use_head", bool, True),
    )


def vit_leaves(config: ViTConfig, prefix: str = "", at: tuple[str, ...] = (), flat: bool = False) -> list[Leaf]:
    """The leaves of a SigLIP tower whose keys begin with `prefix`, for a ViT at the path `at` of our parameters.

    With `flat`, patches are embedded by a linear layer (NaViT) in (y, x, c) order, not by a convolution.
    """
    d, h = config.width, config.heads
    heads = (h, d // h)

    def leaf(ours: str, theirs: str, convert: Convert, rows: tuple[int, int] | None = None) -> Leaf:
        return Leaf((*at, *ours.split(".")), prefix + theirs, convert, rows)

    def layers(ours: str, theirs: str, convert: Convert) -> Leaf:
        keys = tuple(f"{prefix}encoder.layers.{i}.{theirs}" for i in range(config.layers))
        return Leaf((*at, "blocks", ours), keys, convert)

    leaves = [
        leaf("kernel", "embeddings.patch_embedding.weight", matrix() if flat else patches(config.patch)),
        leaf("bias", "embeddings.patch_embedding.bias", same()),
        leaf("positions", "embeddings.position_embedding.weight", same()),
    ]
    for ours, theirs in {"norm1": "layer_norm1", "norm2": "layer_norm2"}.items():
        leaves += [
            layers(f"{ours}_scale", f"{theirs}.weight", same()),
            layers(f"{ours}_bias", f"{theirs}.bias", same()),
        ]
    for name in "qkv":
        leaves.append(layers(name, f"self_attn.{name}_proj.weight", matrix(*heads)))
        if config.qkv_biases:
            leaves.append(layers(f"{name}_bias", f"self_attn.{name}_proj.bias", same(*heads)))
    leaves += [
        layers("o", "self_attn.out_proj.weight", matrix_from(*heads)),
        layers("o_bias", "self_attn.out_proj.bias", same()),
    ]
    for ours, theirs in {"up": "mlp.fc1", "down": "mlp.fc2"}.items():
        leaves += [layers(ours, f"{theirs}.weight", matrix()), layers(f"{ours}_bias", f"{theirs}.bias", same())]
    if config.final_norm:
        leaves += [
            leaf("norm_scale", "post_layernorm.weight", same()),
            leaf("norm_bias", "post_layernorm.bias", same()),
        ]
    return leaves + (_head_leaves(leaf, d, heads) if config.pool else [])


def _head_leaves(leaf, d: int, heads: tuple[int, int]) -> list[Leaf]:
    """The leaves of the attention-pool head, whose q, k and v are one array of theirs."""
    leaves = [leaf("probe", "head.probe", reshaped((d,), (1, 1, d)))]
    for i, name in enumerate("qkv"):
        rows = (i * d, (i + 1) * d)
        leaves.append(leaf(f"head.{name}", "head.attention.in_proj_weight", matrix(*heads), rows))
        leaves.append(leaf(f"head.{name}_bias", "head.attention.in_proj_bias", same(*heads), rows))
    leaves.append(leaf("head.o", "head.attention.out_proj.weight", matrix_from(*heads)))
    leaves.append(leaf("head.o_bias", "head.attention.out_proj.bias", same()))
    leaves.append(leaf("head.norm_scale", "head.layernorm.weight", same()))
    leaves.append(leaf("head.norm_bias", "head.layernorm.bias", same()))
    for ours, theirs in {"up": "mlp.fc1", "down": "mlp.fc2"}.items():
        leaves.append(leaf(f"head.{ours}", f"head.{theirs}.weight", matrix()))
        leaves.append(leaf(f"head.{ours}_bias", f"head.{theirs}.bias", same()))
    return leaves
