"""Diffusion transformers of diffusers: DiT, Stable Diffusion 3's MM-DiT, OmniGen, and Cosmos3's mixture of experts.

Stable Diffusion 3 and Cosmos3 predict noise - data and call noise t = 1: their last layers change sign and their times
are reversed. OmniGen has our direction; DiT predicts the noise.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

from transfusion.config import Experiment
from transfusion.errors import UsageError
from transfusion.interop.family import Imported
from transfusion.interop.fields import class_names, fields, given, positive, whole_numbers
from transfusion.interop.language import block_leaves, check_factors, layer_keys, rotary
from transfusion.interop.leaves import Convert, Leaf, matrix, negated, patches, reshaped, same
from transfusion.interop.opening import short
from transfusion.model.config import TransformerConfig
from transfusion.model.unified import model_template
from transfusion.objectives import ObjectivesConfig
from transfusion.objectives.paths import ContinuousConfig
from transfusion.sequence import TEXT, Released, Run, SequenceSpec, Stream, TimeConfig

IMAGE, CONTEXT = "image", "context"
SD3, OMNIGEN, COSMOS3 = "SD3Transformer2DModel", "OmniGenTransformer2DModel", "Cosmos3OmniTransformer"


def claims_of(name: str) -> Callable[[Mapping[str, Any], Collection[str]], bool]:
    return lambda config, keys: name in class_names(config)


def claims_dit(config: Mapping[str, Any], keys: Collection[str]) -> bool:
    """DiT was published before diffusers split a class of many models: Transformer2DModel with these norms."""
    old = "Transformer2DModel" in class_names(config) and config.get("norm_type") == "ada_norm_zero"
    return old or "DiTTransformer2DModel" in class_names(config)


def imported(experiment: Experiment, leaves: list[Leaf], ignore: tuple[str, ...] = ()) -> Imported:
    spec = SequenceSpec(experiment.streams, experiment.layout, 0, 0, experiment.model.rope_axes)
    return Imported(model_template(experiment.model, spec), leaves, experiment, ignore)


def dense_leaves(at: tuple[str, ...], ours: str, theirs: str, kernel: Convert | None = None) -> list[Leaf]:
    """A linear layer with a bias: OURS and OURS_bias, or the kernel and bias of a module when `ours` is ''."""
    names = (f"{ours}", f"{ours}_bias") if ours else ("kernel", "bias")
    return [
        Leaf((*at, names[0]), f"{theirs}.weight", kernel or matrix()),
        Leaf((*at, names[1]), f"{theirs}.bias", same()),
    ]


def perceptron_leaves(at: tuple[str, ...], hidden: str, out: str) -> list[Leaf]:
    """A `Perceptron` at the path `at`, from two linear layers."""
    return dense_leaves(at, "hidden", hidden) + dense_leaves(at, "out", out)


def embedder_leaves(at: tuple[str, ...], theirs: str) -> list[Leaf]:
    return perceptron_leaves(at, f"{theirs}.linear_1", f"{theirs}.linear_2")


def side(config: Mapping[str, Any], default: int = 32) -> int:
    """The latent side of a square model; rounded down to whole patches."""
    patch, size = given(config, "patch_size", default=2), given(config, "sample_size", default=default)
    if size < patch:
        raise UsageError(f"config.json: sample_size {size} holds no patch of patch_size {patch}")
    return size // patch * patch


# --- DiT --------------------------------------------------------------------------------------------------------------


def build_dit(config: Mapping[str, Any], keys: Collection[str]) -> Imported:
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
        norm_epsilon=1e-6, ffn_norm_epsilon=positive(config, "norm_eps", 1e-5),
    )  # fmt: skip
    grid = (side(config),) * 2
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
    layer, part = layer_keys("transformer_blocks", n), ("parts", IMAGE)
    names = {
        "q": "attn1.to_q", "k": "attn1.to_k", "v": "attn1.to_v", "o": "attn1.to_out.0",
        "up": "ff.net.0.proj", "down": "ff.net.2",
    }  # fmt: skip
    leaves = block_leaves(model, ("trunk", "blocks", image.expert), layer, names)
    leaves += dense_leaves((*part, "embed"), "", "pos_embed.proj", patches(patch))
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
    return imported(experiment, leaves)


# --- Stable Diffusion 3 -----------------------------------------------------------------------------------------------


def build_sd3(config: Mapping[str, Any], keys: Collection[str]) -> Imported:
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
        qk_norm="rms" if config.get("qk_norm") else "none", dual_layers=dual, dual_expert=IMAGE if dual else "",
    )  # fmt: skip
    channels, patch = given(config, "in_channels", default=16), given(config, "patch_size", default=2)
    table = given(config, "pos_embed_max_size", default=96)
    # Without the field their class has 16; null stands for as many as come in.
    drawn = given(config, "out_channels", default=channels if "out_channels" in config else 16)
    grid = (side(config, 128),) * 2
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
    layer, part = layer_keys("transformer_blocks", n), ("parts", IMAGE)
    leaves = dense_leaves((*part, "embed"), "", "pos_embed.proj", patches(patch))
    leaves.append(Leaf((*part, "table", "table"), "pos_embed.pos_embed", reshaped((table, table, d), (1, table**2, d))))
    leaves += embedder_leaves((*part, "condition", "time"), "time_text_embed.timestep_embedder")
    leaves += embedder_leaves((*part, "condition", "pooled"), "time_text_embed.text_embedder")
    leaves += dense_leaves(("parts", CONTEXT, "embed"), "", "context_embedder")
    leaves += _sd3_blocks(model, layer, dual)
    # Their last layer has (scale, shift).
    leaves += _swapped((*part, "head"), ("modulation", "modulation_bias"), "norm_out.linear", d)
    leaves.append(Leaf((*part, "head", "kernel"), "proj_out.weight", negated(matrix())))
    leaves.append(Leaf((*part, "head", "bias"), "proj_out.bias", negated(same())))
    return imported(experiment, leaves)


def _swapped(at, names, theirs: str, d: int, layers: int = 0, lead: tuple = ()) -> list[Leaf]:
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


def _sd3_blocks(model: TransformerConfig, layer, dual: tuple[int, ...]) -> list[Leaf]:
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


# --- OmniGen ----------------------------------------------------------------------------------------------------------


def build_omnigen(config: Mapping[str, Any], keys: Collection[str]) -> Imported:
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
        norm_epsilon=positive(config, "rms_norm_eps", 1e-5), rope_theta=theta, rope_scaling=scaling,
    )  # fmt: skip
    channels, patch = given(config, "in_channels", default=4), given(config, "patch_size", default=2)
    table = given(config, "pos_embed_max_size", default=192)
    features = given(config, "time_step_dim", default=256)
    grid = (min(table, 64) * patch,) * 2
    released = Released(table_grid=(table, table), centred=True)
    shared = dict(embed="linear", attention="block", channels=channels, patch=patch, grid=grid, table="learned")
    count = (grid[0] // patch) ** 2
    image = Stream(
        head="adaln", objective="continuous", time="token_before", budget=count + 1, **shared,
        released=dataclasses.replace(released, time=TimeConfig(features=features, scale=1.0)),
    )  # fmt: skip
    text = Stream(vocabulary=given(config, "vocab_size", default=32064), head="none", objective="none", budget=512)
    context = Stream(head="none", objective="none", budget=count, released=released, **shared)
    experiment = Experiment(
        model=model,
        streams={TEXT: text, CONTEXT: context, IMAGE: image},
        layout={TEXT: (Run(TEXT),), f"{IMAGE}/context": (Run(CONTEXT, time_low=1.0),), IMAGE: (Run(IMAGE),)},
    )
    part, layer = ("parts", IMAGE), layer_keys("layers", n)
    leaves = [Leaf(("parts", TEXT, "embed", "table"), "embed_tokens.weight", same())]
    for stream, theirs in ((IMAGE, "output"), (CONTEXT, "input")):
        leaves += dense_leaves(("parts", stream, "embed"), "", f"patch_embedding.{theirs}_image_proj", patches(patch))
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
    return imported(experiment, leaves)


# --- Cosmos3 ----------------------------------------------------------------------------------------------------------


UNDERSTANDING, GENERATION = "understanding", "generation"


def _sections(config: Mapping[str, Any], half: int) -> tuple[int, ...]:
    """How many of a head's `half` frequencies turn with each of three axes."""
    sections = whole_numbers(config, "rope_axes_dim")
    if not sections:
        table = given(config, "rope_scaling", dict, {})
        fields(table, ("mrope_section",), (), _MROPE, "config.json, rope_scaling")
        sections = whole_numbers(table, "mrope_section", "config.json, rope_scaling") or (24, 20, 20)
    if len(sections) != 3 or sum(sections) != half:
        raise UsageError(f"config.json: the rotary axes {short(list(sections))} must be three that sum to {half}")
    return sections


