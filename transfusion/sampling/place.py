"""The places of the decoder's rows in their documents, and how a new part is laid after their tokens.

Shape letters: B rows, N tokens of a part, C numbers of a pooled vector, E numbers of a patch.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from transfusion.model.inputs import Inputs, inputs_of
from transfusion.sequence import SequenceSpec, Stream
from transfusion.sequence.batch import StreamSlice
from transfusion.sequence.rows import Expanded


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Asked:
    """The class and pooled vector that prompts ask of the items that are drawn after them.

    Attributes:
      label: the class int32 [B], -1 for none; None if the model has no classes.
      pooled: the pooled vector float32 [B, C]; None if the model has no such vector.
    """

    label: jax.Array | None = None
    pooled: jax.Array | None = None

    def of(self, stream: Stream) -> dict[str, jax.Array]:
        """Gives the same as fields of a `StreamSlice` whose rows have one item each."""
        return {name: x[:, None] for name, x in stream.content.asked(self.label, self.pooled, jnp).items()}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Place:
    """The places of rows in their documents.

    Attributes:
      order: the next place in reading order, int32 [B].
      counter: the next rotary index, int32 [B].
      spans: how many bidirectional spans there are so far, int32 [B].
      asked: what the rows ask of what they draw.
    """

    order: jax.Array
    counter: jax.Array
    spans: jax.Array
    asked: Asked = Asked()

    def after(self, part: Expanded, rows: jax.Array) -> "Place":
        """Returns the place after `part` for the rows bool [B]; the others stay where they are."""
        n = rows.astype(jnp.int32)
        order, counter = self.order + n * part.length, self.counter + n * part.counter
        return Place(order, counter, self.spans + n * part.spans, self.asked)


def lay(
    part: Expanded,
    spec: SequenceSpec,
    place: Place,
    rows: jax.Array,
    content: Mapping[str, jax.Array],
    time: jax.Array,
    ahead: jax.Array | None = None,
) -> dict[str, Inputs]:
    """Makes the inputs of a part that is appended at `place`.

    Args:
      part: the tokens, numbered from 0.
      spec: the tables of the model.
      place: the place of the rows.
      rows: bool [B]; the others' tokens are padding.
      content: ids [B, N] or patches [B, N, E] per stream. A stream that is not among them keeps the part's own.
      time: noise level [B] of the part's items.
      ahead: how far ahead of it their mean velocity reaches [B]; None: 0.
    """
    batch = {name: _slice(name, part, spec, place, rows) for name in part.pieces}
    result = {}
    for name, piece in batch.items():
        own = piece.tokens if piece.values is None else piece.values
        of_items = None if piece.place is None else time[:, None]
        far = None if piece.place is None or ahead is None else ahead[:, None]
        result[name] = inputs_of(name, batch, spec, content.get(name, own), of_items, far)
    return result


def _slice(name: str, part: Expanded, spec: SequenceSpec, place: Place, rows: jax.Array) -> StreamSlice:
    """Makes one stream of a part appended at `place`, as if it were packed: a row holds one item at most."""
    piece = part.pieces[name]
    b, n = len(rows), len(piece["order"])

    def of_rows(x: np.ndarray) -> jax.Array:
        return jax.lax.broadcast_to_rank(jnp.asarray(x), x.ndim + 1)

    def spread(x: np.ndarray) -> jax.Array:
        return jnp.broadcast_to(jnp.asarray(x), (b, *x.shape))

    return StreamSlice(
        document=jnp.broadcast_to(rows[:, None], (b, n)).astype(jnp.int32),
        order=place.order[:, None] + of_rows(piece["order"]),
        span=jnp.where(of_rows(piece["span"] > 0), place.spans[:, None] + of_rows(piece["span"]), 0),
        private=spread(piece["private"]),
        position=place.counter[:, None, None] + of_rows(piece["position"]),
        item=jnp.zeros((b, n), jnp.int32),
        loss_weight=spread(piece["loss_weight"]),
        **{field: spread(piece[field]) for field in ("tokens", "values", "place") if field in piece},
        **place.asked.of(spec.streams[name]),
    )
