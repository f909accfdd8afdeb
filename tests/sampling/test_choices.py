"""Guidance and the choice of tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_close

from transfusion.sampling.choose import NEVER, Filters, emittable
from transfusion.sampling.guidance import Guidance
from transfusion.sequence import Run, SequenceSpec, Stream, text


def guidance(scale, low=0.0, high=1.0):
    return Guidance(*map(jnp.float32, (scale, low, high)))


def test_guidance_extrapolates_and_is_nothing_at_scale_one():
    c, u = jnp.array([1.0, 2.0]), jnp.array([0.0, 3.0])
    assert_close(guidance(3.0).predict(jnp.float32(0.5), c, lambda: u), [3.0, 0.0], 8)
    assert_close(guidance(1.0).predict(jnp.float32(0.5), c, lambda: u), c, 8)


def test_unconditional_is_computed_inside_the_interval_only():
    calls = []

    @jax.jit
    def run(times):
        def step(x, t):
            def unconditional():
                jax.debug.callback(lambda t: calls.append(round(float(t), 2)), t)
                return jnp.zeros(2)

            return guidance(2.0, 0.3, 0.7).predict(t, x, unconditional), None

        return jax.lax.scan(step, jnp.ones(2), times)[0]

    result = run(jnp.arange(10) / 10)
    jax.effects_barrier()
    assert sorted(calls) == [0.3, 0.4, 0.5, 0.6]
    np.testing.assert_array_equal(result, 2.0**4)


def plain_filter(logits, top_k, top_p):
    """The kept ids of one row, by the definitions."""
    order = np.argsort(-logits)
    if top_k:
        order = order[:top_k]
    weights = np.exp(logits[order] - logits.max())
    weights /= weights.sum()
    kept, total = [], 0.0
    for i, weight in zip(order, weights, strict=True):
        if total >= top_p:
            break
        kept.append(i)
        total += weight
    return set(kept)


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 0.5), (5, 1.0), (5, 0.6), (100, 0.9), (0, 1e-6)])
def test_filters_keep_what_the_definition_keeps(top_k, top_p):
    logits = np.random.default_rng(0).standard_normal((4, 20)).astype(np.float32) * 2
    filtered = Filters(top_k=top_k, nucleus=top_p < 1).filtered(jnp.asarray(logits), top_p)
    for row, out in zip(logits, np.asarray(filtered), strict=True):
        kept = set(np.flatnonzero(out > NEVER))
        assert kept == plain_filter(row, top_k, top_p)
        assert all(out[i] == row[i] for i in kept)


def test_draws_follow_the_temperature():
    logits = jnp.broadcast_to(jnp.array([0.0, 1.0, 2.0]), (20_000, 3))
    keys = jax.random.split(jax.random.key(0), 20_000)
    drawn = Filters().choose(logits, keys, jnp.float32(2.0), jnp.float32(1.0))
    expected = np.exp([0.0, 0.5, 1.0]) / np.exp([0.0, 0.5, 1.0]).sum()
    np.testing.assert_allclose(np.bincount(drawn, minlength=3) / 20_000, expected, atol=0.02)  # a sample
    assert (Filters(greedy=True).choose(logits[:3], keys[:3], jnp.float32(0), jnp.float32(1)) == 2).all()


def test_special_ids_are_not_emitted():
    streams = {
        "text": Stream(budget=8, vocabulary=text.VOCABULARY),
        "image": Stream(embed="linear", head="linear", objective="continuous", budget=4, channels=1, grid=(2, 2)),
    }
    layout = {"text": (Run("text"),), "image": (Run("image", opener=text.BOI, closer=text.EOI),)}
    spec = SequenceSpec(streams, layout, text.BOS, text.EOS, words=text.BYTES.words)
    assert set(np.flatnonzero(emittable(spec, (text.BOI,)))) == {*range(256), text.EOS, text.BOI}
    assert set(np.flatnonzero(emittable(spec, ()))) == {*range(256), text.EOS}
