"""KL autoencoders of latent diffusion (diffusers' AutoencoderKL, as of Stable Diffusion and FLUX)."""

import re
from collections.abc import Collection, Mapping
from typing import Any

import jax

from transfusion.codecs.kl_autoencoder import Autoencoder, AutoencoderConfig
from transfusion.config import Experiment
from transfusion.errors import UsageError
from transfusion.interop.family import Imported, class_names, fields, given
from transfusion.interop.leaves import Convert, Leaf, conv, matrix, same
from transfusion.model.parameters import Template

Rules = tuple[tuple[str, str], ...]
# Our names, joined with dots -> theirs: regular expressions and what replaces them, one after the other.
DIFFUSERS: Rules = (
    (r"^(post_)?quant\.", r"\1quant_conv."),
    (r"^encoder\.stages\.", "encoder.down_blocks."), (r"^decoder\.stages\.", "decoder.up_blocks."),
    (r"(\.down_blocks\.\d+)\.resample", r"\1.downsamplers.0.conv"),
    (r"(\.up_blocks\.\d+)\.resample", r"\1.upsamplers.0.conv"),
    (r"\.blocks\.", ".resnets."), (r"\.shortcut\.", ".conv_shortcut."), (r"\.norm_out\.", ".conv_norm_out."),
    (r"\.middle\.first\.", ".mid_block.resnets.0."), (r"\.middle\.second\.", ".mid_block.resnets.1."),
    (r"\.middle\.attention\.", ".mid_block.attentions.0."),
    (r"(\.attentions\.\d+\.)norm\.(scale|bias)$", r"\1group_norm.\2"),
    (r"(\.attentions\.\d+\.)norm\.", r"\1spatial_norm."),
    (r"\.query\.", ".to_q."), (r"\.key\.", ".to_k."), (r"\.value\.", ".to_v."), (r"\.output\.", ".to_out.0."),
    (r"\.group\.", ".norm_layer."), (r"\.gain\.", ".conv_y."), (r"\.offset\.", ".conv_b."),
    (r"\.(kernel|scale)$", ".weight"),
)  # fmt: skip
# Files from before diffusers 0.12 (2023), among them Stable Diffusion's own.
_OLD: Rules = (
    (r"\.to_q\.", ".query."), (r"\.to_k\.", ".key."), (r"\.to_v\.", ".value."),
    (r"\.to_out\.0\.", ".proj_attn."),
)  # fmt: skip


def renamed(path: tuple[str | int, ...], rules: Rules) -> str:
    """Their name of the parameter at our path."""
    name = ".".join(map(str, path))
    for pattern, other in rules:
        name = re.sub(pattern, other, name)
    return name


def claims(config: Mapping[str, Any], keys: Collection[str]) -> bool:
    return "AutoencoderKL" in class_names(config)


def build(config: Mapping[str, Any], keys: Collection[str]) -> Imported:
    """See `transfusion.interop.family.Family`."""
    ours = autoencoder_config(config)
    template = Template(lambda rngs: Autoencoder(ours, rngs=rngs))
    paths = [tuple(k.key for k in path) for path, _ in jax.tree_util.tree_leaves_with_path(template.shapes)]
    rules = (*DIFFUSERS, *_OLD) if any(key.endswith(".proj_attn.weight") for key in keys) else DIFFUSERS
    leaves = [Leaf(path, renamed(path, rules), _convert(path)) for path in paths]
    return Imported(template, leaves, Experiment(task="autoencoder", autoencoder=ours))


def autoencoder_config(config: Mapping[str, Any]) -> AutoencoderConfig:
    """Our config of a diffusers config.

    Raises:
      UsageError: naming the field that is not understood.
    """
    channels = tuple(given(config, "block_out_channels", list))
    if any(type(c) is not int for c in channels) or config.get("norm_num_groups") == 0:
        raise UsageError(f"config.json: block_out_channels {list(channels)} and norm_num_groups must be whole numbers")
    used = [
        "in_channels",
        "out_channels",
        "block_out_channels",
        "layers_per_block",
        "latent_channels",
        "norm_num_groups",
    ]
    used += ["scaling_factor", "shift_factor", "use_quant_conv", "use_post_quant_conv", "mid_block_add_attention"]
    fixed = {
        "down_block_types": ["DownEncoderBlock2D"] * len(channels),
        "up_block_types": ["UpDecoderBlock2D"] * len(channels),
        "act_fn": "silu",
        "latents_mean": None,
        "latents_std": None,
    }
    # force_upcast asks for float32, which ours computes in; sample_size is the size of the training images.
    fields(config, used, ("sample_size", "force_upcast"), fixed)
    images, quant = given(config, "in_channels", default=3), given(config, "use_quant_conv", bool, True)
    for name, other, kind in (("out_channels", images, int), ("use_post_quant_conv", quant, bool)):
        if given(config, name, kind, 3 if kind is int else True) != other:
            raise UsageError(f"config.json: {name} is {config.get(name)!r}, and only {other!r} is understood")
    return AutoencoderConfig(
        image_channels=images,
        channels=channels,
        latent_channels=given(config, "latent_channels", default=4),
        layers_per_block=given(config, "layers_per_block", default=1),
        norm_groups=given(config, "norm_num_groups", default=32),
        middle_attention=given(config, "mid_block_add_attention", bool, True),
        quant_convs=quant,
        scale=given(config, "scaling_factor", float, 0.18215),
        shift=given(config, "shift_factor", float, 0.0),
    )


def whole_numbers(config: Mapping[str, Any], name: str, where: str = "config.json") -> tuple[int, ...]:
    """A list of whole numbers; () where it is missing or null.

    Raises:
      UsageError: if it is anything else.
    """
    values = given(config, name, list, [], where)
    if any(type(value) is not int for value in values):
        raise UsageError(f"{where}: {name} {values} must be whole numbers")
    return tuple(values)


def _convert(path: tuple[str | int, ...]) -> Convert:
    if path[-1] != "kernel":
        return same()
    return matrix() if {"attention", "attentions"} & {*path} else conv()
