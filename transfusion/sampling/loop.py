"""The interleaved decoder: text token by token and items in between, in one compiled loop over the rows of a batch.

All rows write text, a token a step, until each has ended or waits at an opener. Then, one kind after the other, the
rows that wait for an item of that kind draw one each after their cached prefix, in one of the two ways of
`transfusion.sampling.ways`, and text goes on behind it. Guidance compares with the prompt without its text, and without
each kind of its media; none of these holds anything written or drawn since. `transfusion.sampling.reference` does the
same without a cache.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import cached_property, partial

import jax
import jax.numpy as jnp
import numpy as np

from transfusion.learner import Learner
from transfusion.model.cache import KeyValues
from transfusion.model.depth import by_layer
from transfusion.model.parameters import Params
from transfusion.model.transformer import FIRST
from transfusion.model.unified import UnifiedModel, model_template
from transfusion.model.weights import as_computed
from transfusion.sampling.drawable import Drawable
from transfusion.sampling.drawing import DRAWINGS, Recorded
from transfusion.sampling.prompts import Conditions, Prefill, Prompt
from transfusion.sampling.request import Prefix, Request, broadcast
from transfusion.sampling.settings import Limits, Machine, Settings
from transfusion.sampling.state import DRAWING, FINISHED, WRITING, State, first_state, logits_at
from transfusion.sampling.ways import Way, document, ways_of
from transfusion.sampling.writer import Writer
from transfusion.sequence import TEXT, Document


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Weights:
    """The parameters as the decoder reads them, see `transfusion.model.weights`.

    Attributes:
      params: all parameters, for reading prompts.
      trunk: those of the trunk for all behind them, layer by layer; None if they are the same.
    """

    params: Params
    trunk: Params | None


@dataclasses.dataclass(frozen=True)
class Models:
    """The model with its parameters in two forms: quick to compile, to read prompts, and fast, for all behind them."""

    once: UnifiedModel
    often: UnifiedModel


@dataclasses.dataclass(frozen=True, eq=False)
class Decoder:
    """The compiled loop for one task and one set of limits.

    `ready` makes the weights that the others take. `start` reads as many prompts as there are rows, `run` goes on until
    enough rows have finished, and `admit` gives rows that have finished other prompts.

    Attributes:
      task: builds the model.
      limits: the settings on which the compiled code depends.
      machine: the processor for which it is compiled.
    """

    task: Learner
    limits: Limits
    machine: Machine

    @cached_property
    def ways(self) -> tuple[Way, ...]:
        """The ways in which the kinds of `limits` are drawn, in their order: the table of what is drawn."""
        return ways_of(self.task.spec, {row.kind: row.size for row in self.limits.kinds}, self.limits.goes_on)

    @cached_property
    def drawables(self) -> tuple[Drawable, ...]:
        """These kinds."""
        return tuple(way.parts.drawable for way in self.ways)

    @cached_property
    def writer(self) -> Writer:
        return Writer(self.task.spec, self.limits, self.drawables)

    @cached_property
    def once(self):
        """The form of the model that reads prompts."""
        config = dataclasses.replace(self.task.model, remat="none")
        return model_template(config, self.task.spec) if self.machine.stacked else self.often

    @cached_property
    def unrolled(self) -> bool:
        """Whether the loops unroll the first trunk; further trunks keep what their config says."""
        return self.task.model.layers <= self.machine.unrolled

    @cached_property
    def often(self):
        """The form of the model for all behind the prompts, which loops use."""
        config = dataclasses.replace(self.task.model, remat="none", scan=not self.unrolled)
        return model_template(config, self.task.spec)

    def ready(self, params: Params) -> Weights:
        """Makes the weights that the others take; arrays that stay as they are are not copied."""
        made = self._changed(params)
        kept = jax.tree.map(lambda old, new: old if new is None else new, params, made.params)
        return dataclasses.replace(made, params=kept)

    @cached_property
    def _changed(self):
        def changed(params: Params) -> Weights:
            made = self._ready(params)
            other = jax.tree.map(lambda old, new: None if new is old else new, params, made.params)
            return dataclasses.replace(made, params=other)

        return jax.jit(changed)

    @cached_property
    def start(self):
        return jax.jit(self._start)

    @cached_property
    def admit(self):
        return jax.jit(self._admit, donate_argnames="state")

    @cached_property
    def run(self):
        return jax.jit(self._run, donate_argnames="state")

    @cached_property
    def whole(self):
        """One call for as many prompts as rows, as one program."""
        return jax.jit(self._whole)

    @cached_property
    def trace(self):
        return jax.jit(self._trace)

    @property
    def room(self) -> int:
        """The number of the cache's slots after the prompts."""
        return max((way.room(self.limits.ids, self.limits.images) for way in self.ways), default=self.limits.ids)

    @property
    def together(self) -> int:
        """The number of a drawing's tokens that are computed at once."""
        return max((way.together for way in self.ways), default=0)

    def document(self, ids: np.ndarray, images: Sequence[np.ndarray], prompt: Prompt) -> Document:
        """Turns the output of a row after its prompt, ids int32 [n] and of each kind images [M, ...], into segments."""
        return document(self.ways, ids, images, prompt)

    def first(
        self, cache: KeyValues, prefill: Prefill, logits: jax.Array, keys: jax.Array, settings: Settings
    ) -> State:
        """Makes the state behind the tokens of a cache, and chooses what comes first by the logits [B, V]."""
        made = [way.outputs(self.limits.ids, self.limits.images) for way in self.ways]
        ids = max((count for count, _ in made), default=self.limits.ids)
        state = first_state(cache, prefill, self.room, ids, [images for _, images in made], self.writer.openers)
        return self.writer.put_next(state, logits, state.mode == WRITING, keys, settings)

    def _ready(self, params: Params) -> Weights:
        params = as_computed(params, self.task.template.axes, self.task.model)
        if not self.unrolled:
            return Weights(params, None)
        trunk = by_layer(params[FIRST])
        return Weights(params, trunk) if self.machine.stacked else Weights(params | {FIRST: trunk}, None)

    def _models(self, weights: Weights) -> Models:
        """Binds both forms of the model; call it outside the loops."""
        # Behind the barrier the compiler chooses the layout in which the loops read weights fastest: on XLA:CPU a token
        # would take nearly twice as long with that of a program's arguments.
        weights = jax.lax.optimization_barrier(weights)
        split = {} if weights.trunk is None else {FIRST: weights.trunk}
        return Models(self.once.bind(weights.params), self.often.bind(weights.params | split))

    def _prefill(self, model: UnifiedModel, prefill: Prefill) -> tuple[KeyValues, jax.Array]:
        """Runs the prompts: their keys and values, and the logits [B, V] after them."""
        encoded, kept = model.read(prefill.inputs)
        kept = kept.apart(FIRST) if self.unrolled else kept
        return kept, logits_at(model, encoded[TEXT], prefill.last)

    def _start(self, weights: Weights, prefill: Prefill, keys: jax.Array, settings: Settings) -> State:
        """Reads the prompts of all rows, and chooses what comes first."""
        cache, logits = self._prefill(self.once.bind(weights.params), prefill)
        return self.first(cache, prefill, logits, keys, settings)

    def _admit(
        self,
        weights: Weights,
        state: State,
        prefill: Prefill,
        keys: jax.Array,
        settings: Settings,
        rows: jax.Array,
    ) -> State:
        """Begins anew with a prompt in each of the `rows` int32 [A]; prompts for a row that does not exist are lost."""
        return state.with_rows(self._start(weights, prefill, keys, settings), rows)

    def _request(
        self,
        way: Way,
        models: Models,
        prefix: Prefix,
        conditions: Conditions | None,
        keys: jax.Array,
        drawn: jax.Array,
        settings: Settings,
    ) -> Request:
        limits, own = self.limits.kinds[way.number], settings.kinds[way.number]
        guidance, others = own.guidance, []
        if conditions is not None:
            parts = (conditions.without_text, *conditions.without)
            others = [self._prefix(way, models, part, len(prefix.rows)) for part in parts]
            media = tuple(jnp.asarray(scale)[:, None, None] for scale in conditions.scales)
            guidance = dataclasses.replace(guidance, media=media)
        prefix = way.about_to_draw(models.often, prefix)
        return Request(
            models.often, self.task.objectives, limits.solver, limits.codes, (prefix, *others), guidance,
            own.schedule, keys, drawn, self.machine,
        )  # fmt: skip

    def _prefix(self, way: Way, models: Models, prefill: Prefill, rows: int) -> Prefix:
        """Makes the prefix of prompts that are about to draw; one prompt serves all rows."""
        prefix = Prefix(self._prefill(models.once, prefill)[0], prefill.place, prefill.draw)
        prefix = way.about_to_draw(models.often, prefix)
        return prefix if len(prefill.draw) == rows else broadcast(prefix, rows)

    def _draw(
        self,
        way: Way,
        models: Models,
        state: State,
        conditions: Conditions | None,
        keys: jax.Array,
        settings: Settings,
    ) -> State:
        """Draws one item for each row that waits for this kind."""
        rows = state.mode == DRAWING + way.number
        prefix = Prefix(state.line.cache, state.line.place, rows)
        request = self._request(way, models, prefix, conditions, keys, state.drawn, settings)
        state, unread = way.draw(request, state, rows)
        state, more = self.writer.stop(state, rows, settings)
        if not way.goes_on:
            return state

        def put_next(state: State, logits: jax.Array) -> State:
            return self.writer.put_next(state, logits, more, keys, settings)

        return way.go_on(models.often, state, unread, more, put_next)

    def _run(
        self,
        weights: Weights,
        state: State,
        conditions: tuple[Conditions | None, ...],
        keys: jax.Array,
        settings: Settings,
        enough: jax.Array,
    ) -> State:
        """Goes on until `enough` rows have finished."""
        models = self._models(weights)
        writes = self.limits.ids > 0 or self.limits.goes_on

        def goes_on(state: State) -> jax.Array:
            return (state.mode == FINISHED).sum() < enough

        def write(state: State) -> State:
            write_one = lambda _, state: self.writer.write(models.often, state, keys, settings)  # noqa: E731
            return jax.lax.fori_loop(0, self.machine.tokens, write_one, state)

        def draw(way: Way, state: State) -> State:
            return self._draw(way, models, state, conditions[way.number], keys, settings)

        def draw_all(state: State) -> State:
            if len(self.ways) == 1:
                return draw(self.ways[0], state)
            for way in self.ways:
                waits = (state.mode == DRAWING + way.number).any()
                state = _if_any(waits, partial(draw, way), state)
            return state

        def phase(state: State) -> State:
            if writes:
                state = jax.lax.while_loop(lambda s: (s.mode == WRITING).any() & goes_on(s), write, state)
            if self.ways:
                # Where rows still write, enough of the others have finished. A loop, and not a condition, because that
                # would copy the cache.
                waits = lambda s: (s.mode >= DRAWING).any() & ~(s.mode == WRITING).any()  # noqa: E731
                state = jax.lax.while_loop(waits, draw_all, state)
            return state

        return jax.lax.while_loop(goes_on, phase, state)

    def _whole(
        self,
        params: Params,
        prefill: Prefill,
        conditions: tuple[Conditions | None, ...],
        keys: jax.Array,
        settings: Settings,
    ) -> tuple[jax.Array, jax.Array, tuple[jax.Array, ...]]:
        """Decodes the prompts of all rows: ids [B, T], their number [B], and of each kind [B, M, N, E] or [B, M, N]."""
        weights = self._ready(params)
        state = self._start(weights, prefill, keys, settings)
        state = self._run(weights, state, conditions, keys, settings, jnp.int32(len(prefill.draw)))
        return state.ids, state.count, state.images

    def _trace(
        self,
        params: Params,
        prefill: Prefill,
        conditions: tuple[Conditions | None, ...],
        keys: jax.Array,
        settings: Settings,
    ) -> Recorded:
        """Draws the first item of each row, all of the first kind, and records the states that it passes through."""
        (way, *_), models = self.ways, self._models(self._ready(params))
        cache, _ = self._prefill(models.once, prefill)
        drawn = jnp.zeros(len(prefill.draw), jnp.int32)
        prefix = Prefix(cache, prefill.place, prefill.draw)
        request = self._request(way, models, prefix, conditions[0], keys, drawn, settings)
        return DRAWINGS[way.parts.stream.objective].record(request, way.parts)


def _if_any(waits: jax.Array, change: Callable[[State], State], state: State) -> State:
    """Changes the state if `waits`."""
    # A loop of one turn at most, and not a condition, because that would copy the cache.
    once = lambda carry: (change(carry[0]), jnp.bool_(False))  # noqa: E731
    return jax.lax.while_loop(lambda carry: carry[1], once, (state, waits))[0]
