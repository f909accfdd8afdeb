"""The choice of the next token from logits.

Shape letters: B rows, V vocabulary.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from transfusion.sequence import TEXT, SequenceSpec

NEVER = -1e30


@dataclasses.dataclass(frozen=True)
class Filters:
    """Which ids may be drawn; the same compiled decoder serves all temperatures and all top-p.

    Attributes:
      greedy: whether only the likeliest id may be drawn.
      top_k: only the k likeliest ids may be drawn; 0: all.
      nucleus: whether only the fewest likeliest ids whose probabilities sum to top-p or more may be drawn (arXiv
        1904.09751).
    """

    greedy: bool = False
    top_k: int = 0
    nucleus: bool = False

    @classmethod
    def of(cls, temperature: float, top_k: int, top_p: float) -> "Filters":
        """Makes the filters of a config's settings."""
        return cls(greedy=temperature == 0, top_k=top_k, nucleus=top_p < 1)

    def choose(self, logits: jax.Array, keys: jax.Array, temperature: jax.Array, top_p: jax.Array) -> jax.Array:
        """Draws ids int32 [B] from logits float32 [B, V], row by row with the keys [B]."""
        if self.greedy:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        logits = self.filtered(logits / temperature, top_p)
        # One random number a row, and the inverse of the cumulative distribution: a Gumbel number per id costs more
        # than a layer of a small model. The first id whose sum exceeds the number has a probability above 0.
        total = jnp.cumsum(jax.nn.softmax(logits, axis=-1), axis=-1)
        mark = jax.vmap(jax.random.uniform)(keys)[:, None] * total[:, -1:]
        return jnp.sum(total <= mark, axis=-1).astype(jnp.int32)

    def filtered(self, logits: jax.Array, top_p: jax.Array) -> jax.Array:
        """Sets the logits [B, V] of tokens that are filtered out to `NEVER`; equal logits stay or go together."""
        if self.top_k:
            least = jax.lax.top_k(logits, min(self.top_k, logits.shape[-1]))[0][:, -1:]
            logits = jnp.where(logits < least, NEVER, logits)
        if self.nucleus:
            ordered = -jnp.sort(-logits, axis=-1)
            probability = jax.nn.softmax(ordered, axis=-1)
            before = jnp.cumsum(probability, axis=-1) - probability
            least = jnp.min(jnp.where(before < top_p, ordered, jnp.inf), axis=-1, keepdims=True)
            logits = jnp.where(logits < least, NEVER, logits)
        return logits


def emittable(spec: SequenceSpec, openers: Sequence[int]) -> np.ndarray:
    """Finds the ids that the decoder may emit as text, bool [V].

    These are text, the end of a document, and the `openers` of what may be drawn. The begin of a document, other
    openers, closers, codes and all other ids inside of items are not among them.
    """
    allowed = np.ones(spec.streams[TEXT].vocabulary, bool)
    allowed[spec.bos] = False
    for runs in spec.layout.values():
        for run in runs:
            spelling = run.spelling
            ends = (run.opener, run.closer, spelling.size_end, spelling.row_end, spelling.frame_end)
            allowed[[end for end in ends if end >= 0]] = False
            allowed[spelling.first : spelling.first + spelling.codes] = False
    if spec.words:
        allowed[spec.words :] = False
    allowed[spec.eos] = True
    allowed[list(openers)] = True
    return allowed
