"""DiT of diffusers (arXiv 2212.09748). It predicts the noise, and its time runs against ours."""

from collections.abc import Collection, Mapping
from typing import Any

from transfusion.config import Experiment
from transfusion.interop.converts import matrix, patches, same
from transfusion.interop.family import Imported
from transfusion.interop.fields import class_names, fields, given, positive
from transfusion.interop.leaves import Leaf
from transfusion.interop.modules import (
    IMAGE,
    block_leaves,
    dense_leaves,
    imported,
    latent_side,
    layer_keys,
)
from transfusion.model.config import ReleasedTrunk, TransformerConfig
from transfusion.objectives import ObjectivesConfig
from transfusion.objectives.paths import ContinuousConfig
from transfusion.sequence import Released, Run, Stream, TimeConfig


def claims(config: Mapping[str, Any], keys: Collection[str]) -> bool:
    """DiT was published before diffusers split a class of many models: Transformer2DModel with these norms."""
    old = "Transformer2DModel" in class_names(config) and config.get("norm_type") == "ada_norm_zero"
    return old or "DiTTransformer2DModel" in class_names(config)


def build(config: Mapping[str, Any], keys: Collection[str]) -> Imported:
    """DiTTransformer2DModel (arXiv 2212.09748): a class-conditional image stream, adaLN-zero."""
    used = (
        "num_attention_heads attention_head_dim in_channels out_channels num_layers sample_size patch_size "
        "num_embeds_ada_norm attention_bias norm_eps"
    )
    fixed = {
        "activation_fn": "gelu-approximate", "norm_type": "ada_norm_zero", "norm_elementwise_affine": False,
        "attention_type": "default",
    }  # fmt: skip
    # upcast_attention asks for float32, which attention weights are computed in here.
    fields(config, used.split(), ("norm_num_groups", "upcast_attention"), fixed)
    heads, size = given(config, "num_attention_heads", default=16), given(config, "attention_head_dim", default=72)
    n, d = given(config, "num_layers", default=28), heads * size
    biased = given(config, "attention_bias", bool, True)
    channels, patch = given(config, "in_channels", default=4), given(config, "patch_size", default=2)
    model = TransformerConfig(
        width=d, layers=n, heads=heads, head_size=size, ffn=4 * d, ffn_kind="gelu_tanh", norm="plain",
        final_norm=False, biases=("qkv", "out", "ffn") if biased else ("out", "ffn"), rope_theta=0.0,
        # Their field is of the norm before the feed-forward layer only.
        norm_epsilon=1e-6, released=ReleasedTrunk(ffn_norm_epsilon=positive(config, "norm_eps", 1e-5)),
    )  # fmt: skip
    grid = (latent_side(config),) * 2
    released = Released(
        time=TimeConfig(reversed=True, ends=True, per_layer=True), x_first=True, table_grid=(grid[0] // patch,) * 2,
        out_channels=given(config, "out_channels", default=channels),
    )  # fmt: skip
    image = Stream(
        embed="linear", head="adaln", objective="continuous", attention="block", time="adaln", table="sincos",
        labels=given(config, "num_embeds_ada_norm", default=1000), channels=channels, patch=patch, grid=grid,
        budget=(grid[0] // patch) ** 2, released=released,
    )  # fmt: skip
    experiment = Experiment(
        model=model, streams={IMAGE: image}, layout={IMAGE: (Run(IMAGE),)},
        objectives=ObjectivesConfig(continuous={IMAGE: ContinuousConfig(path="ddpm_linear", prediction="noise")}),
    )  # fmt: skip
    return imported(experiment, _leaves(model, image))


def _leaves(model: TransformerConfig, image: Stream) -> list[Leaf]:
    layer, part = layer_keys("transformer_blocks", model.layers), ("parts", IMAGE)
    names = {
        "q": "attn1.to_q", "k": "attn1.to_k", "v": "attn1.to_v", "o": "attn1.to_out.0",
        "up": "ff.net.0.proj", "down": "ff.net.2",
    }  # fmt: skip
    leaves = block_leaves(model, ("trunk", "blocks", image.expert), layer, names)
    leaves += dense_leaves((*part, "embed"), "", "pos_embed.proj", patches(image.patch))
    time = (*part, "condition", "time")
    for ours, theirs in (("hidden", "linear_1"), ("out", "linear_2")):
        leaves.append(Leaf((*time, ours), layer(f"norm1.emb.timestep_embedder.{theirs}.weight"), matrix()))
        leaves.append(Leaf((*time, f"{ours}_bias"), layer(f"norm1.emb.timestep_embedder.{theirs}.bias"), same()))
    table = layer("norm1.emb.class_embedder.embedding_table.weight")
    leaves.append(Leaf((*part, "condition", "label"), table, same()))
    leaves.append(Leaf(("trunk", "modulation", IMAGE, "kernel"), layer("norm1.linear.weight"), matrix()))
    leaves.append(Leaf(("trunk", "modulation", IMAGE, "bias"), layer("norm1.linear.bias"), same()))
    leaves += dense_leaves((*part, "head"), "modulation", "proj_out_1")
    leaves += dense_leaves((*part, "head"), "", "proj_out_2")
    return leaves
