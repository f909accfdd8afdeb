"""A workdir is moved, renamed, and read from any folder; its tokenizer and codec lie in it."""

import dataclasses
import json
import shutil

import fsspec
import jax
import numpy as np
import pytest
import tiny
from etils import epath
from test_buckets import Bucket

import transfusion
from transfusion import storage, train
from transfusion.codecs import CodecConfig
from transfusion.codecs.autoencoder_config import AutoencoderConfig
from transfusion.codecs.vq_autoencoder import autoencoder_template
from transfusion.config import Experiment, from_config, to_json
from transfusion.errors import UsageError
from transfusion.latents import open_codec
from transfusion.model.config import TransformerConfig
from transfusion.optim import OptimConfig
from transfusion.running.checkpoint import Checkpoints
from transfusion.running.jax_setup import set_up_jax
from transfusion.sequence import text
from transfusion.sequence.text import TokenizerConfig
from transfusion.workdir import json_file as json_config
from transfusion.workdir import portable
from transfusion.workdir.changes import differences
from transfusion.workdir.config_file import read_experiment

SMALL = TransformerConfig(width=16, layers=1, heads=2, ffn_multiple=16)


def codec_run(workdir, seed=0):
    """The workdir of an autoencoder as it is drawn at random: 4x4 latents of 8x8 images."""
    config = AutoencoderConfig(
        image_channels=1, channels=(8, 8), latent_channels=1, norm_groups=4, middle_attention=False
    )  # fmt: skip
    experiment = Experiment(task="autoencoder", autoencoder=config, optim=OptimConfig(ema=0.0))
    params = jax.jit(autoencoder_template(config).init)(jax.random.key(seed))
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save(1, {"params": params}, {}, {"experiment": to_json(experiment)}, force=True, wait=True)
    (workdir / "config.json").write_text(to_json(experiment))


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder that is the current one, with images and a tokenizer named relative to it."""
    set_up_jax()
    monkeypatch.chdir(tmp_path)
    tiny.write_folder(tmp_path / "images")
    tiny.write_tokenizer("huggingface", tmp_path / "mine.json")
    return tmp_path


def test_a_run_with_a_tokenizer_and_a_codec_is_read_anywhere(here, monkeypatch):
    codec_run(here / "codecs")
    streams = tiny.experiment("images").streams
    image = dataclasses.replace(streams["image"], grid=(4, 4), patch=2, budget=16)
    experiment = tiny.experiment(
        "images", steps=1, model=SMALL, streams=streams | {"image": image},
        tokenizer=TokenizerConfig("huggingface", "mine.json"), codec=CodecConfig("autoencoder", "codecs"),
    )  # fmt: skip
    train.train(experiment, here / "run")
    saved = json.loads((here / "run" / "config.json").read_text())
    assert (saved["tokenizer"]["path"], saved["codec"]["path"]) == ("tokenizer.json", "codec")
    assert saved["data"]["sources"]["mine"]["path"] == str(here / "images")
    images = transfusion.load_run("run").draw(["a dark square"], steps=2)

    # Another name, another folder, and everything that it was made from is gone.
    (here / "elsewhere").mkdir()
    shutil.move(here / "run", here / "elsewhere" / "renamed")
    shutil.rmtree(here / "codecs")
    (here / "mine.json").unlink()
    monkeypatch.chdir("/")
    moved = here / "elsewhere" / "renamed"
    np.testing.assert_array_equal(transfusion.load_run(moved).draw(["a dark square"], steps=2), images)

    # The same command goes on with the copies, and so does its config.json as a config.
    monkeypatch.chdir(here)
    state = train.train(dataclasses.replace(experiment, steps=2), "elsewhere/renamed")
    assert int(state.step) == 2
    again = from_config(json_config.get_config("elsewhere/renamed/config.json"))
    assert differences(again, read_experiment(moved)) == []
    assert again.codec.path == "elsewhere/renamed/codec"

    # Another codec in place of that of the run is none of its latents.
    codec_run(here / "codecs", seed=1)
    with pytest.raises(UsageError, match=r'codec\.path: "codec" -> "codecs" .* --allow_change=codec\.path'):
        train.train(dataclasses.replace(experiment, steps=4), "elsewhere/renamed")
    copy = CodecConfig("autoencoder", str(moved / "codec"))
    before = open_codec(copy).digest
    train.train(dataclasses.replace(experiment, steps=4), "elsewhere/renamed", ["codec.path"])
    assert open_codec(copy).digest == open_codec(CodecConfig("autoencoder", "codecs")).digest != before


def test_older_forms_of_config_json_are_read(here, monkeypatch):
    """Tokenizers by an absolute path that is gone, as imports wrote it, or relative to where training was started."""
    experiment = tiny.experiment("images", tokenizer=TokenizerConfig("huggingface", str(here / "gone" / "mine.json")))
    (here / "run").mkdir()
    (here / "run" / "config.json").write_text(to_json(experiment))
    shutil.copy("mine.json", here / "run" / "mine.json")
    assert read_experiment("run").tokenizer.path == "run/mine.json"

    relative = dataclasses.replace(experiment, tokenizer=TokenizerConfig("huggingface", "mine.json"))
    (here / "other").mkdir()
    (here / "other" / "config.json").write_text(to_json(relative))
    assert read_experiment("other").tokenizer.path == "mine.json"  # from here, as ever
    shutil.copy("mine.json", here / "other" / "mine.json")
    monkeypatch.chdir("/")
    assert read_experiment(here / "other").tokenizer.path == str(here / "other" / "mine.json")

    codec = dataclasses.replace(experiment, codec=CodecConfig("autoencoder", "runs/imported/codec"))
    (here / "run" / "codec").mkdir()
    (here / "run" / "config.json").write_text(to_json(codec))
    assert read_experiment(here / "run").codec.path == str(here / "run" / "codec")


def test_what_is_recorded_does_not_depend_on_the_folder(here, monkeypatch):
    experiment = tiny.experiment("~/images", tokenizer=TokenizerConfig("huggingface", "a/b.json"))
    experiment = dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, data_dir="gs://bucket/data"))
    monkeypatch.setenv("HOME", str(here))
    found = portable.as_recorded(experiment)
    assert found.data.sources["mine"].path == str(here / "images")
    assert found.data.data_dir == "gs://bucket/data" and found.codec.path == "" and found.init.path == ""
    assert portable.as_recorded(found) == found


def test_a_copy_that_was_cut_short_is_made_again(here):
    experiment = tiny.experiment("images", tokenizer=TokenizerConfig("huggingface", "mine.json"), steps=1, model=SMALL)
    (here / "run").mkdir()
    (here / "run" / "tokenizer.json").write_text("{")
    state = train.train(experiment, here / "run")
    assert (here / "run" / "tokenizer.json").read_bytes() == (here / "mine.json").read_bytes()
    assert jax.tree.leaves(state.params)


def test_a_workdir_in_a_bucket_holds_its_tokenizer_and_codec(here):
    fsspec.register_implementation("gcs", Bucket, clobber=True)
    Bucket.store.clear()
    Bucket.clear_instance_cache()
    codec_run(here / "codecs")
    experiment = tiny.experiment(
        "images", tokenizer=TokenizerConfig("huggingface", "mine.json"), codec=CodecConfig("autoencoder", "codecs")
    )
    workdir = epath.Path("gs://bucket/run")
    for _ in range(2):  # the second time all is there
        portable.bring_in(experiment, workdir)
    storage.write_whole(workdir / "config.json", to_json(portable.as_recorded(experiment)))
    found = read_experiment(workdir)
    assert found.tokenizer.path == "gs://bucket/run/tokenizer.json" and found.codec.path == "gs://bucket/run/codec"
    assert text.open_tokenizer(found.tokenizer).size == text.open_tokenizer(experiment.tokenizer).size
    assert not portable.differing_codecs(found, experiment, workdir)
    assert (workdir / "codec" / "checkpoints" / "1").exists() and (workdir / "codec" / "config.json").exists()


def test_each_of_several_codecs_has_a_copy_of_its_own(here, monkeypatch):
    for seed, name in enumerate(("pictures", "films")):
        codec_run(here / name, seed)
    experiment = tiny.experiment("images")
    layout = experiment.layout | {"video": experiment.layout["image"]}
    experiment = dataclasses.replace(
        experiment, layout=layout, codec=CodecConfig("autoencoder", "pictures"),
        codecs={"video": CodecConfig("autoencoder", "films")},
    )  # fmt: skip
    portable.bring_in(experiment, "run")
    (here / "run" / "config.json").write_text(to_json(portable.as_recorded(experiment)))
    saved = json.loads((here / "run" / "config.json").read_text())
    assert (saved["codec"]["path"], saved["codecs"]["video"]["path"]) == ("codec", "codecs/video")
    digests = [open_codec(CodecConfig("autoencoder", name)).digest for name in ("pictures", "films")]
    shutil.move(here / "run", here / "renamed")
    shutil.move(here / "films", here / "others")
    found = read_experiment("renamed")
    assert [open_codec(found.codec_of(kind)).digest for kind in ("image", "video")] == digests
    assert portable.from_command_line(experiment, "renamed").codecs["video"].path == "renamed/codecs/video"

    shutil.move(here / "others", here / "films")
    assert portable.differing_codecs(found, experiment, "renamed") == []
    swapped = dataclasses.replace(experiment, codecs={"video": CodecConfig("autoencoder", "pictures")})
    changed = [("codecs.video.path", "codecs/video", "pictures")]
    assert portable.differing_codecs(found, swapped, "renamed") == changed
