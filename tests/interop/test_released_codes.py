"""Released models of image codes: through the importer and back, and what their codecs do then."""

import numpy as np
import pytest
import released
from oracles import assert_same_checkpoint

from transfusion.errors import UsageError
from transfusion.interop.export import export_checkpoint
from transfusion.interop.importing import import_checkpoint
from transfusion.interop.known import FAMILIES
from transfusion.interop.vocabulary import image_tokens
from transfusion.latents import open_codec
from transfusion.model.unified import parameter_count
from transfusion.workdir.config_file import read_experiment

TEXT = {
    "vocab_size": 20, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1,
}  # fmt: skip
VQ = {
    "embed_dim": 3, "latent_channels": 4, "base_channels": 4, "channel_multiplier": [2, 1], "num_res_blocks": 1,
    "norm_num_groups": 2,
}  # fmt: skip
CHAMELEON = TEXT | {
    "architectures": ["ChameleonForConditionalGeneration"], "swin_norm": True, "model_parallel_size": 2,
    "vq_config": VQ | {"num_embeddings": 5, "resolution": 8, "attn_resolutions": [8]},
}  # fmt: skip
EMU3 = {
    "architectures": ["Emu3ForConditionalGeneration"], "text_config": TEXT | {"tie_word_embeddings": True},
    "vq_config": VQ | {
        "codebook_size": 5, "embed_dim": 4, "temporal_downsample_factor": 2, "attn_resolutions": [1], "hidden_size": 4,
        "num_attention_heads": 2,
    },
}  # fmt: skip
JANUS = {
    "architectures": ["JanusForConditionalGeneration"], "text_config": TEXT, "image_token_id": 3,
    "vision_config": {
        "hidden_size": 6, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8, "patch_size": 4,
        "mlp_ratio": 1.5, "projection_dim": 8, "depth": 3, "attention_bias": False,
    },
    "vq_config": VQ | {
        "num_embeddings": 5, "projection_dim": 8, "image_token_embed_dim": 8, "num_hidden_layers": 1,
    },
}  # fmt: skip
COUNT = np.array(7)  # batch norms count their batches
# config, what keys begin with, arrays that are kept aside
CASES = {
    "chameleon": (CHAMELEON, "", {"model.vqmodel.post_quant_conv.bias": np.ones(4, np.float32)}),
    "emu3": (EMU3, "", {"model.vqmodel.encoder.time_res_stack.0.norm1.num_batches_tracked": COUNT}),
    "emu3, old names": (EMU3, "text_model.", {"vqmodel.encoder.time_res_stack.0.norm1.num_batches_tracked": COUNT}),
    "janus": (JANUS, "", {}),
}


@pytest.mark.parametrize("name", CASES)
def test_a_model_and_its_codec_come_back_and_the_codec_opens(tmp_path, name):
    config, prefix, aside = CASES[name]
    family = name.partition(",")[0]
    weights = released.weights(family, config, prefix) | aside
    folder = released.write(tmp_path / "in", config, *released.halves(weights))
    assert import_checkpoint(folder, tmp_path / "work", text_as_bytes=True).name == family
    export_checkpoint(tmp_path / "work", tmp_path / "back")
    assert_same_checkpoint(folder, tmp_path / "back")
    if prefix:
        return
    codec = open_codec(read_experiment(tmp_path / "work").codec)
    codes = codec.encode(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8))
    assert codes.shape == (4, 4) and codes.dtype == np.int32 and codec.vocabulary == 5
    if family == "chameleon":
        with pytest.raises(UsageError, match="this codec has no decoder"):
            codec.decode(codes)
    else:
        assert codec.decode(codes).shape == (8, 8, 3)


def changed(config, part, **fields):
    return config | {part: config[part] | fields}