_MROPE = {"rope_type": "default", "type": ("default", "mrope"), "mrope_interleaved": True}


def build_cosmos3(config: Mapping[str, Any], keys: Collection[str]) -> Imported:
    """Cosmos3OmniTransformer: causal text and noised frames that see everything, an expert each."""
    used = (
        "attention_bias head_dim hidden_size intermediate_size latent_channel latent_patch_size num_attention_heads "
        "num_hidden_layers num_key_value_heads patch_latent_dim rms_norm_eps rope_theta timestep_scale vocab_size "
        "rope_axes_dim rope_scaling qk_norm_for_text"
    )
    harmless = (
        "base_fps enable_fps_modulation unified_3d_mrope_reset_spatial_ids unified_3d_mrope_temporal_modality_margin "
        "action_dim num_embodiment_domains sound_dim sound_latent_fps"
    )
    fixed = {
        "action_gen": False, "sound_gen": False, "hidden_act": "silu",
        "use_und_k_norm_for_gen": False, "joint_attn_implementation": "two_way",
    }  # fmt: skip
    fields(config, used.split(), harmless.split(), fixed)
    heads, d = given(config, "num_attention_heads"), given(config, "hidden_size")
    n, patch = given(config, "num_hidden_layers"), given(config, "latent_patch_size")
    text_norm, size = given(config, "qk_norm_for_text", bool, True), given(config, "head_dim")
    model = TransformerConfig(
        width=d, layers=n, heads=heads, kv_heads=given(config, "num_key_value_heads"),
        head_size=size, ffn=given(config, "intermediate_size"),
        norm_epsilon=positive(config, "rms_norm_eps", 1e-6), qk_norm="rms",
        qk_norm_absent=() if text_norm else (UNDERSTANDING,),
        biases=("qkv", "out") if given(config, "attention_bias", bool, False) else (),
        rope_theta=positive(config, "rope_theta", 5e6), rope_axes=3, rope_sections=_sections(config, size // 2),
        rope_interleaved=True,
    )  # fmt: skip
    channels = given(config, "latent_channel")
    if given(config, "patch_latent_dim", default=channels * patch**2) != channels * patch**2:
        raise UsageError("config.json: patch_latent_dim must be latent_channel * latent_patch_size ** 2")
    time = TimeConfig(scale=1000 * positive(config, "timestep_scale", 0.001), reversed=True)
    text = Stream(vocabulary=given(config, "vocab_size"), budget=512, expert=UNDERSTANDING)
    image = Stream(
        embed="linear", head="linear", objective="continuous", attention="block", time="added", expert=GENERATION,
        channels=channels, patch=patch, items=8, budget=4096, released=Released(time=time),
    )  # fmt: skip
    experiment = Experiment(
        model=model, streams={TEXT: text, IMAGE: image},
        layout={TEXT: (Run(TEXT),), IMAGE: (Run(IMAGE, position="grid"),)},
    )  # fmt: skip
    layer = layer_keys("layers", n)
    names = {
        "attention_norm": "input_layernorm", "q": "self_attn.to_q", "k": "self_attn.to_k", "v": "self_attn.to_v",
        "o": "self_attn.to_out", "q_norm": "self_attn.norm_q", "k_norm": "self_attn.norm_k",
        "ffn_norm": "post_attention_layernorm", "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj",
    }  # fmt: skip
    generation = {
        "attention_norm": "input_layernorm_moe_gen", "q": "self_attn.add_q_proj", "k": "self_attn.add_k_proj",
        "v": "self_attn.add_v_proj", "o": "self_attn.to_add_out", "q_norm": "self_attn.norm_added_q",
        "k_norm": "self_attn.norm_added_k", "ffn_norm": "post_attention_layernorm_moe_gen",
        "gate": "mlp_moe_gen.gate_proj", "up": "mlp_moe_gen.up_proj", "down": "mlp_moe_gen.down_proj",
    }  # fmt: skip
    words = model if text_norm else dataclasses.replace(model, qk_norm="none")
    leaves = block_leaves(words, ("trunk", "blocks", UNDERSTANDING), layer, names)
    leaves += block_leaves(model, ("trunk", "blocks", GENERATION), layer, generation)
    leaves += [
        Leaf(("trunk", "final_norm", UNDERSTANDING), "norm.weight", same()),
        Leaf(("trunk", "final_norm", GENERATION), "norm_moe_gen.weight", same()),
        Leaf(("parts", TEXT, "embed", "table"), "embed_tokens.weight", same()),
        Leaf(("parts", TEXT, "head", "kernel"), "lm_head.weight", matrix()),
        Leaf(("parts", IMAGE, "head", "kernel"), "proj_out.weight", negated(matrix())),
        Leaf(("parts", IMAGE, "head", "bias"), "proj_out.bias", negated(same())),
    ]
    leaves += dense_leaves(("parts", IMAGE, "embed"), "", "proj_in")
    leaves += embedder_leaves(("parts", IMAGE, "time"), "time_embedder")
    return imported(experiment, leaves)
