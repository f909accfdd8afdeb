"""The parts of a stream around the trunk, and the steps by which its tokens enter.

`entry` chooses the steps once, from the fields of a stream, and a forward pass runs them in order. If a paper does
something else to tokens before the trunk, add a step for it.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from transfusion.errors import UsageError, check
from transfusion.model.block import per_token
from transfusion.model.config import TransformerConfig
from transfusion.model.embeds import EMBEDS, Bridge
from transfusion.model.heads import HEADS
from transfusion.model.inputs import Inputs
from transfusion.model.parameters import fan_in, param
from transfusion.model.vectors import ItemCondition, LearnedTable, TimeEmbedding, sincos_table
from transfusion.sequence import Stream
from transfusion.sequence.times import TIMES


class StreamParts(nnx.Module):
    """The modules of one stream: its embed, head, time embedding and so on; those that it lacks are None."""

    def __init__(
        self, name: str, stream: Stream, first: TransformerConfig, last: TransformerConfig, head: int, rngs: nnx.Rngs
    ):
        """`first` and `last` are the trunks that the stream enters and leaves, `head` is the width that its head
        reads."""
        _check(name, stream)
        time, config, width = TIMES[stream.time], stream.released.time, first.width
        # Initial values depend on this order.
        self.embed = EMBEDS[stream.embed](stream, first, name, rngs)
        self.head = None if stream.released.tied else HEADS[stream.head](stream, head, rngs)
        self.condition = ItemCondition(stream, last.width, last.layers, rngs) if time.modulates else None
        bridged = time.modulates and time.token and width != last.width
        self.token = Bridge("linear", last.width, width, rngs) if bridged else None
        apart = not time.modulates and stream.time != "none"
        self.time = TimeEmbedding(width, rngs, config, ahead=stream.ahead) if apart else None
        modulated = apart and HEADS[stream.head].modulated
        self.head_time = TimeEmbedding(head, rngs, config, ahead=stream.ahead) if modulated else None
        self.table = LearnedTable(stream, width, rngs) if stream.table == "learned" else None
        self.start = param(rngs, (width,), ("embed",), fan_in(width)) if stream.content.starts else None
        self.masked = param(rngs, (width,), ("embed",), fan_in(width)) if stream.content.hides else None


def _check(name: str, stream: Stream) -> None:
    """Checks a stream's fields; raises UsageError if parts do not exist, or do not go together."""
    for field, known in (("embed", EMBEDS), ("head", HEADS), ("table", PLACES)):
        check(f"streams.{name}.{field}", getattr(stream, field), known)
    embed = EMBEDS[stream.embed]
    coder = (embed.coder, HEADS[stream.head].coder, TIMES[stream.time].coder)
    if any(coder) and not (all(coder) and stream.embed == stream.head and stream.content.aligned):
        raise UsageError(
            "streams: one fixed `grid`, embed and head, both 'unet' or both 'convnext', and time 'coder' or "
            f"'token_coder' go together, not {stream.embed!r}, {stream.head!r} and {stream.time!r}"
        )
    if stream.table == "learned" and not any((*stream.grid, *stream.released.table_grid)):
        raise UsageError(f"streams.{name}: table 'learned' needs a fixed `grid`, or the sides of released.table_grid")
    if len(stream.grid) != 2 and (stream.table == "learned" or embed.of_images):
        of_images = ", ".join(name for name, kind in EMBEDS.items() if kind.of_images)
        raise UsageError(f"streams.{name}: learned tables of places and embeds {of_images} are for images")


# --- steps ------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Entering:
    """A stream's tokens on their way into the trunk.

    Attributes:
      vector: the vectors that modulate the stream, [B, M, D] or [layers, B, M, D].
      noise: the vector of each item's noise level [B, M, D].
      tokens: [B, N, D].
      skips: the values that the head needs besides the trunk's outputs.
    """

    vector: jax.Array | None
    noise: jax.Array | None = None
    tokens: jax.Array | None = None
    skips: Any = None


Step = Callable[[StreamParts, Inputs, Entering], Entering]


def _with_noise(part: StreamParts, inputs: Inputs, entering: Entering) -> Entering:
    return dataclasses.replace(entering, noise=part.time(inputs.time, inputs.ahead))


def _with_condition_as_noise(part: StreamParts, inputs: Inputs, entering: Entering) -> Entering:
    """Uses the vector that modulates the stream as its token of the noise level, in the width of its first trunk."""
    vector = entering.vector
    return dataclasses.replace(entering, noise=vector if part.token is None else part.token(vector))


