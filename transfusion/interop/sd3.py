"""Stable Diffusion 3's MM-DiT of diffusers (arXiv 2403.03206).

It predicts noise - data and calls noise t = 1: its last layer changes sign and its times are reversed.
"""

from collections.abc import Collection, Mapping
from typing import Any

from transfusion.config import Experiment
from transfusion.errors import UsageError
from transfusion.interop.converts import matrix, negated, patches, reshaped, same
from transfusion.interop.family import Imported
from transfusion.interop.fields import fields, given, whole_numbers
from transfusion.interop.leaves import Leaf
from transfusion.interop.modules import (
    CONTEXT,
    IMAGE,
    block_leaves,
    claims_of,
    dense_leaves,
    embedder_leaves,
    imported,
    latent_side,
    layer_keys,
)
from transfusion.interop.opening import short
from transfusion.model.config import ReleasedTrunk, TransformerConfig
from transfusion.sequence import Released, Run, Stream, TimeConfig

claims = claims_of("SD3Transformer2DModel")


def build(config: Mapping[str, Any], keys: Collection[str]) -> Imported:
    """SD3Transformer2DModel (arXiv 2403.03206): an expert for image and text each, both modulated."""
    used = (
        "sample_size patch_size in_channels num_layers attention_head_dim num_attention_heads joint_attention_dim "
        "caption_projection_dim pooled_projection_dim out_channels pos_embed_max_size qk_norm dual_attention_layers"
    )
    fields(config, used.split(), fixed={"qk_norm": (None, "rms_norm")})
    heads, size = given(config, "num_attention_heads", default=18), given(config, "attention_head_dim", default=64)
    n, d = given(config, "num_layers", default=18), heads * size
    if given(config, "caption_projection_dim", default=1152) != d:
        raise UsageError(f"config.json: caption_projection_dim must be the width {d}")
    dual = whole_numbers(config, "dual_attention_layers", least=0)
    if len({*dual}) < len(dual) or any(layer >= n for layer in dual):
        raise UsageError(
            f"config.json: dual_attention_layers {short(list(dual))} must be some of {n} layers, each once"
        )
    model = TransformerConfig(
        width=d, layers=n, heads=heads, head_size=size, ffn=4 * d, ffn_kind="gelu_tanh", norm="plain",
        final_norm=False, biases=("qkv", "out", "ffn"), rope_theta=0.0, norm_epsilon=1e-6,
        qk_norm="rms" if config.get("qk_norm") else "none",
        released=ReleasedTrunk(dual_layers=dual, dual_expert=IMAGE if dual else ""),
    )  # fmt: skip
    channels, patch = given(config, "in_channels", default=16), given(config, "patch_size", default=2)
    table = given(config, "pos_embed_max_size", default=96)
    # Without the field their class has 16; null stands for as many as come in.
    drawn = given(config, "out_channels", default=channels if "out_channels" in config else 16)
    grid = (latent_side(config, 128),) * 2
    released = Released(
        time=TimeConfig(reversed=True), pooled=given(config, "pooled_projection_dim", default=2048),
        out_channels=drawn, table_grid=(table, table), centred=True,
    )  # fmt: skip
    image = Stream(
        embed="linear", head="adaln", objective="continuous", attention="block", time="adaln", expert=IMAGE,
        table="learned", channels=channels, patch=patch, grid=grid, budget=(grid[0] // patch) ** 2, released=released,
    )  # fmt: skip
    context = Stream(
        embed="linear", head="none", objective="none", attention="block", expert=CONTEXT, items=1, budget=1,
        channels=given(config, "joint_attention_dim", default=4096), released=Released(condition=IMAGE),
    )  # fmt: skip
    experiment = Experiment(
        model=model, streams={IMAGE: image, CONTEXT: context},
        layout={IMAGE: (Run(IMAGE),), CONTEXT: (Run(CONTEXT),)},
    )  # fmt: skip
    return imported(experiment, _leaves(model, image))


def _leaves(model: TransformerConfig, image: Stream) -> list[Leaf]:
    (table, _), d = image.released.table_grid, model.width
    layer, part = layer_keys("transformer_blocks", model.layers), ("parts", IMAGE)
    leaves = dense_leaves((*part, "embed"), "", "pos_embed.proj", patches(image.patch))
    leaves.append(Leaf((*part, "table", "table"), "pos_embed.pos_embed", reshaped((table, table, d), (1, table**2, d))))
    leaves += embedder_leaves((*part, "condition", "time"), "time_text_embed.timestep_embedder")
    leaves += embedder_leaves((*part, "condition", "pooled"), "time_text_embed.text_embedder")
    leaves += dense_leaves(("parts", CONTEXT, "embed"), "", "context_embedder")
    leaves += _block_leaves(model, layer, model.released.dual_layers)
    # Their last layer has (scale, shift).
    leaves += _swapped((*part, "head"), ("modulation", "modulation_bias"), "norm_out.linear", d)
    leaves.append(Leaf((*part, "head", "kernel"), "proj_out.weight", negated(matrix())))
    leaves.append(Leaf((*part, "head", "bias"), "proj_out.bias", negated(same())))
    return leaves


def _swapped(at, names, theirs: str, d: int, layers: int = 0) -> list[Leaf]:
    """A linear layer to (scale, shift) for ours to (shift, scale); of the last of `layers` where that is not 0."""
    leaves = []
    for half in range(2):
        ours, rows = slice(half * d, (half + 1) * d), ((1 - half) * d, (2 - half) * d)
        for name, suffix, convert, index in (
            (names[0], "weight", matrix(), (slice(None), ours)),
            (names[1], "bias", same(), (ours,)),
        ):
            key = f"{theirs}.{suffix}"
            leaves.append(Leaf((*at, name), (None,) * (layers - 1) + (key,) if layers else key, convert, rows, index))
    return leaves


def _block_leaves(model: TransformerConfig, layer, dual: tuple[int, ...]) -> list[Leaf]:
    n, d = model.layers, model.width
    image = {
        "q": "attn.to_q", "k": "attn.to_k", "v": "attn.to_v", "o": "attn.to_out.0", "q_norm": "attn.norm_q",
        "k_norm": "attn.norm_k", "up": "ff.net.0.proj", "down": "ff.net.2",
    }  # fmt: skip
    context = {
        "q": "attn.add_q_proj", "k": "attn.add_k_proj", "v": "attn.add_v_proj", "o": "attn.to_add_out",
        "q_norm": "attn.norm_added_q", "k_norm": "attn.norm_added_k", "up": "ff_context.net.0.proj",
        "down": "ff_context.net.2",
    }  # fmt: skip

    # Nothing reads the text behind the last attention: their last layer has neither output nor feed-forward weights.
    def but_last(name: str) -> tuple[str | None, ...]:
        absent = name.startswith(("attn.to_add_out", "ff_context", "norm1_context"))
        return (*layer(name)[:-1], None if absent else layer(name)[-1])

    leaves = block_leaves(model, ("trunk", "blocks", IMAGE), layer, image)
    leaves += block_leaves(model, ("trunk", "blocks", CONTEXT), but_last, context)
    at = ("trunk", "modulation")
    leaves += [
        Leaf((*at, IMAGE, "kernel"), layer("norm1.linear.weight"), matrix(), (0, 6 * d)),
        Leaf((*at, IMAGE, "bias"), layer("norm1.linear.bias"), same(), (0, 6 * d)),
        Leaf((*at, CONTEXT, "kernel"), but_last("norm1_context.linear.weight"), matrix()),
        Leaf((*at, CONTEXT, "bias"), but_last("norm1_context.linear.bias"), same()),
    ]
    last = f"transformer_blocks.{n - 1}.norm1_context.linear"
    leaves += _swapped((*at, CONTEXT), ("kernel", "bias"), last, d, layers=n)
    if dual:

        def few(name: str) -> tuple[str, ...]:
            return tuple(layer(name)[i] for i in dual)

        names = {ours: name.replace("attn.", "attn2.") for ours, name in image.items() if ours not in ("up", "down")}
        leaves += block_leaves(model, ("trunk", "dual"), few, names)
        rows = (6 * d, 9 * d)
        leaves += [
            Leaf(("trunk", "dual_modulation", IMAGE, "kernel"), few("norm1.linear.weight"), matrix(), rows),
            Leaf(("trunk", "dual_modulation", IMAGE, "bias"), few("norm1.linear.bias"), same(), rows),
        ]
    return leaves
