import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from closeness import assert_close

from transfusion.errors import UsageError
from transfusion.objectives.paths import PATHS, Estimates
from transfusion.sampling.config import SamplerConfig
from transfusion.sampling.decoder import Prompt, generate
from transfusion.sampling.reference import generate_one
from transfusion.sampling.solvers import DDPM, NOISE_START, SOLVERS, SPACINGS, Euler, Heun, posterior, time_grid


def solve(solver, field, path, x, times, key=None):
    memory = solver.first_memory(x)
    for i, (t, s) in enumerate(zip(times[:-1], times[1:], strict=True)):
        noise = jnp.zeros_like(x) if key is None else jax.random.normal(jax.random.fold_in(key, i), x.shape)
        x, _, memory = solver.step(field, path, x, t, s, lambda noise=noise: noise, memory)
    return x


def linear(x, t):
    """dx/dt = -2 x."""
    return Estimates(x, x, -2 * x)


class AdamsBashforth:
    """A multistep method: it remembers the velocity and the length of its last step."""

    def first_memory(self, x):
        return jnp.zeros_like(x), jnp.zeros((), x.dtype)

    def step(self, field, path, x, t, s, noise, memory):
        (last, length), now = memory, field(x, t)
        # Without a last step its velocity has no part in this one.
        ratio = jnp.where(length > 0, (s - t) / jnp.where(length > 0, length, 1), 0)
        velocity = (1 + ratio / 2) * now.velocity - ratio / 2 * last
        return x + (s - t) * velocity, now.data, (now.velocity, s - t)


@pytest.mark.parametrize(("solver", "order"), [(Euler(), 1), (Heun(), 2), (AdamsBashforth(), 2)])
def test_order_on_a_linear_ode(solver, order):
    def error(steps):
        with jax.enable_x64(True):
            times = jnp.linspace(0.0, 1.0, steps + 1)

            def step(carry, ts):
                x, _, memory = solver.step(linear, PATHS["linear"], carry[0], *ts, lambda: carry[0], carry[1])
                return (x, memory), None

            start = jnp.ones(())
            (x, _), _ = jax.lax.scan(step, (start, solver.first_memory(start)), (times[:-1], times[1:]))
            return abs(float(x) - np.exp(-2))

    assert error(40) / error(80) == pytest.approx(2**order, rel=0.1)  # the next order
    assert error(80) < 0.01


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_ddim_is_exact_for_a_perfect_predictor(name):
    path, data = PATHS[name], jnp.array([0.3, -1.2, 2.0])

    def field(x, t):
        noise = (x - path.alpha(t) * data) / path.sigma(t)
        return Estimates(data, noise, path.d_alpha(t) * data + path.d_sigma(t) * noise)

    x = solve(SOLVERS["ddim"], field, path, jnp.array([1.0, 0.5, -0.2]), time_grid(3))
    assert_close(x, data, 3 * 16)


def test_ddim_is_euler_on_the_linear_path():
    path, key = PATHS["linear"], jax.random.key(0)
    x, predicted = jax.random.normal(key, (2, 5))
    now = Estimates(x + 0.75 * predicted, x - 0.25 * predicted, predicted)
    t, s = np.float32(0.25), np.float32(0.4)
    results = [SOLVERS[name].step(lambda *_: now, path, x, t, s, lambda: x, ())[0] for name in ("ddim", "euler")]
    assert_close(*results, 16)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_posterior_keeps_the_marginal(name):
    """x_t ~ N(alpha_t d, sigma_t^2) must become x_s ~ N(alpha_s d, sigma_s^2)."""
    path, data = PATHS[name], jnp.float32(0.7)
    for t, s in [(0.05, 0.3), (0.4, 0.6), (0.8, 0.95)]:
        t, s = jnp.float32(t), jnp.float32(s)
        low, _ = posterior(path, path.alpha(t) * data, data, t, s)
        high, std = posterior(path, path.alpha(t) * data + 1.0, data, t, s)
        assert_close(low, path.alpha(s) * data, 32)
        assert_close((high - low) ** 2 * path.sigma(t) ** 2 + std**2, path.sigma(s) ** 2, 32, largest=path.sigma(s))


