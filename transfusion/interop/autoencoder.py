"""KL autoencoders of latent diffusion, as diffusers publishes them (AutoencoderKL) and under their makers' own names.

The makers' names are those of latent diffusion (CompVis, arXiv 2112.10752), alone or as the first stage of a whole
Stable Diffusion checkpoint ('first_stage_model.'), and of FLUX's 'ae.safetensors', which BAGEL publishes again.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

import jax

from transfusion.codecs.autoencoder_config import AutoencoderConfig
from transfusion.codecs.kl_autoencoder import Autoencoder
from transfusion.config import Experiment
from transfusion.errors import UsageError
from transfusion.interop.converts import Convert, conv, matrix, pointwise, same
from transfusion.interop.family import Imported
from transfusion.interop.fields import class_names, fields, given, positive, whole_numbers
from transfusion.interop.leaves import Leaf
from transfusion.interop.opening import short
from transfusion.model.parameters import Template

Rules = tuple[tuple[str, str], ...]
# From our names, joined with dots, to theirs: regular expressions and their replacements, applied one after the other.
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
# Further rules for files from before diffusers 0.12 (2023), among them Stable Diffusion's own.
_OLD: Rules = (
    (r"\.to_q\.", ".query."), (r"\.to_k\.", ".key."), (r"\.to_v\.", ".value."),
    (r"\.to_out\.0\.", ".proj_attn."),
)  # fmt: skip
# Latent diffusion's own names (those of taming transformers), which other makers keep.
ORIGINAL: Rules = (
    (r"^(post_)?quant\.", r"\1quant_conv."),
    (r"^encoder\.stages\.", "encoder.down."), (r"^decoder\.stages\.", "decoder.up."),
    (r"(\.down\.\d+)\.resample", r"\1.downsample.conv"), (r"(\.up\.\d+)\.resample", r"\1.upsample.conv"),
    (r"\.blocks\.", ".block."), (r"\.attentions\.", ".attn."), (r"\.shortcut\.", ".nin_shortcut."),
    (r"\.middle\.first\.", ".mid.block_1."), (r"\.middle\.second\.", ".mid.block_2."),
    (r"\.middle\.attention\.", ".mid.attn_1."), (r"\.query\.", ".q."), (r"\.key\.", ".k."), (r"\.value\.", ".v."),
    (r"\.output\.", ".proj_out."), (r"\.(kernel|scale)$", ".weight"),
)  # fmt: skip
FIRST_STAGE = "first_stage_model."


def renamed(path: tuple[str | int, ...], rules: Rules) -> str:
    """Their name for the parameter at our path."""
    name = ".".join(map(str, path))
    for pattern, other in rules:
        name = re.sub(pattern, other, name)
    return name


def finest_first(path: tuple[str | int, ...], stages: int) -> tuple[str | int, ...]:
    """Our path, in which the decoder's stages are counted from the one next to the image."""
    if path[:2] != ("decoder", "stages"):
        return path
    return (*path[:2], stages - 1 - int(path[2]), *path[3:])


def claims(config: Mapping[str, Any], keys: Collection[str]) -> bool:
    return "AutoencoderKL" in class_names(config) or _prefix(keys) is not None


def _prefix(keys: Collection[str]) -> str | None:
    """The prefix of the original names; None if there are none, or they belong to a quantised autoencoder."""
    for prefix in ("", FIRST_STAGE):
        if f"{prefix}encoder.mid.block_1.norm1.weight" in keys and f"{prefix}quantize.embedding.weight" not in keys:
            return prefix
    return None


def build(config: Mapping[str, Any], keys: Collection[str]) -> Imported:
    """See `transfusion.interop.family.Family`."""
    prefix, ignore = _prefix(keys), ()
    if prefix is not None:
        # Beside a first stage lies the rest of its checkpoint. Arrays that only training needs are ignored, too.
        rules, ignore = ORIGINAL, (rf"{prefix}(loss|model_ema)\..*", *([rf"(?!{prefix}).*"] if prefix else ()))
    else:
        rules = (*DIFFUSERS, *_OLD) if any(key.endswith(".proj_attn.weight") for key in keys) else DIFFUSERS
    if "AutoencoderKL" in class_names(config):
        ours = autoencoder_config(config)
    else:
        ours = original_config(config or published(keys, prefix), f"{prefix}quant_conv.weight" in keys)
    template = Template(lambda rngs: Autoencoder(ours, rngs=rngs))
    paths = [tuple(k.key for k in path) for path, _ in jax.tree_util.tree_leaves_with_path(template.shapes)]
    leaves = []
    for path in paths:
        theirs = path if prefix is None else finest_first(path, len(ours.channels))
        leaves.append(Leaf(path, (prefix or "") + renamed(theirs, rules), _convert(path, prefix is not None)))
    return Imported(template, leaves, Experiment(task="autoencoder", autoencoder=ours), ignore=ignore)


