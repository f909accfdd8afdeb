"""The packed batch that every model, loss and decoder reads.

Shape letters: see `transfusion.sequence`.
"""

import dataclasses

import jax
import numpy as np

from transfusion.sequence.spec import SequenceSpec


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
        n, m = stream.budget, stream.max_items
        zeros = {f: np.zeros((rows, n), np.int32) for f in ("document", "order", "span", "private", "item")}
        kind = (
            {"tokens": np.zeros((rows, n), np.int32), "targets": np.zeros((rows, n), np.int32)}
            if stream.discrete
            else {"values": np.zeros((rows, n, stream.features), np.float32)}
        )
        if stream.media:
            kind["place"] = np.zeros((rows, n, stream.place_axes), np.int32)
            kind["time_low"] = np.ones((rows, m), np.float32)
        if stream.labels:
            kind["label"] = np.full((rows, m), stream.labels, np.int32)
        if stream.pooled:
            kind["pooled"] = np.zeros((rows, m, stream.pooled), np.float32)
        result[name] = StreamSlice(
            **zeros,
            position=np.zeros((rows, n, spec.axes), np.int32),
            loss_weight=np.zeros((rows, n), np.float32),
            **kind,
        )
    return result
