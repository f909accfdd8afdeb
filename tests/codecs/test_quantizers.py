import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_close
from hypothesis import given, settings
from hypothesis import strategies as st

from transfusion.errors import UsageError
from transfusion.model import codebooks
from transfusion.model.multiscale import MultiScaleQuantizer, cubic_matrix
from transfusion.model.parameters import Template
from transfusion.model.quantizers import FiniteScalarQuantizer, QuantizerConfig, VectorQuantizer

PLAIN = QuantizerConfig(codes=6, codebook="gradient")
SCALES = QuantizerConfig(codes=6, scales=(1, 2, 4), phis=2)
# In sequence: for three scales a mean over the image, an enlarging, a convolution of 3 x 3 over 3 channels.
OPERATIONS = 3 * (16 + 16 + 3 * 3 * 3)


def make(kind, config, channels=3, seed=0):
    """A quantizer with random parameters, its template and its parameters."""
    template = Template(lambda rngs: kind(config, channels, rngs=rngs))
    params = template.init(jax.random.key(seed))
    return template.bind(params), template, params


def latents(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def length_one(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.parametrize("lookup", ["plain", "normalised"])
def test_vq_gives_the_nearest_code_of_every_latent(lookup):
    quantizer, _, params = make(VectorQuantizer, dataclasses.replace(PLAIN, lookup=lookup))
    z = latents(2, 3, 2, 2, 3)  # a clip: any number of axes
    result = quantizer(z)
    vectors, codes = np.asarray(z).reshape(-1, 3), np.asarray(params["codebook"])
    if lookup == "normalised":
        vectors, codes = length_one(vectors), length_one(codes)
    ids = [int(np.argmin([np.sum((v - code) ** 2) for code in codes])) for v in vectors]
    np.testing.assert_array_equal(result.ids.reshape(-1), ids)
    assert_close(result.values.reshape(-1, 3), codes[ids], 16)
    assert_close(quantizer.lookup(result.ids), result.values, 16)
    distance = np.sum((vectors - codes[ids]) ** 2, axis=-1).reshape(2, -1)
    assert_close(result.error, distance, 32)
    assert_close(result.terms["commitment"], 0.25 * distance.sum(1), 32)
    assert_close(result.terms["codebook_loss"], distance.sum(1), 32)


@pytest.mark.parametrize("kind, config", [(VectorQuantizer, PLAIN), (MultiScaleQuantizer, SCALES)])
def test_gradients_pass_straight_through_and_each_term_moves_its_side(kind, config):
    _, template, params = make(kind, config)
    z, upstream = latents(1, 4, 4, 3), latents(1, 4, 4, 3, seed=1)

    def of(term):
        def value(params, z):
            result = template.bind(params)(z)
            return jnp.sum(result.values * upstream) if term == "values" else result.terms[term].sum()

        return jax.jit(jax.grad(value, argnums=(0, 1)))(params, z)

    codes, inputs = of("values")
    assert_close(inputs, upstream, 16)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(codes))
    codes, inputs = of("commitment")
    assert np.abs(inputs).max() > 0 and not any(np.any(leaf) for leaf in jax.tree.leaves(codes))
    codes, inputs = of("codebook_loss")
    assert not np.any(inputs) and sum(np.abs(leaf).max() for leaf in jax.tree.leaves(codes)) > 0
    assert np.any(codes["codebook"]) == (config.codebook == "gradient")  # averages are no optimizer's matter


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(2, 9), min_size=1, max_size=4), st.data())
def test_fsq_codes_and_values_are_one_to_one(levels, data):
    quantizer = FiniteScalarQuantizer(QuantizerConfig(levels=tuple(levels)))
    assert quantizer.vocabulary == math.prod(levels)
    ids = np.array(data.draw(st.lists(st.integers(0, quantizer.vocabulary - 1), min_size=9, max_size=9)), np.int32)
    values = quantizer.lookup(ids)
    np.testing.assert_array_equal(quantizer.ids(values), ids)
    assert np.abs(values).max() <= 1
    # Far latents reach the outermost levels; id 0 is the lowest of all channels.
    ends = quantizer(jnp.array([[[-50.0] * len(levels)], [[50.0] * len(levels)]])).ids
    np.testing.assert_array_equal(ends[:, 0], [0, quantizer.vocabulary - 1])


