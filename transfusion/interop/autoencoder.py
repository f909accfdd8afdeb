"""KL autoencoders of latent diffusion, as diffusers publishes them (AutoencoderKL) and under their makers' names.

These are latent diffusion's own (CompVis, arXiv 2112.10752), alone or as the first stage of a whole Stable Diffusion
checkpoint ('first_stage_model.'), and FLUX's 'ae.safetensors', which BAGEL publishes again.
"""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import jax

from transfusion.codecs.kl_autoencoder import Autoencoder, AutoencoderConfig
from transfusion.config import Experiment
from transfusion.errors import UsageError
from transfusion.interop.family import Imported, class_names, fields, given
from transfusion.interop.leaves import Convert, Leaf, conv, conv_matrix, matrix, same
from transfusion.model.parameters import Template


@dataclasses.dataclass(frozen=True)
class Names:
    """Their names for ours.

    Attributes:
      attention: the parts of an attention.
      middle: the attention and the two blocks round it.
      parts: other parts; those that are missing here have our names.
      stages: of encoder and decoder, each with what changes the resolution.
      block: the residual blocks of a stage.
      from_the_image: whether the decoder's stages, too, are counted from the one next to the image.
      convert: of the attention's matrices.
    """

    attention: Mapping[str, str]
    middle: Mapping[str, str]
    parts: Mapping[str, str]
    stages: Mapping[str, tuple[str, str]]
    block: str
    from_the_image: bool
    convert: Convert


DIFFUSERS = Names(
    attention={"norm": "group_norm", "query": "to_q", "key": "to_k", "value": "to_v", "output": "to_out.0"},
    middle={"first": "mid_block.resnets.0", "attention": "mid_block.attentions.0", "second": "mid_block.resnets.1"},
    parts={"norm_out": "conv_norm_out", "shortcut": "conv_shortcut"},
    stages={"encoder": ("down_blocks", "downsamplers.0.conv"), "decoder": ("up_blocks", "upsamplers.0.conv")},
    block="resnets",
    from_the_image=False,
    convert=matrix(),
)
# Files from before diffusers 0.12 (2023), among them Stable Diffusion's own.
OLD_DIFFUSERS = dataclasses.replace(
    DIFFUSERS,
    attention={"norm": "group_norm", "query": "query", "key": "key", "value": "value", "output": "proj_attn"},
)
ORIGINAL = Names(
    attention={"norm": "norm", "query": "q", "key": "k", "value": "v", "output": "proj_out"},
    middle={"first": "mid.block_1", "attention": "mid.attn_1", "second": "mid.block_2"},
    parts={"shortcut": "nin_shortcut"},
    stages={"encoder": ("down", "downsample.conv"), "decoder": ("up", "upsample.conv")},
    block="block",
    from_the_image=True,
    convert=conv_matrix(),
)
FIRST_STAGE = "first_stage_model."


def claims(config: Mapping[str, Any], keys: Collection[str]) -> bool:
    return "AutoencoderKL" in class_names(config) or _prefix(keys) is not None


def _prefix(keys: Collection[str]) -> str | None:
    """What stands before the original names; None if they are not there, or belong to a quantised autoencoder."""
    for prefix in ("", FIRST_STAGE):
        if f"{prefix}encoder.mid.block_1.norm1.weight" in keys and f"{prefix}quantize.embedding.weight" not in keys:
            return prefix
    return None


