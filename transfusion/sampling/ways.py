"""The two ways of drawing an item: by a stream of its own, or id by id in the text's vocabulary.

Shape letters: B rows, V vocabulary, M items drawn in a row.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from transfusion.model.unified import UnifiedModel
from transfusion.objectives import ObjectivesConfig
from transfusion.sampling.config import SamplerConfig
from transfusion.sampling.drawable import drawables_of
from transfusion.sampling.painter import Painter
from transfusion.sampling.parts import PaintedParts, Size, SpelledParts, painted_parts, spelled_parts
from transfusion.sampling.prompts import Prompt
from transfusion.sampling.request import Prefix, Request
from transfusion.sampling.speller import Speller
from transfusion.sampling.state import State
from transfusion.sequence import TEXT, Document, Segment, SequenceSpec


class Way(Protocol):
    """A way of drawing items between the tokens of a text.

    Attributes:
      parts: the parts that are appended to a prompt.
      number: that of the kind in the table of what is drawn.
      goes_on: whether text may follow an item, so that drawings must be in the cache.
      together: number of an item's tokens that are computed at once, besides those in the cache; 0 if none are.
    """

    parts: PaintedParts | SpelledParts
    number: int
    goes_on: bool
    together: int

    def schedule(self, objectives: ObjectivesConfig, config: SamplerConfig) -> Any:
        """Makes the arrays of a config that may change without compiling anew."""

    def room(self, ids: int, images: int) -> int:
        """Counts the cache's slots for so many ids of text and images."""

    def outputs(self, ids: int, images: int) -> tuple[int, jax.ShapeDtypeStruct]:
        """The number of ids put out for so many ids of text and images, and the shape [M, ...] of a row's images."""

    def about_to_draw(self, model: UnifiedModel, prefix: Prefix) -> Prefix:
        """Adds the tokens to the prefix that are computed once before an item is drawn."""

    def draw(self, request: Request, state: State, rows: jax.Array) -> tuple[State, jax.Array]:
        """Puts out one item for each of the rows bool [B], and returns the contents that are not in the cache yet."""

    def go_on(
        self,
        model: UnifiedModel,
        state: State,
        unread: jax.Array,
        rows: jax.Array,
        then: Callable[[State, jax.Array], State],
    ) -> State:
        """Makes the rows bool [B] ready to write behind the item that they have just drawn.

        Args:
          model: compiled for the loops.
          state: the state after `draw`.
          unread: the contents that `draw` has returned.
          rows: the rows that go on.
          then: chooses the next id from the state and the logits [B, V], where these are known already.
        """

    def item(self, ids: np.ndarray, image: np.ndarray | None, prompt: Prompt) -> tuple[Segment, int]:
        """Makes the segment of an item that a row has put out, and counts its ids.

        Args:
          ids: int32 [n], those of the row from the item's opener on.
          image: what the item's tokens hold, where they are not among the ids.
          prompt: that of the row.
        """


def ways_of(spec: SequenceSpec, sizes: Mapping[str, Size], goes_on: bool) -> tuple[Way, ...]:
    """Chooses the ways of drawing items of these kinds and sizes; `goes_on` says whether anything is to follow them.

    Raises:
      UsageError: if the model draws no items of such a size, or nothing can follow a drawing.
    """
    by_kind = {drawn.kind: drawn for drawn in drawables_of(spec)}
    return tuple(
        Speller(spelled_parts(spec, by_kind[kind], size, goes_on), number)
        if by_kind[kind].spelled
        else Painter(painted_parts(spec, by_kind[kind], size, goes_on), number)
        for number, (kind, size) in enumerate(sizes.items())
    )


def sizes_of(spec: SequenceSpec, size: Size, asked: Collection[str], writes: bool) -> dict[str, Size]:
    """Finds the kinds that the prompts of a call may draw, each with its size; zeros leave that to the model.

    Args:
      spec: the tables of the model.
      size: sides of the latents or codes, for kinds that have as many; zeros if the call names none.
      asked: the kinds for which prompts ask.
      writes: whether text is written, which may open any kind; else only those for which prompts ask are drawn.

    Returns:
      The kinds in the order of the layout. One of any size that is not asked for is left out if nothing says its size.
    """
    drawables, result = drawables_of(spec), {}
    for drawn in drawables:
        fits = len(size) == spec.content(drawn.run).sides
        if len(drawables) == 1 or drawn.kind in asked:
            result[drawn.kind] = size
        elif writes and drawn.spelled:
            result[drawn.kind] = size if size in drawn.run.spelling.grids else (0, 0)
        elif writes and all(drawn.stream.grid):
            result[drawn.kind] = (0, 0)
        elif writes and fits and any(size):
            result[drawn.kind] = size
    return result


def document(ways: Sequence[Way], ids: np.ndarray, images: Sequence[np.ndarray], prompt: Prompt) -> Document:
    """Turns the output of a row after its prompt, ids int32 [n] and of each kind images [M, ...], into segments."""
    by_opener = {way.parts.drawable.opener: way for way in ways}
    segments, drawn, ids = [], 0, np.asarray(ids, np.int32)
    while len(ids):
        way = by_opener.get(int(ids[0]))
        if way is None:
            opened = np.flatnonzero(np.isin(ids, list(by_opener)))
            end = int(opened[0]) if len(opened) else len(ids)
            segments.append(Segment(TEXT, ids[:end]))
        else:
            held = images[way.number]
            segment, end = way.item(ids, held[drawn] if len(held) else None, prompt)
            segments.append(segment)
            drawn += 1
        ids = ids[end:]
    return tuple(segments)
