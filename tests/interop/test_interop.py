"""Released folders through the importer and back: variants, refusals, the program, and memory."""

import filecmp
import json
import math
import pathlib
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
import released
from closeness import assert_close
from oracles import assert_same_checkpoint, run
from oracles.codecs import original_names
from program import run_program
from safetensors.numpy import load_file, save_file

from transfusion.codecs import CodecConfig
from transfusion.errors import UsageError
from transfusion.interop.export import export_checkpoint
from transfusion.interop.files import Checkpoint
from transfusion.interop.importing import import_checkpoint, load_params
from transfusion.interop.known import FAMILIES, find_family
from transfusion.interop.leaves import read_params, their_shapes
from transfusion.latents import open_codec
from transfusion.running.checkpoint import Checkpoints
from transfusion.running.restore import restore_params

CASES = {"siglip": released.SIGLIP, "autoencoder": released.AUTOENCODER}


def there_and_back(tmp_path, folder):
    """(parameters that the workdir gives, the folder that it exports to)"""
    family = import_checkpoint(folder, tmp_path / "work")
    export_checkpoint(tmp_path / "work", tmp_path / "back")
    _, params, _ = restore_params(tmp_path / "work", "params")
    assert (tmp_path / "work" / "config.json").exists() == (family.name == "autoencoder")
    return params, tmp_path / "back"


def assert_same_files(one: pathlib.Path, two: pathlib.Path):
    names = sorted(path.name for path in one.iterdir())
    assert sorted(path.name for path in two.iterdir()) == names
    assert_same_checkpoint(one, two)
    for name in names:
        if name.endswith(".safetensors"):
            assert filecmp.cmp(one / name, two / name, shallow=False), name


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("siglip", np.float32), ("siglip", ml_dtypes.bfloat16), ("siglip", np.float16), ("autoencoder", np.float32)],
)
def test_import_and_export_give_the_same_files(tmp_path, name, dtype):
    weights = released.weights(name, CASES[name], dtype=dtype)
    folder = released.write(tmp_path / "in", CASES[name], *released.halves(weights))
    params, back = there_and_back(tmp_path, folder)
    assert_same_files(folder, back)
    found = Checkpoint(folder)
    _, imported = find_family(found)
    direct = read_params(found, imported.leaves, imported.template.shapes)
    for one, two in zip(jax.tree.leaves(direct), jax.tree.leaves(params), strict=True):
        assert two.dtype == np.float32
        np.testing.assert_array_equal(one, two)


def test_a_siglip_model_keeps_its_text_tower_aside(tmp_path):
    config = {
        "architectures": ["SiglipModel"],
        "text_config": {"whatever": 1},
        "vision_config": {k: v for k, v in released.SIGLIP.items() if k != "architectures"},
        "torch_dtype": "float32",
    }
    tower = released.weights("siglip", released.SIGLIP, "vision_model.")
    rest = {"text_model.x": np.ones((2, 2), np.float16), "logit_scale": np.ones(1, np.float32)}
    folder = released.write(tmp_path / "in", config, tower | rest)
    params, back = there_and_back(tmp_path, folder)
    assert_same_files(folder, back)
    plain = released.write(tmp_path / "plain", released.SIGLIP, released.weights("siglip", released.SIGLIP))
    import_checkpoint(plain, tmp_path / "other")
    other = restore_params(tmp_path / "other", "params")[1]
    for one, two in zip(jax.tree.leaves(params), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(one, two)


def test_an_imported_autoencoder_is_a_codec(tmp_path):
    folder = released.write(
        tmp_path / "in", released.AUTOENCODER, released.weights("autoencoder", released.AUTOENCODER)
    )
    import_checkpoint(folder, tmp_path / "work")
    codec = open_codec(CodecConfig("autoencoder", str(tmp_path / "work")))
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    latents = codec.encode(image)
    assert codec.down == 2 and latents.shape == (4, 4, 3)
    assert codec.decode(latents).shape == (8, 8, 3) and np.ptp(codec.decode(latents)) > 0


def test_old_names_of_the_autoencoders_attention(tmp_path):
    old = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}
    weights = released.weights("autoencoder", released.AUTOENCODER)
    for new, name in old.items():
        weights = {key.replace(new, name): value for key, value in weights.items()}
    config = {k: v for k, v in released.AUTOENCODER.items() if k != "scaling_factor"}
    folder = released.write(tmp_path / "in", config, weights)
    _, back = there_and_back(tmp_path, folder)
    assert_same_files(folder, back)
    _, imported = find_family(Checkpoint(folder))
    assert imported.experiment.autoencoder.scale == 0.18215