def _embedded(part: StreamParts, inputs: Inputs, entering: Entering) -> Entering:
    tokens, skips = part.embed(inputs, None)
    return dataclasses.replace(entering, tokens=tokens, skips=skips)


def _embedded_with_noise(part: StreamParts, inputs: Inputs, entering: Entering) -> Entering:
    tokens, skips = part.embed(inputs, entering.noise)
    return dataclasses.replace(entering, tokens=tokens, skips=skips)


def _embedded_where_known(stream: Stream) -> Step:
    """A learned vector stands for what is hidden; the embed reads zeros there, because a hidden patch is no number."""

    def step(part: StreamParts, inputs: Inputs, entering: Entering) -> Entering:
        hidden = stream.content.hidden(inputs.content, jnp)
        zeros = hidden.reshape(hidden.shape + (1,) * (inputs.content.ndim - hidden.ndim))
        tokens, skips = part.embed(dataclasses.replace(inputs, content=jnp.where(zeros, 0, inputs.content)), None)
        return dataclasses.replace(entering, tokens=jnp.where(hidden[..., None], part.masked[...], tokens), skips=skips)

    return step


def _with_learned_places(part: StreamParts, inputs: Inputs, entering: Entering) -> Entering:
    return dataclasses.replace(entering, tokens=entering.tokens + part.table(inputs.place))


def _with_fixed_places(stream: Stream) -> Step:
    """Adds sines and cosines of the places, stretched to a table of `table_grid` where the items' grid is another."""
    axes = (1, 0) if stream.released.x_first else tuple(range(len(stream.grid)))
    sides = tuple(side // stream.patch for side in stream.grid)
    table = stream.released.table_grid
    stretched = 0 not in (*table, *sides) and table != sides

    def step(part: StreamParts, inputs: Inputs, entering: Entering) -> Entering:
        place = inputs.place
        if stretched:
            place = place * jnp.asarray([t / s for t, s in zip(table, sides, strict=True)], jnp.float32)
        tokens = entering.tokens + sincos_table(place, entering.tokens.shape[-1], axes)
        return dataclasses.replace(entering, tokens=tokens)

    return step


PLACES: dict[str, Callable[[Stream], tuple[Step, ...]]] = {
    "none": lambda stream: (),
    "sincos": lambda stream: (_with_fixed_places(stream),),
    "learned": lambda stream: (_with_learned_places,),
}


def _before_the_item(inputs: Inputs, vector: jax.Array, entering: Entering) -> Entering:
    """Sets the token before each item's first patch or code to `vector`."""
    return dataclasses.replace(entering, tokens=jnp.where(inputs.place[..., :1] < 0, vector, entering.tokens))


def _with_noise_token(stream: Stream) -> Step:
    aligned = stream.content.aligned

    def step(part: StreamParts, inputs: Inputs, entering: Entering) -> Entering:
        return _before_the_item(inputs, per_token(entering.noise, inputs.item, aligned), entering)

    return step


def _with_start_token(part: StreamParts, inputs: Inputs, entering: Entering) -> Entering:
    return _before_the_item(inputs, part.start[...], entering)


def _modulates_the_head(part: StreamParts, inputs: Inputs, entering: Entering) -> Entering:
    """Gives the head the vector of each item, and the item of every token."""
    vector = entering.vector if part.head_time is None else part.head_time(inputs.time, inputs.ahead)
    return dataclasses.replace(entering, skips=(vector[0] if vector.ndim == 4 else vector, inputs.item))


def entry(stream: Stream, part: StreamParts) -> tuple[Step, ...]:
    """Chooses the steps by which a stream's tokens enter the trunk; the parts may belong to another stream."""
    time, content = TIMES[stream.time], stream.content
    chosen: list[tuple[bool, Step]] = [
        (part.time is not None, _with_noise),
        (time.embedded, _embedded_with_noise),
        (not time.embedded and not content.hides, _embedded),
        (content.hides, _embedded_where_known(stream)),
        *((True, step) for step in PLACES[stream.table](stream)),
        (time.token and time.modulates, _with_condition_as_noise),
        (time.token, _with_noise_token(stream)),
        (content.starts, _with_start_token),
        (HEADS[stream.head].modulated, _modulates_the_head),
    ]
    return tuple(step for there, step in chosen if there)
