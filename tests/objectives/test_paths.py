"""The algebra of noise paths, and training times."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_close

from transfusion.errors import UsageError
from transfusion.objectives.paths import (
    BETAS,
    PATHS,
    PREDICTED,
    SHIFTS,
    STEPS,
    WEIGHTINGS,
    ContinuousConfig,
    estimates,
    interpolate,
    sample_times,
    shift_time,
    target,
)

TIMES = jnp.linspace(0.02, 0.98, 25)


def roundings(path):
    """Operations of a path's slope: discrete ones are differences of neighbours in a table, times its length."""
    return 16 + STEPS * path.startswith("ddpm")


@pytest.mark.parametrize("name", PATHS)
def test_a_path_runs_from_noise_to_data_and_its_derivatives_are_right(name):
    path = PATHS[name]
    at = jnp.array([0.0, 1.0])
    # DDPM's schedules end before the signal does, unless they are rescaled.
    rest = {"ddpm_cosine": 4.93e-5, "ddpm_linear": 6.35e-3, "ddpm_scaled_linear": 6.83e-2}.get(name, 0)
    np.testing.assert_allclose(path.alpha(at), [rest, 1], atol=1e-6, rtol=2e-3)  # `rest` has three digits
    assert_close(path.alpha(at) ** 2 + path.sigma(at) ** 2, 1, 16)
    assert_close(path.sigma(at)[1], 0, 1, largest=1)
    for function, derivative in ((path.alpha, path.d_alpha), (path.sigma, path.d_sigma)):
        assert_close(jax.vmap(jax.grad(function))(TIMES), derivative(TIMES), roundings(name))


def test_the_cosine_path_is_the_paper_s():
    """Transfusion, section 2.2: sqrt(alpha_bar) = cos(s pi / 2) at noise time s, of variance 1."""
    path = PATHS["cosine"]
    assert_close(path.alpha(1 - TIMES), np.cos(np.pi / 2 * TIMES), 16)
    assert_close(path.alpha(TIMES) ** 2 + path.sigma(TIMES) ** 2, 1, 16)


@pytest.mark.parametrize("name", [name for name in PATHS if name.startswith("ddpm")])
def test_discrete_schedules_hold_the_steps_of_ddpm(name):
    """At step n the signal is the product of the sqrt(1 - beta) up to n; between steps it falls."""
    path, betas = PATHS[name], BETAS[name.removesuffix("_zero_snr")]
    n = np.array([0, 1, 9, 400, 998, 999])
    alpha = path.alpha(jnp.asarray(1 - (n + 1) / STEPS, jnp.float32))
    if name.endswith("_zero_snr"):
        assert alpha[-1] == 0
        assert_close(alpha[0], np.sqrt(1 - betas[0]), 16)
    else:
        wanted = [np.prod(np.sqrt(1 - betas[: i + 1])) for i in n]
        # Times n / 1000 are rounded, so that a value lies between two steps, by a part of eps 1000.
        assert_close(alpha, wanted, STEPS)
    t = jnp.linspace(0, 1, 5001)
    assert jnp.diff(path.alpha(t)).min() > -1e-6 and jnp.diff(path.sigma(t)).max() < 1e-6
    np.testing.assert_allclose(path.alpha(t) ** 2 + path.sigma(t) ** 2, 1, atol=3e-4)  # between steps: not a circle


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("prediction", PREDICTED)
def test_a_perfect_prediction_gives_back_all_three(name, prediction):
    path = PATHS[name]
    data, noise = np.random.default_rng(0).standard_normal((2, 25)).astype(np.float32)
    x = interpolate(path, TIMES, data, noise)
    predicted = target(path, prediction, TIMES, data, noise)
    got = estimates(path, prediction, TIMES, x, predicted)
    velocity = jax.jvp(lambda t: interpolate(path, t, data, noise), (TIMES,), (jnp.ones(25),))[1]
    # Estimates are quotients by alpha or sigma.
    factor = 1 / min(float(path.alpha(TIMES).min()), float(path.sigma(TIMES).min()))
    assert_close((got.data, got.noise), (data, noise), 16, largest=factor * np.abs(x).max())
    assert_close(got.velocity, velocity, roundings(name), largest=factor * np.abs(velocity).max())
    if prediction == "velocity":
        assert_close(predicted, velocity, roundings(name))


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("prediction", PREDICTED)
def test_the_ends_stay_finite(name, prediction):
    for t in (0.0, 1.0):
        got = estimates(PATHS[name], prediction, jnp.array(t), jnp.ones(3), jnp.ones(3))
        assert all(np.isfinite(a).all() for a in (got.data, got.noise, got.velocity))


