"""Which tiny models `make_oracles.py` makes."""

from typing import Any

# Class -> its arguments. Those that begin with "in." are sizes of the inputs.
BASE: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {
        "vocab_size": 97, "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
        "tie_word_embeddings": False, "attn_implementation": "eager",
    },
    "SiglipVisionModel": {
        "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 2, "num_attention_heads": 4,
        "image_size": 24, "patch_size": 8, "attn_implementation": "eager", "in.grid": (5, 4),
    },
    "AutoencoderKL": {
        "block_out_channels": [16, 32], "layers_per_block": 1, "norm_num_groups": 8, "sample_size": 16,
        "latent_channels": 4, "scaling_factor": 0.18215, "in.size": (16, 16),
    },
    "DiTTransformer2DModel": {
        "num_attention_heads": 4, "attention_head_dim": 8, "in_channels": 4, "out_channels": 8, "num_layers": 2,
        "sample_size": 8, "patch_size": 2, "num_embeds_ada_norm": 10, "norm_num_groups": 8,
    },
    "SD3Transformer2DModel": {
        "sample_size": 8, "patch_size": 2, "in_channels": 4, "num_layers": 3, "attention_head_dim": 8,
        "num_attention_heads": 4, "joint_attention_dim": 24, "caption_projection_dim": 32,
        "pooled_projection_dim": 20, "out_channels": 4, "pos_embed_max_size": 12, "qk_norm": "rms_norm",
        "dual_attention_layers": [0], "in.size": (8, 12),
    },
    "OmniGenTransformer2DModel": {
        "in_channels": 4, "patch_size": 2, "hidden_size": 36, "num_attention_heads": 3, "num_key_value_heads": 3,
        "intermediate_size": 48, "num_layers": 2, "pad_token_id": 0, "vocab_size": 64,
        "max_position_embeddings": 4096, "original_max_position_embeddings": 128, "pos_embed_max_size": 8,
        "time_step_dim": 32, "rope_scaling": {
            "type": "su", "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5], "long_factor": [2.0, 2.5, 3.0, 3.5, 4.0, 4.5],
        }, "in.size": (8, 8), "in.rows": 1,
    },
    "Cosmos3OmniTransformer": {
        "head_dim": 12, "hidden_size": 32, "intermediate_size": 48, "latent_channel": 4, "latent_patch_size": 2,
        "num_attention_heads": 4, "num_hidden_layers": 2, "num_key_value_heads": 2, "patch_latent_dim": 16,
        "rope_theta": 10000.0, "vocab_size": 64, "timestep_scale": 0.001, "rope_axes_dim": [2, 2, 2],
        "in.grid": (1, 2, 3),
    },
}  # fmt: skip
BASE["Qwen2ForCausalLM"] = BASE["LlamaForCausalLM"] | {"rope_theta": 1e6}
BASE["Qwen3ForCausalLM"] = BASE["LlamaForCausalLM"] | {"rope_theta": 1e6, "head_dim": 12}
BASE["Qwen3MoeForCausalLM"] = BASE["Qwen3ForCausalLM"] | {
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "norm_topk_prob": True,
    "experts_implementation": "eager",
}
VQ = {
    "embed_dim": 8, "num_embeddings": 24, "latent_channels": 8, "resolution": 16, "base_channels": 32,
    "channel_multiplier": [1, 1], "num_res_blocks": 1, "attn_resolutions": [8],
}  # fmt: skip
TEXT = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
MOVQ = {
    "codebook_size": 24, "embed_dim": 4, "latent_channels": 4, "temporal_downsample_factor": 4, "base_channels": 32,
    "channel_multiplier": [1, 1], "num_res_blocks": 1, "attn_resolutions": [1], "hidden_size": 32,
    "num_attention_heads": 1,
}  # fmt: skip
SEEN = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 16, "patch_size": 4,
    "mlp_ratio": 2.0, "projection_dim": 32, "depth": 2, "num_image_tokens": 16,
}  # fmt: skip
DRAWN = {
    "embed_dim": 8, "num_embeddings": 32, "latent_channels": 16, "base_channels": 32, "channel_multiplier": [1, 1],
    "num_res_blocks": 1, "projection_dim": 32, "num_hidden_layers": 2, "image_token_embed_dim": 32,
}  # fmt: skip
# 32 channels in 32 groups would hide biases: GroupNorms are given "groupnorm_groups" behind the config's back.
BASE["ChameleonForConditionalGeneration"] = TEXT | {
    "num_key_value_heads": 4, "vq_config": VQ, "groupnorm_groups": 8, "attn_implementation": "eager",
}  # fmt: skip
BASE["Emu3ForConditionalGeneration"] = {
    "text_config": TEXT | SPECIAL, "vq_config": MOVQ, "groupnorm_groups": 8, "tie_word_embeddings": False,
    "in.sizes": ((8, 8),), "in.frames": 8,
}  # fmt: skip
BASE["JanusForConditionalGeneration"] = {
    "text_config": TEXT | {"model_type": "llama"}, "vision_config": SEEN, "vq_config": DRAWN, "image_token_id": 63,
    "groupnorm_groups": 8, "tie_word_embeddings": False,
}  # fmt: skip
BASE["VQModel"] = BASE["AutoencoderKL"] | {"num_vq_embeddings": 24, "vq_embed_dim": 4}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 100.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
# Class -> name of the variant -> arguments that differ.
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "LlamaForCausalLM": {
        "llama": {},
        "llama_tied": {"tie_word_embeddings": True, "num_key_value_heads": 4, "rms_norm_eps": 1e-5},
        "llama_biases": {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 1},
        "llama_head_dim": {"head_dim": 6, "num_hidden_layers": 3, "vocab_size": 50},
        "llama_llama3": {"rope_parameters": LLAMA3, "max_position_embeddings": 256},
        "llama_linear": {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}},
        "llama_deep": {"num_hidden_layers": 5, "hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 3},
    },
    "Qwen2ForCausalLM": {
        "qwen2": {},
        "qwen2_tied": {"tie_word_embeddings": True, "num_hidden_layers": 1},
        "qwen2_wide": {"hidden_size": 40, "num_attention_heads": 5, "num_key_value_heads": 5, "rms_norm_eps": 1e-3},
    },
    "Qwen3ForCausalLM": {
        "qwen3": {},
        "qwen3_tied": {"tie_word_embeddings": True, "head_dim": 8},
        "qwen3_bias": {"attention_bias": True, "head_dim": 16, "num_key_value_heads": 4, "rms_norm_eps": 1e-3},
        "qwen3_linear": {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
    },
    "Qwen3MoeForCausalLM": {
        "qwen3_moe": {},
        "qwen3_moe_not_renormalised": {"norm_topk_prob": False, "num_experts": 4, "num_experts_per_tok": 3},
        "qwen3_moe_one_of_all": {"num_experts_per_tok": 1, "attention_bias": True, "num_hidden_layers": 3},
    },
    "SiglipVisionModel": {
        "siglip": {},
        "siglip_gelu_no_head": {"hidden_act": "gelu", "vision_use_head": False, "num_hidden_layers": 3},
        "siglip_patch4": {"patch_size": 4, "image_size": 20, "num_attention_heads": 2, "layer_norm_eps": 1e-3},
        "siglip_smaller_grid": {"image_size": 48, "hidden_act": "quick_gelu", "in.grid": (3, 4), "num_channels": 1},
    },
    "AutoencoderKL": {
        "vae_sd": {},
        "vae_flux": {
            "latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False, "scaling_factor": 0.3611,
            "shift_factor": 0.1159,
        },
        "vae_three_blocks": {
            "block_out_channels": [8, 12, 16], "norm_num_groups": 4, "layers_per_block": 2, "in.size": (16, 24),
        },
        "vae_one_group": {"norm_num_groups": 1, "in_channels": 1, "out_channels": 1, "block_out_channels": [16, 16]},
    },
    "DiTTransformer2DModel": {
        "dit": {},
        "dit_patch4": {"out_channels": None, "patch_size": 4, "sample_size": 16},
        "dit_no_bias": {"attention_bias": False, "num_layers": 3, "num_attention_heads": 3, "num_embeds_ada_norm": 5},
        "dit_patch1": {"patch_size": 1, "sample_size": 4, "in_channels": 6, "out_channels": 6, "num_layers": 1},
    },
    "SD3Transformer2DModel": {
        "sd3": {},
        "sd3_no_dual": {"dual_attention_layers": []},
        "sd3_no_norm": {"dual_attention_layers": [], "qk_norm": None, "in_channels": 6, "out_channels": 6},
        "sd3_two_dual": {"dual_attention_layers": [0, 1], "num_layers": 4, "sample_size": 16, "in.size": (12, 8)},
        "sd3_dual_last": {"dual_attention_layers": [0, 2], "qk_norm": None},
        "sd3_two_layers": {"num_layers": 2, "dual_attention_layers": [1], "patch_size": 1, "in.size": (4, 6)},
    },
    "OmniGenTransformer2DModel": {
        "omnigen": {},
        "omnigen_long": {"original_max_position_embeddings": 16},
        "omnigen_long_by_one": {"original_max_position_embeddings": 28},
        "omnigen_two_rows": {"in.rows": 2, "in.size": (8, 12), "num_layers": 3, "rope_base": 500},
        "omnigen_short_context": {"max_position_embeddings": 128, "rms_norm_eps": 1e-3},
    },
    "Cosmos3OmniTransformer": {
        "cosmos3": {},
        "cosmos3_bias": {"attention_bias": True, "rms_norm_eps": 1e-3, "timestep_scale": 0.01},
        "cosmos3_sections": {"head_dim": 16, "rope_axes_dim": [4, 2, 2], "num_key_value_heads": 4},
        "cosmos3_frames": {"in.grid": (2, 2, 2), "num_hidden_layers": 3, "rope_axes_dim": [4, 1, 1]},
        "cosmos3_mrope_section": {"rope_axes_dim": None, "rope_scaling": {"mrope_section": [2, 2, 2]}},
    },
    "ChameleonForConditionalGeneration": {
        "chameleon": {},
        "chameleon_swin": {"swin_norm": True, "rms_norm_eps": 1e-3, "num_key_value_heads": 2},
        "chameleon_parallel": {"model_parallel_size": 2, "tie_word_embeddings": True, "num_hidden_layers": 3},
        "chameleon_biases": {"attention_bias": True, "mlp_bias": True, "num_attention_heads": 8,
                             "num_key_value_heads": 8, "swin_norm": True, "model_parallel_size": 4},
        "chameleon_vq": {"vq_config": VQ | {
            "base_channels": 32, "channel_multiplier": [2, 1, 3], "num_res_blocks": 2, "attn_resolutions": [16, 4],
            "embed_dim": 6, "latent_channels": 10, "num_embeddings": 30,
        }},
        "chameleon_no_attention": {"vq_config": VQ | {"attn_type": "none", "channel_multiplier": [1]}},
    },
    "Emu3ForConditionalGeneration": {
        "emu3": {},
        "emu3_tied": {"tie_word_embeddings": True, "text_config": TEXT | SPECIAL | {"num_key_value_heads": 4}},
        "emu3_two_frames": {"vq_config": MOVQ | {
            "temporal_downsample_factor": 2, "num_attention_heads": 2, "attn_resolutions": [0, 1], "num_res_blocks": 2,
        }, "in.sizes": ((8, 4), (4, 8)), "in.frames": 4},
        "emu3_one_frame": {"vq_config": MOVQ | {"temporal_downsample_factor": 1, "attn_resolutions": []},
                           "in.frames": 3},
        "emu3_three_levels": {"vq_config": MOVQ | {
            "channel_multiplier": [2, 1, 3], "base_channels": 32, "hidden_size": 96, "attn_resolutions": [2],
            "embed_dim": 6, "latent_channels": 6,
        }, "in.sizes": ((8, 12),)},
    },
    "JanusForConditionalGeneration": {
        "janus": {},
        "janus_depths": {
            "vision_config": SEEN | {"depth": 4, "attention_bias": False, "hidden_act": "gelu_pytorch_tanh"},
            "vq_config": DRAWN | {"num_hidden_layers": 1, "hidden_act": "silu"},
        },
        "janus_tied": {
            "tie_word_embeddings": True, "text_config": TEXT | {"model_type": "llama", "attention_bias": True},
            "vision_config": SEEN | {"depth": 1, "mlp_ratio": 1.5}, "vq_config": DRAWN | {"num_hidden_layers": 3},
        },
        "janus_sizes": {
            "vision_config": SEEN | {"image_size": 24, "num_image_tokens": 9, "patch_size": 8, "hidden_size": 24},
            "vq_config": DRAWN | {"channel_multiplier": [2, 1, 3], "base_channels": 32, "num_res_blocks": 2,
                                  "embed_dim": 5},
        },
    },
    "VQModel": {
        "vqmodel": {},
        "vqmodel_attention": {
            "vq_embed_dim": 6, "layers_per_block": 2, "down_block_types": ["AttnDownEncoderBlock2D"] * 2,
            "up_block_types": ["UpDecoderBlock2D", "AttnUpDecoderBlock2D"], "mid_block_add_attention": False,
        },
        "vqmodel_spatial": {
            "norm_type": "spatial", "norm_num_groups": 32, "block_out_channels": [32, 64], "in.size": (8, 16),
            "down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
            "up_block_types": ["AttnUpDecoderBlock2D", "UpDecoderBlock2D"],
        },
    },
}  # fmt: skip
