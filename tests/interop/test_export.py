"""Export writes every parameter of a run, or says for which the released form has no place."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import released
from program import run_program
from safetensors.numpy import load_file

from transfusion.config import to_json
from transfusion.errors import UsageError
from transfusion.interop.export import export_checkpoint
from transfusion.interop.importing import import_checkpoint
from transfusion.running.checkpoint import Checkpoints
from transfusion.running.restore import restore_params
from transfusion.workdir.config_file import read_experiment

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "vocab_size": 264, "hidden_size": 8, "intermediate_size": 12,
    "num_hidden_layers": 2, "num_attention_heads": 2, "tie_word_embeddings": True, "rope_theta": 1e5,
}  # fmt: skip


def imported(tmp_path, config=LLAMA, family="language"):
    """(the released arrays, the workdir)"""
    weights = released.weights(family, config)
    weights.pop("lm_head.weight", None)
    folder = released.write(tmp_path / "in", config, weights)
    import_checkpoint(folder, tmp_path / "source", text_as_bytes=True)
    return weights, tmp_path / "source"


def trained(tmp_path, source, change=lambda params: params, **fields):
    """A run from what was imported, whose parameters and config have changed since."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(to_json(dataclasses.replace(read_experiment(source), **fields)))
    params = jax.tree.map(np.array, restore_params(source, "params")[1])
    with Checkpoints(run) as checkpoints:
        checkpoints.save(3, {"params": change(params)}, {}, {}, force=True)
    return run


def with_image(params):
    """Of an image stream with an expert of its own."""
    ones = np.ones((2, 2), np.float32)
    params["parts"]["image"] = {"embed": {"kernel": ones}, "head": {"kernel": ones, "bias": ones[0]}}
    blocks = params["trunk"]["blocks"]
    blocks["image"] = jax.tree.map(np.copy, blocks["default"] if "default" in blocks else next(iter(blocks.values())))
    return params


def test_what_the_form_has_no_place_for_is_named(tmp_path):
    weights, source = imported(tmp_path)
    run = trained(tmp_path, source, with_image)
    with pytest.raises(UsageError) as caught:
        export_checkpoint(run, tmp_path / "out", source=source)
    said = str(caught.value)
    assert "no place for 12 of the 23 parameters of step 3: parts/image/embed/kernel, parts/image/head/bias" in said
    assert said.endswith("and 7 more; to leave them out, give --drop 'parts/image/*' --drop 'trunk/blocks/image/*'")
    with pytest.raises(UsageError, match="no place for 9 .*give --drop 'trunk/blocks/image/..$"):
        export_checkpoint(run, tmp_path / "out", source=source, drop=["parts/image/*"])
    assert not (tmp_path / "out").exists()
    for i, drop in enumerate((["parts/image/*", "trunk/blocks/image"], ["*/image/*"])):
        dropped = export_checkpoint(run, tmp_path / f"out{i}", source=source, drop=drop)
        assert len(dropped) == 12 and dropped[0] == "parts/image/embed/kernel"
        np.testing.assert_equal(load_file(tmp_path / f"out{i}" / "model.safetensors"), weights)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("parts/imag/*", "--drop=parts/imag/.: no parameter .did you mean 'parts/image'"),
        ("parts/text", "--drop=parts/text: the released form has a place for it"),
        ("x", "--drop=x: no parameter$"),
    ],
)
def test_a_pattern_that_drops_nothing_is_refused(tmp_path, pattern, message):
    _, source = imported(tmp_path)
    run = trained(tmp_path, source, with_image)
    with pytest.raises(UsageError, match=message):
        export_checkpoint(run, tmp_path / "out", source=source, drop=["*/image", pattern])


def test_a_head_that_is_no_longer_tied_is_named(tmp_path):
    def untie(params):
        params["parts"]["text"]["head"] = {"kernel": np.ones((8, 264), np.float32)}
        return params

    _, source = imported(tmp_path)
    with pytest.raises(UsageError, match="no place for 1 .*: parts/text/head/kernel; .* --drop 'parts/text/head/.'"):
        export_checkpoint(trained(tmp_path, source, untie), tmp_path / "out", source=source)


