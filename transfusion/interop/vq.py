"""VQ models: diffusers' VQModel, and those of Chameleon, Janus and Emu3, alone or as a part of the whole model."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax

from transfusion.codecs.autoencoder_config import AutoencoderConfig
from transfusion.codecs.vq_autoencoder import autoencoder_template
from transfusion.config import Experiment
from transfusion.errors import UsageError
from transfusion.interop.autoencoder import DIFFUSERS, ORIGINAL, Rules, finest_first, renamed
from transfusion.interop.converts import Convert, conv, conv3d, matrix, pointwise, same
from transfusion.interop.family import Imported
from transfusion.interop.fields import class_names, fields, given, whole_numbers
from transfusion.interop.language import with_defaults
from transfusion.interop.leaves import Leaf
from transfusion.interop.opening import short
from transfusion.model.quantizers import QuantizerConfig

# Defaults of the classes, which configs leave out.
_CHAMELEON = {
    "embed_dim": 256, "num_embeddings": 8192, "latent_channels": 256, "resolution": 512, "in_channels": 3,
    "base_channels": 128, "channel_multiplier": [1, 1, 2, 2, 4], "num_res_blocks": 2, "attn_type": "vanilla",
}  # fmt: skip
_JANUS = {
    "embed_dim": 8, "num_embeddings": 16384, "latent_channels": 256, "in_channels": 3, "out_channels": 3,
    "base_channels": 128, "channel_multiplier": [1, 1, 2, 2, 4], "num_res_blocks": 2,
}  # fmt: skip
_EMU3 = {
    "codebook_size": 32768, "embed_dim": 4, "latent_channels": 4, "in_channels": 3, "out_channels": 3,
    "temporal_downsample_factor": 4, "base_channels": 256, "channel_multiplier": [1, 2, 2, 4], "num_res_blocks": 2,
    "attn_resolutions": [3], "hidden_size": 1024, "num_attention_heads": 1,
}  # fmt: skip
_VQMODEL = {
    "in_channels": 3, "out_channels": 3, "block_out_channels": [64], "layers_per_block": 1, "latent_channels": 3,
    "num_vq_embeddings": 256, "norm_num_groups": 32, "norm_type": "group", "mid_block_add_attention": True,
    "down_block_types": ["DownEncoderBlock2D"], "up_block_types": ["UpDecoderBlock2D"],
}  # fmt: skip


def _codes(number: int, channels: int, output: str = "") -> QuantizerConfig:
    """The quantizer of a released codebook, which further training changes by gradients."""
    return QuantizerConfig(codes=number, channels=channels, output=output, codebook="gradient")


def _stages(config: Mapping[str, Any], name: str, where: str) -> tuple[int, ...]:
    """A list of numbers, one for each resolution."""
    numbers = whole_numbers(config, name, where)
    if not numbers:
        raise UsageError(f"{where}: {name} must not be empty")
    return numbers


def _common(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields that all three classes of transformers have in common.

    Their norms have 32 groups. `norm_num_groups` is a field of ours, for small models.
    """
    number = functools.partial(given, config, where=where)
    base, images = number("base_channels"), number("in_channels")
    multiples = _stages(config, "channel_multiplier", where)
    if number("out_channels", default=images) != images:
        raise UsageError(f"{where}: out_channels must be in_channels, {images}")
    return {
        "image_channels": images, "channels": tuple(base * m for m in multiples), "stem": base,
        "latent_channels": number("latent_channels"), "layers_per_block": number("num_res_blocks"),
        "norm_groups": number("norm_num_groups", default=32),
    }  # fmt: skip


def chameleon_config(config: Mapping[str, Any], where: str) -> AutoencoderConfig:
    """Our config of a ChameleonVQVAEConfig. There is no decoder."""
    fixed = {"double_latent": False, "attn_type": ("vanilla", "none")}
    fields(config, (*_CHAMELEON, "attn_resolutions", "norm_num_groups"), (), fixed, where)
    attends = config["attn_type"] == "vanilla"
    sides = whole_numbers(config, "attn_resolutions", where) if attends else ()
    side, common = given(config, "resolution", where=where), _common(config, where)
    return AutoencoderConfig(
        form="vq", decodes=False, middle_attention=attends,
        encoder_attention=tuple(i for i in range(len(common["channels"])) if side >> i in sides),
        quantizer=_codes(given(config, "num_embeddings", where=where), given(config, "embed_dim", where=where)),
        **common,
    )  # fmt: skip


# Fields of a Janus model's `vq_config` that describe the codes' embed and head, and not the VQ model.
JANUS_REST = ("projection_dim", "num_hidden_layers", "hidden_act", "image_token_embed_dim", "num_patches")


