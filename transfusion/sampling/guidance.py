"""Classifier-free guidance."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

Prediction = Callable[[], jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Guidance:
    """u + scale (c - u) of the conditional prediction c and the unconditional u (arXiv 2207.12598, equation 6).

    Only for low <= t < high (arXiv 2404.07724); outside, the unconditional prediction is not computed. Noise, data and
    velocity are affine in each other at a given x_t, so it does not matter which of them is guided.
    """

    scale: jax.Array
    low: jax.Array
    high: jax.Array

    def predict(self, t: jax.Array, conditional: jax.Array, unconditional: Prediction) -> jax.Array:
        """The guided prediction at the time t (scalar), like `conditional`."""

        def guided():
            u = unconditional()
            return u + self.scale * (conditional - u)

        return jax.lax.cond(self.applies(t), guided, lambda: conditional)

    def applies(self, t: jax.Array) -> jax.Array:
        return jnp.logical_and(t >= self.low, t < self.high)
