"""A small network that denoises one token by itself, given the trunk's output at the token before it.

MAR's diffusion head (arXiv 2406.11838, section 3.2) as NextStep-1 (arXiv 2508.10711, section 2) uses it, with flow
matching: blocks of a LayerNorm, which the noise level and the trunk's output scale and shift, and two dense layers with
a gate. The trunk runs once per token, and this network for each step of the solver.

Shape letters: D width of the trunk, W width of the network, E numbers of a token; `*` any leading axes.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from transfusion.model.block import dense, layer_norm
from transfusion.model.parameters import fan_in, param, zeros
from transfusion.model.vectors import TimeEmbedding
from transfusion.sequence import Stream
from transfusion.sequence.arrays import Array, Float

LAYERS = 3


class TokenFlow(nnx.Module):
    """The network: `velocity` predicts for noised tokens; as a head of the trunk it returns the trunk's outputs."""

    def __init__(self, stream: Stream, width: int, rngs: nnx.Rngs):
        w, e = stream.coder_width, stream.features
        self.time = TimeEmbedding(w, rngs, stream.released.time)
        self.enter = param(rngs, (e, w), ("patch", "embed"), fan_in(e))
        self.condition = param(rngs, (width, w), (None, "embed"), fan_in(width))
        self.modulation = param(rngs, (LAYERS + 1, w, 3 * w), ("layers", "embed", None), zeros)
        self.modulation_bias = param(rngs, (LAYERS + 1, 3 * w), ("layers", None), zeros)
        self.up = param(rngs, (LAYERS, w, 2 * w), ("layers", "embed", "mlp"), fan_in(w))
        self.down = param(rngs, (LAYERS, 2 * w, w), ("layers", "mlp", "embed"), fan_in(2 * w))
        self.kernel = param(rngs, (w, e), ("embed", "patch"), zeros)
        self.bias = param(rngs, (e,), (None,), zeros)

    def __call__(self, hidden: Float[Array, "B N D"], skips) -> Float[Array, "B N D"]:
        return hidden

    def velocity(
        self, hidden: Float[Array, "B N D"], x: Float[Array, "B N E"], t: Float[Array, "B N"]
    ) -> Float[Array, "B N E"]:
        """The prediction for x, noised to the levels t, of tokens before which the trunk put out `hidden`."""
        vector = jax.nn.silu(self.time(t).astype(hidden.dtype) + dense(hidden, self.condition[...]))
        y = dense(x.astype(hidden.dtype), self.enter[...])
        for i in range(LAYERS):
            shift, scale, gate = self._modulation(vector, i)
            z = layer_norm(y, None, None, 1e-6) * (1 + scale) + shift
            y += gate * dense(jax.nn.silu(dense(z, self.up[i])), self.down[i])
        shift, scale, _ = self._modulation(vector, LAYERS)
        y = layer_norm(y, None, None, 1e-6) * (1 + scale) + shift
        return dense(y, self.kernel[...], self.bias[...]).astype(jnp.float32)

    def _modulation(self, vector: jax.Array, layer: int) -> list[jax.Array]:
        return jnp.split(dense(vector, self.modulation[layer], self.modulation_bias[layer]), 3, -1)
