"""The table of all known families of released checkpoints, and the search for the family of a folder."""

from collections.abc import Mapping
from typing import Any

from transfusion.errors import UsageError
from transfusion.interop import (
    autoencoder,
    bagel,
    cosmos3,
    dit,
    janus,
    language,
    omnigen,
    sd3,
    showo2,
    siglip,
    vocabulary,
    vq,
)
from transfusion.interop.family import Family, Imported
from transfusion.interop.fields import class_names, ignoring
from transfusion.interop.files import Checkpoint
from transfusion.interop.opening import short

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family("autoencoder", ("AutoencoderKL",), autoencoder.claims, autoencoder.build),
        Family("vq", tuple(vq.VQ_MODELS), vq.claims, vq.build),
        Family("bagel", ("BagelForConditionalGeneration",), bagel.claims, bagel.build, bagel.TOKENS),
        Family("showo2", ("Showo2Qwen2_5",), showo2.claims, showo2.build),
        Family("chameleon", (vocabulary.CHAMELEON,), vocabulary.claims_chameleon, vocabulary.build_chameleon),
        Family("emu3", (vocabulary.EMU3,), vocabulary.claims_emu3, vocabulary.build_emu3),
        Family("janus", ("JanusForConditionalGeneration",), janus.claims, janus.build),
        Family("language", tuple(language.TEXT_MODELS), language.claims, language.build),
        Family("dit", ("DiTTransformer2DModel",), dit.claims, dit.build),
        Family("sd3", ("SD3Transformer2DModel",), sd3.claims, sd3.build),
        Family("omnigen", ("OmniGenTransformer2DModel",), omnigen.claims, omnigen.build),
        Family("cosmos3", ("Cosmos3OmniTransformer",), cosmos3.claims, cosmos3.build),
        Family("siglip", siglip.MODELS, siglip.claims, siglip.build),
    )
}
# Fields that count layers, each of which has arrays of its own. So no count is larger than the number of arrays.
_COUNTS = ("num_hidden_layers", "num_layers", "num_diffusion_layers", "layers_per_block", "num_res_blocks", "depth")
_STAGES = ("block_out_channels", "channel_multiplier", "ch_mult", "down_block_types", "up_block_types")


def find_family(checkpoint: Checkpoint, ignore_fields: tuple[str, ...] = ()) -> tuple[Family, Imported]:
    """The family of a checkpoint, and how the checkpoint becomes ours.

    Args:
      ignore_fields: fields of config.json that are passed over.

    Raises:
      UsageError: if no family claims it, or it has a field that its family does not understand.
    """
    keys, config = checkpoint.keys(), ignoring(checkpoint.config, ignore_fields)
    for family in FAMILIES.values():
        if family.claims(config, keys):
            _check_counts(config, len(keys))
            return family, family.build(config, keys)
    names = ", ".join(class_names(config)) or config.get("model_type")
    says = f"names {str(names)[:200]}, which is not understood" if names else "names no class"
    known = ", ".join(name for family in FAMILIES.values() for name in family.classes)
    raise UsageError(f"{checkpoint.folder}: config.json {says}; there are {known}")


def _check_counts(config: Mapping[str, Any], arrays: int, where: str = "config.json") -> None:
    """Refuses a config that asks for more layers than the files have arrays, before anything is built.

    A list of a thousand million layers would fill the memory.
    """
    blocks = 1
    for name in _COUNTS:
        value = config.get(name)
        if type(value) is int and value > arrays:
            raise UsageError(f"{where}: {name} is {short(value)}, and the files hold {arrays} arrays")
        if name in ("layers_per_block", "num_res_blocks") and type(value) is int:
            blocks = value
    for name in _STAGES:
        value = config.get(name)
        if isinstance(value, list) and len(value) * blocks > arrays:
            raise UsageError(
                f"{where}: {name} lists {len(value)} stages of {blocks} blocks, and the files hold {arrays} arrays"
            )
    for name, part in config.items():
        if isinstance(part, dict) and (name.endswith("_config") or name == "ddconfig") and where == "config.json":
            _check_counts(part, arrays, f"config.json, {name}")