REFUSED = {
    "vq_config: the field 'embed_dims' is not understood": ("janus", changed(JANUS, "vq_config", embed_dims=3)),
    "vq_config: double_latent is True": ("chameleon", changed(CHAMELEON, "vq_config", double_latent=True)),
    "hidden_size 5 is not that of the attentions": ("emu3", changed(EMU3, "vq_config", hidden_size=5)),
    "vision_config: projection_dim must be the text": ("janus", changed(JANUS, "vision_config", projection_dim=9)),
    "vision_config: use_qk_norm is True": ("janus", changed(JANUS, "vision_config", use_qk_norm=True)),
    "vision_config: hidden_act 'x' is none": ("janus", changed(JANUS, "vision_config", hidden_act="x")),
    "channel_multiplier .* whole numbers": ("janus", changed(JANUS, "vq_config", channel_multiplier=[1.5])),
    "text_config: model_type 'gpt2'": ("janus", changed(JANUS, "text_config", model_type="gpt2")),
    "time_down is 3": ("emu3", changed(EMU3, "vq_config", temporal_downsample_factor=3)),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_not_understood_is_named(message):
    family, config = REFUSED[message]
    with pytest.raises(UsageError, match=message):
        FAMILIES[family].build(config, [])


def test_codes_have_the_tokens_that_the_vocabulary_names():
    assert image_tokens({"IMGIMGBAZ": 1, **{f"IMGIMG{c}Z": 20 - i for i, c in enumerate("ABCDEFGHIJ")}}, 11) == (
        *range(20, 10, -1), 1,
    )  # fmt: skip
    assert image_tokens({"<|visual token 000001|>": 4, "<|visual token 000000|>": 9, "x": 9}, 2) == (9, 4)
    for message, names in {
        "image code 1 has no token": {"IMGIMGAZ": 3},
        "two image codes have the same": {"IMGIMGAZ": 3, "IMGIMGBZ": 3},
        "image code 1 has two tokens": {"IMGIMGAZ": 3, "IMGIMGBZ": 4, "IMGIMGABZ": 5},
    }.items():
        with pytest.raises(UsageError, match=message):
            image_tokens(names, 2)


def test_emu3s_own_files():
    """Its text model and its VQ model lie in two folders, the VQ model under other names than inside transformers'."""
    own = {
        "ch": 4,
        "ch_mult": [2, 1],
        "z_channels": 4,
        "num_res_blocks": 1,
        "attn_resolutions": [1],
        "codebook_size": 5,
    }
    weights = released.weights("vq", own | {"architectures": ["Emu3VisionVQModel"], "norm_num_groups": 2})
    names = {
        "encoder.down.1.attn.0.norm.weight": (4,), "encoder.mid.attn_1.q.weight": (4, 4, 1, 1),
        "encoder.down.0.downsample.conv.weight": (8, 8, 3, 3), "encoder.time_conv.1.conv.conv.weight": (4, 4, 4, 3, 3),
        "encoder.time_res_stack.0.norm2.running_var": (4,), "quant_conv.conv.weight": (4, 4, 3, 1, 1),
        "decoder.mid.block_1.norm1.norm_layer.weight": (4,), "decoder.up.1.attn.1.norm.conv_y.weight": (4, 4, 1, 1),
        "decoder.up.0.block.0.nin_shortcut.weight": (8, 4, 1, 1), "decoder.norm_out.conv_b.bias": (8,),
        "decoder.time_conv.0.conv.conv.weight": (4, 4, 3, 3, 3), "decoder.up.1.upsample.conv.bias": (4,),
        "quantize.embedding.weight": (5, 4),
    }  # fmt: skip
    assert {key: weights[key].shape for key in names} == names
    config = TEXT | {
        "architectures": ["Emu3ForCausalLM"],
        "model_type": "Emu3",
        "boi_token_id": 3,
        "image_area": 518400,
    }
    assert FAMILIES["language"].build(config, []).experiment.model.rope_theta == 1e6


def test_sizes_of_the_released_models():
    """From configs that leave out what is their class's default; Janus-Pro-1B's text model is smaller than that."""
    janus = {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 24, "num_attention_heads": 16}
    configs = {
        "chameleon": ({}, 7.0e9, 7.1e9),
        "emu3": ({}, 8.6e9, 8.8e9),
        "janus": ({"text_config": janus | {"vocab_size": 102400}}, 2.0e9, 2.2e9),
    }
    for family, (config, least, most) in configs.items():
        imported = FAMILIES[family].build(config | {"model_type": family}, [])
        assert least < parameter_count(imported.whole[1]) < most, family