def test_fsq_rounds_and_passes_the_gradient_of_its_bound():
    quantizer = FiniteScalarQuantizer(QuantizerConfig(levels=(5, 4)))
    z = latents(2, 3, 3, 2)
    result = quantizer(z)
    # Odd levels are tanh's, scaled and rounded; even ones are shifted by half a level, so that 0 stays 0.
    odd = np.round(np.tanh(z[..., 0]) * 2 * 1.001) / 2
    assert_close(result.values[..., 0], odd, 8)
    np.testing.assert_array_equal(quantizer.lookup(result.ids), result.values)
    assert not np.any(quantizer(jnp.zeros((1, 1, 1, 2))).values)
    gradient = jax.grad(lambda z: quantizer(z).values.sum())(z)
    bound = jax.grad(lambda z: jnp.sum(quantizer.bound(z) / 2))(z)
    assert_close(gradient, bound, 16)
    with pytest.raises(UsageError, match="as many channels, not 3"):
        FiniteScalarQuantizer(QuantizerConfig(levels=(5, 4)), 3)


def test_scales_add_up_to_the_values_and_give_the_next_scales_their_features():
    quantizer, _, params = make(MultiScaleQuantizer, SCALES)
    z = latents(2, 4, 4, 3)
    result = jax.jit(quantizer)(z)
    assert result.ids.shape == (2, 21) == (2, *quantizer.ids_shape(4, 4))
    # The plain loop of the paper's algorithms, with codes looked up by hand.
    codes, total, rest, features = np.asarray(params["codebook"]), np.zeros((2, 4, 4, 3)), np.asarray(z), []
    for k, (side, ids) in enumerate(zip(SCALES.scales, quantizer.split_scales(result.ids), strict=True)):
        small = rest.reshape(2, side, 4 // side, side, 4 // side, 3).mean((2, 4))
        nearest = np.argmin(((small[..., None, :] - codes) ** 2).sum(-1), -1)
        np.testing.assert_array_equal(ids, nearest)
        if k:
            features.append(total.reshape(2, side, 4 // side, side, 4 // side, 3).mean((2, 4)).reshape(2, -1, 3))
        large = jax.image.resize(codes[nearest], (2, 4, 4, 3), "nearest") if side in (1, 4) else None
        step = quantizer.add_scale(jnp.zeros((2, 4, 4, 3)), ids, k)
        if large is not None:  # a constant and a grid of the full size are the same however they are enlarged
            phi = quantizer.phis[quantizer.phi_of(k)]
            assert_close(step, 0.5 * large + 0.5 * phi(large), OPERATIONS)
        total, rest = total + np.asarray(step), rest - np.asarray(step)
    assert_close(result.values, total, OPERATIONS)
    assert_close(quantizer.lookup(result.ids), total, OPERATIONS)
    assert_close(quantizer.features_of_scales(result.ids), np.concatenate(features, 1), OPERATIONS)
    # What is left after the last scale is what the values lack.
    assert_close(result.values + rest, z, OPERATIONS)
    with pytest.raises(UsageError, match="latents of 4x8 .* 4x4"):
        quantizer(latents(1, 4, 8, 3))


def test_cubic_enlarging_has_the_published_models_slope():
    # Keys' kernel with a = -0.75 at distances 1.2, 0.6 and 0, by hand: -0.75 (1.2^3 - 5 1.2^2 + 8 1.2 - 4), ...
    assert_close(cubic_matrix(3, 5)[:, 1], [-0.096, 0.46, 1.0, 0.46, -0.096], 16)
    assert_close(cubic_matrix(3, 7).sum(1), np.ones(7), 8)
    np.testing.assert_array_equal(cubic_matrix(1, 4), np.ones((4, 1)))


EMA = QuantizerConfig(codes=8, decay=0.9, revive=0.1, candidates=2)


@functools.partial(jax.jit, static_argnums=(0, 5))
def step(template, params, z, draws, weight, parts):
    """One update from `parts` slices of the batch."""
    total = None
    for rows in np.split(np.arange(len(z)), parts):
        mine = jax.tree.map(lambda x, rows=rows: x[rows], draws)
        part = codebooks.statistics(template.bind(params)(z[rows]), EMA, mine, weight[rows])
        total = part if total is None else jax.tree.map(jnp.add, total, part)
    return total, codebooks.update(EMA, params, params, total)


def test_the_update_is_that_of_the_whole_batch_and_equals_its_definition():
    _, template, params = make(VectorQuantizer, EMA)
    z, weight = latents(4, 2, 2, 3), jnp.array([1.0, 1.0, 1.0, 0.0])
    draws = codebooks.draw_statistics(jax.random.key(3), 4, 4)
    seen, whole = step(template, params, z, draws, weight, 1)
    _, halves = step(template, params, z, draws, weight, 2)
    assert_close(halves, whole, 32)
    ids, vectors = np.asarray(template.bind(params)(z[:3]).ids).ravel(), np.asarray(z[:3]).reshape(-1, 3)
    count = np.bincount(ids, minlength=8)
    np.testing.assert_array_equal(seen.counts, count)  # the image of weight 0 does not count
    for code in np.flatnonzero(count):  # the averages start from 0: after one step a code is the mean of its latents
        assert_close(whole["codebook"][code], vectors[ids == code].mean(0), 32)
        assert_close(whole["counts"][code], 0.1 * count[code], 16)
    # A second step: the averages decay.
    _, later = step(template, whole, z + 0.1, draws, weight, 1)
    again = np.asarray(template.bind(whole)(z[:3] + 0.1).ids).ravel()
    code = int(np.bincount(again, minlength=8).argmax())
    mine = vectors[again == code] + 0.1
    counts = 0.9 * whole["counts"][code] + 0.1 * len(mine)
    sums = 0.9 * whole["sums"][code] + 0.1 * mine.sum(0)
    assert_close(later["codebook"][code], sums / counts, 64)


def test_dead_codes_become_latents_of_the_batch():
    _, template, params = make(VectorQuantizer, EMA)
    z, weight = latents(4, 2, 2, 3), jnp.array([1.0, 1.0, 1.0, 0.0])
    draws = codebooks.draw_statistics(jax.random.key(3), 4, 4)
    seen, new = step(template, params, z, draws, weight, 1)
    dead = np.flatnonzero(seen.counts == 0)
    assert 0 < len(dead) <= 6  # 3 images of 2 candidates
    for code in dead:
        distance = np.abs(np.asarray(z[:3]).reshape(-1, 3) - np.asarray(new["codebook"][code])).max(1)
        assert distance.min() < 1e-6 and new["counts"][code] > 0
        assert_close(new["sums"][code] / new["counts"][code], new["codebook"][code], 16)
    kept = dataclasses.replace(EMA, revive=0.0)
    still = codebooks.update(kept, params, params, seen)
    np.testing.assert_array_equal(still["codebook"][dead], params["codebook"][dead])
    # Over many steps every code finds latents, as there are more latents than codes.
    for i in range(12):
        draws = codebooks.draw_statistics(jax.random.key(i), 4, 4)
        seen, params = step(template, params, z, draws, weight, 1)
    assert (seen.counts > 0).all()


def test_wrong_quantizers_are_refused():
    with pytest.raises(UsageError, match="did you mean 'normalised'"):
        QuantizerConfig(lookup="normalized")
    with pytest.raises(UsageError, match=r"scales \(2, 2\): sides must grow"):
        QuantizerConfig(scales=(2, 2))
    with pytest.raises(UsageError, match="needs at least 2"):
        QuantizerConfig(levels=(8, 1))
    with pytest.raises(UsageError, match="compared 'plain'"):
        make(MultiScaleQuantizer, dataclasses.replace(SCALES, lookup="normalised"))
