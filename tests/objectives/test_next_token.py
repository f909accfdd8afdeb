"""Cross entropy over the whole vocabulary and chunk by chunk."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from closeness import assert_close, trunk_operations

from transfusion.errors import UsageError
from transfusion.objectives import ObjectivesConfig
from transfusion.objectives.next_token import NextTokenConfig, chunk_of, cross_entropy

# In sequence: a sum over a width of 8, exp, a sum over 24 words, log.
OPERATIONS = 8 + 24 + 16


def example():
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((7, 8)).astype(np.float32)
    kernel = rng.standard_normal((8, 24)).astype(np.float32)
    return hidden, kernel, np.array([0, 5, 23, 8, 7, 16, 0], np.int32)


def test_it_is_the_log_likelihood():
    hidden, kernel, targets = example()
    nll, log_z = cross_entropy(hidden, kernel, targets)
    logits = np.asarray(hidden, np.float64) @ kernel
    z = np.exp(logits).sum(-1)
    assert_close(log_z, np.log(z), OPERATIONS)
    assert_close(nll, -np.log(np.exp(logits[np.arange(7), targets]) / z), OPERATIONS)


@pytest.mark.parametrize("chunk", [4, 8, 24, 100])
def test_chunks_change_nothing(chunk):
    hidden, kernel, targets = example()

    def loss(hidden, kernel, chunk):
        nll, log_z = cross_entropy(hidden, kernel, targets, chunk)
        return jnp.sum(nll * jnp.arange(7)) + 0.1 * jnp.sum(log_z**2)

    plain = jax.value_and_grad(loss, (0, 1))(hidden, kernel, 0)
    assert_close(jax.value_and_grad(loss, (0, 1))(hidden, kernel, chunk), plain, 2 * OPERATIONS)


def test_no_array_of_all_logits_exists_in_chunks():
    hidden, kernel, targets = example()
    gradient = jax.grad(lambda h, k: cross_entropy(h, k, targets, 8)[0].sum(), (0, 1))
    text = jax.jit(gradient).lower(hidden, kernel).as_text()
    assert "7x8xf32" in text and "7x24xf32" not in text
    assert "7x24xf32" in jax.jit(lambda h, k: cross_entropy(h, k, targets)).lower(hidden, kernel).as_text()


def test_chunks_must_divide_the_vocabulary():
    with pytest.raises(UsageError, match="next_token.chunk 7 does not divide the vocabulary 24"):
        cross_entropy(*example(), 7)
    with pytest.raises(UsageError, match="must be at least -1"):
        NextTokenConfig(chunk=-2)


def test_large_vocabularies_are_computed_in_chunks_by_default():
    # A byte vocabulary, Llama's, Qwen2.5's padded, Llama 3's, and 2 * 19,997, which only divides into too many.
    sizes = {264: 0, 32_768: 0, 152_064: 13_824, 128_256: 16_032, 2 * 19_997: 0}
    assert {size: chunk_of(size, NextTokenConfig().chunk) for size in sizes} == sizes
    assert chunk_of(152_064, 0) == 0 and chunk_of(264, 33) == 33
    stream = tiny.text_stream(vocabulary=33_024)
    task = tiny.task(tiny.spec({"text": stream, "image": tiny.image_stream()}))
    shapes, batch = task.template.shapes, task.batch_spec(1)
    draws = jax.eval_shape(task.draw, batch, jax.eval_shape(lambda: jax.random.key(0)))
    text = jax.jit(lambda *of: task.loss(*of)[0]).lower(shapes, batch, draws, task.totals(task.fake_batch(1))).as_text()
    assert "24x11008xf32" in text and "24x33024xf32" not in text


def test_z_loss_is_added_to_the_loss_and_not_to_the_logged_likelihood():
    weights = (0.0, 0.5)
    batch = tiny.task().fake_batch(1)
    sums = []
    for weight in weights:
        task = tiny.task(objectives=ObjectivesConfig(next_token=NextTokenConfig(z_loss=weight)))
        params = task.template.init(jax.random.key(0))
        draws = task.draw(batch, jax.random.key(0))
        sums.append(jax.jit(task.loss)(params, batch, draws, task.totals(batch))[1])
    operations = trunk_operations(task.model, 40)
    assert_close(sums[0]["text_nll"], sums[1]["text_nll"], operations)
    assert_close(sums[0]["text_loss"], sums[0]["text_nll"], operations)
    assert sums[1]["text_loss"][0] > sums[0]["text_loss"][0] + 0.1
