"""What a stranger's config.json, index, header or folder may hold: one line each, and nothing outside is read."""

import json
import os
import struct
import time

import numpy as np
import pytest
import released
from program import run_program
from safetensors.numpy import save_file

from transfusion.errors import UsageError
from transfusion.interop.files import Checkpoint
from transfusion.interop.importing import import_checkpoint

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "vocab_size": 16, "hidden_size": 8, "intermediate_size": 12,
    "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
LONGROPE = {"type": "longrope", "short_factor": [1.0, 1.0], "long_factor": [2.0, 2.0]}
# Of a text model: changed fields -> what is said.
WRONG = [
    ({"num_attention_heads": -2}, "num_attention_heads must be positive, not -2"),
    ({"num_attention_heads": 0}, "num_attention_heads must be positive, not 0"),
    ({"num_attention_heads": True}, "num_attention_heads must be of type int, not True"),
    ({"num_attention_heads": 16}, "num_attention_heads 16 is more than hidden_size 8"),
    ({"num_key_value_heads": 0}, "num_key_value_heads must be positive, not 0"),
    ({"vocab_size": 0}, "vocab_size must be positive, not 0"),
    ({"hidden_size": 1e30}, r"hidden_size must be of type int, not 1e\+30"),
    ({"hidden_size": 10**30}, "hidden_size must be at most 2147483647"),
    ({"hidden_size": 2**31 - 8}, "config.json asks for .* numbers in all, and the files hold 824"),
    ({"vocab_size": 2**31 - 1, "hidden_size": 2**31 - 8}, "config.json asks for .* numbers in all"),
    ({"intermediate_size": "12"}, "intermediate_size must be of type int, not '12'"),
    ({"head_dim": "8"}, "head_dim must be of type int, not '8'"),
    ({"head_dim": -8}, "head_dim must be positive, not -8"),
    ({"head_dim": 3}, "head_size 3 must be even"),
    ({"rms_norm_eps": float("nan")}, "rms_norm_eps must be finite, not nan"),
    ({"rms_norm_eps": float("inf")}, "rms_norm_eps must be finite, not inf"),
    ({"rms_norm_eps": -1e-6}, "rms_norm_eps must be positive, not -1e-06"),
    ({"rms_norm_eps": 0}, "rms_norm_eps must be positive, not 0.0"),
    ({"rms_norm_eps": [1e-6]}, "rms_norm_eps must be of type float"),
    ({"rope_theta": "abc"}, "rope_theta must be of type float, not 'abc'"),
    ({"rope_theta": [1]}, r"rope_theta must be of type float, not \[1\]"),
    ({"rope_theta": -1.0}, "rope_theta must be positive, not -1.0"),
    ({"rope_theta": float("nan")}, "rope_theta must be finite, not nan"),
    ({"rope_theta": 10**400}, "rope_theta must be of type float"),
    ({"rope_scaling": "x"}, "rope_scaling must be of type dict, not 'x'"),
    ({"rope_scaling": {"type": ["linear"]}}, "type must be of type str"),
    ({"rope_scaling": {"type": "linear"}}, "scaling 'linear': the field 'factor' is missing"),
    ({"rope_scaling": {"type": "linear", "factor": "x"}}, "factor must be of type float, not 'x'"),
    ({"rope_scaling": {"type": "linear", "factor": 0}}, "factor must be positive, not 0.0"),
    ({"rope_scaling": {"type": "linear", "factor": 2.0, "beta": 1}}, "field 'beta' of the rotary scaling 'linear'"),
    ({"rope_scaling": {"type": "linear", "rope_type": "llama3"}}, "'linear' and 'llama3' is not understood"),
    ({"rope_scaling": LONGROPE | {"short_factor": 5}}, "short_factor must be of type list, not 5"),
    ({"rope_scaling": LONGROPE | {"short_factor": [1.0]}}, "short_factor has 1 values, and a head of 4"),
    ({"rope_scaling": LONGROPE | {"long_factor": [1.0, "x"]}}, "long_factor must be of type float, not 'x'"),
    ({"rope_scaling": LONGROPE, "original_max_position_embeddings": 1}, "must be at least 2, not 1"),
    ({"rope_scaling": {"type": "llama3", "factor": 8.0}}, "the field 'low_freq_factor' is missing"),
    ({"layer_types": 5}, "layer_types must be of type list, not 5"),
    ({"layer_types": [[]]}, "layer_types may name full_attention only"),
    ({"tie_word_embeddings": "yes"}, "tie_word_embeddings must be of type bool, not 'yes'"),
    ({"hidden_act": ["silu"]}, r"hidden_act is \['silu'\], and only 'silu' or 'swish' is understood"),
    ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, and the files hold 12 arrays"),
    ({"num_hidden_layers": 13}, "num_hidden_layers is 13, and the files hold 12 arrays"),
    ({"num_hidden_layers": 2}, "has no key model.layers.1"),
    (
        {"architectures": ["Gemma3ForCausalLM"]},
        "names Gemma3ForCausalLM, which is not understood; there are .*Qwen2F",
    ),
    ({"architectures": 5}, "names no class, which|names no class; there are"),
    ({"architectures": [5], "model_type": {}}, "names no class; there are"),
    ({"x" * 9000: 1}, "the field 'xxx"),
    ({"llm_config": 5}, "the field 'llm_config' is not understood"),
]