def janus_config(config: Mapping[str, Any], where: str) -> AutoencoderConfig:
    """Our config of a JanusVQVAEConfig.

    As in transformers, a latent is compared with the codes as they are, and the decoder gets codes of length 1.
    DeepSeek's own code compares at length 1 as well.
    """
    fields(config, (*_JANUS, "norm_num_groups"), JANUS_REST, {"double_latent": False}, where)
    common = _common(config, where)
    last = (len(common["channels"]) - 1,)
    codes = (given(config, name, where=where) for name in ("num_embeddings", "embed_dim"))
    return AutoencoderConfig(
        form="vq", encoder_attention=last, decoder_attention=last, quantizer=_codes(*codes, "normalised"), **common
    )


def emu3_config(config: Mapping[str, Any], where: str) -> AutoencoderConfig:
    """Our config of an Emu3VQVAEConfig. An image is a clip that repeats it, and of which the first frame is shown."""
    fields(config, (*_EMU3, "norm_num_groups"), (), {"double_latent": False}, where)
    common = _common(config, where)
    channels, time = common["channels"], given(config, "temporal_downsample_factor", where=where)
    levels = whole_numbers(config, "attn_resolutions", where, least=0)
    levels = tuple(i for i in range(len(channels)) if i in levels)
    width = given(config, "hidden_size", where=where)
    if any(channels[i] != width for i in (*levels, -1)):
        raise UsageError(f"{where}: hidden_size {width} is not that of the attentions, {channels[-1]} channels")
    codes = (given(config, name, where=where) for name in ("codebook_size", "embed_dim"))
    return AutoencoderConfig(
        form="movq", frames="causal", time_down=time, code_norms=True, encoder_attention=levels,
        decoder_attention=levels, attention_heads=given(config, "num_attention_heads", where=where),
        quantizer=_codes(*codes), **common,
    )  # fmt: skip


def emu3_own_config(config: Mapping[str, Any], where: str) -> AutoencoderConfig:
    """Our config of the Emu3VisionVQConfig in Emu3's own code, which has other names and no heads."""
    words = {"ch": "base_channels", "ch_mult": "channel_multiplier", "z_channels": "latent_channels"}
    words |= {"double_z": "double_latent"}
    config = with_defaults({words.get(name, name): value for name, value in config.items()}, _EMU3)
    base, multiples = given(config, "base_channels", where=where), _stages(config, "channel_multiplier", where)
    return emu3_config(config | {"hidden_size": base * multiples[-1], "num_attention_heads": 1}, where)


def vqmodel_config(config: Mapping[str, Any], where: str) -> AutoencoderConfig:
    """Our config of diffusers' VQModel: latent diffusion's, or with 'spatial' norms Kandinsky's."""
    harmless = ("sample_size", "force_upcast", "scaling_factor", "lookup_from_codebook")
    images = given(config, "in_channels", where=where)
    fixed = {"act_fn": "silu", "norm_type": ("group", "spatial"), "out_channels": images}
    fields(config, (*_VQMODEL, "vq_embed_dim"), harmless, fixed, where)
    channels = _stages(config, "block_out_channels", where)
    attends = {}
    for name, plain in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        blocks = given(config, name, list, where=where)
        if len(blocks) != len(channels) or any(block not in (plain, f"Attn{plain}") for block in blocks):
            raise UsageError(f"{where}: {name} must be {len(channels)} of {plain} and Attn{plain}, not {short(blocks)}")
        attends[name] = [block != plain for block in blocks]
    if config["norm_type"] == "spatial" and config["norm_num_groups"] != 32:
        raise UsageError(f"{where}: spatial norms have 32 groups, so norm_num_groups must be 32")
    number, latent = functools.partial(given, config, where=where), given(config, "latent_channels", where=where)
    return AutoencoderConfig(
        form="vq", image_channels=images, channels=channels, latent_channels=latent,
        layers_per_block=number("layers_per_block"), norm_groups=number("norm_num_groups"),
        middle_attention=number("mid_block_add_attention", bool), code_norms=config["norm_type"] == "spatial",
        encoder_attention=tuple(i for i, yes in enumerate(attends["down_block_types"]) if yes),
        decoder_attention=tuple(i for i, yes in enumerate(attends["up_block_types"][::-1]) if yes),
        quantizer=_codes(number("num_vq_embeddings"), number("vq_embed_dim", default=latent)),
    )  # fmt: skip


