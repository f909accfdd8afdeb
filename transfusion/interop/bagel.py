"""BAGEL (arXiv 2505.14683): a mixture of two transformers over text, a vision tower's tokens and latents.

One expert understands (text, the tower's tokens, the marks around images), one generates (latents). A drawn image
occurs as noised latents that only itself sees, then as clean latents and as the tower's tokens.
"""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from transfusion.config import Experiment
from transfusion.errors import UsageError
from transfusion.interop.converts import matrix, negated, reshaped, same
from transfusion.interop.family import Imported
from transfusion.interop.fields import class_names, fields, given, positive
from transfusion.interop.language import IGNORED, trunk_config
from transfusion.interop.leaves import Leaf
from transfusion.interop.modules import (
    GENERATION,
    LAYER_NAMES,
    SEMANTIC,
    UNDERSTANDING,
    block_leaves,
    dense_leaves,
    imported,
    layer_keys,
    perceptron_leaves,
    token_leaves,
)
from transfusion.interop.siglip import vit_config, vit_leaves
from transfusion.sampling.config import SamplerConfig
from transfusion.sequence import TEXT, Released, Stream, TimeConfig
from transfusion.sequence.layouts import bagel as bagel_layout

NOISED, CLEAN = "noised", "clean"
_HEAD = "language_model.lm_head"
TOKENS = {"bos": "<|im_start|>", "eos": "<|im_end|>", "boi": "<|vision_start|>", "eoi": "<|vision_end|>"}


def claims(config: Mapping[str, Any], keys: Collection[str]) -> bool:
    return config.get("model_type") == "bagel" or any(name.startswith("Bagel") for name in class_names(config))


def build(config: Mapping[str, Any], keys: Collection[str]) -> Imported:
    """See `transfusion.interop.family.Family`."""
    used = (
        "llm_config vit_config vae_config latent_patch_size max_latent_size vit_max_num_patch_per_side timestep_shift"
    )
    fixed = {
        "connector_act": "gelu_pytorch_tanh", "interpolate_pos": False, "visual_gen": True, "visual_und": True,
        "freeze_vae": True,
    }  # fmt: skip
    fields(config, used.split(), fixed=fixed)
    llm, vit, vae = (dict(given(config, name, dict, {})) for name in ("llm_config", "vit_config", "vae_config"))
    if llm.pop("layer_module", "Qwen2MoTDecoderLayer") != "Qwen2MoTDecoderLayer":
        raise UsageError("config.json, llm_config: only the layer_module 'Qwen2MoTDecoderLayer' is understood")
    normed, _ = given(llm, "qk_norm", bool, True, "config.json, llm_config"), llm.pop("freeze_und", None)
    llm.pop("qk_norm", None)
    tied = given(llm, "tie_word_embeddings", bool, False) and f"{_HEAD}.weight" not in keys
    vit.pop("rope", None)  # BAGEL's code sets it to False, whatever the file says
    # The published vit_config.json is SigLIP's own; BAGEL leaves out its last layer.
    stem = "vit_model.vision_model.encoder.layers."
    held = len({key.removeprefix(stem).partition(".")[0] for key in keys if key.startswith(stem)})
    if held and vit.get("num_hidden_layers") == held + 1:
        vit["num_hidden_layers"] = held
    model = trunk_config(llm, "Qwen2ForCausalLM", "config.json, llm_config", qk_norm="rms" if normed else "none")
    tower = vit_config(vit | {"vision_use_head": False}, "config.json, vit_config")
    vit_side, latent_side = given(config, "vit_max_num_patch_per_side", default=70), given(config, "max_latent_size")
    tower = dataclasses.replace(tower, grid=(vit_side, vit_side))
    model = dataclasses.replace(model, towers={SEMANTIC: tower})
    patch = given(config, "latent_patch_size", default=2)
    latent = Stream(
        embed="linear", head="linear", objective="continuous", attention="block", expert=GENERATION, time="added",
        channels=given(vae, "z_channels", default=16), patch=patch, table="learned", items=16, budget=16384,
        released=Released(time=TimeConfig(scale=1.0, reversed=True), table_grid=(latent_side, latent_side)),
    )  # fmt: skip
    streams = {
        TEXT: Stream(
            vocabulary=given(llm, "vocab_size"), budget=8192, expert=UNDERSTANDING, released=Released(tied=tied)
        ),
        NOISED: latent,
        CLEAN: dataclasses.replace(latent, parts=NOISED, objective="none"),
        SEMANTIC: Stream(
            embed="vit", head="none", objective="none", attention="block", expert=UNDERSTANDING, source="pixels",
            channels=tower.channels, patch=tower.patch, table="learned", items=16, budget=16384,
            released=Released(table_grid=(vit_side, vit_side)),
        ),
    }  # fmt: skip
    experiment = Experiment(
        model=model, streams=streams, layout=bagel_layout(),
        sampling=SamplerConfig(
            steps=49, shift=positive(config, "timestep_shift", 1.0), guidance=4.0, guidance_high=0.6,
            renorm="global",
        ),
    )  # fmt: skip
    return imported(experiment, _leaves(experiment), IGNORED)


def _leaves(experiment: Experiment) -> list[Leaf]:
    model, text, latent = experiment.model, experiment.streams[TEXT], experiment.streams[NOISED]
    tower, width = model.towers[SEMANTIC], model.width
    prefix, layer = "language_model.model", layer_keys("language_model.model.layers", model.layers)
    names = LAYER_NAMES | {"q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm"}
    # self_attn.q_proj -> self_attn.q_proj_moe_gen, mlp.up_proj -> mlp_moe_gen.up_proj
    others = {
        ours: name.replace("mlp.", "mlp_moe_gen.") if "mlp." in name else f"{name}_moe_gen"
        for ours, name in names.items()
    }
    blocks = ("trunk", "blocks")
    leaves = block_leaves(model, (*blocks, UNDERSTANDING), layer, names)
    leaves += block_leaves(model, (*blocks, GENERATION), layer, others)
    leaves += [
        Leaf(("trunk", "final_norm", UNDERSTANDING), f"{prefix}.norm.weight", same()),
        Leaf(("trunk", "final_norm", GENERATION), f"{prefix}.norm_moe_gen.weight", same()),
        *token_leaves(f"{prefix}.embed_tokens.weight", f"{_HEAD}.weight", text.released.tied),
    ]
    noised, semantic = ("parts", NOISED), ("parts", SEMANTIC)
    leaves += dense_leaves((*noised, "embed"), "", "vae2llm")
    leaves += perceptron_leaves((*noised, "time"), "time_embedder.mlp.0", "time_embedder.mlp.2")
    leaves += [
        Leaf((*noised, "head", "kernel"), "llm2vae.weight", negated(matrix())),
        Leaf((*noised, "head", "bias"), "llm2vae.bias", negated(same())),
    ]
    for at, stream, key in ((noised, latent, "latent_pos_embed"), (semantic, tower, "vit_pos_embed")):
        side = stream.released.table_grid[0] if at == noised else tower.grid[0]
        table = reshaped((side, side, width), (side * side, width))
        leaves.append(Leaf((*at, "table", "table"), f"{key}.pos_embed", table))
    leaves += perceptron_leaves((*semantic, "embed", "connector"), "connector.fc1", "connector.fc2")
    return leaves + vit_leaves(tower, "vit_model.vision_model.", (*semantic, "embed", "tower"), flat=True)