@pytest.fixture(scope="module")
def arrays():
    return released.weights("language", LLAMA)


@pytest.mark.parametrize("case", range(len(WRONG)))
def test_a_wrong_field_is_one_line_before_anything_is_built(tmp_path, arrays, case):
    change, message = WRONG[case]
    folder = released.write(tmp_path / "in", LLAMA | change, arrays)
    start = time.monotonic()
    with pytest.raises(UsageError, match=message) as caught:
        import_checkpoint(folder, tmp_path / "work", text_as_bytes=True)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000
    assert time.monotonic() - start < 20 and [path.name for path in tmp_path.iterdir()] == ["in"]


def nested(table, name, value):
    return json.dumps(table | {name: 0}).replace(f'"{name}": 0', f'"{name}": {value}').encode()


FILES = {
    "config.json is not UTF-8 text: byte 0 is 0xff": "é".encode("utf-16"),
    "config.json is nested too deeply": nested(LLAMA, "x", "[" * 200 + "]" * 200),
    "is nested too deeply|no JSON": nested(LLAMA, "x", "[" * 200_000),
    "config.json is no JSON: key hidden_size is there twice": nested(LLAMA, "x", '1, "hidden_size": 8'),
    "config.json is no JSON": b"{'a'}",
    "config.json must hold a JSON object, not 5": b"5",
    "is not Unicode text": nested(LLAMA, "x", '1, "\\ud83d": 8'),
    "bytes, more than the 32,000,000": b" " * 32_000_001,
}


@pytest.mark.parametrize("message", FILES)
def test_a_wrong_config_file_is_one_line(tmp_path, arrays, message):
    folder = released.write(tmp_path / "in", LLAMA, arrays)
    (folder / "config.json").write_bytes(FILES[message])
    with pytest.raises(UsageError, match=message) as caught:
        import_checkpoint(folder, tmp_path / "work", text_as_bytes=True)
    assert "\n" not in str(caught.value)


def test_a_config_with_a_mark_of_its_encoding_is_read(tmp_path, arrays):
    folder = released.write(tmp_path / "in", LLAMA, arrays)
    (folder / "config.json").write_text(json.dumps(LLAMA), encoding="utf-8-sig")
    assert Checkpoint(folder).config == LLAMA


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "model.safetensors.index.json"])
@pytest.mark.parametrize("kind", ["a folder", "a pipe", "a dangling link", "a link outside", "a device"])
def test_what_is_no_file_of_the_folder_is_refused_without_waiting(tmp_path, arrays, name, kind):
    folder = released.write(tmp_path / "in", LLAMA, arrays)
    (folder / name).unlink(missing_ok=True)
    (tmp_path / "secret").write_text("{}")
    make = {
        "a folder": lambda path: path.mkdir(),
        "a pipe": os.mkfifo,
        "a dangling link": lambda path: path.symlink_to("nowhere"),
        "a link outside": lambda path: path.symlink_to(tmp_path / "secret"),
        "a device": lambda path: path.symlink_to("/dev/zero"),
    }
    make[kind](folder / name)
    said = {
        "a folder": "is a folder, not a file", "a pipe": "is a pipe, a socket or a device, not a file",
        "a dangling link": "No such file", "a link outside": "leads out of the folder.*--follow_links",
        "a device": "leads out of the folder",
    }  # fmt: skip
    with pytest.raises(UsageError, match=f"{name}.* {said[kind]}"):
        import_checkpoint(folder, tmp_path / "work")
    if kind == "a device":
        with pytest.raises(UsageError, match="is a pipe, a socket or a device"):
            import_checkpoint(folder, tmp_path / "work", follow_links=True)


