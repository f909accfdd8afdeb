"""Codecs with codes: sizes, clips, the terms of the loss, and whole runs."""

import dataclasses
import functools
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from transfusion.codecs import CodecConfig, losses
from transfusion.codecs.discriminator import AdversarialConfig
from transfusion.codecs.kl_autoencoder import AutoencoderConfig
from transfusion.codecs.quantizers import QuantizerConfig
from transfusion.codecs.vq_autoencoder import autoencoder_template
from transfusion.config import Experiment
from transfusion.data.config import DataConfig, SourceConfig
from transfusion.errors import UsageError
from transfusion.evaluate import evaluate
from transfusion.latents import autoencoder_codec, open_codec
from transfusion.optim import OptimConfig
from transfusion.programs import load_experiment
from transfusion.seals import seal_path
from transfusion.tasks import AutoencoderTask, make_task
from transfusion.train import make_init, make_step, train

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
SMALL = QuantizerConfig(codes=16, levels=(3, 4), scales=(1, 2, 4), revive=0.1)
TINY = AutoencoderConfig("vq", channels=(8, 8), latent_channels=4, norm_groups=4, quantizer=SMALL)


@functools.cache
def weights(config):
    return autoencoder_template(config).init(jax.random.key(0))


def pictures(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)


@pytest.mark.parametrize(
    "form, frames, shape, code, vocabulary",
    [
        ("vq", "", (6, 10), (3, 5), 16),
        ("fsq", "", (6, 10), (3, 5), 12),
        ("multiscale", "", (8, 8), (21,), 16),
        ("vq", "causal", (4, 6, 8), (2, 3, 4), 16),
    ],
)
def test_codes_go_there_and_back_at_any_size_that_divides(form, frames, shape, code, vocabulary):
    config = dataclasses.replace(TINY, form=form, frames=frames, time_down=2 if frames else 1)
    codec = autoencoder_codec(config, weights(config))
    media = pictures(3, *shape)
    ids = codec.encode(media[0])
    assert ids.shape == code and ids.dtype == np.int32 and codec.vocabulary == vocabulary
    assert ids.min() >= 0 and ids.max() < vocabulary
    many = codec.encode(media)  # with axes before, as one by one
    np.testing.assert_array_equal(many[0], ids)
    assert codec.decode(many).shape == media.shape and codec.decode(ids).dtype == np.uint8
    assert codec.scales == ((1, 2, 4) if form == "multiscale" else ())
    if codec.features:
        assert codec.features(many).shape == (3, 20, 4)
    line = "latents of 5x4 .* 4x4" if form == "multiscale" else "does not divide by 2"
    with pytest.raises(UsageError, match=line):
        codec.encode(pictures(*shape[:-2], *((10, 8) if form == "multiscale" else (6, 7))))
    if frames:
        with pytest.raises(UsageError, match="3 frames does not divide by 2"):
            codec.encode(pictures(3, 6, 8))


def test_a_causal_codec_knows_nothing_of_later_frames():
    clips = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (1, 4, 4, 4, 3)), jnp.float32)
    later = clips.at[:, 2:].set(0.0)
    for frames in ("causal", "plain"):
        config = dataclasses.replace(TINY, frames=frames, time_down=2)
        template = autoencoder_template(config)

        @jax.jit
        def both(params, x, template=template):
            model = template.bind(params)
            z = model.encoded(x)
            return z, model.reconstruct(z)

        (z, made), (z_later, made_later) = both(weights(config), clips), both(weights(config), later)
        assert z.shape == (1, 2, 2, 2, 4) and made.shape == clips.shape
        assert np.allclose(z[:, 0], z_later[:, 0], atol=1e-6) == (frames == "causal")
        assert np.allclose(made[:, :2], made_later[:, :2], atol=1e-5) == (frames == "causal")
        assert not np.allclose(z[:, 1], z_later[:, 1], atol=1e-3)


def test_psnr_and_ssim_of_known_images():
    real = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 16, 12, 3)), jnp.float32)
    np.testing.assert_allclose(losses.psnr(real + 0.02, real), [40, 40], atol=1e-3)  # 20 log10(2 / 0.02)
    np.testing.assert_allclose(losses.psnr(real, real), [100, 100], atol=1e-3)
    np.testing.assert_allclose(losses.ssim(real, real), [1, 1], atol=1e-5)
    # Two constant images: only the means differ, and 0.25 and 0.75 are those on the scale of [0, 1].
    flat = losses.ssim(jnp.full((1, 11, 11, 1), -0.5), jnp.full((1, 11, 11, 1), 0.5))
    np.testing.assert_allclose(flat, (2 * 0.25 * 0.75 + 1e-4) / (0.25**2 + 0.75**2 + 1e-4), rtol=1e-3)
    noisy = losses.ssim(jnp.clip(real + 0.5 * jax.random.normal(jax.random.key(0), real.shape), -1, 1), real)
    assert (noisy > 0).all() and (noisy < 0.95).all()
    # One window of 3 pixels, by the definition.
    a, b = np.random.default_rng(1).uniform(0, 1, (2, 3, 3))
    w = np.outer(*[np.exp(-np.array([1, 0, 1]) / 4.5)] * 2)
    w /= w.sum()
    ma, mb = (w * a).sum(), (w * b).sum()
    va, vb, vab = (w * (a - ma) ** 2).sum(), (w * (b - mb) ** 2).sum(), (w * (a - ma) * (b - mb)).sum()
    expected = (2 * ma * mb + 1e-4) * (2 * vab + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4))
    ours = losses.ssim(jnp.asarray(2 * a - 1)[None, ..., None], jnp.asarray(2 * b - 1)[None, ..., None])
    np.testing.assert_allclose(ours, [expected], rtol=1e-4)


