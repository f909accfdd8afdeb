"""The interleaved decoder: text token by token, images by a solver or otherwise, in one compiled loop over a batch of
prompts.

All rows write text, a token a step, until each has ended or waits at an opener; then the rows that wait draw one image
each against their cached prefix; the finished image is encoded once more, as an image of a prompt is (clean, t = 1, and
where the layout says so through a vision tower), for the tokens that follow saw clean images, not the last step's noisy
ones; its closer is appended, and text goes on. Images of codes in the text's vocabulary are drawn id by id instead
(`transfusion.sampling.spelled`), and stay in the cache. Guidance compares with the prompt without its text, and without
its images; what was written and drawn since belongs to neither.

`transfusion.sampling.reference` says the same without a cache.
"""

import dataclasses
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transfusion.errors import UsageError, check
from transfusion.learner import Learner
from transfusion.model.cache import KeyValues
from transfusion.model.depth import by_layer
from transfusion.model.parameters import Params
from transfusion.model.unified import UnifiedModel, model_template
from transfusion.sampling import spelled
from transfusion.sampling.choose import NEVER, Choice, emittable
from transfusion.sampling.config import SamplerConfig
from transfusion.sampling.drawing import DRAWINGS, latents_of, solve
from transfusion.sampling.grammar import Grammar, grammar_of
from transfusion.sampling.guidance import Guidance
from transfusion.sampling.job import Job, Prefix, begin, broadcast
from transfusion.sampling.layout import Conditions, Layout, Prefill, bucket, lay
from transfusion.sampling.memory import check_memory
from transfusion.sampling.prompt import Prompt, has_images
from transfusion.sampling.solvers import SOLVERS
from transfusion.sampling.state import (
    DONE,
    DRAWING,
    WRITING,
    State,
    append,
    put_ids,
    put_images,
    row_keys,
    start,
    text_keys,
)
from transfusion.sequence import TEXT, Document, Segment

__all__ = ["ROWS", "Prompt", "generate"]

ROWS = 64  # prompts at a time

# On a CPU, unrolled layers need no copy of each layer's weights per step, which decides there; compiling is the cost.
UNROLLED_LAYERS = 16


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Settings:
    """What of a SamplerConfig may change without compiling anew: scalars, and the `plan` of a drawing."""

    plan: Any
    guidance: Guidance
    temperature: jax.Array
    top_p: jax.Array
    think: jax.Array
    max_tokens: jax.Array
    min_images: jax.Array


@dataclasses.dataclass(frozen=True)
class Limits:
    """What of a SamplerConfig the compiled code depends on besides the shapes; `ids` is the room for text tokens,
    `goes_on` says whether anything may follow an image, and `codes` filters codes."""

    solver: str
    choice: Choice
    ids: int
    images: int
    goes_on: bool
    codes: Choice = Choice()


@dataclasses.dataclass(frozen=True)
class Models:
    """The model with its parameters, compiled small for what runs once, and fast for the loops."""

    once: UnifiedModel
    often: UnifiedModel


