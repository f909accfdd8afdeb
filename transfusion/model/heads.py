"""How the trunk's outputs leave a stream. One class per row of `HEADS`; called as `head(hidden, skips)`."""

import jax
import jax.numpy as jnp
from flax import nnx

from transfusion.model.parameters import fan_in, param, zeros
from transfusion.model.transformer import dense
from transfusion.model.unet import UNetConfig, UNetUp
from transfusion.sequence import Stream


class TokenHead(nnx.Module):
    """Logits [B, N, V], float32. Its objective reads `kernel`, so that it may work chunk by chunk."""

    def __init__(self, stream: Stream, width: int, rngs: nnx.Rngs):
        self.kernel = param(rngs, (width, stream.vocabulary), ("embed", "vocab"), fan_in(width))

    def __call__(self, hidden: jax.Array, skips) -> jax.Array:
        return dense(hidden, self.kernel[...]).astype(jnp.float32)


class LinearHead(nnx.Module):
    """Patches [B, N, E], float32."""

    def __init__(self, stream: Stream, width: int, rngs: nnx.Rngs):
        self.kernel = param(rngs, (width, stream.features), ("embed", "patch"), fan_in(width))
        self.bias = param(rngs, (stream.features,), (None,), zeros)

    def __call__(self, hidden: jax.Array, skips) -> jax.Array:
        return dense(hidden, self.kernel[...]).astype(jnp.float32) + self.bias[...]


class UNetHead(nnx.Module):
    """The up half of the U-Net, with the down half's skips round the trunk: patches [B, N, E], float32."""

    def __init__(self, stream: Stream, width: int, rngs: nnx.Rngs):
        self.stream = stream
        self.up = UNetUp(stream.channels, stream.patch, width, rngs, config=UNetConfig(width=stream.coder_width))

    def __call__(self, hidden: jax.Array, skips) -> jax.Array:
        b, n, _ = hidden.shape
        p = self.stream.patch
        latents = self.up(hidden.reshape(-1, self.stream.tokens_per_item, hidden.shape[-1]), *skips)
        rows, columns = (side // p for side in self.stream.grid)
        patches = latents.reshape(-1, rows, p, columns, p, self.stream.channels).transpose(0, 1, 3, 2, 4, 5)
        return patches.reshape(b, n, -1).astype(jnp.float32)


HEADS = {"token": TokenHead, "linear": LinearHead, "unet": UNetHead}