def test_ddpm_draws_the_moments_of_a_gaussian():
    path, mean, std = PATHS["cosine"], 1.5, 0.5

    def field(x, t):
        # E[data | x_t] where data ~ N(mean, std^2).
        gain = path.alpha(t) * std**2 / (path.alpha(t) ** 2 * std**2 + path.sigma(t) ** 2)
        return Estimates(mean + gain * (x - path.alpha(t) * mean), x, x)

    key = jax.random.key(0)
    times = jnp.asarray(time_grid(200))

    def step(x, i):
        noise = jax.random.normal(jax.random.fold_in(key, i), x.shape)
        return DDPM().step(field, path, x, times[i], times[i + 1], lambda: noise, ())[:2]

    x, _ = jax.lax.scan(step, jax.random.normal(key, (20_000,)), jnp.arange(200))
    assert float(x.mean()) == pytest.approx(mean, abs=0.02)  # a sample, as the next one
    assert float(x.std()) == pytest.approx(std, rel=0.05)


def test_a_solver_that_remembers_draws_as_in_the_plain_decoder(monkeypatch):
    monkeypatch.setitem(SOLVERS, "multistep", AdamsBashforth())
    task, rng = tiny.task(), np.random.default_rng(0)
    params = task.template.init(jax.random.key(0))
    params = jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape).astype(np.float32), params)
    config, prompt = SamplerConfig(solver="multistep", steps=4, max_tokens=0), Prompt((tiny.words(9),), draw=True)
    ((drawn,),) = generate(task, params, [prompt], 3, config)
    ((euler,),) = generate(task, params, [prompt], 3, dataclasses.replace(config, solver="euler"))
    (plain,) = generate_one(task, params, prompt, 3, config)
    largest = np.abs(plain.value).max()
    # Float32 through eight layers of four steps; a memory that is lost moves the image by a hundred times as much.
    np.testing.assert_allclose(drawn.value, plain.value, rtol=0, atol=1e-4 * largest)
    assert np.abs(drawn.value - euler.value).max() > 1e-2 * largest


def test_time_grid():
    np.testing.assert_array_equal(time_grid(4), [0, 0.25, 0.5, 0.75, 1])
    shifted = time_grid(4, shift=3.0)
    assert shifted[0] == 0 and shifted[-1] == 1 and (shifted[1:-1] < time_grid(4)[1:-1]).all()
    assert time_grid(4, prediction="noise")[0] == np.float32(NOISE_START)


def test_spacings():
    """Noise levels 1 - t; the second, third and fourth as diffusers' flow matching schedulers give them."""
    levels = 1 - time_grid(4, 3.0, spacing="to_last_level")
    s = np.array([1, 0.667, 0.334, 0.001])
    assert_close(levels, [*(3 * s / (1 + 2 * s)), 0], 8)
    end = 3 * 0.001 / 1.002
    s = np.linspace(1, end, 4)
    assert_close(1 - time_grid(4, 3.0, spacing="shifted_twice"), [*(3 * s / (1 + 2 * s)), 0], 8)
    assert_close(1 - time_grid(4, terminal=0.1), [1, 0.7, 0.4, 0.1, 0], 8)
    steps = {name: 1000 * (1 - time_grid(4, spacing=name)) - 1 for name in ("leading", "trailing")}
    assert_close(steps["leading"], [750, 500, 250, 0, -1], 8)
    assert_close(steps["trailing"], [999, 749, 499, 249, -1], 8)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_every_grid_rises_to_the_data(spacing):
    for steps in (1, 7, 30):
        for prediction in ("velocity", "noise"):
            grid = time_grid(steps, 2.0, prediction, spacing, 0.02)
            assert len(grid) == steps + 1 and (np.diff(grid) > 0).all() and grid[-1] == 1
            assert grid[0] >= (NOISE_START if prediction == "noise" else 0)


def test_the_shift_of_a_sampler_may_follow_the_image_s_size():
    config = SamplerConfig(steps=4, shift_by="resolution", shift=1.5)
    assert_close(config.times("velocity", 1024), time_grid(4, 3.0), 8)
    small = dataclasses.replace(config, shift_tokens=16)  # the grid follows the size that is drawn
    assert_close(small.times("velocity", 64), time_grid(4, 3.0), 8)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"spacing": "trailign"}, "did you mean 'trailing'?"),
        ({"shift_by": "size"}, "sampling.shift_by"),
        ({"terminal": 1.0}, "sampling.terminal=1.0 must be at least 0 and less than 1"),
        ({"spacing": "leading", "steps": 2000}, "1000 steps are the most of 'leading'"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes, message):
    with pytest.raises(UsageError) as error:
        SamplerConfig(**changes)
    assert message in str(error.value)


def test_counts_of_evaluations():
    calls = []

    def field(x, t, ahead=0.0):
        calls.append(float(t))
        return linear(x, t)

    with jax.disable_jit():
        for solver in SOLVERS.values():
            calls.clear()
            solve(solver, field, PATHS["cosine"], jnp.ones(2), time_grid(5), jax.random.key(0))
            assert len(calls) == solver.evaluations(5)
