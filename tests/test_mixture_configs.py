"""Configs of systems of several experts or trunks, in their debug forms, through the programs' own functions."""

import dataclasses
import functools
import pathlib
import shutil

import jax
import numpy as np
import pytest
from closeness import assert_close

import transfusion
from transfusion.codecs import CodecConfig
from transfusion.codecs.pixels import to_float
from transfusion.config import Experiment
from transfusion.data.sources import open_source
from transfusion.errors import UsageError
from transfusion.evaluation.sections.experts import last_loads
from transfusion.initial import InitConfig
from transfusion.latents import open_codec
from transfusion.model.names import by_path
from transfusion.model.parameters import Template
from transfusion.model.vit import ViT
from transfusion.programs import load_experiment
from transfusion.running.checkpoint import Checkpoints
from transfusion.running.metrics import read_metrics
from transfusion.running.restore import restore_params
from transfusion.running.seals import seal_path
from transfusion.tasks import make_task
from transfusion.train import train

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"


def experiment(name: str, data_dir: str) -> Experiment:
    """A config with the tests' data, and no held-out losses."""
    config = load_experiment(CONFIGS / name)
    data = dataclasses.replace(config.data, data_dir=data_dir)
    return dataclasses.replace(config, data=data, eval=dataclasses.replace(config.eval, every=0))


def forget(workdir: pathlib.Path, step: int) -> None:
    """As if the process had died before this checkpoint."""
    seal_path(workdir / "checkpoints", step).unlink()
    shutil.rmtree(workdir / "checkpoints" / str(step))


def draws(workdir: pathlib.Path) -> np.ndarray:
    images = transfusion.load_run(workdir).draw(["a handwritten one", "a handwritten two"], steps=2)
    assert images.shape == (2, 8, 8, 1) and images.std() > 0
    return images


def draws_and_captions(workdir: pathlib.Path) -> None:
    images = draws(workdir)
    run = transfusion.load_run(workdir)
    assert all(isinstance(caption, str) for caption in run.caption(images, max_tokens=4))


@pytest.mark.slow
def test_mixture_of_transformers_trains_resumes_and_samples(data_dir, tmp_path):
    config = experiment("mot.py:debug", data_dir)
    assert {stream.expert for stream in config.streams.values()} == {"text", "image"}
    state = train(config, tmp_path)
    assert int(state.step) == 20
    forget(tmp_path, 20)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(train(config, tmp_path)), strict=True):
        np.testing.assert_array_equal(a, b)
    draws_and_captions(tmp_path)


@pytest.mark.slow
def test_routed_experts_train_resume_and_sample(data_dir, tmp_path):
    """The biases of the router go on where they were; each modality's loads are logged."""
    config = experiment("experts.py:debug", data_dir)
    state = train(config, tmp_path)
    bias = state.params["trunk"]["feed_forwards"]["routed"]["router_bias"]
    assert 0 < np.abs(bias).max() <= 20 * config.model.feed_forwards["routed"].balance * 1.001
    forget(tmp_path, 20)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(train(config, tmp_path)), strict=True):
        np.testing.assert_array_equal(a, b)
    loads = last_loads(read_metrics(tmp_path / "metrics.jsonl"), "routed", ("text", "image"))
    assert [sum(shares) for shares in loads.values()] == pytest.approx([1.0, 1.0])
    draws_and_captions(tmp_path)


def test_the_published_form_differs_in_the_norms_alone():
    ours, published = (load_experiment(CONFIGS / name) for name in ("mot.py", "mot.py:post"))
    assert (ours.model.norm_place, published.model.norm_place) == ("pre", "post")
    assert dataclasses.replace(published, model=ours.model) == ours


@pytest.mark.slow
def test_a_text_run_learns_to_draw_and_writes_as_before(data_dir, tmp_path):
    debug = experiment("lmfusion.py:debug", data_dir)
    words = experiment("lmfusion.py:text", data_dir)
    words = dataclasses.replace(
        words, steps=3, batch_size=4, log_every=3, model=debug.model, checkpoint=debug.checkpoint
    )
    train(words, tmp_path / "text")
    whole = load_experiment(CONFIGS / "lmfusion.py")
    assert whole.init.path == "runs/lmfusion_text" and debug.init == InitConfig()
    config = dataclasses.replace(debug, init=dataclasses.replace(whole.init, path=str(tmp_path / "text")))

    state = train(config, tmp_path / "run")
    before = {path: x for path, x in by_path(restore_params(tmp_path / "text", "ema")[1]).items() if "text" in path}
    for tree in (state.params, state.ema):
        after = by_path(tree)
        for path, leaf in before.items():
            np.testing.assert_array_equal(after[path], leaf)
        for path in ("trunk/blocks/image/q", "trunk/final_norm/image"):  # a copy at first, and now trained
            distance = np.abs(after[path] - before[path.replace("image", "text")]).max()
            assert 0 < distance < 0.1
    assert not any("text" in path for path in by_path(state.opt_state[1][0].mu))

    shutil.rmtree(tmp_path / "text")  # a run that goes on does not ask where it came from
    forget(tmp_path / "run", 20)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(train(config, tmp_path / "run")), strict=True):
        np.testing.assert_array_equal(a, b)
    draws_and_captions(tmp_path / "run")


