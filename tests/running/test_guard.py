"""A loss that is not a number never reaches the parameters; runs of them roll back, then stop."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from transfusion.errors import UsageError
from transfusion.running.guard import Guard, GuardConfig, all_finite, count_skips, select_finite, zero_skips

OPTIMIZER = optax.adam(0.1)


@jax.jit
def train_step(state, factor):
    loss, gradient = jax.value_and_grad(lambda w: factor * jnp.sum(w**2))(state["w"])
    updates, opt_state = OPTIMIZER.update(gradient, state["opt"], state["w"])
    new = {"w": state["w"] + updates, "opt": opt_state, "key": jax.random.split(state["key"])[0], "none": None}
    ok = all_finite(loss, gradient)
    return select_finite(ok, new, {k: v for k, v in state.items() if k != "skips"}) | {
        "skips": count_skips(state["skips"], ok)
    }


def start():
    w = jnp.ones(3)
    return {"w": w, "opt": OPTIMIZER.init(w), "key": jax.random.key(0), "none": None, "skips": zero_skips()}


def numbers(state):
    rest = {k: v for k, v in state.items() if k not in ("key", "skips")}
    return [np.asarray(x) for x in (*jax.tree.leaves(rest), jax.random.key_data(state["key"]))]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bad_updates_leave_no_trace_however_many_they_are(bad):
    clean, dirty = start(), start()
    for i in range(12):
        clean = train_step(clean, 1.0)
        dirty = train_step(dirty, 1.0)
        if i in (2, 5):
            for _ in range(i * 3):
                dirty = train_step(dirty, bad)
            assert int(dirty["skips"]["in_a_row"]) == i * 3
    for x, y in zip(numbers(clean), numbers(dirty), strict=True):
        np.testing.assert_array_equal(x, y)
    assert jax.tree.map(int, dirty["skips"]) == {"skipped": 21, "in_a_row": 0}


def test_all_finite_sees_one_bad_entry():
    assert all_finite(jnp.float32(1), jnp.ones(3))
    assert not all_finite(jnp.float32(1), jnp.array([1.0, jnp.inf, 1.0]))
    assert not all_finite(jnp.float32(jnp.nan), jnp.ones(3))


def test_a_run_of_skips_rolls_back_and_a_run_of_rollbacks_stops():
    guard = Guard(GuardConfig(max_consecutive=5, max_rollbacks=2))
    assert not guard.should_roll_back(10, 4)
    assert guard.should_roll_back(11, 5)
    assert not guard.should_roll_back(8, 0)
    assert guard.should_roll_back(20, 7)
    with pytest.raises(UsageError, match="^step 31: 5 updates in a row were not finite, after 2 rollbacks: lower"):
        guard.should_roll_back(31, 5)


def test_rollbacks_long_ago_are_forgotten():
    guard = Guard(GuardConfig(max_consecutive=5, max_rollbacks=1, recovery=100))
    assert guard.should_roll_back(50, 5)
    assert not guard.should_roll_back(149, 0)
    assert guard.rollbacks == 1
    assert not guard.should_roll_back(160, 3)  # not while it is diverging again
    assert guard.rollbacks == 1
    assert not guard.should_roll_back(161, 0)
    assert guard.rollbacks == 0
    assert guard.should_roll_back(200, 5)
    with pytest.raises(UsageError):
        Guard(GuardConfig(max_rollbacks=1), rollbacks=1).should_roll_back(5, 9)


@pytest.mark.parametrize("limits", [{"max_consecutive": 0}, {"max_rollbacks": -1}, {"recovery": 0}])
def test_limits_that_cannot_be_are_refused(limits):
    (name,) = limits
    with pytest.raises(UsageError, match=f"^guard.{name} must be at least"):
        GuardConfig(**limits)
