"""Drawing an item id by id in the text's vocabulary, by its grammar, guided by other versions of the prompt.

The rows of all prompts advance together. What is drawn stays in the cache of the first, and nothing is encoded again.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from transfusion.model.unified import UnifiedModel
from transfusion.objectives import ObjectivesConfig
from transfusion.sampling.codes import CodeSchedule, code_schedule
from transfusion.sampling.config import SamplerConfig
from transfusion.sampling.grammar import OPENED, OUTSIDE
from transfusion.sampling.parts import SpelledParts
from transfusion.sampling.place import lay
from transfusion.sampling.prompts import Prompt
from transfusion.sampling.request import Prefix, Request, side_by_side
from transfusion.sampling.state import NO_IMAGES, WRITING, Line, State, append, put_ids, text_keys
from transfusion.sequence import TEXT, Segment
from transfusion.sequence.rows import Expanded


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Loop:
    """The values that the loop over an item's ids carries: the state, whose line has a row for each prompt of each row
    (see `Request.joined`), and the grammar states of the rows, int32 [B]."""

    state: State
    at: jax.Array


@dataclasses.dataclass(frozen=True, eq=False)
class Speller:
    """The way of drawing an item id by id in the text's vocabulary; see `transfusion.sampling.ways.Way`."""

    parts: SpelledParts
    number: int
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
        parts, prompts = self.parts, len(request.prefixes)
        at = jnp.where(rows, OPENED, OUTSIDE).astype(jnp.int32)
        state = dataclasses.replace(state, pending=jnp.where(rows, parts.drawable.opener, state.pending))
        before = state.line
        if prompts > 1:
            state = dataclasses.replace(state, line=self._lines(before, request.prefixes[1:]))
        loop = Loop(state, at)
        if parts.drawable.run.stream != TEXT:  # the opener is text, what follows is not
            loop = _spell_one(request, parts, loop, parts.token)

        def spell(loop: Loop) -> Loop:
            spell_one = lambda _, loop: _spell_one(request, parts, loop, parts.code)  # noqa: E731
            return jax.lax.fori_loop(0, request.machine.tokens, spell_one, loop)

        state = jax.lax.while_loop(lambda loop: (loop.at != OUTSIDE).any(), spell, loop).state
        if prompts > 1:
            slots = before.cache.metadata.order.shape[1]
            state = dataclasses.replace(state, line=_first_rows(state.line, prompts, slots))
        return dataclasses.replace(state, drawn=state.drawn + (at != OUTSIDE)), state.pending

    def _lines(self, line: Line, others: Sequence[Prefix]) -> Line:
        """Joins the line of the rows with those of the other prompts."""
        room = self.parts.grammar.longest + 1
        lines = [line, *(Line.behind(prefix.cache, prefix.place, room) for prefix in others)]
        prefix = side_by_side([Prefix(each.cache, each.place, each.used) for each in lines])
        return Line(prefix.cache, prefix.rows, prefix.place)

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

    def item(self, ids: np.ndarray, image: np.ndarray | None, prompt: Prompt) -> tuple[Segment, int]:
        run, kind = self.parts.drawable.run, self.parts.drawable.kind
        end = int(np.argmax(ids == run.closer))
        return Segment(kind, run.spelling.parse(ids[1:end]), "context"), end + 1


def _first_rows(line: Line, prompts: int, slots: int) -> Line:
    """The first of every `prompts` rows, and the first `slots` slots of them: what `Speller._lines` joined first."""
    first = jax.tree.map(lambda x: x[::prompts], (line.used, line.place))
    return Line(line.cache.of_rows(lambda x: x[::prompts]).shrunk(slots), *first)


def _spell_one(request: Request, parts: SpelledParts, loop: Loop, part: Expanded) -> Loop:
    """Chooses the next id of each row inside an item; the pending id enters the cache as `part`."""
    model, schedule = request.model, request.schedule
    rows, state = loop.at != OUTSIDE, loop.state
    (name,) = part.pieces
    every = request.repeated(rows)
    content = {name: request.repeated(state.pending)[:, None]}
    inputs = lay(part, parts.spec, state.line.place, every, content, jnp.ones(len(every)))
    line, encoded = append(model, state.line, part, inputs, every)
    logits = request.split(model.head(name, encoded[name])[:, 0])
    allowed = parts.grammar.masked(loop.at, request.guidance.of_logits(logits))
    ids = request.filters.choose(allowed, text_keys(request.keys, state.count), schedule.temperature, schedule.top_p)
    pending = jnp.where(rows, ids, state.pending)
    state = dataclasses.replace(put_ids(state, ids, rows), line=line, pending=pending)
    return Loop(state, jnp.where(rows, parts.grammar.after(loop.at, ids), OUTSIDE))
