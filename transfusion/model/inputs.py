"""The inputs of a forward pass, one set per stream, and the outputs that a head reads."""

import dataclasses
from typing import Any

import jax

from transfusion.sequence import SequenceSpec
from transfusion.sequence.batch import Batch
from transfusion.sequence.masks import Metadata, metadata


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Inputs:
    """The inputs of a forward pass for one stream's tokens.

    Attributes:
      content: ids int32 [B, N], or (noised) patches float32 [B, N, E]. With codes at several scales these are always
        whole items, even if the tokens are only a part of them.
      time: noise level of each item float32 [B, M]; None for text.
      position: int32 [B, N, A].
      item: int32 [B, N].
      place: int32 [B, N, S] or None.
      metadata: [B, N].
      label: the class of each item, int32 [B, M]; class-conditional streams only.
      pooled: the pooled vector of each item, float32 [B, M, C]; only of streams that have one.
      ahead: how far ahead of its noise level the mean velocity of each item reaches, float32 [B, M]; None: 0.
    """

    content: jax.Array
    time: jax.Array | None
    position: jax.Array
    item: jax.Array
    place: jax.Array | None
    metadata: Metadata
    label: jax.Array | None = None
    pooled: jax.Array | None = None
    ahead: jax.Array | None = None


def inputs_of(
    name: str,
    batch: Batch,
    spec: SequenceSpec,
    content: jax.Array,
    time: jax.Array | None,
    ahead: jax.Array | None = None,
) -> Inputs:
    """Makes the inputs of one stream from packed rows, or from a part that the decoder appends to rows.

    Training, held-out losses, prompts and the decoder's steps all use this function, so that none of them can forget a
    property of an item, such as its class.

    Args:
      name: the stream's name.
      batch: holds this stream; others may be missing.
      spec: the tables that number the streams.
      content: the ids or patches that the embed reads in place of the batch's own.
      time: noise level of each item [B, M]; None for text.
      ahead: see `Inputs`.
    """
    part = batch[name]
    meta = metadata(batch, spec, [name])
    return Inputs(content, time, part.position, part.item, part.place, meta, part.label, part.pooled, ahead)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Encoded:
    """The trunk's outputs [B, N, D] for one stream, and the values that its head needs besides them."""

    hidden: jax.Array
    skips: Any
