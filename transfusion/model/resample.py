"""What reads an image by a vision tower and gives the trunk fewer tokens than the tower has patches: two embeds.

- 'resampler': learned queries look at the tower's tokens (the Q-Former of BLIP-2, arXiv 2301.12597, section 3.1;
  Flamingo's Perceiver resampler, arXiv 2204.14198, section 3.1), in as many layers as the stream's connector has.
- 'select': a learned score chooses among the tower's tokens, which say what there is, and linear patches of pixels,
  which say how it looks (arXiv 2505.02567, section IV-B1, proposes this and leaves open how). As many are kept as the
  item has tokens, in the order of their places. The sigmoid of a token's score multiplies it, and so is what learns.

The tower has patches of its own, of `ViTConfig.patch`. The stream's `patch` says only how many tokens an item has.

Shape letters: I items of all rows, Q tokens of an item, n patches of the tower, W its width.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from transfusion.errors import UsageError
from transfusion.model.block import dense, rms_norm
from transfusion.model.config import TransformerConfig
from transfusion.model.parameters import fan_in, normal, ones, param, zeros
from transfusion.model.vit import ViT, patches_of
from transfusion.sequence import Stream
from transfusion.sequence.arrays import Array, Float
from transfusion.sequence.batch import join_items, split_items
from transfusion.sequence.patches import unpatchify


class _Reads(nnx.Module):
    """What both share: the pixels of whole images, and a tower for them."""

    def __init__(self, stream: Stream, config: TransformerConfig, name: str, rngs: nnx.Rngs):
        if name not in config.towers or not stream.content.aligned:
            raise UsageError(f"streams.{name}: embed {stream.embed!r} needs model.towers.{name}, and a fixed grid")
        self.config, self.stream = config.towers[name], stream
        if (
            self.config.channels != stream.channels
            or self.config.pool
            or any(s % self.config.patch for s in stream.grid)
        ):
            raise UsageError(
                f"model.towers.{name}: channels must be the stream's, pool false, and the patch must divide the grid"
            )
        self.patches = stream.grid[0] // self.config.patch * (stream.grid[1] // self.config.patch)
        self.tower = ViT(self.config, rngs=rngs)

    def images(self, content: Float[Array, "B N E"]) -> Float[Array, "I h w C"]:
        return unpatchify(split_items(content, self.stream), self.stream.grid, self.stream.patch)


class Resampler(_Reads):
    """Learned queries, one for each token of an item, read the tower's tokens in several layers."""

    def __init__(self, stream: Stream, config: TransformerConfig, name: str, rngs: nnx.Rngs):
        super().__init__(stream, config, name, rngs)
        n, d, h, k, w = stream.connector.depth, config.width, config.heads, config.size, self.config.width
        self.queries = param(rngs, (stream.tokens_per_item, d), (None, "embed"), normal(1.0))
        self.enter = param(rngs, (w, d), (None, "embed"), fan_in(w))
        self.norm = param(rngs, (n, 3, d), ("layers", None, None), ones)
        self.q = param(rngs, (n, d, h, k), ("layers", "embed", "heads", None), fan_in(d))
        self.k = param(rngs, (n, d, h, k), ("layers", "embed", "heads", None), fan_in(d))
        self.v = param(rngs, (n, d, h, k), ("layers", "embed", "heads", None), fan_in(d))
        self.o = param(rngs, (n, h * k, d), ("layers", None, "embed"), fan_in(h * k))
        self.up = param(rngs, (n, d, 2 * d), ("layers", "embed", "mlp"), fan_in(d))
        self.down = param(rngs, (n, 2 * d, d), ("layers", "mlp", "embed"), fan_in(2 * d))

    def __call__(self, inputs, condition):
        images = self.images(inputs.content)
        features = dense(self.tower(images).last, self.enter[...])
        x = jnp.broadcast_to(self.queries[...][None].astype(features.dtype), (len(images), *self.queries.shape))
        for i in range(len(self.norm[...])):
            norm = self.norm[i]
            # As in the Perceiver resampler, the queries also see each other.
            seen = jnp.concatenate([rms_norm(features, norm[1], 1e-6), rms_norm(x, norm[0], 1e-6)], 1)
            q, k, v = dense(seen[:, features.shape[1] :], self.q[i]), dense(seen, self.k[i]), dense(seen, self.v[i])
            y = jax.nn.dot_product_attention(q, k, v)
            x += dense(y.reshape(*x.shape[:2], -1), self.o[i])
            x += dense(jax.nn.gelu(dense(rms_norm(x, norm[2], 1e-6), self.up[i])), self.down[i])
        return join_items(x, self.stream, len(inputs.content)), None


class Selection(_Reads):
    """Chooses the best of an item's semantic tokens and its pixel tokens, as many as the item has tokens."""

    def __init__(self, stream: Stream, config: TransformerConfig, name: str, rngs: nnx.Rngs):
        super().__init__(stream, config, name, rngs)
        d, w, size = config.width, self.config.width, self.config.patch**2 * stream.channels
        if stream.tokens_per_item > 2 * self.patches:
            raise UsageError(f"streams.{name}: embed 'select' has {2 * self.patches} tokens of an item to choose from")
        self.semantic = param(rngs, (w, d), (None, "embed"), fan_in(w))
        self.pixels = param(rngs, (size, d), ("patch", "embed"), fan_in(size))
        # A chosen token still says where it is, and of which kind.
        self.where = param(rngs, (2 * self.patches, d), (None, "embed"), normal(0.02))
        self.norm = param(rngs, (d,), (None,), ones)
        self.score = param(rngs, (d, 1), ("embed", None), fan_in(d))
        self.score_bias = param(rngs, (1,), (None,), zeros)

    def candidates(self, content: Float[Array, "B N E"]) -> tuple[Float[Array, "I 2n D"], Float[Array, "I 2n"]]:
        """All semantic tokens and then all pixel tokens of each item, and their scores."""
        images = self.images(content)
        semantic = dense(self.tower(images).last, self.semantic[...])
        tokens = jnp.concatenate([semantic, dense(patches_of(images, self.config.patch), self.pixels[...])], 1)
        tokens += self.where[...][None].astype(tokens.dtype)
        return tokens, dense(rms_norm(tokens, self.norm[...], 1e-6), self.score[...], self.score_bias[...])[..., 0]

    def __call__(self, inputs, condition):
        tokens, score = self.candidates(inputs.content)
        _, chosen = jax.lax.top_k(score, self.stream.tokens_per_item)
        # By place in the image, and of one place the semantic token first.
        order = jnp.argsort(chosen % self.patches * 2 + chosen // self.patches, axis=1)
        chosen = jnp.take_along_axis(chosen, order, 1)
        kept = jnp.take_along_axis(tokens * jax.nn.sigmoid(score)[..., None], chosen[..., None], axis=1)
        return join_items(kept, self.stream, len(inputs.content)), None
