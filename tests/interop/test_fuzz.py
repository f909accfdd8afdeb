"""Random damage to the files of a released folder: an import works or says one line, and reads nothing outside."""

import json
import struct

import hypothesis.strategies as st
import pytest
import released
import watched
from hypothesis import HealthCheck, given, settings
from safetensors.numpy import load_file

from transfusion.errors import UsageError
from transfusion.interop.files import Checkpoint
from transfusion.interop.known import find_family
from transfusion.interop.leaves import check_keys

BOUNDED = settings(
    max_examples=80, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
TEXT = {
    "architectures": ["Qwen2ForCausalLM"], "vocab_size": 16, "hidden_size": 8, "intermediate_size": 12,
    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "rms_norm_eps": 1e-6,
    "rope_theta": 1e4, "rope_scaling": {"rope_type": "linear", "factor": 2.0}, "max_position_embeddings": 64,
    "tie_word_embeddings": False, "layer_types": ["full_attention"] * 2, "head_dim": 4,
}  # fmt: skip
SIZES = {key: TEXT[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")}
CONFIGS = {
    "language": TEXT,
    "siglip": released.SIGLIP,
    "autoencoder": released.AUTOENCODER,
    "janus": {
        "architectures": ["JanusForConditionalGeneration"], "text_config": SIZES | {"vocab_size": 16},
        "vision_config": {
            "hidden_size": 6, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8, "patch_size": 4,
            "mlp_ratio": 1.5, "projection_dim": 8, "depth": 2,
        },
        "vq_config": {
            "embed_dim": 3, "latent_channels": 4, "base_channels": 4, "channel_multiplier": [2, 1], "num_res_blocks": 1,
            "norm_num_groups": 2, "num_embeddings": 5, "projection_dim": 8, "image_token_embed_dim": 8,
        },
    },
    "bagel": {
        "model_type": "bagel", "max_latent_size": 4, "vit_max_num_patch_per_side": 4, "timestep_shift": 3.0,
        "llm_config": SIZES | {"vocab_size": 16}, "vit_config": SIZES | {"patch_size": 4, "image_size": 16},
        "vae_config": {"z_channels": 4},
    },
    "sd3": {
        "_class_name": "SD3Transformer2DModel", "num_layers": 2, "num_attention_heads": 1, "attention_head_dim": 8,
        "caption_projection_dim": 8, "in_channels": 2, "out_channels": 2, "sample_size": 4, "pos_embed_max_size": 4,
        "joint_attention_dim": 3, "pooled_projection_dim": 3, "dual_attention_layers": [0], "qk_norm": "rms_norm",
    },
    "cosmos3": {
        "_class_name": "Cosmos3OmniTransformer", "head_dim": 6, "hidden_size": 8, "intermediate_size": 12,
        "latent_channel": 2, "latent_patch_size": 2, "num_attention_heads": 2, "num_hidden_layers": 1,
        "num_key_value_heads": 1, "vocab_size": 11, "rope_axes_dim": [1, 1, 1], "timestep_scale": 0.001,
    },
}  # fmt: skip
NUMBERS = st.sampled_from([0, -1, -8, 1, 3, 10**6, 10**9, 2**31 - 1, 2**63, 10**30, 0.5, -1.0, 1e30, 1e-300])
VALUES = st.one_of(
    NUMBERS,
    st.sampled_from([None, True, False, float("nan"), float("inf"), "", "x", "../x", "\ud800", "a\nb", {}, []]),
    st.lists(NUMBERS, max_size=3), st.dictionaries(st.sampled_from(["type", "factor", "x"]), NUMBERS, max_size=2),
)  # fmt: skip


def read(folder):
    """All that an import does before it writes; a UsageError of one line is right, any other exception is not."""
    with watched.confined(folder):
        try:
            checkpoint = Checkpoint(folder)
            _, imported = find_family(checkpoint)
            check_keys(checkpoint, *imported.whole, imported.ignore)
        except UsageError as error:
            line = " ".join(str(error).split())  # as programs print it
            assert line and len(line) < 3000


def paths_of(table, above=()):
    """Where a config has a value, tables of it too."""
    for name, value in table.items():
        yield (*above, name)
        if isinstance(value, dict):
            yield from paths_of(value, (*above, name))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("released")
    return {name: released.write(root / name, c, released.weights(name, c)) for name, c in CONFIGS.items()}


@pytest.mark.parametrize("name", CONFIGS)
@BOUNDED
@given(data=st.data())
def test_any_value_in_any_field_of_a_config(folders, name, data):
    config = json.loads(json.dumps(CONFIGS[name]))
    for _ in range(data.draw(st.integers(1, 2))):
        *above, last = data.draw(st.sampled_from(sorted(paths_of(config))))
        table = config
        for part in above:
            table = table[part]
        table[data.draw(st.sampled_from([last, "use_x", "x"]))] = data.draw(VALUES)
    (folders[name] / "config.json").write_text(json.dumps(config))
    read(folders[name])


ENTRY = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "BF16", "F8_E4M3", "", 5, ["F32"], None, "\ud800"]),
        "shape": st.one_of(st.lists(NUMBERS, max_size=3), VALUES),
        "data_offsets": st.one_of(st.lists(NUMBERS, min_size=2, max_size=2), VALUES),
    },
)


@BOUNDED
@given(data=st.data())
def test_any_entry_in_a_header(folders, data):
    folder = folders["siglip"]
    (folder / "config.json").write_text(json.dumps(CONFIGS["siglip"]))
    whole = (folder / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    header = json.loads(whole[8 : 8 + length])
    for _ in range(data.draw(st.integers(1, 3))):
        key = data.draw(st.sampled_from([*sorted(header), "x", "__metadata__", "\ud800", "../x"]))
        about = header.get(key)
        known = about if isinstance(about, dict) else {}
        header[key] = data.draw(st.one_of(ENTRY.map(lambda new, known=known: known | new), VALUES))
    text = json.dumps(header).encode()
    try:
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + length :])
        read(folder)
    finally:
        (folder / "model.safetensors").write_bytes(whole)


@BOUNDED
@given(data=st.data())
def test_any_bytes_in_the_files(folders, data):
    """Bytes put in, taken away or changed, most of them near the beginning, where the lengths and the JSON are."""
    folder = folders["siglip"]
    (folder / "config.json").write_text(json.dumps(CONFIGS["siglip"]))
    path = folder / data.draw(st.sampled_from(["model.safetensors", "config.json"]))
    whole = path.read_bytes()
    start = data.draw(st.one_of(st.integers(0, 40), st.integers(0, len(whole))))
    stop = min(start + data.draw(st.integers(0, 12)), len(whole))
    try:
        path.write_bytes(whole[:start] + data.draw(st.binary(max_size=12)) + whole[stop:])
        read(folder)
    finally:
        path.write_bytes(whole)
    assert load_file(folder / "model.safetensors")


@BOUNDED
@given(about=st.fixed_dictionaries(
    {},
    optional={
        "weight_map": st.one_of(
            VALUES,
            st.dictionaries(
                st.sampled_from(["embeddings.position_embedding.weight", "x"]),
                st.one_of(st.sampled_from(["model.safetensors", "/etc/passwd", "../x.safetensors", "..", "."]), VALUES),
                min_size=1, max_size=2,
            ),
        ),
        "metadata": VALUES,
    },
))  # fmt: skip
def test_any_index(folders, about):
    folder = folders["siglip"]
    (folder / "config.json").write_text(json.dumps(CONFIGS["siglip"]))
    path = folder / "model.safetensors.index.json"
    try:
        path.write_text(json.dumps(about))
        read(folder)
    finally:
        path.unlink()
