"""Noise on images: one level per image, caps, the loss and its parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from closeness import assert_close

from transfusion.objectives import continuous
from transfusion.objectives.paths import PATHS, SHIFTS, ContinuousConfig, interpolate, shift_time, target
from transfusion.sequence.rows import assemble, expand


def batch_of(*documents, name="transfusion", rows=1):
    spec = tiny.SPECS[name]
    return assemble([[expand(document, spec) for document in documents]] * rows, spec)["image"]


def pictures(*roles):
    rng = np.random.default_rng(0)
    return tuple(tiny.picture(rng, role) for role in roles)


@pytest.mark.parametrize("name", ["transfusion", "mixed"])
def test_an_image_has_one_noise_level(name):
    """Solving x_t = t data + (1 - t) noise for t gives one number per image, that of its item."""
    part = batch_of(pictures("target", "target"), pictures("target"), name=name)
    config = ContinuousConfig()
    draws = continuous.draw(jax.random.key(0), part, config)
    x = continuous.noised(part, draws, config)
    noise = draws["noise"]
    t = np.asarray((x - noise) / (part.values - noise)).mean(-1)[0]
    used = part.document[0] > 0
    per_image = np.asarray(draws["time"])[0][part.item[0]]
    # A quotient of two differences, and the smallest of the lower ones multiplies its roundings.
    smallest = np.abs(part.values - noise)[0][used].min()
    assert_close(t[used], per_image[used], 8, largest=np.abs(x).max() / smallest)
    assert len(np.unique(per_image[used])) == 3


def test_items_of_one_row_are_shifted_by_their_own_number_of_tokens():
    """Stable Diffusion 3 (arXiv 2403.03206, equation 23): with n the tokens of the base and m those of the item, the
    noise level t' = 1 - t becomes a t' / (1 + (a - 1) t'), a = sqrt(m / n)."""
    rng = np.random.default_rng(0)
    part = batch_of((tiny.picture(rng, "target"), tiny.picture(rng, "target", (4, 8))), name="mixed", rows=2)
    assert continuous.tokens_of(part)[:, :2].tolist() == [[4, 8], [4, 8]]
    key, at_base = jax.random.key(3), ContinuousConfig(shift_by="resolution", shift_tokens=4, shift=3.0)
    before = 1 - np.asarray(continuous.draw(key, part, ContinuousConfig())["time"], np.float64)
    after = 1 - np.asarray(continuous.draw(key, part, at_base)["time"], np.float64)
    for number, alpha in ((0, 3.0), (1, 3.0 * 2**0.5)):
        wanted = alpha * before[:, number] / (1 + (alpha - 1) * before[:, number])
        np.testing.assert_allclose(after[:, number], wanted, rtol=1e-5)
    assert np.isfinite(after).all()  # of places without an item, too
    # By hand: half noise at four times the tokens is two thirds noise.
    assert 1 - shift_time(0.5, SHIFTS["resolution"](1.0, 16, 4)) == pytest.approx(2 / 3)
    off = ContinuousConfig(shift=3.0, shift_tokens=1)  # 'constant', so that the number does not count
    fixed = continuous.draw(key, part, ContinuousConfig(shift=3.0))["time"]
    np.testing.assert_array_equal(continuous.draw(key, part, off)["time"], fixed)


def test_caps_and_clean_images():
    """Transfusion, section 4.3.4: an image before its caption keeps at least half of its signal."""
    part = batch_of(pictures("context", "target"), rows=400)
    part.time_low[:, 2] = 1.0
    time = np.asarray(continuous.draw(jax.random.key(0), part, ContinuousConfig())["time"])
    assert 0.5 <= time[:, 0].min() < 0.52 and time[:, 0].max() > 0.98
    assert abs(time[:, 0].mean() - 0.75) < 0.02
    assert time[:, 1].min() < 0.02 and abs(time[:, 1].mean() - 0.5) < 0.05
    assert (time[:, 2:] == 1).all()  # clean, and images that are not there


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("prediction", ["velocity", "noise"])
def test_the_loss_is_the_mean_squared_error_of_each_token(path, prediction):
    part = batch_of(pictures("target"), pictures("context", "target"))
    config = ContinuousConfig(path=path, prediction=prediction)
    draws = continuous.draw(jax.random.key(1), part, config)
    t = np.asarray(draws["time"])[0][part.item[0]][:, None]
    wanted = target(PATHS[path], prediction, t, part.values[0], draws["noise"][0])[None]
    off = np.random.default_rng(0).standard_normal(part.values.shape).astype(np.float32)
    loss = continuous.loss(wanted + off, part, draws, config)
    largest = 2 * np.abs(off).max() * np.abs(wanted + off).max()  # of which the loss is a difference, squared
    assert_close(loss[0], (off**2).mean(-1)[0], 8, largest=largest)
    assert_close(
        continuous.noised(part, draws, config)[0], interpolate(PATHS[path], t, part.values[0], draws["noise"][0]), 8
    )


def test_losses_by_noise_level_add_up():
    part = batch_of(pictures("target", "context"), pictures("target"), rows=8)
    config = ContinuousConfig()
    draws = continuous.draw(jax.random.key(2), part, config)
    per_token = jnp.asarray(np.random.default_rng(0).uniform(size=part.loss_weight.shape), jnp.float32)
    total, weight = continuous.by_time(per_token, part, draws)
    assert_close(total.sum(), (per_token * part.loss_weight).sum(), per_token.size)
    assert_close(weight.sum(), part.loss_weight.sum(), per_token.size)
    # All of an image lies in the bucket of its time.
    image = np.asarray(draws["time"])[0, 0]
    one = continuous.by_time(per_token, part, draws | {"time": jnp.full_like(draws["time"], image)})[1]
    assert one[int(image * continuous.BUCKETS)] == part.loss_weight.sum()
    # The last bucket holds t = 1, too.
    clean = continuous.by_time(per_token, part, draws | {"time": jnp.ones_like(draws["time"])})[1]
    assert clean[-1] == part.loss_weight.sum()


FACTORS = {
    "inverse_square": lambda noise: np.maximum(noise, 1e-3) ** -2,
    "cosmap": lambda noise: 2 / (np.pi - 2 * np.pi * noise + 2 * np.pi * noise**2),
}


@pytest.mark.parametrize("weighting", FACTORS)
def test_the_loss_is_weighted_by_its_time(weighting):
    """The noise level is 1 - t; a clean image keeps a finite loss, because its loss weight of 0 must make it 0."""
    part = batch_of(pictures("target", "context"))
    draws = continuous.draw(jax.random.key(3), part, ContinuousConfig())
    draws["time"] = draws["time"].at[0, 1].set(1.0)
    predicted = jnp.ones_like(part.values)
    plain = continuous.loss(predicted, part, draws, ContinuousConfig())
    weighted = continuous.loss(predicted, part, draws, ContinuousConfig(weighting=weighting))
    level = 1 - np.asarray(draws["time"])[0][part.item[0]]
    assert_close(weighted[0], plain[0] * FACTORS[weighting](level), 16)
    assert np.isfinite(weighted).all()