_CODEBOOK = (r"^quantizer\.codebook$", "quantize.embedding.weight")
_TAMING: Rules = (_CODEBOOK, *ORIGINAL)
_TIME: Rules = (
    (r"^(post_)?quant\.", r"\1quant_conv.conv."),
    (r"^time_(encoder|decoder)\.(halve|double)\.(\d+)\.", r"\1.time_conv.\3.conv.conv."),
    (r"^time_(encoder|decoder)\.blocks\.(.*\.conv\d)\.", r"\1.time_res_stack.\2.conv."),
    (r"^time_(encoder|decoder)\.blocks\.", r"\1.time_res_stack."),
    (r"\.mean$", ".running_mean"), (r"\.variance$", ".running_var"),
    (r"\.group\.", ".norm_layer."), (r"\.gain\.", ".conv_y."), (r"\.offset\.", ".conv_b."),
)  # fmt: skip
_MOVQ: Rules = (
    _CODEBOOK, *_TIME,
    (r"^encoder\.stages\.", "encoder.down_block.down."), (r"^decoder\.stages\.", "decoder.up_block.up."),
    (r"(\.down\.\d+)\.resample", r"\1.downsample.conv"), (r"(\.up\.\d+)\.resample", r"\1.upsample.conv"),
    (r"\.blocks\.", ".block."), (r"\.shortcut\.", ".nin_shortcut."),
    (r"\.attentions\.(\d+)\.norm\.", r".attn_norms.\1."), (r"\.attentions\.", ".attn."),
    (r"\.middle\.first\.", ".middle_block.block_1."), (r"\.middle\.second\.", ".middle_block.block_2."),
    (r"\.middle\.attention\.norm\.", ".middle_block.attn_norm."), (r"\.middle\.attention\.", ".middle_block.attn_1."),
    (r"\.query\.", ".q_proj."), (r"\.key\.", ".k_proj."), (r"\.value\.", ".v_proj."), (r"\.output\.", ".out_proj."),
    (r"\.(kernel|scale)$", ".weight"),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Kind:
    """One class of VQ models.

    Attributes:
      name: the name of the class.
      model_type: the `model_type` in its config.
      config: a function that makes their config, with defaults, ours; its second argument names it in errors.
      defaults: the defaults of its config.
      rules: the rules from our names to theirs.
      linear: the conversion of kernels of one pixel.
      finest_first: whether they number the decoder's stages from the finest one on.
      ignore: regular expressions of keys that are not read.
    """

    name: str
    model_type: str
    config: Callable[[Mapping[str, Any], str], AutoencoderConfig]
    defaults: Mapping[str, Any]
    rules: Rules
    linear: Callable[[], Convert]
    finest_first: bool = False
    ignore: tuple[str, ...] = ()


_KINDS = (
    Kind("VQModel", "", vqmodel_config, _VQMODEL, (_CODEBOOK, *DIFFUSERS), matrix),
    Kind(
        "ChameleonVQVAE", "chameleon_vqgan", chameleon_config, _CHAMELEON, _TAMING, pointwise,
        ignore=(r"post_quant_conv\..*",),
    ),
    Kind("JanusVQVAE", "janus_vqgan", janus_config, _JANUS, _TAMING, pointwise),
    Kind(
        "Emu3VQVAE", "emu3_vqgan", emu3_config, _EMU3, _MOVQ, matrix, finest_first=True,
        ignore=(r".*\.num_batches_tracked",),
    ),
    Kind(
        "Emu3VisionVQModel", "Emu3VisionVQ", emu3_own_config, {}, (*_TIME, *_TAMING), pointwise, finest_first=True,
        ignore=(r".*\.num_batches_tracked",),
    ),
)  # fmt: skip
VQ_MODELS = {kind.name: kind for kind in _KINDS}


def vq_model_of(config: Mapping[str, Any]) -> str | None:
    """The class of `VQ_MODELS` that a config names; None if it names none of them."""
    for name, kind in VQ_MODELS.items():
        if name in class_names(config) or (
            not class_names(config) and kind.model_type == config.get("model_type", "-")
        ):
            return name
    return None


def claims(config: Mapping[str, Any], keys: Collection[str]) -> bool:
    return vq_model_of(config) is not None


def build(config: Mapping[str, Any], keys: Collection[str]) -> Imported:
    """See `transfusion.interop.family.Family`."""
    return part(vq_model_of(config), config, "config.json")


def part(name: str, config: Mapping[str, Any], where: str, prefix: str = "") -> Imported:
    """A VQ model of the class `name`, a key of `VQ_MODELS`. Its keys begin with `prefix`.

    Raises:
      UsageError: naming the field that is not understood.
    """
    kind = VQ_MODELS[name]
    ours = kind.config(with_defaults(config, kind.defaults), where)
    template = autoencoder_template(ours)
    leaves = []
    for path, shape in jax.tree_util.tree_leaves_with_path(template.shapes):
        path = tuple(key.key for key in path)
        theirs = finest_first(path, len(ours.channels)) if kind.finest_first else path
        leaves.append(Leaf(path, prefix + renamed(theirs, kind.rules), _convert(path, len(shape.shape), kind.linear)))
    ignore = tuple(prefix.replace(".", r"\.") + pattern for pattern in kind.ignore)
    return Imported(template, leaves, Experiment(task="autoencoder", autoencoder=ours), ignore)


def _convert(path: tuple[str | int, ...], axes: int, linear: Callable[[], Convert]) -> Convert:
    """The conversion of an array of ours with so many axes. An array that is no kernel stays as it is."""
    return {2: linear, 4: conv, 5: conv3d}[axes]() if path[-1] == "kernel" else same()
