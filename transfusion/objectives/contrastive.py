"""Contrastive objectives: an image and the text of its document are a pair, all other pairs of the batch are wrong.

- 'clip' (arXiv 2103.00020, section 2.3): the softmax over all texts finds an image's own, and that over all images a
  text's own.
- 'siglip' (arXiv 2303.15343, section 3.2): a sigmoid judges every pair for itself.

The stream of images has the objective, and head 'pair', which also maps the text to the vectors' space. The tokens of
an item are averaged to its vector, and so are the tokens of text in its document. The two streams must not see each
other, so that neither vector knows the other. The pairs are those of the whole batch on all devices: a batch that is
cut into microbatches would have other wrong pairs, and so a config with `optim.accumulate` is refused.

Several images of a document each have its text. Where two documents have equal texts, a pair of one's image and the
other's text counts as wrong, as in the papers; so the loss never reaches 0 where captions repeat.

Shape letters: P pairs of the batch.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from transfusion.sequence import TEXT
from transfusion.sequence.arrays import Array, Bool, Float
from transfusion.sequence.batch import StreamSlice


@dataclasses.dataclass(frozen=True)
class ContrastiveConfig:
    """What is compared.

    Attributes:
      text: the stream with which the images are compared.
    """

    text: str = TEXT


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pairs:
    """What a batch's pairs are judged by.

    Attributes:
      images, texts: vectors of length 1, float32 [B, M, E].
      there: which items there are, bool [B, M].
    """

    images: Float[Array, "B M E"]
    texts: Float[Array, "B M E"]
    there: Bool[Array, "B M"]


def pairs_of(
    head: Any, hidden: Float[Array, "B N D"], part: StreamSlice, other: Float[Array, "B L D"], text: StreamSlice
) -> Pairs:
    """Makes the vectors of images, whose tokens are `part`, and of the `text` of their documents."""
    items = jnp.arange(part.time_low.shape[1])
    own = (part.item[..., None] == items[None, None]) & (part.document > 0)[..., None]
    document = jnp.max(jnp.where(own, part.document[..., None], 0), axis=1)
    words = (text.document[..., None] == document[:, None]) & (text.document > 0)[..., None]
    images, texts = head.vectors(_mean(hidden, own), _mean(other, words))
    return Pairs(images, texts, document > 0)


def _mean(hidden: jax.Array, member: jax.Array) -> Float[Array, "B M D"]:
    """The mean of tokens [B, N, D] over the members [B, N, M] of each item."""
    share = member / jnp.maximum(member.sum(1, keepdims=True), 1)
    return jnp.einsum("bnd,bnm->bmd", hidden.astype(jnp.float32), share)


def softmax_losses(logits: Float[Array, "P P"], there: Bool[Array, "P"]) -> Float[Array, "P"]:
    """The mean of both cross entropies of each pair; rows are images, columns texts, and the diagonal is right."""
    logits = jnp.where(there[:, None] & there[None], logits, -jnp.inf)
    logits = jnp.where(jnp.eye(len(logits), dtype=bool) & ~there[None], 0.0, logits)  # so that no row is empty
    right = jnp.diagonal(logits)
    return (jax.nn.logsumexp(logits, 0) + jax.nn.logsumexp(logits, 1)) / 2 - right


def sigmoid_losses(logits: Float[Array, "P P"], there: Bool[Array, "P"]) -> Float[Array, "P"]:
    """The sum over all texts, for each image, of the binary cross entropies; the diagonal is right."""
    right = 2 * jnp.eye(len(logits)) - 1
    return -jnp.sum(jnp.where(there[None], jax.nn.log_sigmoid(right * logits), 0.0), 1)


LOSSES = {"clip": softmax_losses, "siglip": sigmoid_losses}


def loss(
    kind: str, head: Any, hidden: Float[Array, "B N D"], part: StreamSlice, other: jax.Array, text: StreamSlice
) -> tuple[Float[Array, "B N"], tuple[jax.Array, jax.Array]]:
    """The loss of each item, at each of its tokens float32 [B, N], and the texts found: (how many, of how many)."""
    pairs = pairs_of(head, hidden, part, other, text)
    images, texts = (x.reshape(-1, x.shape[-1]) for x in (pairs.images, pairs.texts))
    there, logits = pairs.there.reshape(-1), head.logits(images, texts)
    losses = jnp.where(there, LOSSES[kind](logits, there), 0.0).reshape(pairs.there.shape)
    best = jnp.max(jnp.where(there[None], logits, -jnp.inf), 1)
    found = jnp.sum(there & (jnp.diagonal(logits) == best))
    return jnp.take_along_axis(losses, part.item, axis=1), (found.astype(jnp.float32), there.sum().astype(jnp.float32))