def build(config: Mapping[str, Any], keys: Collection[str]) -> Imported:
    """See `transfusion.interop.family.Family`."""
    prefix, ignore = _prefix(keys), ()
    if prefix is not None:
        # Beside a first stage lies the rest of its checkpoint; with either, what only its training needs.
        names, ignore = ORIGINAL, (rf"{prefix}(loss|model_ema)\..*", *([rf"(?!{prefix}).*"] if prefix else ()))
    else:
        names = OLD_DIFFUSERS if any(key.endswith(".proj_attn.weight") for key in keys) else DIFFUSERS
    if "AutoencoderKL" in class_names(config):
        ours = autoencoder_config(config)
    else:
        ours = original_config(config or published(keys, prefix), f"{prefix}quant_conv.weight" in keys)
    template = Template(lambda rngs: Autoencoder(ours, rngs=rngs))
    paths = [tuple(k.key for k in path) for path, _ in jax.tree_util.tree_leaves_with_path(template.shapes)]
    leaves = [
        Leaf(path, (prefix or "") + their_key(path, names, len(ours.channels)), _convert(path, names)) for path in paths
    ]
    return Imported(template, leaves, Experiment(task="autoencoder", autoencoder=ours), ignore=ignore)


def published(keys: Collection[str], prefix: str) -> dict[str, Any]:
    """The config of a published file that has none beside it; sizes are those of all, and the rest is told by what the
    file holds (scales from the makers' inference code)."""
    sizes = {"ch": 128, "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2}
    if f"{prefix}quant_conv.weight" not in keys:
        scales = (1.5305, 0.0609) if prefix else (0.3611, 0.1159)  # Stable Diffusion 3, FLUX
        return sizes | {"z_channels": 16, "scale_factor": scales[0], "shift_factor": scales[1]}
    later = any(key.startswith("conditioner.") for key in keys)  # Stable Diffusion XL
    return sizes | {"z_channels": 4, "scale_factor": 0.13025 if later else 0.18215}


def original_config(config: Mapping[str, Any], quant: bool) -> AutoencoderConfig:
    """Our config of their makers' fields: FLUX's, or `ddconfig` of latent diffusion with what stands beside it.

    Raises:
      UsageError: naming the field that is not understood.
    """
    config = dict(config.get("ddconfig") or {}) | {k: v for k, v in config.items() if k != "ddconfig"}
    used = ("ch", "ch_mult", "num_res_blocks", "z_channels", "in_channels", "scale_factor", "shift_factor")
    images, latents = given(config, "in_channels", default=3), given(config, "z_channels")
    fixed = {"out_ch": images, "embed_dim": latents, "double_z": True, "attn_resolutions": [], "attn_type": "vanilla"}
    fields(config, used, ("resolution", "dropout"), fixed)
    factors, width = given(config, "ch_mult", list), given(config, "ch")
    if not factors or any(type(factor) is not int for factor in factors) or factors[0] != 1:
        raise UsageError(f"config.json: ch_mult {factors} must be whole numbers, of which the first is 1")
    return AutoencoderConfig(
        image_channels=images,
        channels=tuple(width * factor for factor in factors),
        latent_channels=latents,
        layers_per_block=given(config, "num_res_blocks"),
        norm_groups=32,
        quant_convs=quant,
        scale=given(config, "scale_factor", float),
        shift=given(config, "shift_factor", float, 0.0),
    )


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


def their_key(path: tuple[str | int, ...], names: Names, stages: int) -> str:
    """The released name of the parameter at our path, in an autoencoder of so many stages."""
    *parts, leaf = path
    name = "bias" if leaf == "bias" else "weight"
    if parts[0] in ("quant", "post_quant"):
        return f"{parts[0]}_conv.{name}"
    side, where, *rest = parts
    words = [side]
    if where == "middle":
        what, inner = rest
        words += [names.middle[what], (names.attention if what == "attention" else names.parts).get(inner, inner)]
    elif where == "stages":
        stage, what, *inner = rest
        folder, resample = names.stages[side]
        number = stages - 1 - stage if names.from_the_image and side == "decoder" else stage
        words += [folder, str(number)]
        words += [resample] if what == "resample" else [names.block, str(inner[0]), names.parts.get(inner[1], inner[1])]
    else:
        words.append(names.parts.get(where, where))
    return ".".join([*words, name])


def _convert(path: tuple[str | int, ...], names: Names) -> Convert:
    if path[-1] != "kernel":
        return same()
    return names.convert if "attention" in path else conv()
