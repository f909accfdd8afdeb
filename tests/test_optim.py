"""The optimizer: schedule, decay, clipping, average."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from closeness import assert_close

from transfusion.errors import UsageError
from transfusion.model.names import by_path
from transfusion.optim import (
    SCHEDULES,
    LearningRateGroup,
    OptimConfig,
    average,
    ema_decay,
    learning_rate,
    make_optimizer,
    merge,
    split,
)


def test_the_schedule_warms_up_and_ends_on_the_final_rate():
    rate = learning_rate(OptimConfig(learning_rate=1.0, final_learning_rate=0.1, warmup=10), 110)
    assert float(rate(0)) == 0
    assert_close([rate(5), rate(10)], [0.5, 1.0], 16)
    assert_close(rate(60), 0.55, 16)  # half of the cosine
    assert_close([rate(110), rate(500)], [0.1, 0.1], 16)


def test_warmup_stable_decay_can_be_prolonged():
    config = OptimConfig(learning_rate=1.0, final_learning_rate=0.1, warmup=10, schedule="wsd", decay_share=0.2)
    short, long = learning_rate(config, 100), learning_rate(config, 200)
    assert [float(short(step)) for step in (0, 5, 10, 80, 90, 100, 300)] == pytest.approx(
        [0, 0.5, 1, 1, 0.55, 0.1, 0.1]
    )
    assert all(float(short(step)) == float(long(step)) for step in range(81))
    assert float(long(100)) == float(long(160)) == 1.0
    assert float(long(180)) == pytest.approx(0.55)


def test_a_constant_rate_is_the_same_for_any_number_of_steps():
    config = OptimConfig(learning_rate=0.5, warmup=4, schedule="constant")
    assert [float(learning_rate(config, 10)(step)) for step in (0, 2, 4, 9, 50)] == [0, 0.25, 0.5, 0.5, 0.5]
    assert float(learning_rate(dataclasses.replace(config, warmup=0), 10)(0)) == 0.5
    with pytest.raises(UsageError, match=r"optim.schedule: 'wds' is none of .* \(did you mean 'wsd'\?\)"):
        OptimConfig(schedule="wds")


def test_every_schedule_has_the_same_state():
    """So that a run can go on with another."""
    states = [make_optimizer(OptimConfig(schedule=name), 10).init(PARAMS) for name in SCHEDULES]
    assert len({str(jax.tree.structure(state)) for state in states}) == 1


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_fall_is_within_the_run(share):
    rate = learning_rate(
        OptimConfig(learning_rate=1.0, final_learning_rate=0.5, warmup=5, schedule="wsd", decay_share=share), 20
    )
    assert float(rate(5)) == 1.0 and float(rate(20)) == 0.5
    assert all(0 <= float(rate(step)) <= 1 for step in range(25))


@pytest.mark.parametrize("steps", [1, 2, 50])
def test_a_warm_up_longer_than_the_run_is_cut(steps):
    rate = learning_rate(OptimConfig(warmup=4000), steps)
    assert all(np.isfinite(float(rate(step))) for step in range(steps + 2))
    # The last rate is what the cosine, which falls from 3e-4 on, leaves.
    assert_close(rate(steps), 1.5e-5, 16, largest=OptimConfig().learning_rate)


PARAMS = {"kernel": jnp.ones((3, 3)), "norm": jnp.ones(3), "out_bias": jnp.ones(3), "q_norm": jnp.ones((2, 3))}


def update(config, gradients):
    optimizer = make_optimizer(config, 10)
    state = optimizer.init(PARAMS)
    _, state = optimizer.update(gradients, state, PARAMS)  # the first step's rate is 0
    return optimizer.update(gradients, state, PARAMS)[0]


def test_matrices_are_decayed_and_norms_and_biases_are_not():
    zero = jax.tree.map(jnp.zeros_like, PARAMS)
    updates = update(OptimConfig(learning_rate=0.5, warmup=1, weight_decay=0.1), zero)
    assert_close(updates["kernel"], -0.05, 16)
    for name in ("norm", "out_bias", "q_norm"):
        np.testing.assert_array_equal(updates[name], 0)


def test_gradients_are_clipped_together():
    big = jax.tree.map(lambda p: 1e6 * p, PARAMS)
    count = sum(p.size for p in PARAMS.values())
    optimizer = make_optimizer(OptimConfig(clip=0.5), 10)
    _, state = optimizer.update(big, optimizer.init(PARAMS), PARAMS)
    first_moment = state[1][0].mu
    assert_close(optax.global_norm(first_moment), 0.5 * (1 - 0.9), count + 16)
    assert_close(first_moment["norm"], 0.05 / np.sqrt(count), count + 16)
    unclipped = make_optimizer(OptimConfig(clip=0.0), 10)
    _, state = unclipped.update(big, unclipped.init(PARAMS), PARAMS)
    assert optax.global_norm(state[1][0].mu) > 1e5


def test_the_average_forgets_its_start():
    config = OptimConfig(ema=0.999)
    ema, params = {"w": jnp.zeros(2)}, {"w": jnp.ones(2)}
    np.testing.assert_array_equal(average(ema, params, config, jnp.array(0))["w"], 1.0)
    late = average(ema, params, config, jnp.array(1_000_000))
    assert_close(late["w"], 0.001, 8, largest=1)  # 1 - 0.999
    for step in range(1, 200):
        ema = average(ema, params, config, jnp.array(step))
    np.testing.assert_allclose(ema["w"], 1.0, atol=1e-3)  # it has nearly forgotten its start


@pytest.mark.parametrize(
    "warmup, decays",
    [
        ("none", [0, 0.95, 0.95, 0.95]),
        ("ratio", [0, 2 / 11, 3 / 12, 0.95]),
        ("power", [0, 1 - 2**-0.75, 1 - 3**-0.75, 0.95]),
    ],
)
def test_the_average_starts_as_a_copy_and_then_warms_up(warmup, decays):
    config = OptimConfig(ema=0.95, ema_warmup=warmup, ema_power=0.75, ema_start=7)
    got = [ema_decay(config, jnp.array(7 + n)) for n in (0, 1, 2, 1000)]
    assert_close(got, decays, 16)
    assert float(ema_decay(config, jnp.array(3))) == 0


@pytest.mark.parametrize("changes", [{"learning_rate": 0.0}, {"accumulate": 0}, {"ema": 1.0}, {"ema_warmup": "pwoer"}])
def test_settings_that_cannot_work_are_refused(changes):
    with pytest.raises(UsageError, match="optim[:.]"):
        OptimConfig(**changes)


# --- groups -----------------------------------------------------------------------------------------------------------

NESTED = {
    "trunk": {"text": {"q": jnp.full((2, 3), 0.3), "q_norm": jnp.ones(3)}, "image": {"q": jnp.full((2, 3), 0.3)}},
    "head": {"kernel": jnp.full((3, 2), 0.7)},
}


def groups(*pairs) -> tuple[LearningRateGroup, ...]:
    return tuple(LearningRateGroup(*pair) for pair in pairs)


@pytest.mark.parametrize(
    "pairs, frozen",
    [
        ([], []),
        ([("trunk/text", 0.0)], ["trunk/text/q", "trunk/text/q_norm"]),
        ([("trunk/text/q", 0.0)], ["trunk/text/q"]),  # whole names: not q_norm
        ([("trunk/.*norm", 0.5), ("trunk/text", 0.0), ("head", 2.0)], ["trunk/text/q"]),  # the first group decides
        ([("trunk/text|head", 0.0)], ["head/kernel", "trunk/text/q", "trunk/text/q_norm"]),
    ],
)
def test_frozen_parameters_are_taken_out_and_put_back(pairs, frozen):
    trained, still = split(NESTED, groups(*pairs))
    assert sorted(by_path(still)) == frozen
    assert sorted(by_path(trained)) == sorted(by_path(NESTED).keys() - set(frozen))
    back = merge(trained, still)
    assert jax.tree.structure(back) == jax.tree.structure(NESTED)
    assert all(a is b for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(NESTED), strict=True))


def test_a_factor_scales_the_whole_update():
    config = OptimConfig(learning_rate=0.5, warmup=1, weight_decay=0.1, groups=groups(("trunk/image", 0.1)))
    gradients = jax.tree.map(lambda p: 0.01 * p, NESTED)
    updates = {}
    for name, of in (("plain", ()), ("grouped", config.groups)):
        optimizer = make_optimizer(OptimConfig(learning_rate=0.5, warmup=1, weight_decay=0.1, groups=of), 10)
        _, state = optimizer.update(gradients, optimizer.init(NESTED), NESTED)
        updates[name], _ = optimizer.update(gradients, state, NESTED)
    assert_close(updates["grouped"]["trunk"]["image"]["q"], 0.1 * updates["plain"]["trunk"]["image"]["q"], 8)
    for path in ("trunk/text/q", "trunk/text/q_norm", "head/kernel"):
        got, want = (by_path(updates[name])[path] for name in ("grouped", "plain"))
        np.testing.assert_array_equal(got, want)
        assert np.abs(want).min() > 0.1


def test_the_average_of_frozen_parameters_does_not_drift():
    config = OptimConfig(ema=0.9, groups=groups(("trunk", 0.0)))
    params = jax.tree.map(lambda p: p / 3, NESTED)
    ema = average(NESTED, params, config, jnp.array(1000))
    np.testing.assert_array_equal(ema["trunk"]["text"]["q"], NESTED["trunk"]["text"]["q"])
    assert_close(ema["head"]["kernel"], 0.7 * (0.9 + 0.1 / 3), 8)


@pytest.mark.parametrize(
    "pairs, message",
    [
        ([("trunk/txt", 0.0)], r"'trunk/txt' covers no parameter \(did you mean 'trunk/text'\?\)"),
        ([("", 0.0)], "'' covers no parameter"),
        ([("trunk", 0.5), ("trunk/text", 0.0)], "every parameter that 'trunk/text' covers is in an earlier group"),
        ([("trunk|head", 0.0)], "nothing to train"),
        ([("trunk(", 0.0)], "no regular expression"),
        ([("trunk", -0.1)], "must not be negative"),
    ],
)
def test_groups_that_cannot_be_meant_are_refused(pairs, message):
    with pytest.raises(UsageError, match=message):
        split(NESTED, groups(*pairs))