def test_a_form_that_does_not_exist_is_told():
    for name in ("mot", "lmfusion", "connector"):
        with pytest.raises(UsageError, match=r"no form 'debgu': .*debug"):
            load_experiment(CONFIGS / f"{name}.py:debgu")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "modulated"),
    [
        pytest.param("dit.py:debug", ("trunk",), marks=pytest.mark.soak),
        ("showo2.py:debug", ("stages", "head")),
        pytest.param("omnigen.py:debug", ("parts", "image", "head"), marks=pytest.mark.soak),
    ],
)
def test_modulated_images_train_resume_and_sample(data_dir, tmp_path, name, modulated):
    config = experiment(name, data_dir)
    state = train(config, tmp_path)
    assert int(state.step) == 20
    # Zero at first, and learned since: the modulation does something.
    part = functools.reduce(dict.get, modulated, state.params)
    assert max(np.abs(w).max() for w in jax.tree.leaves(part["modulation"])) > 0
    forget(tmp_path, 20)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(train(config, tmp_path)), strict=True):
        np.testing.assert_array_equal(a, b)
    draws_and_captions(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "form", ["debug", *(pytest.param(form, marks=pytest.mark.soak) for form in ("cross_debug", "qwen_debug"))]
)
def test_a_frozen_language_model_leads_a_trunk_that_draws(data_dir, tmp_path, form):
    config = experiment(f"connector.py:{form}", data_dir)
    state = train(config, tmp_path)
    assert int(state.step) == 20
    forget(tmp_path, 20)
    earlier, after = by_path(restore_params(tmp_path, "params")[1]), by_path(state.params)
    moments = by_path(state.opt_state[1][0].mu)
    for path, leaf in after.items():
        language = path.startswith(("trunk/", "parts/text/"))
        assert (np.asarray(leaf) == earlier[path]).all() == language, path
        assert (path in moments) != language
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(train(config, tmp_path)), strict=True):
        np.testing.assert_array_equal(a, b)
    draws(tmp_path)
    with pytest.raises(UsageError, match="reads no images"):
        transfusion.load_run(tmp_path).caption(np.zeros((1, 8, 8, 1), np.uint8))


@pytest.mark.slow
def test_features_of_a_frozen_tower_are_drawn_and_decoded(data_dir, tmp_path):
    """BLIP3-o in three runs: one whose tower is taken, one of a decoder of its features, one that draws these."""
    whole = load_experiment(CONFIGS / "autoencoder_semantic.py")
    config = experiment("autoencoder_semantic.py:debug", data_dir)
    assert (whole.init.path, config.init) == ("runs/janus_understanding", InitConfig())
    tower = Template(lambda rngs: ViT(config.autoencoder.tower, rngs=rngs))
    source = tower.init(jax.random.key(1))
    with Checkpoints(tmp_path / "reads", config.checkpoint) as checkpoints:
        params = {"parts": {"semantic": {"embed": {"tower": source}}}}
        checkpoints.save(0, {"params": params}, {}, {}, force=True)
    init = dataclasses.replace(whole.init, path=str(tmp_path / "reads"))
    state = train(dataclasses.replace(config, init=init, steps=2), tmp_path / "codec")
    jax.tree.map(np.testing.assert_array_equal, state.params["tower"], source)
    jax.tree.map(np.testing.assert_array_equal, state.ema["tower"], source)
    assert all(path.startswith("decoder/") for path in by_path(state.opt_state[1][0].mu))

    codec = open_codec(CodecConfig("autoencoder", str(tmp_path / "codec")))
    records = open_source(config.data.sources["digits"], data_dir)
    images = np.stack([records[i]["image"] for i in range(0, len(records), 3)])
    latents = codec.encode(images)
    assert codec.down == 2 and latents.shape == (len(images), 4, 4, 16)
    np.testing.assert_allclose(latents.mean((0, 1, 2)), 0, atol=0.1)
    np.testing.assert_allclose(latents.std((0, 1, 2)), 1, atol=0.1)
    features = jax.jit(lambda x: tower.bind(source)(x).last)(to_float(images[:2])).reshape(2, 4, 4, 16)
    raw = latents[:2] * np.asarray(state.params["latent_deviation"]) + np.asarray(state.params["latent_mean"])
    assert_close(raw, features, 4096)  # a tower, twice scaled

    config = experiment("connector.py:blip3o_debug", data_dir)
    config = dataclasses.replace(config, codec=dataclasses.replace(config.codec, path=str(tmp_path / "codec")))
    assert config.streams["image"].channels == latents.shape[-1]
    train(dataclasses.replace(config, steps=2), tmp_path / "run")
    draws(tmp_path / "run")


def test_a_decoder_must_fit_its_tower():
    config = load_experiment(CONFIGS / "autoencoder_semantic.py").autoencoder
    with pytest.raises(UsageError, match="its width 64 must be latent_channels, 32"):
        dataclasses.replace(config, latent_channels=32)
    with pytest.raises(UsageError, match="its patch 2 the factor by which the decoder enlarges, 4"):
        dataclasses.replace(config, channels=(8, 8, 8))


def test_a_connector_starts_from_the_text_run_of_lmfusion():
    """Whose parameters are those of the frozen language model, in all forms."""
    text_run = by_path(make_task(load_experiment(CONFIGS / "lmfusion.py:text")).template.shapes)
    words = {path: leaf for path, leaf in text_run.items() if "image" not in path}
    for form in ("connector.py", "connector.py:cross", "connector.py:qwen", "connector.py:blip3o"):
        config = load_experiment(CONFIGS / form)
        assert config.init.path == load_experiment(CONFIGS / "lmfusion.py").init.path
        shapes = by_path(make_task(config).template.shapes)
        assert {path: shapes[path].shape for path in words} == {path: leaf.shape for path, leaf in words.items()}
        assert {path for path in shapes if path.startswith(("trunk/", "parts/text/"))} == set(words)
