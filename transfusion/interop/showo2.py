"""Show-o2 (arXiv 2506.15564): a text model over text and fused image tokens, a flow head over all of it."""

import dataclasses
import functools
from collections.abc import Collection, Mapping
from typing import Any

from transfusion.config import Experiment
from transfusion.interop.converts import matrix, patches, same
from transfusion.interop.family import Imported
from transfusion.interop.fields import class_names, fields, given, positive
from transfusion.interop.language import IGNORED, rotary, trunk_config
from transfusion.interop.leaves import Leaf
from transfusion.interop.modules import (
    IMAGE,
    LAYER_NAMES,
    block_leaves,
    dense_leaves,
    imported,
    layer_keys,
    perceptron_leaves,
)
from transfusion.interop.siglip import vit_config, vit_leaves
from transfusion.model.config import ReleasedTrunk, Stage, TransformerConfig
from transfusion.sequence import TEXT, Released, Stream, TimeConfig
from transfusion.sequence.layouts import transfusion as transfusion_layout

FLOW = "head"  # the stage that predicts the velocity
# The defaults of Show-o2's DiffusionHeadConfig, which `diffusion_head_config` in config.json replaces.
FLOW_CONFIG = {
    "hidden_size": 2048, "head_dim": 64, "intermediate_size": 8192, "num_attention_heads": 32,
    "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "qk_norm": True,
    "rope_scaling": {
        "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
}  # fmt: skip


def claims(config: Mapping[str, Any], keys: Collection[str]) -> bool:
    return any(name.startswith("Showo2") for name in class_names(config))


def build(config: Mapping[str, Any], keys: Collection[str]) -> Imported:
    """See `transfusion.interop.family.Family`.

    Besides the published fields, config.json must hold the configs that Show-o2's code takes from other checkpoints:
    `llm_config` (Qwen2) and `vision_config` (SigLIP, without the layer that is dropped).
    """
    used = (
        "llm_vocab_size image_latent_dim image_latent_height image_latent_width patch_size hidden_size clip_latent_dim "
        "num_diffusion_layers llm_config vision_config diffusion_head_config"
    )
    harmless = (
        "llm_model_path load_from_showo clip_pretrained_model_path video_latent_height video_latent_width model_name "
        "frozen_params params_not_load"
    )
    fields(config, used.split(), harmless.split(), {"add_time_embeds": True, "add_qk_norm": (False, True)})
    llm = trunk_config(given(config, "llm_config", dict), "Qwen2ForCausalLM", "config.json, llm_config")
    channels, patch = given(config, "image_latent_dim", default=16), given(config, "patch_size", default=2)
    rows, columns = (given(config, f"image_latent_{side}", default=16) for side in ("height", "width"))
    tower = vit_config(given(config, "vision_config", dict) | {"vision_use_head": False}, "config.json, vision_config")
    tower = dataclasses.replace(tower, channels=channels, patch=patch, grid=(rows, columns), final_norm=False)
    flow = _flow(config)
    bridged = "diff_proj.0.weight" in keys
    stage = Stage(flow, "mlp" if bridged else "none")
    model = dataclasses.replace(llm, towers={IMAGE: tower}, stages={FLOW: stage})
    grid = (rows * patch, columns * patch)
    image = Stream(
        embed="dual", head="row_major", objective="continuous", attention="block", time="token_adaln",
        channels=channels, patch=patch, grid=grid, budget=rows * columns + 1,
        released=Released(time=TimeConfig(scale=1.0)),
    )  # fmt: skip
    text = Stream(vocabulary=given(config, "llm_vocab_size"), budget=512, head_after="trunk")
    experiment = Experiment(model=model, streams={TEXT: text, IMAGE: image}, layout=transfusion_layout(cap=0.0))
    return imported(experiment, _leaves(experiment, bridged), IGNORED)


def _flow(config: Mapping[str, Any]) -> TransformerConfig:
    """The trunk of the flow head."""
    where = "config.json, diffusion_head_config"
    head = FLOW_CONFIG | given(config, "diffusion_head_config", dict, {})
    fields(head, FLOW_CONFIG, where=where)
    number = functools.partial(given, head, where=where)
    theta, scaling = rotary(head, where)
    return TransformerConfig(
        width=number("hidden_size"), layers=given(config, "num_diffusion_layers", default=10),
        heads=number("num_attention_heads"), kv_heads=number("num_key_value_heads"), head_size=number("head_dim"),
        ffn=number("intermediate_size"), norm_epsilon=positive(head, "rms_norm_eps", where=where), final_norm=False,
        qk_norm="rms" if number("qk_norm", bool) else "none", rope_theta=theta,
        streams=(TEXT, IMAGE), released=ReleasedTrunk(rope_scaling=scaling),
    )  # fmt: skip


def _leaves(experiment: Experiment, bridged: bool) -> list[Leaf]:
    model, image, expert = experiment.model, experiment.streams[IMAGE], experiment.streams[IMAGE].expert
    flow, tower = model.stages[FLOW].trunk, model.towers[IMAGE]
    part, prefix = ("parts", IMAGE), "showo.model"
    leaves = block_leaves(model, ("trunk", "blocks", expert), layer_keys(f"{prefix}.layers", model.layers))
    leaves += [
        Leaf(("trunk", "final_norm", expert), f"{prefix}.norm.weight", same()),
        Leaf(("parts", TEXT, "embed", "table"), f"{prefix}.embed_tokens.weight", same()),
        Leaf(("parts", TEXT, "head", "kernel"), "showo.lm_head.weight", matrix()),
    ]
    layer = layer_keys("diffusion_head_a", flow.layers)
    leaves += block_leaves(flow, ("stages", FLOW, "blocks", expert), layer, LAYER_NAMES)
    at = ("stages", FLOW, "modulation", IMAGE)
    leaves.append(Leaf((*at, "kernel"), layer("adaLN_modulation.1.weight"), matrix()))
    leaves.append(Leaf((*at, "bias"), layer("adaLN_modulation.1.bias"), same()))
    head = (*part, "head")
    leaves.append(Leaf((*head, "norm"), "diffusion_head_b.norm_final.weight", same()))
    leaves += dense_leaves(head, "modulation", "diffusion_head_b.adaLN_modulation.1")
    leaves += dense_leaves(head, "", "diffusion_head_b.linear")
    leaves += perceptron_leaves((*part, "condition", "time"), "time_embed.mlp.0", "time_embed.mlp.2")
    if flow.width != model.width:
        leaves += dense_leaves((*part, "token"), "", "time_embed_proj")
    if bridged:
        leaves += perceptron_leaves(("bridges", FLOW, "layers"), "diff_proj.0", "diff_proj.2")
    embed = (*part, "embed")
    leaves += dense_leaves(embed, "", "image_embedder_gen.proj", patches(image.patch))
    leaves.append(Leaf((*embed, "norm"), "fusion_proj.0.weight", same()))
    leaves += perceptron_leaves((*embed, "connector"), "fusion_proj.1", "fusion_proj.3")
    # Show-o2's tower has neither embeddings nor a last norm of its own.
    renamed = {
        "embeddings.patch_embedding": "image_embedder_und.proj",
        "embeddings.position_embedding": "position_embedding",
    }
    for leaf in vit_leaves(tower, "", (*embed, "tower")):
        if isinstance(leaf.theirs, str):
            name, _, suffix = leaf.theirs.rpartition(".")
            leaves.append(Leaf(leaf.ours, f"{renamed[name]}.{suffix}", leaf.convert))
        else:
            keys = tuple(key.replace("encoder.", "und_trans.", 1) for key in leaf.theirs)
            leaves.append(Leaf(leaf.ours, keys, leaf.convert))
    return leaves