def test_bagel_as_it_lies_in_its_folder(tmp_path):
    """Configs of the parts in files of their own, averaged weights beside an autoencoder, one layer of SigLIP less."""
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 8, "intermediate_size": 12}
    llm = sizes | {"vocab_size": 20, "num_key_value_heads": 1, "layer_module": "Qwen2MoTDecoderLayer"}
    vit = sizes | {"patch_size": 4, "image_size": 16}
    config = {"model_type": "bagel", "max_latent_size": 4, "vit_max_num_patch_per_side": 4}
    weights = released.weights("bagel", config | {"llm_config": llm, "vit_config": vit})
    folder = released.write(tmp_path / "in", config, weights)
    (folder / "model.safetensors").rename(folder / "ema.safetensors")
    save_file({"encoder.conv_in.weight": np.ones((1, 1))}, folder / "ae.safetensors")
    (folder / "llm_config.json").write_text(json.dumps(llm))
    (folder / "vit_config.json").write_text(json.dumps(vit | {"num_hidden_layers": 3}))
    import_checkpoint(folder, tmp_path / "work", text_as_bytes=True)
    export_checkpoint(tmp_path / "work", tmp_path / "back")
    np.testing.assert_equal(load_file(tmp_path / "back" / "ema.safetensors"), weights)


def test_export_in_another_dtype_and_size(tmp_path):
    config = released.SIGLIP | {"torch_dtype": "float32"}
    weights = released.weights("siglip", config)
    import_checkpoint(released.write(tmp_path / "in", config, weights), tmp_path / "work")
    export_checkpoint(tmp_path / "work", tmp_path / "out", dtype="bfloat16", max_shard_bytes=2000)
    found = Checkpoint(tmp_path / "out")
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 1
    assert found.config["torch_dtype"] == "bfloat16"
    for key, value in weights.items():
        np.testing.assert_array_equal(found.raw(key), value.astype(ml_dtypes.bfloat16))


def without(weights, key):
    return {k: v for k, v in weights.items() if k != key}


KEY = "encoder.layers.1.mlp.fc1.weight"
REFUSED = {
    f"has no key {KEY}": (released.SIGLIP, lambda w: without(w, KEY)),
    "key encoder.layers.2.x is not understood": (
        released.SIGLIP,
        lambda w: w | {"encoder.layers.2.x": np.ones(1, np.float32)},
    ),
    r"fc1.weight has the shape \[20, 12\], and config.json asks for \[24, 12\]": (
        released.SIGLIP | {"intermediate_size": 24},
        lambda w: w,
    ),
    "field 'hiden_size' is not understood .did you mean 'hidden_size'": (
        released.SIGLIP | {"hiden_size": 3},
        lambda w: w,
    ),
    "hidden_act 'swish_new' is none of": (released.SIGLIP | {"hidden_act": "swish_new"}, lambda w: w),
    "vit.heads 5 does not divide": (released.SIGLIP | {"num_attention_heads": 5}, lambda w: w),
    "patch_size must be of type int, not 'x'": (released.SIGLIP | {"patch_size": "x"}, lambda w: w),
    "names GPT2Model, which is not understood; there are": (
        released.SIGLIP | {"architectures": ["GPT2Model"]},
        lambda w: w,
    ),
    "act_fn is 'gelu'": (
        released.AUTOENCODER | {"act_fn": "gelu"},
        lambda w: w,
    ),
    "norm_num_groups must be positive, not 0": (released.AUTOENCODER | {"norm_num_groups": 0}, lambda w: w),
    "shift_factor must be of type float, not 'x'": (released.AUTOENCODER | {"shift_factor": "x"}, lambda w: w),
    "up_block_types is": (released.AUTOENCODER | {"up_block_types": ["AttnUpDecoderBlock2D"] * 2}, lambda w: w),
    "use_post_quant_conv is False": (released.AUTOENCODER | {"use_post_quant_conv": False}, lambda w: w),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_not_understood_is_named(tmp_path, message):
    config, change = REFUSED[message]
    weights = change(released.weights("siglip", released.SIGLIP))
    folder = released.write(tmp_path / "in", config, weights)
    with pytest.raises(UsageError, match=message) as caught:
        import_checkpoint(folder, tmp_path / "work")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_truncated_file_leaves_no_workdir(tmp_path):
    folder = released.write(tmp_path / "in", released.SIGLIP, released.weights("siglip", released.SIGLIP))
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-10])
    with pytest.raises(UsageError, match="model.safetensors is truncated: key"):
        import_checkpoint(folder, tmp_path / "work")
    assert not (tmp_path / "work").exists()