def test_links_of_a_hub_cache_are_followed_and_others_if_it_is_asked_for(tmp_path, arrays):
    blobs = tmp_path / "models--a--b" / "blobs"
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    folder = released.write(tmp_path / "in", LLAMA, arrays)
    for path in folder.iterdir():
        (blobs / f"sha-{path.name}").write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(f"../../blobs/sha-{path.name}")
    import_checkpoint(snapshot, tmp_path / "work", text_as_bytes=True)
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to(folder / "config.json")
    with pytest.raises(UsageError, match="leads out of the folder"):
        Checkpoint(snapshot)
    assert Checkpoint(snapshot, follow_links=True).config == LLAMA
    (folder / "model.safetensors").rename(folder / "weights")  # within the folder links are followed
    (folder / "model.safetensors").symlink_to("weights")
    assert Checkpoint(folder).keys()


def index(folder, about):
    (folder / "model.safetensors.index.json").write_text(json.dumps(about))


INDICES = [
    ({"weight_map": {"a": "x" * 5000 + ".safetensors"}}, r"names 'x.*which is not a file of the same folder"),
    ({"weight_map": {"a": "../model.safetensors"}}, "not a file of the same folder"),
    ({"weight_map": {"a": ".."}}, "not a file of the same folder"),
    ({"weight_map": {"a": "/etc/passwd"}}, "not a file of the same folder"),
    ({"weight_map": {"a": "a\0.safetensors"}}, "not a file of the same folder"),
    ({"weight_map": {"a": "\ud800.safetensors"}}, "not a file of the same folder"),
    ({"weight_map": {"a": "config.json"}}, "not a file of the same folder"),
    ({"weight_map": {"a": 5}}, "names 5, which is not a file"),
    ({"weight_map": ["a"]}, "has no weight_map"),
    ({"weight_map": {"a": "model.safetensors"}, "metadata": "x"}, "metadata must be a table, not 'x'"),
    ({"weight_map": {"a": "model.safetensors"}, "metadata": [1]}, r"metadata must be a table, not \[1\]"),
]


