"""Models with one vocabulary for text and image codes: Chameleon (arXiv 2405.09818) and Emu3 (arXiv 2409.18869).

The trunk is a text model. An image is written as the tokens that the codes of the VQ model have in the vocabulary. The
checkpoint's vocabulary says which token a code has; the tokens need not be in the order of the codes.
"""

import dataclasses
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from transfusion.config import Experiment
from transfusion.errors import UsageError
from transfusion.interop.converts import same
from transfusion.interop.family import Imported
from transfusion.interop.fields import class_names, fields, given
from transfusion.interop.language import IGNORED, TEXT_MODELS, trunk_config, with_defaults
from transfusion.interop.leaves import Leaf
from transfusion.interop.modules import block_leaves, layer_keys, token_leaves
from transfusion.interop.vq import part
from transfusion.model.config import TransformerConfig
from transfusion.model.unified import model_template
from transfusion.sequence import TEXT, Released, Run, Stream

CHAMELEON, EMU3 = "ChameleonForConditionalGeneration", "Emu3ForConditionalGeneration"
# The names of image codes in a vocabulary, and how they give the code: IMGIMGBCZ and <|visual token 000012|> are 12.
_NAMES: tuple[tuple[str, Callable[[str], int]], ...] = (
    (r"IMGIMG([A-J]+)Z", lambda letters: int("".join(str(ord(letter) - ord("A")) for letter in letters))),
    (r"<\|visual token (\d+)\|>", int),
)
# Defaults of the class, which configs leave out.
_CHAMELEON = {
    "vocab_size": 65536, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
}  # fmt: skip


def claims_chameleon(config: Mapping[str, Any], keys: Collection[str]) -> bool:
    names = class_names(config)
    return CHAMELEON in names or (not names and config.get("model_type") == "chameleon")


def claims_emu3(config: Mapping[str, Any], keys: Collection[str]) -> bool:
    names = class_names(config)
    return EMU3 in names or (not names and config.get("model_type") == "emu3")


def build_chameleon(config: Mapping[str, Any], keys: Collection[str]) -> Imported:
    """See `transfusion.interop.family.Family`.

    Queries and keys have a LayerNorm per head. In a model that was trained on several devices, the norms are equal in
    each group of heads (there are `model_parallel_size` groups); their weights are stored for every head.
    """
    text = dict(config)
    own = ("vq_config", "vocabulary_map", "image_token_id", "swin_norm", "model_parallel_size", "tie_word_embeddings")
    for name in own:
        text.pop(name, None)
    model = trunk_config(with_defaults(text, _CHAMELEON), "LlamaForCausalLM", qk_norm="layer")
    if model.size * model.heads != model.width:
        raise UsageError("config.json: num_attention_heads must divide hidden_size")
    swin = given(config, "swin_norm", bool, False)
    model = dataclasses.replace(model, norm_place="post" if swin else "pre")
    tied = given(config, "tie_word_embeddings", bool, False)
    vocabulary = given(config, "vocab_size", default=_CHAMELEON["vocab_size"])
    codec = part("ChameleonVQVAE", given(config, "vq_config", dict, {}), "config.json, vq_config", "model.vqmodel.")
    return _imported(model, vocabulary, tied, keys, "model", "lm_head.weight", codec)


def build_emu3(config: Mapping[str, Any], keys: Collection[str]) -> Imported:
    """See `transfusion.interop.family.Family`; with the names of old and new releases."""
    fields(config, ("text_config", "vq_config", "vocabulary_map", "image_token_id", "tie_word_embeddings"))
    text = given(config, "text_config", dict, {})
    old = any(key.startswith("text_model.") for key in keys)
    # Old releases have the flag in the text model's config, new ones in that of the whole.
    tied = any(given(table, "tie_word_embeddings", bool, False) for table in (config, text))
    model = trunk_config(text, "Emu3ForCausalLM", "config.json, text_config")
    vocabulary = given(text, "vocab_size", default=TEXT_MODELS["Emu3ForCausalLM"]["defaults"]["vocab_size"])
    names = ("text_model.model", "text_model.lm_head.weight") if old else ("model.text_model", "lm_head.weight")
    prefix = "vqmodel." if old else "model.vqmodel."
    codec = part("Emu3VQVAE", given(config, "vq_config", dict, {}), "config.json, vq_config", prefix)
    return _imported(model, vocabulary, tied, keys, *names, codec)


def _imported(
    model: TransformerConfig, vocabulary: int, tied: bool, keys: Collection[str], prefix: str, head: str,
    codec: Imported,
) -> Imported:  # fmt: skip
    tied = tied and head not in keys
    text = Stream(vocabulary=vocabulary, budget=2048, released=Released(tied=tied))
    experiment = Experiment(model=model, streams={TEXT: text}, layout={TEXT: (Run(TEXT),)})
    leaves = token_leaves(f"{prefix}.embed_tokens.weight", head, tied)
    leaves += block_leaves(model, ("trunk", "blocks", text.expert), layer_keys(f"{prefix}.layers", model.layers))
    leaves.append(Leaf(("trunk", "final_norm", text.expert), f"{prefix}.norm.weight", same()))
    template = model_template(model, experiment.spec)
    return Imported(template, leaves, experiment, (*IGNORED, *codec.ignore), codec=codec)


def image_tokens(vocabulary: Mapping[str, int], codes: int) -> tuple[int, ...]:
    """The token of each of `codes` image codes, found by the tokens' names.

    Raises:
      UsageError: if a code has no token or several, or two codes have the same token.
    """
    tokens: dict[int, int] = {}
    for name, token in vocabulary.items():
        for pattern, code_of in _NAMES:
            found = re.fullmatch(pattern, name)
            if found:
                code = code_of(found[1])
                if code in tokens:
                    raise UsageError(f"config.json, vocabulary_map: the image code {code} has two tokens")
                tokens[code] = token
    missing = sorted(set(range(codes)) - tokens.keys())
    if missing:
        raise UsageError(f"config.json, vocabulary_map: the image code {missing[0]} has no token")
    if len(set(tokens.values())) < len(tokens):
        raise UsageError("config.json, vocabulary_map: two image codes have the same token")
    return tuple(tokens[code] for code in range(codes))
