"""The decoder's state, and the two ways in which it grows: tokens enter the cache, and ids and images are put out.

Shape letters: B rows, S slots of the cache, T ids put out, M items drawn, N tokens of an item, E numbers of a patch.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from transfusion.model.cache import KeyValues
from transfusion.model.inputs import Encoded, Inputs
from transfusion.model.unified import UnifiedModel
from transfusion.sampling.place import Place
from transfusion.sampling.prompts import Prefill
from transfusion.sequence import TEXT
from transfusion.sequence.rows import Expanded

# What a row does: it writes, has finished, or waits to draw: `DRAWING` + the number of the kind that it draws.
WRITING, FINISHED, DRAWING = range(3)
_TEXT, _IMAGE, _STEP = range(3)  # purposes of random numbers
NO_IMAGES = jax.ShapeDtypeStruct((0, 0, 0), np.float32)  # of a kind that is spelled


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Line:
    """The tokens that rows hold so far, to which others are appended.

    Attributes:
      cache: keys and values of S slots. Slots that are not yet written are padding in its metadata. The last slot stays
        padding: rows that wait write there, which costs less than not to write.
      used: int32 [B] how many slots are written; prompts fill the same number in every row.
      place: where each row stands in its document.
    """

    cache: KeyValues
    used: jax.Array
    place: Place

    @classmethod
    def behind(cls, cache: KeyValues, place: Place, room: int) -> "Line":
        """Begins with the tokens of a cache, all of whose slots are used; `room` tokens may follow."""
        rows, used = cache.metadata.order.shape
        return cls(cache.grown(room + 1), jnp.full(rows, used, jnp.int32), place)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """Everything that the loop carries. A row's values depend on that row only.

    Attributes:
      line: the tokens of the rows.
      mode: int32 [B] WRITING, FINISHED, or DRAWING + the number of a kind.
      kind: int32 [B] the kind that was opened last, or that must come: its number in the table of what is drawn.
      thinks: bool [B] whether the row writes the text before an image that must come.
      pending: int32 [B] the id chosen last, not yet in the cache.
      ids: int32 [B, T] ids put out; an opener stands for an image.
      count: int32 [B] how many ids are put out.
      written: int32 [B] how many of these are text, counted anew after the text before an image that must come.
      images: what is drawn, of each kind: float32 [B, M, N, E], as patches, or int32 [B, M, N], as codes. The m-th item
        of a row, counted over all kinds, has number m in the array of its kind.
      drawn: int32 [B] how many items are drawn.
    """

    line: Line
    mode: jax.Array
    kind: jax.Array
    thinks: jax.Array
    pending: jax.Array
    ids: jax.Array
    count: jax.Array
    written: jax.Array
    images: tuple[jax.Array, ...]
    drawn: jax.Array

    def with_rows(self, other: "State", rows: jax.Array) -> "State":
        """Replaces some rows by those of another state: its row i by `rows[i]`, int32 [A], if there is such a row."""

        def put(old: jax.Array, new: jax.Array) -> jax.Array:
            return old.at[rows].set(new, mode="drop")

        cache = self.line.cache.with_rows(other.line.cache, rows)
        line = Line(cache, *jax.tree.map(put, (self.line.used, self.line.place), (other.line.used, other.line.place)))
        rest = [field.name for field in dataclasses.fields(self) if field.name != "line"]
        return State(line, *(jax.tree.map(put, getattr(self, name), getattr(other, name)) for name in rest))


def first_state(
    prefix: KeyValues,
    prompts: Prefill,
    room: int,
    ids: int,
    images: Sequence[jax.ShapeDtypeStruct],
    openers: Sequence[int],
) -> State:
    """Makes the state after the prompts.

    Args:
      prefix: keys and values of the prompts.
      prompts: the place of their rows.
      room: free slots of the cache.
      ids: how many ids are put out at most.
      images: shape [M, N, E] or [M, N] and dtype of the items of each kind that a row puts out.
      openers: the id that begins each kind.
    """
    draw, kind = prompts.draw, jnp.asarray(prompts.kind, jnp.int32)
    zero = jnp.zeros(len(draw), jnp.int32)
    drawing = jnp.asarray(draw, jnp.int32)
    buffer = jnp.zeros((len(draw), ids), jnp.int32)
    if openers:
        buffer = buffer.at[:, 0].set(drawing * of_kind(openers, kind))
    mode = jnp.where(draw, DRAWING + kind, WRITING)
    thinks = jnp.asarray(prompts.thinks)
    drawn = tuple(jnp.zeros((len(draw), *one.shape), one.dtype) for one in images)
    line = Line.behind(prefix, prompts.place, room)
    return State(line, mode, kind, thinks, zero, buffer, drawing, zero, drawn, zero)


def of_kind(values: Sequence[int], kind: jax.Array) -> jax.Array:
    """Looks up a value for each row, by its kind int32 [B]; a table of one row is that value."""
    return jnp.int32(values[0]) if len(values) == 1 else jnp.asarray(values, jnp.int32)[kind]


def append(
    model: UnifiedModel, line: Line, part: Expanded, inputs: Mapping[str, Inputs], rows: jax.Array
) -> tuple[Line, dict[str, Encoded]]:
    """Runs a part after the tokens of the rows bool [B], and writes it into their next free slots of the cache.

    The other rows are not touched."""
    slots, used, last = {}, line.used, line.cache.metadata.order.shape[1] - 1
    for name, piece in inputs.items():
        n = piece.position.shape[1]
        slots[name] = jnp.where(rows[:, None], used[:, None] + jnp.arange(n)[None], last)
        used += n * rows.astype(jnp.int32)
    encoded, cache = model.extend(inputs, line.cache, slots)
    return Line(cache, used, line.place.after(part, rows)), encoded


def put_ids(state: State, ids: jax.Array, rows: jax.Array) -> State:
    """Puts out ids int32 [B] of the rows bool [B]."""
    at = jnp.where(rows, state.count, state.ids.shape[1])
    buffer = state.ids.at[jnp.arange(len(ids)), at].set(ids, mode="drop")
    return dataclasses.replace(state, ids=buffer, count=state.count + rows)


def put_images(state: State, kind: int, images: jax.Array, rows: jax.Array) -> State:
    """Puts out items of one kind [B, N, E] or [B, N] of the rows bool [B]."""
    held = state.images[kind]
    at = jnp.where(rows, state.drawn, held.shape[1])
    held = held.at[jnp.arange(len(images)), at].set(images, mode="drop")
    images = (*state.images[:kind], held, *state.images[kind + 1 :])
    return dataclasses.replace(state, images=images, drawn=state.drawn + rows)


def logits_at(model: UnifiedModel, encoded: Encoded, last: jax.Array) -> jax.Array:
    """Computes the logits [B, V] at the tokens `last` int32 [B] of the text stream."""
    hidden = jnp.take_along_axis(encoded.hidden, jnp.asarray(last)[:, None, None], axis=1)
    return model.head(TEXT, dataclasses.replace(encoded, hidden=hidden))[:, 0]


def row_keys(seed: int, numbers: np.ndarray) -> jax.Array:
    """Makes a key [B] for each row from its number in the list of prompts, so results do not depend on the batch."""
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.asarray(numbers))


def _keys(keys: jax.Array, purpose: int, count: jax.Array) -> jax.Array:
    fold = jax.vmap(jax.random.fold_in)
    return fold(fold(keys, jnp.full(keys.shape, purpose)), count)


def text_keys(keys: jax.Array, count: jax.Array) -> jax.Array:
    """Makes the keys [B] of the next ids, after `count` [B] ids."""
    return _keys(keys, _TEXT, count)


def first_noise(keys: jax.Array, drawn: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Draws the noise [B, *shape] from which the image with the number `drawn` [B] starts."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(_keys(keys, _IMAGE, drawn))


def step_keys(keys: jax.Array, drawn: jax.Array, step: jax.Array) -> jax.Array:
    """Makes the keys [B] of a step of the image with the number `drawn` [B]."""
    return jax.vmap(jax.random.fold_in, (0, None))(_keys(keys, _STEP, drawn), step)


def step_noise(keys: jax.Array, drawn: jax.Array, step: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Draws the fresh noise [B, *shape] of a stochastic solver's step."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(step_keys(keys, drawn, step))