def experiment(config=TINY, **changes) -> Experiment:
    data = DataConfig(sources={"mine": SourceConfig(resolution=8)})
    optim = OptimConfig(learning_rate=1e-3, warmup=1, weight_decay=0.1, clip=0.0, ema=0.9, **changes)
    return Experiment(task="autoencoder", autoencoder=config, steps=10, batch_size=4, data=data, optim=optim)


def test_accumulated_steps_update_codebook_discriminator_and_weights_as_one():
    config = dataclasses.replace(TINY, adversarial=AdversarialConfig(0.1, start=1, channels=(8,)))
    results = []
    for parts in (1, 2):
        run = experiment(config, accumulate=parts)
        task = make_task(run)
        step = jax.jit(make_step(task, run))
        state = make_init(task, run)()
        batch = task.fake_batch(4)
        results.append([state := step(state, batch) for _ in range(2)])
    for one, two in zip(*results, strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-4), one.params, two.params)
    first, second = results[0]
    quantizer = second.params["quantizer"]
    assert quantizer["counts"].sum() == pytest.approx((1 - 0.99**2) * 4 * 16, rel=0.5)
    assert second.params["discriminator"]["age"] == 2
    # Before its start the discriminator stays as it is (but for the decay), then it learns.
    start = make_init(make_task(experiment(config)), experiment(config))().params["discriminator"]
    np.testing.assert_array_equal(first.params["discriminator"]["convs"][0]["bias"], start["convs"][0]["bias"])
    assert np.any(second.params["discriminator"]["convs"][0]["bias"])
    uses, total = second.log["codebook"]
    assert uses.shape == (16,) and uses.sum() == total == 2 * 4 * 16


def test_the_discriminator_and_the_codec_play_against_each_other():
    """One gradient for both: what the codec wants is no matter of the discriminator, and the reverse."""
    config = dataclasses.replace(TINY, adversarial=AdversarialConfig(0.5, channels=(8,)))
    task = AutoencoderTask(config, (8, 8))
    params, batch = weights(config), task.fake_batch(2)
    draws = task.draw(batch, jax.random.key(0))

    @functools.partial(jax.jit, static_argnums=1)
    def gradient(params, name):
        def term(params):
            return task.loss(params, batch, draws, task.totals(batch))[1][name][0]

        return jax.grad(term)(params)

    def size(tree):
        return sum(float(jnp.abs(leaf).sum()) for leaf in jax.tree.leaves(tree))

    codec, judge = gradient(params, "adversarial"), gradient(params, "discriminator")
    assert size(codec["discriminator"]) == 0 < size(codec["decoder"])
    assert size(judge["decoder"]) == size(judge["encoder"]) == 0 < size(judge["discriminator"])


def test_wrong_autoencoders_are_refused():
    with pytest.raises(UsageError, match="codec.form: 'vqq' is none of kl, vq"):
        dataclasses.replace(TINY, form="vqq")
    with pytest.raises(UsageError, match="time_down is 4: it must be a power of two up to 2"):
        dataclasses.replace(TINY, frames="plain", time_down=4)
    with pytest.raises(UsageError, match="latent_channels is 4, and codes have 2"):
        dataclasses.replace(TINY, form="fsq", quant_convs=False)
    with pytest.raises(UsageError, match="images only"):
        dataclasses.replace(TINY, form="multiscale", frames="causal")
    with pytest.raises(UsageError, match="latents of 3x3 .* 4x4"):
        AutoencoderTask(dataclasses.replace(TINY, form="multiscale"), (6, 6))
    with pytest.raises(UsageError, match="16 pixels or more, not 8"):
        AutoencoderTask(dataclasses.replace(TINY, perceptual_weight=1.0), (8, 8))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vq_digits.py:debug", "vq_emoji.py:fsq_debug", "vq_emoji.py:multiscale_debug"])
def test_debug_forms_train_resume_and_reconstruct(name, tmp_path):
    config = load_experiment(CONFIGS / name)
    source = next(iter(config.data.sources.values()))
    folder = tiny.write_folder(tmp_path / "images", 6)
    mine = {"mine": dataclasses.replace(source, kind="folder", name="", path=folder)}
    held_out = dataclasses.replace(config.eval, sources=mine)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, sources=mine), eval=held_out)
    state = train(config, tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < rows[0]["loss"] and rows[-1]["held_out_psnr"] > 0
    assert all(0 < row["codebook_use"] <= 1 and row["ssim"] is not None for row in rows)
    if name == "vq_digits.py:debug":
        seal_path(tmp_path / "run" / "checkpoints", 20).unlink()  # as if the process had died before this checkpoint
        shutil.rmtree(tmp_path / "run" / "checkpoints" / "20")
        again = train(config, tmp_path / "run")
        jax.tree.map(np.testing.assert_array_equal, state, again)
    codec = open_codec(CodecConfig("autoencoder", str(tmp_path / "run")))
    image = pictures(source.resolution, source.resolution)[..., : source.channels]
    assert codec.decode(codec.encode(image)).shape == image.shape
    result = evaluate(tmp_path / "run")
    assert result["psnr"]["count"] == 6 and 0 < result["codebook_use"]["value"] <= 1
    bits = codec.encode(image).size * np.log2(codec.vocabulary)
    assert result["bits_per_image"]["value"] == pytest.approx(bits) and result["step"] == 20
    assert "psnr_drawn" in result["absent"] and (tmp_path / "run" / "samples" / "reconstructions.png").is_file()
