"""The packed batch that every model, loss and decoder reads.

Shape letters: see `transfusion.sequence`.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from transfusion.sequence.arrays import Array, Shaped
from transfusion.sequence.spec import SequenceSpec
from transfusion.sequence.stream import Stream


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StreamSlice:
    """One stream of B packed rows. Integers are int32, the rest float32.

    Attributes:
      document: [B, N] number of the document in the row; 0 is padding.
      order: [B, N] place in the reading order of the row.
      span: [B, N] number of the bidirectional block; 0 is a causal token.
      private: [B, N] nonzero: visible only inside its own span.
      position: [B, N, A] rotary coordinates.
      item: [B, N] which item of the row (indexes time_low); of text, from 1 on, which spelled item the token opens or
        is part of, 0 for other tokens and for closers.
      loss_weight: [B, N].
      tokens, targets: [B, N] ids, and the ids to predict (discrete streams).
      values: [B, N, E] patches of latents (continuous streams).
      place: [B, N, S] (y, x) of the patch or code in its image, t in a series, (t, y, x) in a clip, (scale, y, x) of
        codes at several scales; -1 of an item's other tokens (all streams but text).
      time_low: [B, M] least noise level of each item (all streams but text).
      label: [B, M] class of each item (class-conditional streams).
      pooled: [B, M, C] vector of each item (streams with `pooled`).
    """

    document: jax.Array
    order: jax.Array
    span: jax.Array
    private: jax.Array
    position: jax.Array
    item: jax.Array
    loss_weight: jax.Array
    tokens: jax.Array | None = None
    targets: jax.Array | None = None
    values: jax.Array | None = None
    place: jax.Array | None = None
    time_low: jax.Array | None = None
    label: jax.Array | None = None
    pooled: jax.Array | None = None


Batch = dict[str, StreamSlice]


def batch_spec(spec: SequenceSpec, rows: int) -> Batch:
    """Shapes and dtypes of a packed batch of `rows` rows, as a Batch of jax.ShapeDtypeStruct."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct((rows, *a.shape[1:]), a.dtype), empty_batch(spec, 1))


def empty_batch(spec: SequenceSpec, rows: int) -> Batch:
    """All padding. Padding tokens have document 0; their items are clean."""
    result = {}
    for name, stream in spec.streams.items():
        n = stream.budget
        result[name] = StreamSlice(
            **{f: np.zeros((rows, n), np.int32) for f in ("document", "order", "span", "private", "item")},
            position=np.zeros((rows, n, spec.axes), np.int32),
            loss_weight=np.zeros((rows, n), np.float32),
            **stream.content.empty(rows, n, stream.max_items),
        )
    return result


def split_items(x: Shaped[Array, "B N E"], stream: Stream) -> Shaped[Array, "items n E"]:
    """Tokens [B, N, E] of a stream of one fixed grid -> its patches [B * M, n, E], time tokens left out."""
    return x.reshape(-1, stream.tokens_per_item, x.shape[-1])[:, stream.content.lead :]


def join_items(items: Shaped[Array, "items n E"], stream: Stream, rows: int) -> Shaped[Array, "{rows} N E"]:
    """Patches of items [B * M, n, E] -> tokens [B, N, E], zeros for time tokens; inverse of `split_items`."""
    tokens = jnp.pad(items, ((0, 0), (stream.content.lead, 0), (0, 0)))
    return tokens.reshape(rows, -1, items.shape[-1])
