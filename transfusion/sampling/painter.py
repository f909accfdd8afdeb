"""Drawing an item by a stream of its own: all its tokens are drawn before any of them stays in the cache.

The finished item is encoded once more, like an item of a prompt (clean, t = 1, and through a vision tower where the
layout says so), because in training later tokens saw clean images, and not the last step's noisy ones.

Shape letters: B rows, V vocabulary, N tokens of an item, E numbers of a patch.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transfusion.model.unified import Encoded, UnifiedModel
from transfusion.objectives import ObjectivesConfig
from transfusion.sampling.config import SamplerConfig
from transfusion.sampling.drawing import DRAWINGS, Drawing
from transfusion.sampling.parts import PaintedParts
from transfusion.sampling.place import lay
from transfusion.sampling.prompts import Prompt
from transfusion.sampling.request import Prefix, Request, read_preamble
from transfusion.sampling.state import WRITING, State, append, logits_at, put_images
from transfusion.sequence import TEXT, Segment


@dataclasses.dataclass(frozen=True, eq=False)
class Painter:
    """The way of drawing an item by a stream of its own; see `transfusion.sampling.ways.Way`."""

    parts: PaintedParts
    number: int

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

    def draw(self, request: Request, state: State, rows: jax.Array) -> tuple[State, jax.Array]:
        x = self.drawing.draw(request, self.parts)
        return put_images(state, self.number, x, rows), x

    def go_on(
        self,
        model: UnifiedModel,
        state: State,
        unread: jax.Array,
        rows: jax.Array,
        then: Callable[[State, jax.Array], State],
    ) -> State:
        def read(carry: tuple[State, jax.Array]) -> tuple[State, jax.Array]:
            state, encoded = self._read(model, carry[0], unread, rows)
            state = dataclasses.replace(state, mode=jnp.where(rows, WRITING, state.mode))
            last = jnp.full(len(rows), len(self.parts.finished.pieces[TEXT]["order"]) - 1)
            return then(state, logits_at(model, encoded, last)), jnp.bool_(False)

        # A loop of one turn at most, and not a condition, because that would copy the cache.
        return jax.lax.while_loop(lambda carry: carry[1], read, (state, rows.any()))[0]

    def _read(self, model: UnifiedModel, state: State, x: jax.Array, rows: jax.Array) -> tuple[State, Encoded]:
        """Reads the clean item and its closer into the cache, and returns the model's outputs for the text in it."""
        part, spec = self.parts.finished, self.parts.spec
        content = {name: self.parts.drawn_as(name, x) for name, piece in part.pieces.items() if "place" in piece}
        inputs = lay(part, spec, state.line.place, rows, content, jnp.ones(len(rows)))
        line, encoded = append(model, state.line, part, inputs, rows)
        return dataclasses.replace(state, line=line), encoded[TEXT]

    def item(self, ids: np.ndarray, image: np.ndarray | None, prompt: Prompt) -> tuple[Segment, int]:
        kind, medium = self.parts.drawable.kind, self.parts.media(image)
        # As a part of the next turn's prompt it keeps the class that was asked for.
        return Segment(kind, medium, "context", prompt.label, pooled=prompt.pooled), 1
