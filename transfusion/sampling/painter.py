"""Drawing an item by a stream of its own: all its tokens are drawn before any of them stays in the cache.

What stays is encoded once more, as an item of a prompt is (clean, t = 1, and where the layout says so through a vision
tower), because the tokens that follow saw clean images in training, and not the last step's noisy ones.

Shape letters: B rows, V vocabulary, N tokens of an item, E numbers of a patch.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transfusion.model.unified import UnifiedModel
from transfusion.objectives import ObjectivesConfig
from transfusion.sampling.config import SamplerConfig
from transfusion.sampling.drawing import DRAWINGS, Drawing
from transfusion.sampling.parts import PaintedParts
from transfusion.sampling.place import lay
from transfusion.sampling.prompts import Prompt
from transfusion.sampling.request import Prefix, Request, read_preamble
from transfusion.sampling.state import DRAWING, State, append, last_image, logits_at, put_images
from transfusion.sequence import TEXT, Document, Segment


@dataclasses.dataclass(frozen=True, eq=False)
class Painter:
    """The way of drawing an item by a stream of its own; see `transfusion.sampling.ways.Way`."""

    parts: PaintedParts

    @property
    def drawing(self) -> Drawing:
        return DRAWINGS[self.parts.stream.objective]

    @property
    def goes_on(self) -> bool:
        return self.parts.finished is not None

    @property
    def together(self) -> int:
        return self.parts.tokens

    def schedule(self, objectives: ObjectivesConfig, config: SamplerConfig) -> Any:
        return self.drawing.schedule(objectives, self.parts, config)

    def room(self, ids: int, images: int) -> int:
        finished = self.parts.finished.length if self.goes_on else 0
        # A drawing without text before or after it needs no room in the cache. An opener may stand before it.
        return ids + images * (finished + 1) if ids or self.goes_on else 0

    def outputs(self, ids: int, images: int) -> tuple[int, jax.ShapeDtypeStruct]:
        held = self.parts.held
        return ids + images, jax.ShapeDtypeStruct((images, *held.shape), held.dtype)

    def about_to_draw(self, model: UnifiedModel, prefix: Prefix) -> Prefix:
        return read_preamble(model, self.parts, prefix)

    def draw(self, request: Request, state: State) -> State:
        return put_images(state, self.drawing.draw(request, self.parts), state.mode == DRAWING)

    def go_on(
        self, model: UnifiedModel, state: State, rows: jax.Array, then: Callable[[State, jax.Array], State]
    ) -> State:
        def read(state: State) -> State:
            return then(*self._read(model, state, rows))

        return jax.lax.cond(rows.any(), read, lambda state: state, state)

    def _read(self, model: UnifiedModel, state: State, rows: jax.Array) -> tuple[State, jax.Array]:
        """The clean item and its closer into the cache, and the logits [B, V] after it."""
        part, spec, x = self.parts.finished, self.parts.spec, last_image(state)
        content = {name: self.parts.drawn_as(name, x) for name, piece in part.pieces.items() if "place" in piece}
        inputs = lay(part, spec, state.place, rows, content, jnp.ones(len(rows)))
        state, encoded = append(model, state, part, inputs, rows)
        last = jnp.full(len(rows), len(part.pieces[TEXT]["order"]) - 1)
        return state, logits_at(model, encoded[TEXT], last)

    def document(self, ids: np.ndarray, images: np.ndarray, prompt: Prompt) -> Document:
        drawable = self.parts.drawable
        segments, text, drawn = [], [], 0
        for token in ids:
            if token != drawable.opener:
                text.append(token)
                continue
            if text:
                segments.append(Segment(TEXT, np.array(text, np.int32)))
            medium = self.parts.media(images[drawn])
            # As a part of the next turn's prompt it keeps the class that was asked for.
            segments.append(Segment(drawable.kind, medium, "context", prompt.label, pooled=prompt.pooled))
            text, drawn = [], drawn + 1
        if text:
            segments.append(Segment(TEXT, np.array(text, np.int32)))
        return tuple(segments)
