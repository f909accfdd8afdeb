"""The two ways of drawing an item: by a stream of its own, or id by id in the text's vocabulary.

Shape letters: B rows, V vocabulary, M images of a row.
"""

from collections.abc import Callable
from typing import Any, Protocol

import jax
import numpy as np

from transfusion.model.unified import UnifiedModel
from transfusion.objectives import ObjectivesConfig
from transfusion.sampling.config import SamplerConfig
from transfusion.sampling.drawable import Drawable
from transfusion.sampling.painter import Painter
from transfusion.sampling.parts import PaintedParts, Size, SpelledParts, painted_parts, spelled_parts
from transfusion.sampling.prompts import Prompt
from transfusion.sampling.request import Prefix, Request
from transfusion.sampling.speller import Speller
from transfusion.sampling.state import State
from transfusion.sequence import Document, SequenceSpec


class Way(Protocol):
    """A way of drawing items between the tokens of a text.

    Attributes:
      parts: the parts that are appended to a prompt.
      goes_on: whether text may follow an item, so that drawings must be in the cache.
      together: number of an item's tokens that are computed at once, besides those in the cache; 0 if none are.
    """

    parts: PaintedParts | SpelledParts
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

    def document(self, ids: np.ndarray, images: np.ndarray, prompt: Prompt) -> Document:
        """Turns the output of a row, ids int32 [n] and images [M, ...], into segments."""


def way_of(spec: SequenceSpec, drawable: Drawable, size: Size, goes_on: bool) -> Way:
    """Chooses the way of drawing items of this size; `goes_on` says whether anything is to follow them.

    Raises:
      UsageError: if the model draws no items of this size, or nothing can follow a drawing.
    """
    if drawable.spelled:
        return Speller(spelled_parts(spec, drawable, size, goes_on))
    return Painter(painted_parts(spec, drawable, size, goes_on))
