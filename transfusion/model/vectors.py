"""Vectors that tell tokens about their item (noise level, class, pooled vector) and about their place in it."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.lax import broadcast_to_rank

from transfusion.model.block import dense
from transfusion.model.parameters import Initializer, normal, param, zeros
from transfusion.sequence import Stream, TimeConfig
from transfusion.sharding import constrain

_SMALL = normal(0.02)


class Perceptron(nnx.Module):
    """Two dense layers with biases and a SiLU between them; `lead` stacks several, `out` makes the last weights."""

    def __init__(self, inputs: int, width: int, rngs: nnx.Rngs, lead: tuple[int, ...] = (), out: Initializer = _SMALL):
        axes = ("layers",) * len(lead)
        self.hidden = param(rngs, (*lead, inputs, width), (*axes, None, "embed"), _SMALL)
        self.hidden_bias = param(rngs, (*lead, width), (*axes, None), zeros)
        self.out = param(rngs, (*lead, width, width), (*axes, "embed", None), out)
        self.out_bias = param(rngs, (*lead, width), (*axes, None), zeros)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., inputs] to [*lead, ..., width]."""

        def layers(hidden, hidden_bias, out, out_bias):
            y = dense(x, hidden)
            y = dense(jax.nn.silu(y + broadcast_to_rank(hidden_bias, y.ndim)), out)
            return y + broadcast_to_rank(out_bias, y.ndim)

        weights = (self.hidden[...], self.hidden_bias[...], self.out[...], self.out_bias[...])
        return jax.vmap(layers)(*weights) if self.hidden.ndim == 3 else layers(*weights)


class TimeEmbedding(Perceptron):
    """Turns noise levels [B, M] into vectors [B, M, D] or [layers, B, M, D]; see `transfusion.sequence.TimeConfig`.

    With `ahead` it adds the embedding of a second number, which is zero at first: any trained model without it goes on
    as it was."""

    def __init__(self, width: int, rngs: nnx.Rngs, config: TimeConfig, layers: int = 0, ahead: bool = False):
        self.config = config
        lead = (layers,) if config.per_layer else ()
        super().__init__(config.features, width, rngs, lead)
        self.ahead = Perceptron(config.features, width, rngs, lead, out=zeros) if ahead else None

    def __call__(self, t: jax.Array, ahead: jax.Array | None = None) -> jax.Array:
        """Embeds the noise levels t [B, M], and how far `ahead` [B, M] a mean velocity reaches (None: 0)."""
        vector = super().__call__(self.features(t))
        if self.ahead is None:
            return vector
        # The features of a number that is not reversed.
        far = jnp.zeros_like(t) if ahead is None else ahead
        return vector + self.ahead(self.features(1 - far if self.config.reversed else far))

    def features(self, t: jax.Array) -> jax.Array:
        """Computes the cosines, then the sines of the times t [B, M]: [B, M, features]."""
        half = self.config.features // 2
        frequency = jnp.exp(-np.log(10_000.0) * jnp.arange(half) / (half - self.config.ends))
        t = 1 - t if self.config.reversed else t
        angle = self.config.scale * t[..., None].astype(jnp.float32) * frequency[None, None]
        return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], -1)


class ItemCondition(nnx.Module):
    """Makes the vector by which each item of a stream is modulated, as a sum.

    Its terms are the noise level and, where the stream has them, the class and the pooled vector (DiT, section 3.2;
    Stable Diffusion 3, arXiv 2403.03206, section 4)."""

    def __init__(self, stream: Stream, width: int, layers: int, rngs: nnx.Rngs):
        config = stream.released.time
        lead, axes = ((layers,), ("layers",)) if config.per_layer else ((), ())
        self.time = TimeEmbedding(width, rngs, config, layers, stream.ahead)
        shape = (*lead, stream.labels + 1, width)
        self.label = param(rngs, shape, (*axes, None, "embed"), normal(0.02)) if stream.labels else None
        self.pooled = Perceptron(stream.released.pooled, width, rngs, lead) if stream.released.pooled else None

    def __call__(
        self, t: jax.Array, label: jax.Array | None, pooled: jax.Array | None, ahead: jax.Array | None = None
    ) -> jax.Array:
        """Turns t and ahead [B, M], label [B, M] and pooled [B, M, C] into vectors [B, M, D] or [layers, B, M, D].

        A missing class or pooled vector is an error, because without it the result would be that of another model.
        """
        vector = self.time(t, ahead)
        if self.label is not None:
            vector += jnp.take(self.label[...], label, axis=self.label.ndim - 2)
        if self.pooled is not None:
            vector += self.pooled(pooled)
        return vector


def sincos_table(place: jax.Array, width: int, axes: Sequence[int] = (0, 1)) -> jax.Array:
    """Computes fixed sine-cosine positions [B, N, D] of places [B, N, sides], such as (y, x) in an image.

    `axes` are the sides in their order. For (0, 1) the quarters of the D numbers are sin y, cos y, sin x, cos x. What
    the sides leave over of D, because it does not divide, is zero."""
    each = width // (2 * len(axes))
    frequency = 10_000.0 ** (-np.arange(each) / each)
    angle = place[..., None].astype(jnp.float32) * frequency.astype(np.float32)[None, None, None]
    parts = [f(angle[..., axis, :]) for axis in axes for f in (jnp.sin, jnp.cos)]
    rest = width - 2 * len(axes) * each
    return jnp.concatenate([*parts, *[jnp.zeros((*place.shape[:-1], rest))] * bool(rest)], -1)


class LearnedTable(nnx.Module):
    """A learned vector for each place of a grid [rows, columns, D].

    The grid is that of the items unless `released.table_grid` names another one. Items use the first rows and columns
    of a larger grid, or its middle."""

    def __init__(self, stream: Stream, width: int, rngs: nnx.Rngs):
        sides = tuple(side // stream.patch for side in stream.grid)
        grid = tuple(given or side for given, side in zip(stream.released.table_grid, sides, strict=True))
        self.table = param(rngs, (*grid, width), (None, None, "embed"), normal(0.02))
        self.start = tuple((g - s) // 2 if stream.released.centred else 0 for g, s in zip(grid, sides, strict=True))

    def __call__(self, place: jax.Array) -> jax.Array:
        """Looks up the vectors [B, N, D] of places [B, N, 2]."""
        table = constrain(self.table[...], None, None, None)
        return table[place[..., 0] + self.start[0], place[..., 1] + self.start[1]]
