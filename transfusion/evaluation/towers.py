"""The two towers of CLIP (arXiv 2103.00020) and of SigLIP (arXiv 2303.15343), with the arrays that are released.

The arrays keep the names and axes that they have in transformers' checkpoints; nothing is trained.

Shape letters: B rows, N tokens, D width, H heads, K head size, E of the space in which texts and pictures are compared.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import broadcast_to_rank

from transfusion.model.block import ACTIVATIONS
from transfusion.model.vit import patches_of

Arrays = Mapping[str, jax.Array]


def norm(x: jax.Array, arrays: Arrays, name: str, epsilon: float) -> jax.Array:
    """LayerNorm with the scale and bias `name`."""
    x = x - x.mean(-1, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + epsilon)
    return x * _row(arrays[f"{name}.weight"], x) + _row(arrays[f"{name}.bias"], x)


def linear(x: jax.Array, arrays: Arrays, name: str) -> jax.Array:
    """x times the matrix `name` as torch keeps it, [out, in], plus its bias if there is one."""
    y = x @ arrays[f"{name}.weight"].T
    return y + _row(arrays[f"{name}.bias"], y) if f"{name}.bias" in arrays else y


def _row(vector: jax.Array, x: jax.Array) -> jax.Array:
    return broadcast_to_rank(vector, x.ndim)


def attention(q: jax.Array, k: jax.Array, v: jax.Array, heads: int, causal: bool = False) -> jax.Array:
    """Attention of [B, N, D] over [B, M, D] in heads."""
    q, k, v = (x.reshape(*x.shape[:2], heads, -1) for x in (q, k, v))
    scores = jnp.einsum("bnhk,bmhk->bhnm", q, k) / np.sqrt(q.shape[-1])
    if causal:
        seen = np.tri(*scores.shape[2:], dtype=bool)
        scores = jnp.where(_row(jnp.asarray(seen), scores), scores, -jnp.inf)
    return jnp.einsum("bhnm,bmhk->bnhk", jax.nn.softmax(scores, axis=-1), v).reshape(*q.shape[:2], -1)


@dataclasses.dataclass(frozen=True)
class Tower:
    """The Transformer of one side.

    Attributes:
      prefix: begins the names of its arrays.
      layers, heads: their numbers.
      activation: a key of `transfusion.model.block.ACTIVATIONS`.
      epsilon: of the norms.
      side: texts: the most tokens; pictures: the side in pixels.
      patch: of pictures.
    """

    prefix: str
    layers: int
    heads: int
    activation: str
    epsilon: float
    side: int
    patch: int = 0

    def blocks(self, x: jax.Array, arrays: Arrays, causal: bool) -> jax.Array:
        """All layers on x [B, N, D]."""
        for i in range(self.layers):
            at = f"{self.prefix}encoder.layers.{i}"
            y = norm(x, arrays, f"{at}.layer_norm1", self.epsilon)
            q, k, v = (linear(y, arrays, f"{at}.self_attn.{name}_proj") for name in "qkv")
            x = x + linear(attention(q, k, v, self.heads, causal), arrays, f"{at}.self_attn.out_proj")
            y = norm(x, arrays, f"{at}.layer_norm2", self.epsilon)
            x = x + linear(ACTIVATIONS[self.activation](linear(y, arrays, f"{at}.mlp.fc1")), arrays, f"{at}.mlp.fc2")
        return x

    def patches(self, pixels: jax.Array, arrays: Arrays) -> jax.Array:
        """The patches [B, N, D] of pictures [B, H, W, 3]."""
        kernel = arrays[f"{self.prefix}embeddings.patch_embedding.weight"]  # [D, 3, P, P]
        x = patches_of(pixels, self.patch) @ kernel.transpose(2, 3, 1, 0).reshape(-1, kernel.shape[0])
        bias = arrays.get(f"{self.prefix}embeddings.patch_embedding.bias")
        return x if bias is None else x + _row(bias, x)

    def words(self, ids: jax.Array, arrays: Arrays) -> jax.Array:
        """The tokens [B, N, D] of ids int32 [B, N]."""
        table = arrays[f"{self.prefix}embeddings.position_embedding.weight"][: ids.shape[1]]
        return arrays[f"{self.prefix}embeddings.token_embedding.weight"][ids] + broadcast_to_rank(table, 3)


# --- CLIP -------------------------------------------------------------------------------------------------------------


def clip_pictures(tower: Tower, pixels: jax.Array, arrays: Arrays) -> jax.Array:
    """The vectors [B, E] of pictures: that of a class token, projected."""
    patches, first = tower.patches(pixels, arrays), arrays[f"{tower.prefix}embeddings.class_embedding"]
    x = jnp.concatenate([jnp.broadcast_to(first.reshape(1, 1, -1), (len(patches), 1, first.size)), patches], axis=1)
    x = x + broadcast_to_rank(arrays[f"{tower.prefix}embeddings.position_embedding.weight"], 3)
    x = tower.blocks(norm(x, arrays, f"{tower.prefix}pre_layrnorm", tower.epsilon), arrays, causal=False)
    return norm(x[:, 0], arrays, f"{tower.prefix}post_layernorm", tower.epsilon) @ arrays["visual_projection.weight"].T


def clip_texts(tower: Tower, ids: jax.Array, last: jax.Array, arrays: Arrays) -> jax.Array:
    """The vectors [B, E] of texts int32 [B, N]: that of their end, at `last` [B], projected."""
    x = tower.blocks(tower.words(ids, arrays), arrays, causal=True)
    x = norm(x, arrays, f"{tower.prefix}final_layer_norm", tower.epsilon)
    return x[jnp.arange(len(ids)), last] @ arrays["text_projection.weight"].T


# --- SigLIP -----------------------------------------------------------------------------------------------------------


def siglip_pictures(tower: Tower, pixels: jax.Array, arrays: Arrays) -> jax.Array:
    """The vectors [B, D] of pictures: what one learned query reads of them."""
    x = tower.patches(pixels, arrays)
    x = x + broadcast_to_rank(arrays[f"{tower.prefix}embeddings.position_embedding.weight"], 3)
    x = norm(tower.blocks(x, arrays, causal=False), arrays, f"{tower.prefix}post_layernorm", tower.epsilon)
    at = f"{tower.prefix}head"
    weights = jnp.split(arrays[f"{at}.attention.in_proj_weight"], 3)
    biases = jnp.split(arrays[f"{at}.attention.in_proj_bias"], 3)
    probe = jnp.broadcast_to(arrays[f"{at}.probe"], (len(x), *arrays[f"{at}.probe"].shape[1:]))
    q, k, v = (y @ w.T + broadcast_to_rank(b, 3) for y, w, b in zip((probe, x, x), weights, biases, strict=True))
    y = linear(attention(q, k, v, tower.heads), arrays, f"{at}.attention.out_proj")
    z = linear(norm(y, arrays, f"{at}.layernorm", tower.epsilon), arrays, f"{at}.mlp.fc1")
    return (y + linear(ACTIVATIONS[tower.activation](z), arrays, f"{at}.mlp.fc2"))[:, 0]


def siglip_texts(tower: Tower, ids: jax.Array, last: jax.Array, arrays: Arrays) -> jax.Array:
    """The vectors [B, D] of texts int32 [B, N], all of the same length: that of the last token."""
    del last
    x = tower.blocks(tower.words(ids, arrays), arrays, causal=False)
    x = norm(x, arrays, f"{tower.prefix}final_layer_norm", tower.epsilon)
    return linear(x[:, -1], arrays, f"{tower.prefix}head")
