"""Embeds and heads of codes, and queries and keys of length 1, against plain numpy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from transfusion.model import rope
from transfusion.model.block import Block
from transfusion.model.config import TransformerConfig
from transfusion.model.embeds import CodeEmbed
from transfusion.model.heads import PerceptronHead
from transfusion.sequence import Stream

CODES = Stream(vocabulary=5, grid=(2, 2), channels=3, budget=5, embed="codes", head="mlp")
MODEL = TransformerConfig(width=8, layers=2, heads=2, qk_norm="l2")


def gelu(x):
    erf = np.vectorize(math.erf)
    return x * (1 + erf(x / np.sqrt(2))) / 2


def random_weights(module):
    """The module with all weights drawn, biases too."""
    graph, state = nnx.split(module)
    rng = np.random.default_rng(0)
    return nnx.merge(graph, jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape), jnp.float32), state))


def test_codes_enter_and_leave_by_perceptrons():
    embed = random_weights(CodeEmbed(CODES, MODEL, "image", nnx.Rngs(0)))
    ids, layers = np.array([[4, 0, 2]]), embed.connector
    tokens, _ = embed(type("Inputs", (), {"content": ids}), None)
    hidden = gelu(np.asarray(embed.table[...])[ids] @ layers.hidden[...] + layers.hidden_bias[...])
    np.testing.assert_allclose(tokens, hidden @ layers.out[...] + layers.out_bias[...], atol=1e-4)

    head = random_weights(PerceptronHead(CODES, 8, nnx.Rngs(0)))
    x = np.random.default_rng(1).standard_normal((1, 3, 8)).astype(np.float32)
    logits = gelu(x @ head.hidden[...] + head.hidden_bias[...]) @ head.kernel[...] + head.bias[...]
    np.testing.assert_allclose(head(x, None), logits, atol=1e-4)
    y, kernel = head.factors(x)
    np.testing.assert_allclose(y @ kernel, logits, atol=1e-4)


def test_queries_and_keys_have_length_one_and_a_learned_factor():
    block = Block(MODEL, nnx.Rngs(0))
    x = np.random.default_rng(0).standard_normal((1, 5, 8)).astype(np.float32)
    first = nnx.merge(nnx.split(block)[0], jax.tree.map(lambda w: w[0], nnx.split(block)[1]))
    np.testing.assert_allclose(np.exp(first.qk_scale[...]), 4, rtol=1e-6)
    turn = rope.turns(jnp.full((1, 5, 2), 0.3))
    for scale, factor in ((np.log(4), 4), (np.log(200), 100)):
        first.qk_scale[...] = jnp.array([0.0, scale])
        q, k, _ = first.heads(x, turn)
        np.testing.assert_allclose(np.linalg.norm(k, axis=-1), 1, rtol=1e-5)
        # Attention divides by the root of the head size, 2.
        np.testing.assert_allclose(np.linalg.norm(q, axis=-1) / 2, np.broadcast_to([1, factor], (1, 5, 2)), rtol=1e-5)
