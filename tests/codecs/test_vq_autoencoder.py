"""Codecs with codes: sizes, clips, the terms of the loss, and whole runs."""

import dataclasses
import functools
import itertools
import json
import math
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from closeness import assert_close

from transfusion.codecs import CodecConfig, losses
from transfusion.codecs.autoencoder_config import AutoencoderConfig
from transfusion.codecs.discriminator import AdversarialConfig
from transfusion.codecs.vq_autoencoder import autoencoder_template
from transfusion.config import Experiment
from transfusion.data.config import DataConfig, SourceConfig
from transfusion.errors import UsageError
from transfusion.evaluate import evaluate
from transfusion.latents import autoencoder_codec, open_codec
from transfusion.model.quantizers import QuantizerConfig
from transfusion.optim import LearningRateGroup, OptimConfig
from transfusion.programs import load_experiment
from transfusion.running.seals import seal_path
from transfusion.tasks import AutoencoderTask, make_task
from transfusion.train import train
from transfusion.training.step import make_init, make_step

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
SMALL = QuantizerConfig(codes=16, levels=(3, 4), scales=(1, 2, 4), revive=0.1)
TINY = AutoencoderConfig(
    "vq", channels=(8, 8), latent_channels=4, norm_groups=4, middle_attention=False, quantizer=SMALL
)
# In sequence: a dozen convolutions of 3 x 3 over 8 channels, each behind a norm over an image of 8 x 8.
OPERATIONS = 12 * (3 * 3 * 8 + 2 * 8 * 8)
# And those of SSIM: sums over a window of 11 x 11, of which variances are differences.
WINDOW = 11 * 11 * 4


@functools.cache
def weights(config):
    return jax.jit(autoencoder_template(config).init)(jax.random.key(0))


def pictures(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)


@pytest.mark.parametrize(
    "form, frames, shape, code, vocabulary",
    [
        ("vq", "", (6, 10), (3, 5), 16),
        ("multiscale", "", (8, 8), (21,), 16),
        ("fsq", "causal", (4, 6, 8), (2, 3, 4), 12),
    ],
)
def test_codes_go_there_and_back_at_any_size_that_divides(form, frames, shape, code, vocabulary):
    config = dataclasses.replace(TINY, form=form, frames=frames, time_down=2 if frames else 1)
    codec = autoencoder_codec(config, weights(config))
    media = pictures(1, *shape)
    ids = codec.encode(media[0])
    assert ids.shape == code and ids.dtype == np.int32 and codec.vocabulary == vocabulary
    assert ids.min() >= 0 and ids.max() < vocabulary
    many = codec.encode(media)  # with an axis before, as without
    np.testing.assert_array_equal(many[0], ids)
    made = codec.decode(many)
    assert made.shape == media.shape and made.dtype == np.uint8
    np.testing.assert_array_equal(codec.decode(ids), made[0])
    assert codec.scales == ((1, 2, 4) if form == "multiscale" else ())
    if codec.features:
        assert codec.features(many).shape == (1, 20, 4)
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
        if frames == "causal":
            assert_close((z_later[:, 0], made_later[:, :2]), (z[:, 0], made[:, :2]), OPERATIONS)
        else:
            assert min(np.abs(z - z_later)[:, 0].max(), np.abs(made - made_later)[:, :2].max()) > 1e-3
        assert np.abs(z - z_later)[:, 1].max() > 1e-3


def test_psnr_and_ssim_of_known_images():
    real = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 16, 12, 3)), jnp.float32)
    # The difference of 0.02 is one of numbers up to 1, and log10 makes 8.7 times its relative rounding of it.
    assert_close(losses.psnr(real + 0.02, real), [40, 40], 8, largest=8.7 / 0.02)  # 20 log10(2 / 0.02)
    assert_close(losses.psnr(real, real), [100, 100], 16)
    assert_close(losses.ssim(real, real), [1, 1], WINDOW)
    # Two constant images: only the means differ, and 0.25 and 0.75 are those on the scale of [0, 1].
    flat = losses.ssim(jnp.full((1, 11, 11, 1), -0.5), jnp.full((1, 11, 11, 1), 0.5))
    # The variances, which are 0, are differences of 0.75^2, beside a constant of 9e-4.
    assert_close(flat, (2 * 0.25 * 0.75 + 1e-4) / (0.25**2 + 0.75**2 + 1e-4), 16, largest=0.75**2 / 9e-4)
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
    assert_close(ours, [expected], WINDOW)


def experiment(config=TINY, **changes) -> Experiment:
    data = DataConfig(sources={"mine": SourceConfig(resolution=8)})
    optim = OptimConfig(learning_rate=1e-3, warmup=0, weight_decay=0.1, clip=0.0, ema=0.9, **changes)
    return Experiment(task="autoencoder", autoencoder=config, steps=10, batch_size=4, data=data, optim=optim)