@pytest.mark.parametrize("case", range(len(INDICES)))
def test_a_wrong_index_is_one_line(tmp_path, case):
    about, message = INDICES[case]
    save_file({"a": np.ones(1, np.float32)}, tmp_path / "model.safetensors")
    index(tmp_path, about)
    with pytest.raises(UsageError, match=message) as caught:
        Checkpoint(tmp_path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def entry(**changes):
    return {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} | changes


HEADERS = [
    ({"a": entry(dtype=["F32"])}, r"dtype \['F32'\], which is none of"),
    ({"a": entry(dtype={"F32": 1})}, "has the dtype {'F32': 1}"),
    ({"a": entry(dtype="x" * 10**6)}, "has the dtype 'xxx"),
    ({"a": entry(shape="x")}, "broken shape 'x'"),
    ({"a": entry(shape=[1.0])}, r"broken shape \[1.0\]"),
    ({"a": entry(shape=[True])}, r"broken shape \[True\]"),
    ({"a": entry(shape=[10**18, 10**18])}, "takes .* bytes, not those of"),
    ({"a": entry(shape=[1] * 100)}, "has 100 axes, more than 8"),
    ({"a": entry(data_offsets=[0])}, "broken shape"),
    ({"a": entry(data_offsets=[4, 0])}, "takes 4 bytes"),
    ({"a": entry(data_offsets=[-4, 0])}, "broken shape"),
    ({"a": entry(data_offsets=[10**30, 10**30 + 4])}, "is truncated: key a ends at byte"),
    ({"a": entry(), "b": entry()}, "key b begins at byte|key a begins at byte"),
    ({"a": 5}, "key a needs dtype"),
    ({"x" * 10**6: 5}, "key xxx.*needs dtype"),
    ({"a": entry(), "__metadata__": {"x": 1}}, "__metadata__ must be a table of texts"),
    ({"a": entry(), "\ud800": entry(shape=[0], data_offsets=[4, 4])}, "is not Unicode text"),
]


@pytest.mark.parametrize("case", range(len(HEADERS)))
def test_a_wrong_header_is_one_line(tmp_path, case):
    header, message = HEADERS[case]
    text = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"1234")
    with pytest.raises(UsageError, match=message) as caught:
        Checkpoint(tmp_path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


def test_a_header_of_gigabytes_is_not_read(tmp_path):
    """The file is sparse: it takes no room, and would take all memory."""
    for length in (2**63, 2**32, 10**8):
        with open(tmp_path / "model.safetensors", "wb") as file:
            file.write(struct.pack("<Q", length))
            file.truncate(2**32 + 8)
        with pytest.raises(UsageError, match="its header does not fit"):
            Checkpoint(tmp_path)


def test_many_names_of_a_header_are_compared_in_time(tmp_path):
    """Two of a hundred thousand names are equal, or one is missing: neither may take the square of them."""
    pairs = [f'"k{i}": {{"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}' for i in range(100_000)]
    start = time.monotonic()
    for twice in (True, False):
        text = ("{" + ",".join(pairs + pairs[:twice]) + "}").encode()
        (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
        if twice:
            with pytest.raises(UsageError, match="key k0 is there twice"):
                Checkpoint(tmp_path)
    with pytest.raises(UsageError, match="has no key kk77"):
        Checkpoint(tmp_path).entry("kk77")
    assert time.monotonic() - start < 30


def test_a_name_of_a_hub_and_other_names(tmp_path):
    for name, message in {
        "Qwen/Qwen2-0.5B": "is not a folder on this machine; hf://Qwen/Qwen2-0.5B is the model of that name",
        "x" * 5000: "is not a folder",
        "a\0b": "is not a folder",
        str(tmp_path / "nowhere"): "is not a folder",
    }.items():
        with pytest.raises(UsageError, match=message):
            import_checkpoint(name, tmp_path / "work")


@pytest.mark.parametrize("name", ["f/x", "f", "x" * 300, "a\0b"])
def test_a_workdir_that_cannot_be_made_is_one_line(tmp_path, arrays, name):
    folder = released.write(tmp_path / "in", LLAMA, arrays)
    (tmp_path / "f").write_text("")
    with pytest.raises(UsageError, match="cannot write|exists already"):
        import_checkpoint(folder, tmp_path / name, text_as_bytes=True)


def test_a_field_can_be_ignored_and_is_not_forgotten(tmp_path, arrays):
    config = LLAMA | {"trick": {"hidden": 1}, "rope_scaling": {"type": "default", "beta": 3}}
    folder = released.write(tmp_path / "in", config, arrays)
    where = (str(folder), "--workdir", str(tmp_path / "work"), "--bytes")
    done = run_program(tmp_path, "transfusion.interop", "import", *where)
    assert done.code == 2 and "'trick' is not understood" in done.err and "--ignore_field trick" in done.err
    done = run_program(tmp_path, "transfusion.interop", "import", *where, "--ignore_field=trik")
    assert done.code == 2 and "--ignore_field=trik: config.json has no such field (did you mean 'trick'?)" in done.err
    done = run_program(tmp_path, "transfusion.interop", "import", *where, "--ignore_field=trick", "--ignore_field=beta")
    assert done.code == 0 and "trick is passed over" in done.err and "beta is passed over" in done.err, done.err
    done = run_program(tmp_path, "transfusion.interop", "export", str(tmp_path / "back"), *where[1:3])
    assert done.code == 0 and json.loads((tmp_path / "back" / "config.json").read_text()) == config, done.err