def test_export_of_parameters_that_do_not_fit_is_refused(tmp_path):
    small, large = released.SIGLIP, released.SIGLIP | {"intermediate_size": 24}
    for name, config in {"small": small, "large": large}.items():
        folder = released.write(tmp_path / f"{name}-in", config, released.weights("siglip", config))
        import_checkpoint(folder, tmp_path / name)
    with pytest.raises(UsageError, match=r"blocks/up is \[2, 12, 24\], and the released form asks for \[2, 12, 20\]"):
        export_checkpoint(tmp_path / "large", tmp_path / "out", source=tmp_path / "small")
    with pytest.raises(UsageError, match="source.json does not exist"):
        export_checkpoint(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_tower_reads_what_was_imported(tmp_path):
    weights = released.weights("siglip", released.SIGLIP)
    import_checkpoint(released.write(tmp_path / "in", released.SIGLIP, weights), tmp_path / "work")
    imported = FAMILIES["siglip"].build(released.SIGLIP, weights.keys())
    pixels = np.random.default_rng(1).standard_normal((1, 8, 8, 3)).astype(np.float32)
    features = run(imported, load_params(tmp_path / "work", imported), lambda model, x: model(x), pixels)
    # The first patch before any block, by PyTorch's formula.
    first = np.einsum("yxc,dcyx->d", pixels[0, :4, :4], weights["embeddings.patch_embedding.weight"])
    first += weights["embeddings.patch_embedding.bias"] + weights["embeddings.position_embedding.weight"][0]
    assert_close(features.hidden[0, 0, 0], first, 4 * 4 * 3 + 2)


def test_the_program_imports_and_says_what_is_wrong(tmp_path):
    folder = released.write(tmp_path / "in", released.SIGLIP, released.weights("siglip", released.SIGLIP))
    workdir = ("--workdir", str(tmp_path / "work"))
    done = run_program(tmp_path, "transfusion.interop", "import", str(folder), *workdir)
    assert (done.code, done.out) == (0, f"imported {folder} (siglip) into {tmp_path / 'work'}\n"), done.err
    done = run_program(tmp_path, "transfusion.interop", "import", str(folder), *workdir)
    assert (done.code, done.err) == (2, f"error: {tmp_path / 'work'} exists already: give a new folder\n")
    done = run_program(tmp_path, "transfusion.interop", "export", str(tmp_path / "back"), *workdir)
    assert done.code == 0, done.err
    assert_same_files(folder, tmp_path / "back")
    done = run_program(tmp_path, "transfusion.interop", "exprt", str(folder))
    assert done.code == 2 and "did you mean 'export'" in done.err and len(done.err.splitlines()) == 1


def test_what_was_trained_since_is_exported(tmp_path):
    """A checkpoint of the trainer has another form on disk than an imported one."""
    source, back = tmp_path / "source", tmp_path / "back"
    weights = released.weights("autoencoder", released.AUTOENCODER)
    import_checkpoint(released.write(tmp_path / "in", released.AUTOENCODER, weights), source)
    (tmp_path / "run").mkdir()
    config = json.loads((source / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps(config | {"optim": config["optim"] | {"ema": 0.9}}))
    params = restore_params(source, "params")[1]
    state = {"params": params, "ema": jax.tree.map(lambda x: 2 * x, params)}
    with Checkpoints(tmp_path / "run") as checkpoints:
        checkpoints.save(5, state, {}, {}, force=True)
    export_checkpoint(tmp_path / "run", back, source=source)
    np.testing.assert_equal(load_file(back / "model.safetensors"), {key: 2 * x for key, x in weights.items()})


@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
def test_an_autoencoder_under_its_makers_names(tmp_path, prefix):
    """FLUX's file has no prefix, no 1x1 convolutions and no config; a whole checkpoint of Stable Diffusion has more."""
    config = released.AUTOENCODER | {"block_out_channels": [32, 64], "norm_num_groups": 32}
    config |= {"use_quant_conv": bool(prefix), "use_post_quant_conv": bool(prefix)}
    weights = released.weights("autoencoder", config)
    import_checkpoint(released.write(tmp_path / "plain", config, weights), tmp_path / "want")
    sizes = {"ch": 32, "ch_mult": [1, 2], "num_res_blocks": 1, "z_channels": 3, "scale_factor": 0.5, "out_ch": 3}
    theirs = {"ddconfig": sizes, "embed_dim": 3, "shift_factor": 0.25} if prefix else sizes | {"shift_factor": 0.25}
    original = {prefix + key: value for key, value in original_names(weights, 2).items()}
    rest = {"model.diffusion_model.x": np.ones(2, np.float16), "betas": np.ones(3)} if prefix else {}
    folder = released.write(tmp_path / "in", theirs, original | rest)
    (folder / "model.safetensors").rename(folder / "ae.safetensors")
    params, back = there_and_back(tmp_path, folder)
    assert_same_files(folder, back)
    want = json.loads((tmp_path / "want" / "config.json").read_text())
    assert json.loads((tmp_path / "work" / "config.json").read_text()) == want
    for one, two in zip(
        jax.tree.leaves(restore_params(tmp_path / "want", "params")[1]), jax.tree.leaves(params), strict=True
    ):
        np.testing.assert_array_equal(one, two)


FIRST_STAGE = "first_stage_model."
MAKERS = {
    "flux": ("", (), (244, 83_819_683, 16, 0.3611, 0.1159)),
    "ldm": ("", ("quant_conv.weight",), (248, 83_653_863, 4, 0.18215, 0.0)),
    "sd": (FIRST_STAGE, (f"{FIRST_STAGE}quant_conv.weight",), (248, 83_653_863, 4, 0.18215, 0.0)),
    "sdxl": (FIRST_STAGE, (f"{FIRST_STAGE}quant_conv.weight", "conditioner.x"), (248, 83_653_863, 4, 0.13025, 0.0)),
    "sd3": (FIRST_STAGE, (), (244, 83_819_683, 16, 1.5305, 0.0609)),
}


@pytest.mark.parametrize("maker", MAKERS)
def test_published_autoencoders_without_a_config(maker):
    prefix, others, form = MAKERS[maker]
    keys, family = [f"{prefix}encoder.mid.block_1.norm1.weight", *others], FAMILIES["autoencoder"]
    assert family.claims({}, keys) and not family.claims({}, [*keys, f"{prefix}quantize.embedding.weight"])
    imported = family.build({}, keys)
    shapes, ours = their_shapes(imported.leaves, imported.template.shapes), imported.experiment.autoencoder
    assert (len(shapes), sum(map(math.prod, shapes.values())), ours.latent_channels, ours.scale, ours.shift) == form


# VmHWM, not ru_maxrss: the latter begins with what the parent had.
MEASURE = """
import sys
from transfusion.interop.export import export_checkpoint
from transfusion.interop.importing import import_checkpoint
def status(name):
    lines = open("/proc/self/status").read().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))
small, large, workdir = sys.argv[1:]
def both_ways(folder, workdir):
    import_checkpoint(folder, workdir)
    imported = status("VmHWM")
    export_checkpoint(workdir, workdir + "-back")
    return imported, status("VmHWM")
both_ways(small, workdir + "-small")  # what the libraries take once
before = status("VmRSS")
print(*(peak - before for peak in both_ways(large, workdir)))
"""


@pytest.mark.skipif(not pathlib.Path("/proc/self/status").exists(), reason="reads /proc")
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_memory_stays_below_the_largest_shard(tmp_path, dtype):
    """The weights are five shards: none may be held as a whole with its converted copy, let alone all of them."""
    config = released.SIGLIP | {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 5}
    weights = list(released.weights("siglip", config, dtype=dtype).items())
    shards = [dict(weights[i::5]) for i in range(5)]
    small = released.write(tmp_path / "small", released.SIGLIP, released.weights("siglip", released.SIGLIP))
    large = released.write(tmp_path / "large", config, *shards)
    largest = max(path.stat().st_size for path in large.glob("*.safetensors"))
    command = [sys.executable, "-c", MEASURE, str(small), str(large), str(tmp_path / "work")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for what, peak in zip(("import", "export"), map(int, done.stdout.split()[-2:]), strict=True):
        assert peak <= 1.3 * largest, f"{what}: {peak / largest:.2f} shards of {largest} bytes"
    assert_same_files(large, tmp_path / "work-back")
    step, params, _ = restore_params(tmp_path / "work", "params")
    assert json.loads((tmp_path / "work" / "source.json").read_text())["family"] == "siglip"
    last = dict(weights)["encoder.layers.4.mlp.fc2.weight"].astype(np.float32)
    np.testing.assert_array_equal(params["blocks"]["down"][4], last.T)
