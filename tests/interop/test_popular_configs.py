"""The config.json of much used checkpoints, with all the fields that their makers' tools wrote into it.

The numbers of parameters are those that their makers state. Nothing takes memory here: only shapes are made.
"""

import pytest

from transfusion.errors import UsageError
from transfusion.interop.known import FAMILIES
from transfusion.interop.leaves import their_shapes
from transfusion.model.unified import parameter_count

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "initializer_range": 0.02, "pretraining_tp": 1,
    "rms_norm_eps": 1e-05, "rope_scaling": None, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "transformers_version": "4.40.0", "use_cache": True,
}  # fmt: skip
LLAMA3 = {
    "factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}  # fmt: skip
QWEN = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "attention_dropout": 0.0, "bos_token_id": 151643,
    "eos_token_id": 151645, "hidden_act": "silu", "initializer_range": 0.02, "max_window_layers": 28,
    "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 131072, "use_sliding_window": False,
    "torch_dtype": "bfloat16", "transformers_version": "4.40.1", "use_cache": True, "vocab_size": 151936,
}  # fmt: skip
QWEN3 = QWEN | {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "attention_bias": False, "head_dim": 128,
    "max_position_embeddings": 40960, "rope_scaling": None, "sliding_window": None,
}  # fmt: skip


def sizes(width, ffn, layers, heads, kv_heads, vocabulary, context):
    return {
        "hidden_size": width, "intermediate_size": ffn, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "vocab_size": vocabulary, "max_position_embeddings": context,
    }  # fmt: skip


def qwen(width, ffn, layers, heads, kv_heads, vocabulary=151936, context=32768):
    return sizes(width, ffn, layers, heads, kv_heads, vocabulary, context)


LLAMA2_7B = LLAMA | sizes(4096, 11008, 32, 32, 32, 32000, 4096)
LLAMA31_8B = LLAMA | sizes(4096, 14336, 32, 32, 8, 128256, 131072) | {"rope_theta": 500000.0, "mlp_bias": False}
LLAMA32_1B = LLAMA | sizes(2048, 8192, 16, 32, 8, 128256, 131072) | {"rope_theta": 500000.0, "mlp_bias": False}
LLAMA32_1B |= {"head_dim": 64, "rope_scaling": LLAMA3 | {"factor": 32.0}, "tie_word_embeddings": True}
SMOLLM2 = LLAMA | sizes(576, 1536, 30, 9, 3, 49152, 8192)
SMOLLM2 |= {"rope_theta": 100000, "tie_word_embeddings": True, "is_llama_config": True, "rope_interleaved": False}
TIED = {"tie_word_embeddings": True, "use_mrope": False}
# config, millions of parameters
LANGUAGE = {
    "Llama 7B": (LLAMA2_7B | {"max_sequence_length": 2048, "pad_token_id": 0}, 6738.415616),
    "Llama 2 7B": (LLAMA2_7B | {"_name_or_path": "meta-llama/Llama-2-7b-hf", "max_length": 4096}, 6738.415616),
    "CodeLlama 7B": (LLAMA2_7B | {"rope_theta": 1000000, "vocab_size": 32016}, 6738.546688),
    "Vicuna with a longer context": (LLAMA2_7B | {"rope_scaling": {"factor": 4.0, "type": "linear"}}, 6738.415616),
    "Llama 3.1 8B": (LLAMA31_8B | {"rope_scaling": LLAMA3, "eos_token_id": [128001, 128008, 128009]}, 8030.261248),
    "Llama 3.2 1B": (LLAMA32_1B, 1235.8144),
    "Llama 3.2 1B, tuned": (
        LLAMA32_1B | {
            "unsloth_fixed": True, "unsloth_version": "2024.12.4", "_attn_implementation_autoset": True,
            "_flash_attn_2_enabled": True, "neftune_noise_alpha": 5, "pad_token_id": 128004,
            "quantization_config": None,
            "gradient_checkpointing": True, "model_max_length": 4096, "use_flash_attention_2": True,
        },
        1235.8144,
    ),
    "TinyLlama 1.1B": (LLAMA | sizes(2048, 5632, 22, 32, 4, 32000, 2048) | {"rope_theta": 10000.0}, 1100.048384),
    "SmolLM 135M": (SMOLLM2 | {"max_position_embeddings": 2048, "rope_theta": 10000.0}, 134.515008),
    "SmolLM2 135M Instruct": (
        SMOLLM2 | {"transformers.js_config": {"kv_cache_dtype": {"fp16": "float16"}}, "pad_token_id": 2}, 134.515008
    ),
    "SmolLM2 360M of transformers 5": (
        {k: v for k, v in SMOLLM2.items() if not k.startswith(("rope_theta", "rope_scaling", "torch"))}
        | sizes(960, 2560, 32, 15, 5, 49152, 8192)
        | {"dtype": "bfloat16", "rope_parameters": {"rope_theta": 100000, "rope_type": "default"}},
        361.82112,
    ),
    "Qwen2 0.5B": (QWEN | qwen(896, 4864, 24, 14, 2) | {"tie_word_embeddings": True}, 494.032768),
    "Qwen2.5 1.5B": (QWEN | qwen(1536, 8960, 28, 12, 2) | TIED, 1543.714304),
    "Qwen2.5 3B": (QWEN | qwen(2048, 11008, 36, 16, 2) | TIED, 3085.938688),
    "Qwen2.5 7B": (QWEN | qwen(3584, 18944, 28, 28, 4, 152064) | {"tie_word_embeddings": False}, 7615.616512),
    "Qwen2.5 14B": (QWEN | qwen(5120, 13824, 48, 40, 8, 152064) | {"tie_word_embeddings": False}, 14770.033664),
    "R1 distilled 1.5B": (
        QWEN | qwen(1536, 8960, 28, 12, 2) | {"tie_word_embeddings": False, "rope_theta": 10000, "use_mrope": False},
        1777.088,
    ),
    "Qwen3 0.6B": (QWEN3 | qwen(1024, 3072, 28, 16, 8) | {"tie_word_embeddings": True}, 596.04992),
    "Qwen3 8B": (QWEN3 | qwen(4096, 12288, 36, 32, 8) | {"tie_word_embeddings": False}, 8190.73536),
    "Qwen3 4B of 2507": (
        QWEN3 | qwen(2560, 9728, 36, 32, 8) | {"tie_word_embeddings": True, "layer_types": ["full_attention"] * 36},
        4022.468096,
    ),
}  # fmt: skip


