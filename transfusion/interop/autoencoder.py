"""KL autoencoders of latent diffusion (diffusers' AutoencoderKL, as of Stable Diffusion and FLUX)."""

from collections.abc import Collection, Mapping
from typing import Any

import jax

from transfusion.codecs.kl_autoencoder import Autoencoder, AutoencoderConfig
from transfusion.config import Experiment
from transfusion.errors import UsageError
from transfusion.interop.family import Imported, class_names, fields, given
from transfusion.interop.leaves import Convert, Leaf, conv, matrix, same
from transfusion.model.parameters import Template

# Our name of a part -> theirs.
_ATTENTION = {"norm": "group_norm", "query": "to_q", "key": "to_k", "value": "to_v", "output": "to_out.0"}
# Files from before diffusers 0.12 (2023), among them Stable Diffusion's own.
_OLD_ATTENTION = {"norm": "group_norm", "query": "query", "key": "key", "value": "value", "output": "proj_attn"}
_RENAMED = {"norm_out": "conv_norm_out", "shortcut": "conv_shortcut"}
_BLOCKS = {"encoder": ("down_blocks", "downsamplers"), "decoder": ("up_blocks", "upsamplers")}


def claims(config: Mapping[str, Any], keys: Collection[str]) -> bool:
    return "AutoencoderKL" in class_names(config)


def build(config: Mapping[str, Any], keys: Collection[str]) -> Imported:
    """See `transfusion.interop.family.Family`."""
    ours = autoencoder_config(config)
    template = Template(lambda rngs: Autoencoder(ours, rngs=rngs))
    paths = [tuple(k.key for k in path) for path, _ in jax.tree_util.tree_leaves_with_path(template.shapes)]
    attention = _OLD_ATTENTION if any(key.endswith(".proj_attn.weight") for key in keys) else _ATTENTION
    leaves = [Leaf(path, their_key(path, attention), _convert(path)) for path in paths]
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


def their_key(path: tuple[str | int, ...], attention: Mapping[str, str] = _ATTENTION) -> str:
    """The released name of the parameter at our path; `attention` names the parts of an attention."""
    *parts, leaf = path
    name = "bias" if leaf == "bias" else "weight"
    if parts[0] in ("quant", "post_quant"):
        return f"{parts[0]}_conv.{name}"
    side, where, *rest = parts
    if where == "middle":
        what, *inner = rest
        if what == "attention":
            words = [side, "mid_block", "attentions.0", attention[inner[0]]]
        else:
            number = ("first", "second").index(what)
            words = [side, "mid_block", f"resnets.{number}", _RENAMED.get(inner[0], inner[0])]
    elif where == "stages":
        blocks, resample = _BLOCKS[side]
        stage, what, *inner = rest
        found = f"{resample}.0.conv" if what == "resample" else f"resnets.{inner[0]}.{_RENAMED.get(inner[1], inner[1])}"
        words = [side, blocks, str(stage), found]
    else:
        words = [side, _RENAMED.get(where, where)]
    return ".".join([*words, name])


def _convert(path: tuple[str | int, ...]) -> Convert:
    if path[-1] != "kernel":
        return same()
    return matrix() if "attention" in path else conv()
