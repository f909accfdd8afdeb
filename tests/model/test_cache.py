"""A cache of keys and values: tokens that are read in parts come out as those that are read at once."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_close, trunk_operations

from transfusion.model.cache import KeyValues, write_metadata
from transfusion.model.config import TransformerConfig
from transfusion.model.parameters import Template
from transfusion.model.transformer import Trunk, TrunkInputs
from transfusion.sequence.masks import Metadata

N, FIRST = 4, 3
CONFIG = TransformerConfig(width=16, layers=2, heads=2, kv_heads=1, ffn_multiple=16)


def part(x, start, stop) -> TrunkInputs:
    """The tokens from `start` to `stop` of one causal document."""
    order = jnp.arange(start, stop, dtype=jnp.int32)[None]
    zero = jnp.zeros_like(order)
    return TrunkInputs(
        {"text": x[:, start:stop]}, {"text": order[..., None]}, {"text": Metadata(zero + 1, order, zero, zero, zero)}
    )


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("apart", [True, False])
def test_a_token_behind_a_cache_is_that_of_the_whole_row(scan, apart):
    template = Template(lambda rngs: Trunk(dataclasses.replace(CONFIG, scan=scan), {"text": "trunk"}, rngs))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda s: jnp.asarray(rng.standard_normal(s.shape) / 4, jnp.float32), template.shapes)
    x = jnp.asarray(rng.standard_normal((1, N, 16)), jnp.float32)

    @jax.jit
    def run(params, x):
        trunk, last = template.bind(params), part(x, FIRST, N)
        outputs, read = trunk.read(part(x, 0, FIRST))
        cache = read.grown(1)
        cache = cache.apart("trunk") if apart else cache
        at = jnp.full((1, 1), FIRST)
        cache = KeyValues(cache.k, cache.v, write_metadata(cache.metadata, last.metadata["text"], at))
        extended, written = trunk.extend(last, cache, {"text": at})
        beside = trunk(last, read)
        assert jax.tree.structure(written) == jax.tree.structure(cache)  # as a loop must find it again
        return trunk(part(x, 0, N)), outputs, extended, beside, trunk.read(part(x, 0, N))[1], written

    whole, first, extended, beside, read, written = run(params, x)
    operations = trunk_operations(CONFIG, N)
    assert_close(first["text"], whole["text"][:, :FIRST], operations)
    assert_close(extended["text"], whole["text"][:, FIRST:], operations)
    assert_close(beside["text"], whole["text"][:, FIRST:], operations)
    for ours, theirs in ((written.k, read.k), (written.v, read.v)):
        assert_close(np.concatenate(ours["trunk"]), np.concatenate(theirs["trunk"]), operations)
    np.testing.assert_array_equal(written.metadata.order, read.metadata.order)
