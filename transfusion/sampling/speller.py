"""Drawing an item id by id in the text's vocabulary, by its grammar, guided by up to two prompts more.

The caches of all prompts advance together. What is drawn stays in the first one, and nothing is encoded again.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from transfusion.model.cache import KeyValues
from transfusion.model.unified import UnifiedModel
from transfusion.objectives import ObjectivesConfig
from transfusion.sampling.codes import CodeSchedule, code_schedule
from transfusion.sampling.config import SamplerConfig
from transfusion.sampling.grammar import OPENED, OUTSIDE
from transfusion.sampling.parts import SpelledParts
from transfusion.sampling.place import Place, lay
from transfusion.sampling.prompts import Prompt
from transfusion.sampling.request import Prefix, Request
from transfusion.sampling.state import NO_IMAGES, WRITING, State, append, put_ids, text_keys
from transfusion.sequence import TEXT, Document, Segment
from transfusion.sequence.rows import Expanded


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Branch:
    """One more prompt about to draw, for guidance; see `State`."""

    cache: KeyValues
    used: jax.Array
    place: Place


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Loop:
    """The values that the loop over an item's ids carries: the state, the other prompts, and the rows' grammar states,
    int32 [B]."""

    state: State
    others: tuple[Branch, ...]
    at: jax.Array


@dataclasses.dataclass(frozen=True, eq=False)
class Speller:
    """The way of drawing an item id by id in the text's vocabulary; see `transfusion.sampling.ways.Way`."""

    parts: SpelledParts
    together = 0

    @property
    def goes_on(self) -> bool:
        return self.parts.goes_on

    def schedule(self, objectives: ObjectivesConfig, config: SamplerConfig) -> CodeSchedule:
        return code_schedule(objectives, self.parts, config)

    def room(self, ids: int, images: int) -> int:
        return ids + images * (self.parts.grammar.longest + 1)

    def outputs(self, ids: int, images: int) -> tuple[int, jax.ShapeDtypeStruct]:
        return self.room(ids, images), NO_IMAGES

    def about_to_draw(self, model: UnifiedModel, prefix: Prefix) -> Prefix:
        del model
        return prefix

    def draw(self, request: Request, state: State, rows: jax.Array) -> tuple[State, jax.Array]:
        parts = self.parts
        loop = self._opened(state, rows, (request.without_text, request.without_images))
        waits = loop.at != OUTSIDE
        if parts.drawable.run.stream != TEXT:  # the opener is text, what follows is not
            loop = _spell_one(request, parts, loop, parts.token)
        loop = jax.lax.while_loop(
            lambda loop: (loop.at != OUTSIDE).any(), lambda loop: _spell_one(request, parts, loop, parts.code), loop
        )
        state = dataclasses.replace(loop.state, drawn=loop.state.drawn + waits)
        return state, state.pending

    def _opened(self, state: State, rows: jax.Array, others: Sequence[Prefix | None]) -> Loop:
        """Moves the rows that wait to the place after their opener, which is not in the caches yet."""
        branches = []
        state = dataclasses.replace(state, pending=jnp.where(rows, self.parts.drawable.opener, state.pending))
        for prefix in filter(None, others):
            used = jnp.full(rows.shape, prefix.cache.metadata.order.shape[1], jnp.int32)
            branches.append(Branch(prefix.cache.grown(self.parts.grammar.longest + 1), used, prefix.place))
        return Loop(state, tuple(branches), jnp.where(rows, OPENED, OUTSIDE).astype(jnp.int32))

    def go_on(
        self,
        model: UnifiedModel,
        state: State,
        unread: jax.Array,
        rows: jax.Array,
        then: Callable[[State, jax.Array], State],
    ) -> State:
        del model, unread, then  # closers are pending, and are read as the next token of text
        return dataclasses.replace(state, mode=jnp.where(rows, WRITING, state.mode))

    def document(self, ids: np.ndarray, images: np.ndarray, prompt: Prompt) -> Document:
        del images, prompt
        drawable, segments, ids = self.parts.drawable, [], np.asarray(ids, np.int32)
        while len(ids):
            opened = ids[0] == drawable.opener
            edges = np.flatnonzero(ids == (drawable.run.closer if opened else drawable.opener))
            end = edges[0] if len(edges) else len(ids)
            if opened:
                segments.append(Segment(drawable.kind, drawable.run.spelling.parse(ids[1:end]), "context"))
            else:
                segments.append(Segment(TEXT, ids[:end]))
            ids = ids[end + opened :]
        return tuple(segments)


def _spell_one(request: Request, parts: SpelledParts, loop: Loop, part: Expanded) -> Loop:
    """Chooses the next id of each row inside an item; the pending id enters the caches as `part`."""
    model, schedule = request.model, request.schedule
    rows, state = loop.at != OUTSIDE, loop.state
    (name,) = part.pieces
    content, time, branches, logits = {name: state.pending[:, None]}, jnp.ones(len(rows)), [], []
    for branch in (state, *loop.others):
        inputs = lay(part, parts.spec, branch.place, rows, content, time)
        branch, encoded = append(model, branch, part, inputs, rows)
        branches.append(branch)
        logits.append(model.head(name, encoded[name])[:, 0])
    state, *others = branches
    allowed = parts.grammar.masked(loop.at, request.guidance.of_logits(logits))
    ids = request.filters.choose(allowed, text_keys(request.keys, state.count), schedule.temperature, schedule.top_p)
    state = dataclasses.replace(put_ids(state, ids, rows), pending=jnp.where(rows, ids, state.pending))
    return Loop(state, tuple(others), jnp.where(rows, parts.grammar.after(loop.at, ids), OUTSIDE))