def published(keys: Collection[str], prefix: str) -> dict[str, Any]:
    """The config of a published file that has none beside it.

    The sizes are the same in all such files. The rest is told from the file's arrays, with scales from the makers'
    inference code.
    """
    sizes = {"ch": 128, "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2}
    if f"{prefix}quant_conv.weight" not in keys:
        scales = (1.5305, 0.0609) if prefix else (0.3611, 0.1159)  # Stable Diffusion 3, FLUX
        return sizes | {"z_channels": 16, "scale_factor": scales[0], "shift_factor": scales[1]}
    later = any(key.startswith("conditioner.") for key in keys)  # Stable Diffusion XL
    return sizes | {"z_channels": 4, "scale_factor": 0.13025 if later else 0.18215}


def original_config(config: Mapping[str, Any], quant: bool) -> AutoencoderConfig:
    """Our config of the makers' fields: FLUX's, or latent diffusion's `ddconfig` with the fields beside it.

    Raises:
      UsageError: naming the field that is not understood.
    """
    config = given(config, "ddconfig", dict, {}) | {k: v for k, v in config.items() if k != "ddconfig"}
    used = ("ch", "ch_mult", "num_res_blocks", "z_channels", "in_channels", "scale_factor", "shift_factor")
    images, latents = given(config, "in_channels", default=3), given(config, "z_channels")
    fixed = {"out_ch": images, "embed_dim": latents, "double_z": True, "attn_resolutions": [], "attn_type": "vanilla"}
    fields(config, used, ("resolution", "dropout"), fixed)
    factors, width = whole_numbers(config, "ch_mult"), given(config, "ch")
    if not factors or factors[0] != 1:
        raise UsageError(f"config.json: ch_mult {short(list(factors))} must be whole numbers, of which the first is 1")
    return AutoencoderConfig(
        image_channels=images,
        channels=tuple(width * factor for factor in factors),
        latent_channels=latents,
        layers_per_block=given(config, "num_res_blocks"),
        norm_groups=32,
        quant_convs=quant,
        scale=positive(config, "scale_factor"),
        shift=given(config, "shift_factor", float, 0.0),
    )


def autoencoder_config(config: Mapping[str, Any]) -> AutoencoderConfig:
    """Our config of a diffusers config.

    Raises:
      UsageError: naming the field that is not understood.
    """
    channels = whole_numbers(config, "block_out_channels")
    if not channels:
        raise UsageError("config.json: block_out_channels is missing or empty")
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
    # force_upcast asks for float32, in which ours computes; sample_size is the size of the training images.
    fields(config, used, ("sample_size", "force_upcast"), fixed)
    images, quant = given(config, "in_channels", default=3), given(config, "use_quant_conv", bool, True)
    for name, other, kind in (("out_channels", images, int), ("use_post_quant_conv", quant, bool)):
        if given(config, name, kind, 3 if kind is int else True) != other:
            raise UsageError(f"config.json: {name} is {short(config.get(name))}, and only {other!r} is understood")
    return AutoencoderConfig(
        image_channels=images,
        channels=channels,
        latent_channels=given(config, "latent_channels", default=4),
        layers_per_block=given(config, "layers_per_block", default=1),
        norm_groups=given(config, "norm_num_groups", default=32),
        middle_attention=given(config, "mid_block_add_attention", bool, True),
        quant_convs=quant,
        scale=positive(config, "scaling_factor", 0.18215),
        shift=given(config, "shift_factor", float, 0.0),
    )


def _convert(path: tuple[str | int, ...], convolved: bool) -> Convert:
    """The conversion of a parameter. With `convolved`, an attention's matrices are convolutions of one pixel."""
    if path[-1] != "kernel":
        return same()
    linear = pointwise() if convolved else matrix()
    return linear if {"attention", "attentions"} & {*path} else conv()