def test_a_step_in_two_halves_updates_the_codebook_from_the_whole_batch():
    config = dataclasses.replace(TINY, adversarial=AdversarialConfig(0.1, start=1, channels=(8,)))
    run = experiment(config, accumulate=2, groups=(LearningRateGroup("(en|de)coder", 0.0),))
    task = make_task(run)
    batch, step = task.fake_batch(4), jax.jit(make_step(task, run))
    states = [jax.jit(make_init(task, run))()]
    for _ in range(2):
        states.append(step(states[-1], batch))
    # The frozen encoder's vectors, and what the definition makes of them; codes that nothing chose were revived.
    encoded = jax.jit(lambda params, x: task.template.bind(params).encoded(x))
    for old, new in itertools.pairwise(states):
        vectors = np.asarray(encoded(old.params, batch["images"])).reshape(-1, 4)
        before, after = old.params["quantizer"], new.params["quantizer"]
        codes = np.asarray(before["codebook"])
        ids = np.argmin(((vectors[:, None] - codes) ** 2).sum(-1), -1)
        chosen = np.flatnonzero(np.bincount(ids, minlength=16) > 2)
        assert len(chosen)
        for code in chosen:
            counts = 0.99 * before["counts"][code] + 0.01 * (ids == code).sum()
            sums = 0.99 * before["sums"][code] + 0.01 * vectors[ids == code].sum(0)
            assert_close(after["counts"][code], counts, OPERATIONS)
            assert_close(after["codebook"][code], sums / counts, OPERATIONS)
    # Before its start the discriminator stays as it is (weights decay, biases do not), then it learns.
    judges = [state.params["discriminator"] for state in states]
    biases = [np.asarray(judge["convs"][0]["bias"]) for judge in judges]
    assert [judge["age"].item() for judge in judges] == [0, 1, 2]
    assert np.array_equal(biases[0], biases[1]) and np.any(biases[1] != biases[2])
    uses, total = states[-1].log["codebook"]
    assert uses.shape == (16,) and uses.sum() == total == 2 * 4 * 16


def test_the_discriminator_and_the_codec_play_against_each_other():
    """One gradient for both: what the codec wants is no matter of the discriminator, and the reverse."""
    config = dataclasses.replace(TINY, adversarial=AdversarialConfig(0.5, channels=(8,)))
    task = AutoencoderTask(config, (8, 8))
    batch = task.fake_batch(2)

    @jax.jit
    def gradients(params):
        def terms(params):
            sums = task.loss(params, batch, task.draw(batch, jax.random.key(0)), task.totals(batch))[1]
            return sums["adversarial"][0], sums["discriminator"][0]

        _, back = jax.vjp(terms, params)
        return back((1.0, 0.0))[0], back((0.0, 1.0))[0]

    def size(tree):
        return sum(float(np.abs(leaf).sum()) for leaf in jax.tree.leaves(tree))

    codec, judge = gradients(weights(config))
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


def test_every_form_is_a_codec_of_its_images():
    for name in (
        "vq_digits.py",
        "vq_digits.py:multiscale",
        "vq_emoji.py",
        "vq_emoji.py:fsq_debug",
        "vq_emoji.py:multiscale",
    ):
        config = load_experiment(CONFIGS / name)
        model = make_task(config).static
        side = next(iter(config.data.sources.values())).resolution
        ids = {"multiscale": 70 if side == 28 else 291}.get(config.autoencoder.form, (side // model.down) ** 2)
        assert math.prod(model.code_shape(side, side)) == ids
        assert model.quantizer.vocabulary == (128 if side == 28 else 512)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["vq_digits.py:debug", pytest.param("vq_emoji.py:multiscale_debug", marks=pytest.mark.soak)]
)
def test_debug_forms_train_resume_and_reconstruct(name, tmp_path):
    config = load_experiment(CONFIGS / name)
    source = next(iter(config.data.sources.values()))
    folder = tiny.write_folder(tmp_path / "images", 6)
    mine = {"mine": dataclasses.replace(source, kind="folder", name="", path=folder)}
    held_out = dataclasses.replace(config.eval, sources=mine)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, sources=mine), eval=held_out)
    state = train(config, tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["reconstruction"] < rows[0]["reconstruction"] and rows[-1]["held_out_psnr"] > 0
    assert all(0 < row["codebook_use"] <= 1 and row["ssim"] is not None for row in rows)
    codec = open_codec(CodecConfig("autoencoder", str(tmp_path / "run")))
    image = pictures(source.resolution, source.resolution)[..., : source.channels]
    ids = codec.encode(image)
    assert codec.decode(ids).shape == image.shape
    if codec.scales:
        return
    result = evaluate(tmp_path / "run")
    assert result["psnr"]["count"] == 6 and 0 < result["codebook_use"]["value"] <= 1
    bits = ids.size * np.log2(codec.vocabulary)
    assert result["bits_per_image"]["value"] == pytest.approx(bits) and result["step"] == 20
    assert "psnr_drawn" in result["absent"] and (tmp_path / "run" / "samples" / "reconstructions.png").is_file()
    seal_path(tmp_path / "run" / "checkpoints", 20).unlink()  # as if the process had died before this checkpoint
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "20")
    jax.tree.map(np.testing.assert_array_equal, state, train(config, tmp_path / "run"))