def test_a_layer_without_a_place_is_named_once_it_is_not_zero(tmp_path):
    """Nothing reads the text behind the last attention of Stable Diffusion 3, whose files leave those weights out."""
    config = {
        "_class_name": "SD3Transformer2DModel", "num_layers": 2, "num_attention_heads": 1, "attention_head_dim": 8,
        "caption_projection_dim": 8, "in_channels": 2, "out_channels": 2, "sample_size": 4, "pos_embed_max_size": 4,
        "joint_attention_dim": 3, "pooled_projection_dim": 3,
    }  # fmt: skip
    _, source = imported(tmp_path, config, "sd3")

    def fill(params):
        params["trunk"]["blocks"]["context"]["down"][1] += 1
        return params

    run = trained(tmp_path, source, fill)
    with pytest.raises(UsageError, match="no place for 1 .*: trunk/blocks/context/down;"):
        export_checkpoint(run, tmp_path / "out", source=source)
    assert export_checkpoint(run, tmp_path / "out", source=source, drop=["trunk/blocks/context/down"])


def test_a_run_that_computes_something_else_is_refused(tmp_path):
    """The arrays would fit, and the config.json beside them would be untrue."""
    _, source = imported(tmp_path)
    model = read_experiment(source).model
    run = trained(tmp_path, source, model=dataclasses.replace(model, rope_theta=1e6, dtype="bfloat16", remat="full"))
    with pytest.raises(UsageError, match="model.rope_theta is 1000000.0, and the released config.json says 100000.0"):
        export_checkpoint(run, tmp_path / "out", source=source)


def test_another_scale_of_latents_is_refused(tmp_path):
    _, source = imported(tmp_path, released.AUTOENCODER, "autoencoder")
    ours = dataclasses.replace(read_experiment(source).autoencoder, scale=2.0)
    run = trained(tmp_path, source, autoencoder=ours)
    with pytest.raises(UsageError, match="autoencoder.scale is 2.0, and the released config.json says 0.5"):
        export_checkpoint(run, tmp_path / "out", source=source)


def test_the_averaged_parameters_are_exported_in_full(tmp_path):
    weights, source = imported(tmp_path)
    params = jax.tree.map(np.array, restore_params(source, "params")[1])
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text((source / "config.json").read_text())
    with Checkpoints(run) as checkpoints:
        state = {"params": params, "ema": with_image(jax.tree.map(lambda x: 2 * x, params))}
        checkpoints.save(3, state, {}, {}, force=True)
    with pytest.raises(UsageError, match="no place for 12"):
        export_checkpoint(run, tmp_path / "out", source=source)
    export_checkpoint(run, tmp_path / "out", source=source, drop=["*/image"])
    np.testing.assert_equal(load_file(tmp_path / "out" / "model.safetensors"), {k: 2 * x for k, x in weights.items()})


def test_the_program_lists_what_it_left_out(tmp_path):
    _, source = imported(tmp_path)
    run = trained(tmp_path, source, with_image)
    flags = ("--workdir", str(run), "--source", str(source))
    done = run_program(tmp_path, "transfusion.interop", "export", str(tmp_path / "back"), *flags)
    assert (done.code, len(done.err.splitlines())) == (2, 1) and "--drop 'parts/image/*'" in done.err
    drop = ("--drop", "parts/image/*", "--drop", "trunk/blocks/image/*")
    done = run_program(tmp_path, "transfusion.interop", "export", str(tmp_path / "back"), *flags, *drop)
    assert done.code == 0 and done.out.startswith("left out 12 parameters: parts/image/embed/kernel, "), done.err


def test_files_that_source_json_names_stay_inside(tmp_path):
    """A workdir that a stranger made may name any file."""
    _, source = imported(tmp_path)
    about = json.loads((source / "source.json").read_text())
    about["files"] = {"../evil.safetensors": about["files"]["model.safetensors"]}
    (source / "source.json").write_text(json.dumps(about))
    with pytest.raises(UsageError, match="which is not a file of the same folder"):
        export_checkpoint(source, tmp_path / "out")
    for damaged in ({}, {"family": "language", "config": {}, "files": []}, {"family": []}):
        (source / "source.json").write_text(json.dumps(damaged))
        with pytest.raises(UsageError, match="source.json is damaged"):
            export_checkpoint(source, tmp_path / "out")
