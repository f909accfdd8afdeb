"""OmniGen of diffusers (arXiv 2409.11340). It predicts data - noise with data at t = 1, as ours does."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from transfusion.config import Experiment
from transfusion.interop.converts import matrix, patches, reshaped, same
from transfusion.interop.family import Imported
from transfusion.interop.fields import fields, given, positive
from transfusion.interop.language import check_factors, rotary
from transfusion.interop.leaves import Leaf
from transfusion.interop.modules import (
    CONTEXT,
    IMAGE,
    block_leaves,
    claims_of,
    dense_leaves,
    embedder_leaves,
    imported,
    layer_keys,
)
from transfusion.model.config import ReleasedTrunk, TransformerConfig
from transfusion.sequence import TEXT, Released, Run, Stream, TimeConfig

claims = claims_of("OmniGenTransformer2DModel")


def build(config: Mapping[str, Any], keys: Collection[str]) -> Imported:
    """OmniGenTransformer2DModel (arXiv 2409.11340): text, clean images, a noised image after a time token."""
    used = (
        "in_channels patch_size hidden_size rms_norm_eps num_attention_heads num_key_value_heads intermediate_size "
        "num_layers vocab_size max_position_embeddings original_max_position_embeddings rope_base rope_scaling "
        "pos_embed_max_size time_step_dim"
    )
    fixed = {"flip_sin_to_cos": True, "downscale_freq_shift": 0, "timestep_activation_fn": "silu"}
    fields(config, used.split(), fixed=fixed)
    heads, d = given(config, "num_attention_heads", default=32), given(config, "hidden_size", default=3072)
    n, f = given(config, "num_layers", default=32), given(config, "intermediate_size", default=8192)
    theta, scaling = rotary(
        {"max_position_embeddings": 131072, "original_max_position_embeddings": 4096}
        | {k: v for k, v in config.items() if k != "rope_base"}
        | {"rope_theta": positive(config, "rope_base", 10_000.0)}
        | ({"rope_scaling": {"type": "su"} | given(config, "rope_scaling", dict)} if config.get("rope_scaling") else {})
    )
    check_factors(scaling, d // heads, "config.json, rope_scaling")
    model = TransformerConfig(
        width=d, layers=n, heads=heads, kv_heads=given(config, "num_key_value_heads", default=32), ffn=f,
        norm_epsilon=positive(config, "rms_norm_eps", 1e-5), rope_theta=theta,
        released=ReleasedTrunk(rope_scaling=scaling),
    )  # fmt: skip
    channels, patch = given(config, "in_channels", default=4), given(config, "patch_size", default=2)
    table = given(config, "pos_embed_max_size", default=192)
    features = given(config, "time_step_dim", default=256)
    grid = (min(table, 64) * patch,) * 2
    shared = dict(
        embed="linear", attention="block", channels=channels, patch=patch, grid=grid,
        table="learned",
    )  # fmt: skip
    released = Released(table_grid=(table, table), centred=True)
    count = (grid[0] // patch) ** 2
    image = Stream(
        head="adaln", objective="continuous", time="token_before",
        released=dataclasses.replace(released, time=TimeConfig(features=features, scale=1.0)), budget=count + 1,
        **shared,
    )  # fmt: skip
    text = Stream(vocabulary=given(config, "vocab_size", default=32064), head="none", objective="none", budget=512)
    context = Stream(head="none", objective="none", budget=count, released=released, **shared)
    experiment = Experiment(
        model=model,
        streams={TEXT: text, CONTEXT: context, IMAGE: image},
        layout={TEXT: (Run(TEXT),), f"{IMAGE}/context": (Run(CONTEXT, time_low=1.0),), IMAGE: (Run(IMAGE),)},
    )
    return imported(experiment, _leaves(model, image))


def _leaves(model: TransformerConfig, image: Stream) -> list[Leaf]:
    (table, _), d, f = image.released.table_grid, model.width, model.ffn
    part, layer = ("parts", IMAGE), layer_keys("layers", model.layers)
    leaves = [Leaf(("parts", TEXT, "embed", "table"), "embed_tokens.weight", same())]
    for stream, theirs in ((IMAGE, "output"), (CONTEXT, "input")):
        leaves += dense_leaves(
            ("parts", stream, "embed"), "", f"patch_embedding.{theirs}_image_proj", patches(image.patch)
        )
        convert = reshaped((table, table, d), (1, table**2, d))
        leaves.append(Leaf(("parts", stream, "table", "table"), "patch_embedding.pos_embed", convert))
    leaves += embedder_leaves((*part, "time"), "time_token")
    leaves += embedder_leaves((*part, "head_time"), "t_embedder")
    names = {
        "attention_norm": "input_layernorm", "q": "self_attn.to_q", "k": "self_attn.to_k", "v": "self_attn.to_v",
        "o": "self_attn.to_out.0", "ffn_norm": "post_attention_layernorm", "down": "mlp.down_proj",
    }  # fmt: skip
    at = ("trunk", "blocks", image.expert)
    leaves += block_leaves(model, at, layer, names)
    leaves.append(Leaf((*at, "gate"), layer("mlp.gate_up_proj.weight"), matrix(), (0, f)))
    leaves.append(Leaf((*at, "up"), layer("mlp.gate_up_proj.weight"), matrix(), (f, 2 * f)))
    leaves.append(Leaf(("trunk", "final_norm", image.expert), "norm.weight", same()))
    leaves += dense_leaves((*part, "head"), "modulation", "norm_out.linear")
    leaves += dense_leaves((*part, "head"), "", "proj_out")
    return leaves