def built(config, keys=()):
    """(name of the family that claims it, how it becomes ours)"""
    family = next(family for family in FAMILIES.values() if family.claims(config, keys))
    return family.name, family.build(config, keys)


@pytest.mark.parametrize("name", LANGUAGE)
def test_text_models(name):
    config, millions = LANGUAGE[name]
    family, imported = built(config)
    assert family == "language"
    assert parameter_count(imported.template.shapes) == round(millions * 1e6)


@pytest.mark.parametrize(
    "more",
    [
        {"tokenizer_model_max_length": 4096, "tokenizer_padding_side": "right"},  # of trainers
        {"pad_token": "<pad>", "bos_token": "<s>", "max_new_tokens": 2048, "summary_type": "cls_index"},
        {"hidden_act": "swish", "partial_rotary_factor": 1.0},
        {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default", "partial_rotary_factor": 1.0}},
    ],
)
def test_what_says_the_same_in_other_words_is_read(more):
    plain, changed = (built(QWEN | qwen(896, 4864, 24, 14, 2) | fields)[1] for fields in ({}, more))
    assert changed.experiment == plain.experiment


@pytest.mark.parametrize(
    ("field", "value"), [("hidden_act", "gelu"), ("partial_rotary_factor", 0.5), ("use_rope", False), ("n_ctx", 2048)]
)
def test_what_may_be_another_model_is_refused(field, value):
    with pytest.raises(UsageError, match=field):
        built(QWEN | qwen(896, 4864, 24, 14, 2) | {field: value})
    with pytest.raises(UsageError, match="partial_rotary_factor"):
        built(QWEN | qwen(896, 4864, 24, 14, 2) | {"rope_parameters": {"partial_rotary_factor": 0.5}})


def test_rotary_settings_are_read():
    of = {name: built(LANGUAGE[name][0])[1].experiment.model for name in LANGUAGE}
    assert of["SmolLM2 135M Instruct"].rope_theta == of["SmolLM2 360M of transformers 5"].rope_theta == 100000
    scaling = of["Llama 3.2 1B"].released.rope_scaling
    assert (scaling.kind, scaling.factor, scaling.low, scaling.high, scaling.original) == ("llama3", 32, 1, 4, 8192)
    scaling = of["Vicuna with a longer context"].released.rope_scaling
    assert (scaling.kind, scaling.factor) == ("linear", 4.0)
    assert of["Qwen2.5 7B"].rope_theta == 1e6 and of["Qwen2.5 7B"].norm_epsilon == 1e-6


SIGLIP = {"model_type": "siglip_vision_model"}
SO400M = SIGLIP | {
    "hidden_size": 1152, "image_size": 384, "intermediate_size": 4304, "num_attention_heads": 16,
    "num_hidden_layers": 27, "patch_size": 14,
}  # fmt: skip
WHOLE_SIGLIP = {"architectures": ["SiglipModel"], "model_type": "siglip", "initializer_factor": 1.0}
WHOLE_SIGLIP |= {"torch_dtype": "float32", "transformers_version": "4.37.0.dev0"}
VAE = {
    "_class_name": "AutoencoderKL", "_diffusers_version": "0.20.0.dev0", "act_fn": "silu", "in_channels": 3,
    "block_out_channels": [128, 256, 512, 512], "down_block_types": ["DownEncoderBlock2D"] * 4, "latent_channels": 4,
    "layers_per_block": 2, "norm_num_groups": 32, "out_channels": 3, "up_block_types": ["UpDecoderBlock2D"] * 4,
}  # fmt: skip
VAE16 = VAE | {
    "latent_channels": 16, "latents_mean": None, "latents_std": None, "mid_block_add_attention": True,
    "use_post_quant_conv": False, "use_quant_conv": False, "force_upcast": True, "sample_size": 1024,
}  # fmt: skip
CHAMELEON = LLAMA | sizes(4096, 11008, 32, 32, 32, 65536, 4096) | {
    "architectures": ["ChameleonForConditionalGeneration"], "model_type": "chameleon", "model_parallel_size": 1,
    "swin_norm": False, "rope_theta": 10000.0, "vocabulary_map": {"<racm3:break>": 8196}, "image_token_id": 8711,
    "vq_config": {
        "attn_resolutions": None, "attn_type": "vanilla", "base_channels": 128, "channel_multiplier": [1, 1, 2, 2, 4],
        "double_latent": False, "dropout": 0.0, "embed_dim": 256, "in_channels": 3, "initializer_range": 0.02,
        "latent_channels": 256, "model_type": "chameleon_vqgan", "num_embeddings": 8192, "num_res_blocks": 2,
        "out_channels": 3, "resolution": 512,
    },
}  # fmt: skip
CHAMELEON["vq_config"].pop("out_channels")
EMU3 = {
    "architectures": ["Emu3ForConditionalGeneration"], "model_type": "emu3", "image_token_id": 151859,
    "text_config": LLAMA | sizes(4096, 14336, 32, 32, 8, 184622, 131072) | {
        "architectures": None, "model_type": "emu3_text_model", "_attn_implementation_autoset": True,
        "boi_token_id": 151852, "eof_token_id": 151847, "eoi_token_id": 151853, "eol_token_id": 151846,
        "img_token_id": 151851, "image_area": 518400, "rope_theta": 1000000.0, "mlp_bias": False,
    },
    "torch_dtype": "bfloat16", "transformers_version": "4.48.0.dev0",
    "vq_config": {
        "attention_dropout": 0.0, "attn_resolutions": [3], "base_channels": 256, "channel_multiplier": [1, 2, 2, 4],
        "codebook_size": 32768, "double_latent": False, "embed_dim": 4, "hidden_size": 1024, "in_channels": 3,
        "latent_channels": 4, "model_type": "emu3_vqgan", "num_attention_heads": 1, "num_res_blocks": 2,
        "out_channels": 3, "temporal_downsample_factor": 4,
    },
    "vocabulary_map": {"<|visual token 000000|>": 151854},
}  # fmt: skip
JANUS = {
    "architectures": ["JanusForConditionalGeneration"], "model_type": "janus", "image_token_id": 100581,
    "torch_dtype": "bfloat16", "transformers_version": "4.52.0.dev0",
    "text_config": LLAMA | sizes(2048, 5632, 24, 16, 16, 102400, 16384) | {
        "architectures": None, "_attn_implementation_autoset": True, "head_dim": 128, "mlp_bias": False,
        "pad_token_id": 100015, "rms_norm_eps": 1e-06, "rope_theta": 10000.0,
    },
    "vision_config": {
        "attention_bias": True, "attention_dropout": 0.0, "depth": 2, "hidden_act": "gelu", "hidden_dropout_rate": 0.0,
        "hidden_size": 1024, "image_size": 384, "initializer_range": 0.02, "layer_norm_eps": 1e-06, "mlp_ratio": 4.0,
        "model_type": "janus_vision_model", "num_attention_heads": 16, "num_channels": 3, "num_hidden_layers": 24,
        "num_image_tokens": 576, "patch_size": 16, "projection_dim": 2048, "projection_dropout": 0.0,
        "use_qk_norm": False,
    },
    "vq_config": {
        "base_channels": 128, "channel_multiplier": [1, 1, 2, 2, 4], "double_latent": False, "dropout": 0.0,
        "embed_dim": 8, "hidden_act": "gelu", "image_token_embed_dim": 2048, "in_channels": 3,
        "initializer_range": 0.02, "latent_channels": 256, "model_type": "janus_vqgan", "num_embeddings": 16384,
        "num_hidden_layers": 2, "num_patches": 32, "num_res_blocks": 2, "out_channels": 3, "projection_dim": 2048,
    },
}  # fmt: skip
BAGEL = {
    "architectures": ["BagelForConditionalGeneration"], "model_type": "bagel", "visual_gen": True, "visual_und": True,
    "connector_act": "gelu_pytorch_tanh", "interpolate_pos": False, "latent_patch_size": 2, "max_latent_size": 64,
    "timestep_shift": 1.0, "vit_max_num_patch_per_side": 70, "vae_config": {"downsample": 8, "z_channels": 16},
    "llm_config": QWEN | qwen(3584, 18944, 28, 28, 4, 152064) | {
        "_attn_implementation_autoset": True, "freeze_und": False, "is_causal": True, "qk_norm": True,
        "layer_module": "Qwen2MoTDecoderLayer", "tie_word_embeddings": False, "rope_scaling": None,
    },
    "vit_config": SO400M | {"image_size": 980, "rope": False, "num_hidden_layers": 26},
}  # fmt: skip
SHOWO2 = {
    "architectures": ["Showo2Qwen2_5"], "_class_name": "Showo2Qwen2_5", "_diffusers_version": "0.31.0",
    "llm_vocab_size": 151674, "llm_model_path": "Qwen/Qwen2.5-1.5B-Instruct", "load_from_showo": False,
    "image_latent_dim": 16, "image_latent_height": 27, "image_latent_width": 27, "video_latent_height": 27,
    "video_latent_width": 27, "patch_size": 2, "hidden_size": 2048, "clip_latent_dim": 1152, "add_qk_norm": True,
    "add_time_embeds": True, "num_diffusion_layers": 10, "model_name": "Showo2", "frozen_params": None,
    "clip_pretrained_model_path": "google/siglip-so400m-patch14-384", "params_not_load": None,
    "llm_config": QWEN | qwen(1536, 8960, 28, 12, 2, 151674) | {"tie_word_embeddings": True},
    "vision_config": SO400M | {"num_hidden_layers": 26},
}  # fmt: skip
DIT = {
    "_class_name": "Transformer2DModel", "_diffusers_version": "0.12.0.dev0", "activation_fn": "gelu-approximate",
    "attention_bias": True, "attention_head_dim": 72, "attention_type": "default", "caption_channels": None,
    "cross_attention_dim": None, "double_self_attention": False, "dropout": 0.0, "in_channels": 4,
    "norm_elementwise_affine": False, "norm_num_groups": 32, "norm_type": "ada_norm_zero", "num_attention_heads": 16,
    "num_embeds_ada_norm": 1000, "num_layers": 28, "num_vector_embeds": None, "only_cross_attention": False,
    "out_channels": 8, "patch_size": 2, "sample_size": 32, "upcast_attention": False, "use_linear_projection": False,
}  # fmt: skip
SD3 = {
    "_class_name": "SD3Transformer2DModel", "_diffusers_version": "0.29.0.dev0", "attention_head_dim": 64,
    "caption_projection_dim": 1536, "in_channels": 16, "joint_attention_dim": 4096, "num_attention_heads": 24,
    "num_layers": 24, "out_channels": 16, "patch_size": 2, "pooled_projection_dim": 2048, "pos_embed_max_size": 192,
    "sample_size": 128,
}  # fmt: skip
OTHERS = {
    "SigLIP base": ("siglip", WHOLE_SIGLIP | {"text_config": {"vocab_size": 32000}, "vision_config": SIGLIP}),
    "SigLIP so400m": (
        "siglip", WHOLE_SIGLIP | {"text_config": {"hidden_size": 1152, "vocab_size": 32000}, "vision_config": SO400M}
    ),
    "SigLIP 2 base": (
        "siglip", WHOLE_SIGLIP | {
            "text_config": {"vocab_size": 256000},
            "vision_config": SIGLIP | {"layer_norm_eps": 1e-06, "attention_dropout": 0.0, "num_channels": 3},
        },
    ),
    "the tower alone": ("siglip", SO400M | {"architectures": ["SiglipVisionModel"], "torch_dtype": "float16"}),
    "sd-vae-ft-mse": ("autoencoder", VAE | {"_diffusers_version": "0.4.2", "sample_size": 256}),
    "SDXL": ("autoencoder", VAE | {"_name_or_path": "../sdxl-vae/", "force_upcast": True, "scaling_factor": 0.13025}),
    "SDXL in half precision": (
        "autoencoder",
        VAE | {"force_upcast": False, "scaling_factor": 0.13025, "latents_mean": None, "shift_factor": None},
    ),
    "SD3's": ("autoencoder", VAE16 | {"scaling_factor": 1.5305, "shift_factor": 0.0609}),
    "FLUX's": ("autoencoder", VAE16 | {"scaling_factor": 0.3611, "shift_factor": 0.1159, "_name_or_path": "x"}),
    "Chameleon 7B": ("chameleon", CHAMELEON),
    "Chameleon 30B": ("chameleon", CHAMELEON | {"swin_norm": True, "model_parallel_size": 4}),
    "Emu3": ("emu3", EMU3),
    "Janus Pro 1B": ("janus", JANUS),
    "BAGEL 7B": ("bagel", BAGEL),
    "Show-o2 1.5B": ("showo2", SHOWO2),
    "DiT XL/2": ("dit", DIT),
    "DiT XL/2 of today": ("dit", DIT | {"_class_name": "DiTTransformer2DModel"}),
    "SD3 medium": ("sd3", SD3),
    "SD3.5 medium": ("sd3", SD3 | {"dual_attention_layers": [*range(13)], "qk_norm": "rms_norm"}),
    "SD3.5 large": ("sd3", SD3 | {"dual_attention_layers": [], "qk_norm": "rms_norm"}),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_other_families(name):
    family, imported = built(OTHERS[name][1])
    assert family == OTHERS[name][0]
    assert their_shapes(*imported.whole)


QWEN7 = LANGUAGE["Qwen2.5 7B"][0]
REFUSED = {
    "the field 'rope_interleaved' is not understood.*--ignore_field rope_interleaved": SMOLLM2
    | {"rope_interleaved": True},
    "quantization_config says that the weights are quantised": QWEN7 | {"quantization_config": {"bits": 4}},
    "the rotary scaling 'yarn' is not understood; there are default, linear, llama3": QWEN7
    | {"rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"}},
    "the rotary scaling 'dynamic' is not understood": LLAMA2_7B | {"rope_scaling": {"factor": 2.0, "type": "dynamic"}},
    "is_causal is False, and only True is understood": QWEN7 | {"is_causal": False},
    "use_rope is False, and only True is understood": QWEN7 | {"use_rope": False},
    "use_sliding_window is True, and only False": QWEN7 | {"use_sliding_window": True},
    "layer_types may name full_attention only": QWEN3 | qwen(64, 96, 2, 2, 1) | {"layer_types": ["sliding_attention"]},
    "the field 'dual_chunk_attention_config' is not": QWEN7 | {"dual_chunk_attention_config": {"chunk_size": 262144}},
    "the field 'use_mrope' is not understood": QWEN7 | {"use_mrope": True},
    "the field 'attn_logit_softcapping' is not understood": LLAMA2_7B | {"attn_logit_softcapping": 50.0},
    "partial_rotary_factor is 0.5, and only 1.0 is understood": LLAMA2_7B | {"partial_rotary_factor": 0.5},
    "rotary scaling 'linear': the field 'factor' is missing": LLAMA2_7B | {"rope_scaling": {"type": "linear"}},
    "latents_mean is": VAE16 | {"latents_mean": [0.0]},
    "attention_type is 'gated'": DIT | {"attention_type": "gated"},
}


@pytest.mark.parametrize("message", REFUSED)
def test_fields_that_change_the_model_are_refused_by_name(message):
    with pytest.raises(UsageError, match=message) as caught:
        built(REFUSED[message])
    assert "\n" not in str(caught.value)


def test_null_is_not_given_whatever_the_field():
    """Tools write null for what they do not set, and for what other classes have."""
    every = {name: None for config in REFUSED.values() for name in config if name not in LLAMA2_7B}
    plain, nulls = (built(config)[1].experiment for config in (LLAMA2_7B, every | LLAMA2_7B | {"num_experts": None}))
    assert plain == nulls
