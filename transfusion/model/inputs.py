"""What a stream's tokens bring into a forward pass of the model, and what a head gets out of it."""

import dataclasses
from typing import Any

import jax

from transfusion.sequence import SequenceSpec
from transfusion.sequence.batch import Batch
from transfusion.sequence.masks import Metadata, metadata


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Inputs:
    """What one stream's tokens bring into a forward pass.

    Attributes:
      content: ids int32 [B, N], or (noised) patches float32 [B, N, E]; of codes at several scales always those of whole
        items, of which the tokens may be a part.
      time: noise level of each item float32 [B, M]; None for text.
      position: int32 [B, N, A].
      item: int32 [B, N].
      place: int32 [B, N, S] or None.
      metadata: [B, N].
      label: int32 [B, M] of class-conditional streams.
      pooled: float32 [B, M, C] of streams with a pooled vector.
    """

    content: jax.Array
    time: jax.Array | None
    position: jax.Array
    item: jax.Array
    place: jax.Array | None
    metadata: Metadata
    label: jax.Array | None = None
    pooled: jax.Array | None = None


def inputs_of(name: str, batch: Batch, spec: SequenceSpec, content: jax.Array, time: jax.Array | None) -> Inputs:
    """The inputs of one stream of packed rows, or of the part that the decoder appends to some.

    Training, held-out losses, prompts and the decoder's steps all come here, so that none of them can forget what
    another one knows of an item, such as its class.

    Args:
      name: of the stream.
      batch: has this stream; others may be missing.
      spec: numbers the streams.
      content: what the embed reads in place of the batch's own ids or patches.
      time: noise level of each item [B, M]; None for text.
    """
    part = batch[name]
    meta = metadata(batch, spec, [name])
    return Inputs(content, time, part.position, part.item, part.place, meta, part.label, part.pooled)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Encoded:
    """A stream's outputs of the trunk [B, N, D], and what its head needs besides them."""

    hidden: jax.Array
    skips: Any