def test_times_have_the_moments_of_their_distributions():
    key, count = jax.random.key(0), (20_000,)
    uniform = sample_times(key, count, ContinuousConfig())
    assert uniform.min() >= 0 and uniform.max() <= 1
    assert abs(uniform.mean() - 0.5) < 0.01 and abs(uniform.var() - 1 / 12) < 0.002
    t = sample_times(key, count, ContinuousConfig(times="logit_normal", mean=0.5, std=0.7))
    logit = np.log(t / (1 - t))
    assert abs(logit.mean() - 0.5) < 0.02 and abs(logit.std() - 0.7) < 0.02


@pytest.mark.parametrize("config", [ContinuousConfig(times="mode"), ContinuousConfig(times="cosmap")])
def test_times_of_stable_diffusion_3_have_its_densities(config):
    """arXiv 2403.03206, section 3.1: the mode density is the inverse slope of its map, cosmap's is given."""
    t = np.asarray(sample_times(jax.random.key(0), (200_000,), config))
    assert t.min() >= 0 and t.max() <= 1
    share, edges = np.histogram(t, bins=20, range=(0, 1), density=True)
    if config.times == "cosmap":
        middle = (edges[1:] + edges[:-1]) / 2
        wanted = WEIGHTINGS["cosmap"](middle)
    else:
        u = np.linspace(0, 1, 100_001)
        noise_level = 1 - u - 1.29 * (np.cos(np.pi / 2 * u) ** 2 - 1 + u)  # the paper's f_mode
        wanted = -np.diff(np.interp(1 - edges, noise_level[::-1], u[::-1])[::-1])[::-1] / np.diff(edges)
    np.testing.assert_allclose(share, np.abs(wanted), rtol=0.05)  # a sample


def test_the_shift_follows_the_size_of_the_image():
    assert SHIFTS["constant"](3.0, 4096) == 3.0
    assert SHIFTS["resolution"](1.0, 1024) == 2.0
    assert_close(SHIFTS["flux"](1.0, 256), np.exp(0.5), 16)
    assert_close(SHIFTS["flux"](1.0, 4096), np.exp(1.15), 16)


def test_the_shift_multiplies_the_ratio_of_noise_to_data():
    moved = shift_time(TIMES, 3.0)
    # A ratio of 50 is a quotient by 0.02.
    assert_close((1 - moved) / moved, 3 * (1 - TIMES) / TIMES, 16)
    assert_close(shift_time(TIMES, 1.0), TIMES, 8)
    assert_close(shift_time(jnp.array([0.0, 1.0]), 3.0), [0, 1], 8)
    plain, shifted = (sample_times(jax.random.key(0), (100,), ContinuousConfig(shift=s)) for s in (1.0, 3.0))
    assert_close(shifted, shift_time(plain, 3.0), 16)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"path": "linaer"}, "(did you mean 'linear'?)"),
        ({"weighting": "cos"}, "continuous.weighting: 'cos' is none of none, inverse_square, cosmap"),
        ({"mode_scale": 2.0}, "not in [-1, 1.75]"),
        ({"prediction": "epsilon"}, "continuous.prediction"),
        ({"times": "lognormal"}, "did you mean 'logit_normal'?"),
        ({"shift": 0.0}, "shift and std must be positive"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes, message):
    with pytest.raises(UsageError) as error:
        ContinuousConfig(**changes)
    assert message in str(error.value)