@dataclasses.dataclass(frozen=True, eq=False)
class Decoder:
    """The compiled loop for one task and one set of limits."""

    task: Learner
    limits: Limits
    size: tuple[int, ...] = (0, 0)

    @cached_property
    def layout(self) -> Layout:
        return Layout(self.task.spec, self.size)

    @cached_property
    def allowed(self) -> np.ndarray:
        return emittable(self.task.spec, self.layout.opener if self.limits.images else -1)

    @cached_property
    def grammar(self) -> Grammar:
        """Of what is spelled."""
        return grammar_of(self.layout.run, self.layout.grids, len(self.allowed))

    @cached_property
    def once(self):
        """The model as it is used outside the loops."""
        return model_template(dataclasses.replace(self.task.model, remat="none"), self.task.spec)

    @cached_property
    def unrolled(self) -> bool:
        return jax.default_backend() == "cpu" and self.task.model.layers <= UNROLLED_LAYERS

    @cached_property
    def often(self):
        """The model as it is used in the loops."""
        config = dataclasses.replace(self.task.model, remat="none", scan=not self.unrolled)
        return model_template(config, self.task.spec)

    def _models(self, params: Params) -> Models:
        """To be called outside of the loops."""
        split = params | {"trunk": by_layer(params["trunk"])} if self.unrolled else params
        return Models(self.once.bind(params), self.often.bind(split))

    @cached_property
    def run(self):
        return jax.jit(self._run)

    @cached_property
    def trace(self):
        return jax.jit(self._trace)

    def check_memory(self, prompts: Sequence[Prompt]) -> None:
        """Refuses prompts that do not fit the memory, before they are laid out.

        Raises:
          UsageError: saying what would take less.
        """
        different = {id(prompt): prompt for prompt in prompts}.values()  # one may be asked for many times
        longest = max(self.layout.length(prompt) for prompt in different)
        drawn = self.layout.tokens if self.limits.images and not self.layout.spelled else 0
        check_memory(self.task, len(prompts), longest, self._room(), drawn)

    # --- pieces of the loop -------------------------------------------------------------------------------------------

    def _prefill(self, model: UnifiedModel, prefill: Prefill) -> tuple[KeyValues, jax.Array]:
        """Keys and values of the prompts, and the logits [B, V] after them."""
        encoded, kept = model.read(prefill.inputs)
        kept = kept.by_layer() if self.unrolled else kept
        return kept, _logits(model, encoded[TEXT], prefill.last)

    def _choose(self, state: State, logits: jax.Array, rows: jax.Array, keys: jax.Array, settings: Settings) -> State:
        """Chooses the next id of the rows from logits [B, V]; rows that have written all that they may end, or draw if
        an image must come."""
        thinks = rows & state.thinks
        limit = jnp.where(thinks, settings.think, settings.max_tokens)
        must = self._must_draw(state, rows, settings)
        rows_left = rows & (state.written < limit)
        logits = jnp.where(self.allowed, logits, NEVER)
        opener = self.layout.opener if self.limits.images else -1
        if opener >= 0:
            may = state.drawn < self.limits.images
            logits = logits.at[:, opener].set(jnp.where(may, logits[:, opener], NEVER))
        keys = text_keys(keys, state.count)
        ids = self.limits.choice.choose(logits, keys, settings.temperature, settings.top_p)
        going = rows_left & (ids != self.task.spec.eos)
        ids = jnp.where(thinks & ~going | must, opener, ids)
        going |= thinks | must
        opens = going & (ids == opener)
        written = jnp.where(thinks & opens, 0, state.written + (going & ~opens))
        # An opener that is text is written like any other token first.
        opened = WRITING if opener < 0 or self.layout.opener_is_text else DRAWING
        full = (written >= limit) & ~thinks  # the image that must come sees the last token: it has to be encoded first
        mode = jnp.where(~going | full & ~opens, DONE, jnp.where(opens, opened, WRITING))
        return dataclasses.replace(
            put_ids(state, ids, going),
            mode=jnp.where(rows, mode, state.mode),
            written=written,
            thinks=state.thinks & ~opens,
            pending=jnp.where(going, ids, state.pending),
        )

    def _must_draw(self, state: State, rows: jax.Array, settings: Settings) -> jax.Array:
        """Which of the rows bool [B] have drawn, and fewer images than must come."""
        return rows & (state.drawn > 0) & (state.drawn < jnp.minimum(settings.min_images, self.limits.images))

    def _write(self, model: UnifiedModel, state: State, keys: jax.Array, settings: Settings) -> State:
        """One step of text."""
        rows = state.mode == WRITING
        content = {TEXT: state.pending[:, None]}
        inputs = lay(self.layout.token, self.task.spec, state.place, rows, content, jnp.ones(len(rows)))
        state, encoded = append(model, state, self.layout.token, inputs, rows)
        opened = rows & (state.pending == self.layout.opener)
        state = dataclasses.replace(state, mode=jnp.where(opened, DRAWING, state.mode))
        return self._choose(state, model.head(TEXT, encoded[TEXT])[:, 0], rows & ~opened, keys, settings)

    def _job(
        self,
        models: Models,
        prefix: Prefix,
        conditions: Conditions | None,
        keys: jax.Array,
        drawn: jax.Array,
        settings: Settings,
    ) -> Job:
        guidance, limits = settings.guidance, self.limits
        others: list[Prefix | None] = [None, None]
        if conditions is not None:
            parts = (conditions.without_text, conditions.without_images)
            others = [None if part is None else self._prefix(models.once, part, len(prefix.rows)) for part in parts]
            image = jnp.where(jnp.asarray(conditions.images), guidance.image, 1.0)  # 1 where there is none
            guidance = dataclasses.replace(guidance, image=image[:, None, None])
        prefix = begin(models.once, self.layout, prefix)
        how = (self.layout, self.task.objectives, limits.solver, limits.codes)
        return Job(models.often, *how, prefix, *others, guidance, settings.plan, keys, drawn)

    def _prefix(self, model: UnifiedModel, prefill: Prefill, rows: int) -> Prefix:
        """Prompts about to draw; one serves all rows."""
        prefix = begin(model, self.layout, Prefix(self._prefill(model, prefill)[0], prefill.place, prefill.draw))
        return prefix if len(prefill.draw) == rows else broadcast(prefix, rows)

    def _draw(
        self, models: Models, state: State, conditions: Conditions | None, keys: jax.Array, settings: Settings
    ) -> State:
        """One image for each row that waits for it, and the clean image and its closer into the cache."""
        rows = state.mode == DRAWING
        prefix = Prefix(state.cache, state.place, rows)
        job = self._job(models, prefix, conditions, keys, state.drawn, settings)
        x = DRAWINGS[self.layout.stream.objective].draw(job)
        state = put_images(state, x, rows)
        more = (rows & (state.written < settings.max_tokens)) | self._must_draw(state, rows, settings)
        state = dataclasses.replace(state, mode=jnp.where(rows, DONE, state.mode))
        if not self.limits.goes_on or not self.layout.goes_on:
            return state

        def finish(state):
            model, part = models.once, self.layout.finished
            streams = self.task.spec.streams
            content = {name: self.layout.drawn_as(name, x) for name in part.pieces if streams[name].media}
            inputs = lay(part, self.task.spec, state.place, more, content, jnp.ones(len(rows)))
            state, encoded = append(model, state, part, inputs, more)
            state = dataclasses.replace(state, mode=jnp.where(more, WRITING, state.mode))
            last = jnp.full(len(rows), len(part.pieces[TEXT]["order"]) - 1)
            return self._choose(state, _logits(model, encoded[TEXT], last), more, keys, settings)

        return jax.lax.cond(more.any(), finish, lambda state: state, state)

    def _spell(
        self, models: Models, state: State, conditions: Conditions | None, keys: jax.Array, settings: Settings
    ) -> State:
        """One image, id by id, for each row that waits for it."""
        rows = state.mode == DRAWING
        prefix = Prefix(state.cache, state.place, rows)
        job = self._job(models, prefix, conditions, keys, state.drawn, settings)
        state = spelled.draw(job, self.grammar, state)
        more = (rows & (state.written < settings.max_tokens)) | self._must_draw(state, rows, settings)
        more &= self.limits.goes_on and self.layout.goes_on
        return dataclasses.replace(state, mode=jnp.where(rows, jnp.where(more, WRITING, DONE), state.mode))

    def _run(
        self, params: Params, prefill: Prefill, conditions: Conditions | None, keys: jax.Array, settings: Settings
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Ids [B, T], their number [B], and images [B, M, N, E] or [B, M, N]."""
        models = self._models(params)
        cache, logits = self._prefill(models.once, prefill)
        state = self._start(cache, prefill)
        writes, draws = self.limits.ids > 0 or self.limits.goes_on, self.limits.images > 0
        draw = self._spell if self.layout.spelled else self._draw
        state = self._choose(state, logits, state.mode == WRITING, keys, settings)

        def phase(state):
            if writes:
                state = jax.lax.while_loop(
                    lambda s: (s.mode == WRITING).any(), lambda s: self._write(models.often, s, keys, settings), state
                )
            if draws:
                waits = (state.mode == DRAWING).any()
                state = jax.lax.cond(waits, lambda s: draw(models, s, conditions, keys, settings), lambda s: s, state)
            return state

        state = jax.lax.while_loop(lambda s: (s.mode != DONE).any(), phase, state)
        return state.ids, state.count, state.images

    def _room(self) -> int:
        """Slots of the cache behind the prompts."""
        limits, layout = self.limits, self.layout
        if not limits.images:
            return limits.ids
        if layout.spelled:
            return limits.ids + limits.images * (self.grammar.longest + 1)
        # A drawing without text before or after it needs no room in the cache.
        per_image = (layout.finished.length if limits.goes_on else 0) + 1
        return limits.ids + limits.images * per_image if limits.ids or limits.goes_on else 0

    def _start(self, cache: KeyValues, prefill: Prefill) -> State:
        limits, layout, room = self.limits, self.layout, self._room()
        if not limits.images or layout.spelled:
            return start(cache, prefill, room, room, (0, 0, 0), layout.opener if limits.images else -1)
        content = layout.content
        shape = (limits.images, *content.shape)
        return start(cache, prefill, room, limits.ids + limits.images, shape, layout.opener, content.dtype)

    def _trace(self, params: Params, prefill: Prefill, conditions: Conditions | None, keys, settings: Settings):
        models = self._models(params)
        cache, _ = self._prefill(models.once, prefill)
        drawn = jnp.zeros(len(prefill.draw), jnp.int32)
        prefix = Prefix(cache, prefill.place, prefill.draw)
        return solve(self._job(models, prefix, conditions, keys, drawn, settings), record=True)


def _logits(model: UnifiedModel, encoded, last: jax.Array) -> jax.Array:
    """Logits [B, V] at the tokens last int32 [B]."""
    hidden = jnp.take_along_axis(encoded.hidden, jnp.asarray(last)[:, None, None], axis=1)
    return model.head(TEXT, dataclasses.replace(encoded, hidden=hidden))[:, 0]


@lru_cache(maxsize=32)
def decoder(task: Learner, limits: Limits, size: tuple[int, ...]) -> Decoder:
    """The decoder of a task, compiled once per set of limits and shapes of prompts."""
    return Decoder(task, limits, size)


def prepare(task: Learner, config: SamplerConfig, size: tuple[int, ...]) -> tuple[Decoder, Settings]:
    """The decoder for a config, and what of it may change without compiling anew.

    Raises:
      UsageError: on an unknown solver, or if what a prompt leaves behind depends on what is drawn after it.
    """
    check("sampling.solver", config.solver, SOLVERS)
    for name, stream in task.spec.streams.items():
        if stream.condition:
            raise UsageError(
                f"this model does not sample: the noise level of {stream.condition!r} modulates its stream {name!r} "
                f"(streams.{name}.condition), and the decoder keeps what it has read"
            )
    choice = Choice(config.temperature == 0, config.top_k, config.top_p < 1)
    ids = bucket(config.think + config.max_tokens, 16) if config.think + config.max_tokens else 0
    layout = Layout(task.spec, size)
    images = config.max_images if layout.kind else 0
    codes = Choice(config.code_temperature == 0, config.code_top_k, config.code_top_p < 1)
    plan = DRAWINGS[layout.stream.objective].plan(task.objectives, layout, config) if images else None
    guidance = (config.guidance, config.guidance_low, config.guidance_high, config.image_guidance, config.renorm_least)
    guidance = Guidance(*map(np.float32, guidance), config.renorm, config.image_against)
    temperature, top_p = np.float32(config.temperature), np.float32(config.top_p)
    counts = (np.int32(n) for n in (config.think, config.max_tokens, config.min_images))
    settings = Settings(plan, guidance, temperature, top_p, *counts)
    return decoder(task, Limits(config.solver, choice, ids, images, config.goes_on, codes), size), settings


def generate(
    task: Learner,
    params: Params,
    prompts: Sequence[Prompt],
    seed: int,
    config: SamplerConfig,
    *,
    batch: int = ROWS,
    size: tuple[int, ...] = (0, 0),
    first: int = 0,
) -> list[Document]:
    """Continues each prompt with what the model writes and draws.

    Args:
      task: builds the model.
      params: its parameters.
      prompts: see `Prompt`.
      seed: with the number of a prompt in the list it decides all its random numbers, whatever the batch.
      config: how.
      batch: prompts at a time. Their number is filled up to a power of two, or to this: one compilation serves all
        numbers in between.
      size: height and width of the latents, for models that draw any size.
      first: the number of the first prompt, where the list is a part of a longer one.

    Returns:
      Per prompt the segments that follow it in reading order: text ids int32 [n] without special tokens, and latents
      float32 [h, w, C] or codes int32 [h, w]. A prompt's segments and these, and what the user says next, are the next
      turn's prompt.

    Raises:
      UsageError: on an unknown solver, or a prompt that does not fit the model or the memory.
    """
    if any(prompt.draw for prompt in prompts) and not config.max_images:
        raise UsageError("sampling.max_images is 0, but a prompt asks for an image")
    made, settings = prepare(task, config, size)
    images = any(map(has_images, prompts))
    results: list[Document] = []
    for start_of_part in range(0, len(prompts), batch):
        part = list(prompts[start_of_part : start_of_part + batch])
        # The last part is filled up to the shape of the others: one compilation. What it is filled with is its last
        # row once more, which takes no step that this one does not take.
        rows = batch if len(prompts) > batch else min(batch, bucket(len(part), 1))
        filled = part + part[-1:] * (rows - len(part))
        keys = row_keys(seed, first + start_of_part + np.minimum(np.arange(rows), len(part) - 1))
        made.check_memory(filled)
        conditions = made.layout.conditions(filled, config, images)
        prefill = made.layout.prefill(filled, think=config.think > 0)
        out = jax.device_get(made.run(params, prefill, conditions, keys, settings))
        results += [_document(made.layout, *(array[i] for array in out), prompt) for i, prompt in enumerate(part)]
    return results


def _document(layout: Layout, ids: np.ndarray, count: int, images: np.ndarray, prompt: Prompt) -> Document:
    """A row's output as segments; what was drawn keeps the class that was asked for, as the next turn's prompt."""
    if layout.spelled:
        return spelled.document(layout, ids[:count])
    segments, text, drawn = [], [], 0
    for token in ids[:count]:
        if token != layout.opener:
            text.append(token)
            continue
        if text:
            segments.append(Segment("text", np.array(text, np.int32)))
        drawing = latents_of(layout, images[drawn])
        segments.append(Segment(layout.kind, drawing, "context", prompt.label, pooled=prompt.pooled))
        text, drawn = [], drawn + 1
    if text:
        segments.append(Segment("text", np.array(text, np.int32)))
    return tuple(segments)
