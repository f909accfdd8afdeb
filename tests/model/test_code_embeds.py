"""Embeds and heads of codes, and queries and keys of length 1, against plain numpy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from closeness import assert_close
from flax import nnx

from transfusion.model import rope
from transfusion.model.block import Block
from transfusion.model.config import TransformerConfig
from transfusion.model.embeds import CodeEmbed
from transfusion.model.heads import PerceptronHead
from transfusion.sequence import ConnectorConfig, Stream

CODES = Stream(
    vocabulary=5, grid=(2, 2), channels=3, budget=5, embed="codes", head="mlp", connector=ConnectorConfig(2, "gelu")
)
MODEL = TransformerConfig(width=8, layers=2, heads=2, qk_norm="l2")


# In sequence: two sums over a width of 8, or 32 behind the hidden layer, and GELU between them.
OPERATIONS = 8 + 32 + 8


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
    hidden = gelu(np.asarray(embed.table[...])[ids] @ layers.hidden[...] + layers.hidden_bias[...][None, None])
    assert_close(tokens, hidden @ layers.out[...] + layers.out_bias[...][None, None], OPERATIONS)

    head = random_weights(PerceptronHead(CODES, 8, nnx.Rngs(0)))
    x = np.random.default_rng(1).standard_normal((1, 3, 8)).astype(np.float32)
    logits = (
        gelu(x @ head.hidden[...] + head.hidden_bias[...][None, None]) @ head.kernel[...] + head.bias[...][None, None]
    )
    assert_close(head(x, None), logits, OPERATIONS)
    y, kernel = head.factors(x)
    assert_close(y @ kernel, logits, OPERATIONS)


def test_queries_and_keys_have_length_one_and_a_learned_factor():
    block = Block(MODEL, nnx.Rngs(0))
    x = np.random.default_rng(0).standard_normal((1, 5, 8)).astype(np.float32)
    first = nnx.merge(nnx.split(block)[0], jax.tree.map(lambda w: w[0], nnx.split(block)[1]))
    assert_close(np.exp(first.qk_scale[...]), 4, 8)
    turn = rope.turns(jnp.full((1, 5, 2), 0.3))
    for scale, factor in ((np.log(4), 4), (np.log(200), 100)):
        first.qk_scale[...] = jnp.array([0.0, scale])
        q, k, _ = first.heads(x, turn)
        assert_close(np.linalg.norm(k, axis=-1), 1, OPERATIONS)
        # Attention divides by the root of the head size, 2.
        assert_close(np.linalg.norm(q, axis=-1) / [2, 2 * factor], 1, OPERATIONS)
