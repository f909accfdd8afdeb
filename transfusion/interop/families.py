"""The families of released checkpoints that are understood, and which of them a folder belongs to."""

from transfusion.errors import UsageError
from transfusion.interop import autoencoder, bagel, diffusion, janus, language, showo2, siglip, vocabulary, vq
from transfusion.interop.family import Family, Imported, class_names
from transfusion.interop.files import Checkpoint

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family("autoencoder", autoencoder.claims, autoencoder.build),
        Family("vq", vq.claims, vq.build),
        Family("bagel", bagel.claims, bagel.build, bagel.TOKENS),
        Family("showo2", showo2.claims, showo2.build),
        Family("chameleon", vocabulary.claims_chameleon, vocabulary.build_chameleon),
        Family("emu3", vocabulary.claims_emu3, vocabulary.build_emu3),
        Family("janus", janus.claims, janus.build),
        Family("language", language.claims, language.build),
        Family("dit", diffusion.claims_of("DiTTransformer2DModel"), diffusion.build_dit),
        Family("sd3", diffusion.claims_of("SD3Transformer2DModel"), diffusion.build_sd3),
        Family("omnigen", diffusion.claims_of("OmniGenTransformer2DModel"), diffusion.build_omnigen),
        Family("cosmos3", diffusion.claims_of("Cosmos3OmniTransformer"), diffusion.build_cosmos3),
        Family("siglip", siglip.claims, siglip.build),
    )
}


def find_family(checkpoint: Checkpoint) -> tuple[Family, Imported]:
    """The family of a checkpoint, and how it becomes ours.

    Raises:
      UsageError: if no family claims it, or it has a field that its family does not understand.
    """
    keys = checkpoint.keys()
    for family in FAMILIES.values():
        if family.claims(checkpoint.config, keys):
            return family, family.build(checkpoint.config, keys)
    names = ", ".join(class_names(checkpoint.config)) or checkpoint.config.get("model_type") or "no class"
    raise UsageError(
        f"{checkpoint.folder}: config.json names {names}, which is not understood; there are {', '.join(FAMILIES)}"
    )
