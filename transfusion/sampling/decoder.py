"""The interleaved decoder: text token by token and images in between, in one compiled loop over a batch of prompts.

All rows write text, a token a step, until each has ended or waits at an opener. Then the rows that wait draw one image
each after their cached prefix, in one of the two ways of `transfusion.sampling.ways`, and text goes on behind it.
Guidance compares with the prompt without its text, and without its images; neither holds anything written or drawn
since. `transfusion.sampling.reference` does the same without a cache.
"""

import dataclasses
from collections.abc import Sequence
from functools import cached_property, lru_cache

import jax
import jax.numpy as jnp
import numpy as np

from transfusion.errors import UsageError
from transfusion.learner import Learner
from transfusion.model.cache import KeyValues
from transfusion.model.depth import by_layer
from transfusion.model.parameters import Params
from transfusion.model.transformer import FIRST
from transfusion.model.unified import UnifiedModel, model_template
from transfusion.sampling.config import SamplerConfig
from transfusion.sampling.drawable import Drawable, drawable_of
from transfusion.sampling.drawing import DRAWINGS, Recorded
from transfusion.sampling.memory import check_memory
from transfusion.sampling.parts import Size
from transfusion.sampling.prompts import (
    Conditions,
    Prefill,
    Prompt,
    bucket,
    conditions_of,
    expand_prompt,
    has_images,
    prefill_of,
)
from transfusion.sampling.request import Prefix, Request, broadcast
from transfusion.sampling.settings import Limits, Settings, limits_of, settings_of
from transfusion.sampling.state import DRAWING, FINISHED, NO_IMAGES, WRITING, State, first_state, logits_at, row_keys
from transfusion.sampling.ways import Way, way_of
from transfusion.sampling.writer import Writer
from transfusion.sequence import TEXT, Document, Segment

__all__ = ["ROWS", "Prompt", "generate"]

ROWS = 64  # prompts that are decoded at a time

# On a CPU, unrolled layers need no copy of each layer's weights per step, which decides there; compiling is the cost.
UNROLLED_LAYERS = 16


@dataclasses.dataclass(frozen=True)
class Models:
    """The model with its parameters in two forms: quick to compile for code that runs once, and fast for the loops."""

    once: UnifiedModel
    often: UnifiedModel


@dataclasses.dataclass(frozen=True, eq=False)
class Decoder:
    """The compiled loop for one task and one set of limits; `size` is that of the drawing's latents or codes."""

    task: Learner
    limits: Limits
    size: Size = (0, 0)

    @cached_property
    def drawable(self) -> Drawable | None:
        """The kind of item that the model can draw, even if the limits forbid it."""
        return drawable_of(self.task.spec)

    @cached_property
    def way(self) -> Way | None:
        """The way in which the drawing is made; None if nothing is drawn."""
        if not self.limits.images:
            return None
        return way_of(self.task.spec, self.drawable, self.size, self.limits.goes_on)

    @cached_property
    def writer(self) -> Writer:
        return Writer(self.task.spec, self.limits, self.drawable if self.limits.images else None)

    @cached_property
    def once(self):
        """The form of the model that is used outside the loops."""
        return model_template(dataclasses.replace(self.task.model, remat="none"), self.task.spec)

    @cached_property
    def unrolled(self) -> bool:
        return jax.default_backend() == "cpu" and self.task.model.layers <= UNROLLED_LAYERS

    @cached_property
    def often(self):
        """The form of the model that is used in the loops."""
        config = dataclasses.replace(self.task.model, remat="none", scan=not self.unrolled)
        return model_template(config, self.task.spec)

    def _models(self, params: Params) -> Models:
        """Makes both forms of the model; call it outside the loops."""
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
        lengths = [expand_prompt(p.segments, self.task.spec, self.drawable, p.draw).length for p in different]
        together = self.way.together if self.way else 0
        check_memory(self.task, len(prompts), max(lengths), self._room, together)

    def document(self, ids: np.ndarray, images: np.ndarray, prompt: Prompt) -> Document:
        """Turns the output of a row after its prompt, ids int32 [n] and images [M, ...], into segments."""
        if self.way:
            return self.way.document(ids, images, prompt)
        return (Segment(TEXT, ids),) if len(ids) else ()

    def _prefill(self, model: UnifiedModel, prefill: Prefill) -> tuple[KeyValues, jax.Array]:
        """Runs the prompts: their keys and values, and the logits [B, V] after them."""
        encoded, kept = model.read(prefill.inputs)
        kept = kept.apart(FIRST) if self.unrolled else kept
        return kept, logits_at(model, encoded[TEXT], prefill.last)

    @property
    def _room(self) -> int:
        """The number of the cache's slots after the prompts."""
        return self.way.room(self.limits.ids, self.limits.images) if self.way else self.limits.ids

    def _first_state(self, cache: KeyValues, prefill: Prefill) -> State:
        limits = self.limits
        outputs = self.way.outputs(limits.ids, limits.images) if self.way else (limits.ids, NO_IMAGES)
        return first_state(cache, prefill, self._room, *outputs, self.writer.opener)

    def _request(
        self,
        models: Models,
        prefix: Prefix,
        conditions: Conditions | None,
        keys: jax.Array,
        drawn: jax.Array,
        settings: Settings,
    ) -> Request:
        guidance, limits = settings.guidance, self.limits
        others: list[Prefix | None] = [None, None]
        if conditions is not None:
            parts = (conditions.without_text, conditions.without_images)
            others = [None if part is None else self._prefix(models.once, part, len(prefix.rows)) for part in parts]
            image = jnp.where(jnp.asarray(conditions.images), guidance.image, 1.0)  # 1 where there is none
            guidance = dataclasses.replace(guidance, image=image[:, None, None])
        prefix = self.way.about_to_draw(models.once, prefix)
        how = (self.task.objectives, limits.solver, limits.codes)
        return Request(models.often, *how, prefix, *others, guidance, settings.schedule, keys, drawn)

    def _prefix(self, model: UnifiedModel, prefill: Prefill, rows: int) -> Prefix:
        """Makes the prefix of prompts that are about to draw; one prompt serves all rows."""
        prefix = Prefix(self._prefill(model, prefill)[0], prefill.place, prefill.draw)
        prefix = self.way.about_to_draw(model, prefix)
        return prefix if len(prefill.draw) == rows else broadcast(prefix, rows)

    def _draw(
        self, models: Models, state: State, conditions: Conditions | None, keys: jax.Array, settings: Settings
    ) -> State:
        """Draws one image for each row that waits for it."""
        rows = state.mode == DRAWING
        prefix = Prefix(state.cache, state.place, rows)
        request = self._request(models, prefix, conditions, keys, state.drawn, settings)
        state, unread = self.way.draw(request, state, rows)
        state, more = self.writer.stop(state, rows, settings)
        if not self.way.goes_on:
            return state

        def put_next(state: State, logits: jax.Array) -> State:
            return self.writer.put_next(state, logits, more, keys, settings)

        return self.way.go_on(models.once, state, unread, more, put_next)

    def _run(
        self, params: Params, prefill: Prefill, conditions: Conditions | None, keys: jax.Array, settings: Settings
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Runs the whole loop: ids [B, T], their number [B], and images [B, M, N, E] or [B, M, N]."""
        models = self._models(params)
        cache, logits = self._prefill(models.once, prefill)
        state = self._first_state(cache, prefill)
        writes, draws = self.limits.ids > 0 or self.limits.goes_on, self.way is not None
        state = self.writer.put_next(state, logits, state.mode == WRITING, keys, settings)

        def write(state: State) -> State:
            return self.writer.write(models.often, state, keys, settings)

        def draw(state: State) -> State:
            return self._draw(models, state, conditions, keys, settings)

        def phase(state: State) -> State:
            if writes:
                state = jax.lax.while_loop(lambda s: (s.mode == WRITING).any(), write, state)
            if draws:
                state = jax.lax.cond((state.mode == DRAWING).any(), draw, lambda s: s, state)
            return state

        state = jax.lax.while_loop(lambda s: (s.mode != FINISHED).any(), phase, state)
        return state.ids, state.count, state.images

    def _trace(
        self, params: Params, prefill: Prefill, conditions: Conditions | None, keys: jax.Array, settings: Settings
    ) -> Recorded:
        """Draws the first image of each row, and records the states that it passes through."""
        models = self._models(params)
        cache, _ = self._prefill(models.once, prefill)
        drawn = jnp.zeros(len(prefill.draw), jnp.int32)
        prefix = Prefix(cache, prefill.place, prefill.draw)
        request = self._request(models, prefix, conditions, keys, drawn, settings)
        return DRAWINGS[self.drawable.stream.objective].record(request, self.way.parts)


@lru_cache(maxsize=32)
def _cached(task: Learner, limits: Limits, size: Size) -> Decoder:
    """Makes the decoder of a task, compiled once per set of limits and shapes of prompts."""
    return Decoder(task, limits, size)


def decoder_of(task: Learner, config: SamplerConfig, size: Size) -> tuple[Decoder, Settings]:
    """Makes the decoder for a config, and the settings that may change without compiling anew.

    Raises:
      UsageError: if the cache that a prompt leaves depends on the drawing after it.
    """
    for name, stream in task.spec.streams.items():
        if stream.released.condition:
            raise UsageError(
                f"this model does not sample: the noise level of {stream.released.condition!r} modulates its stream "
                f"{name!r} (streams.{name}.released.condition), and the decoder keeps what it has read"
            )
    made = _cached(task, limits_of(config, drawable_of(task.spec) is not None), size)
    return made, settings_of(config, made.way.schedule(task.objectives, config) if made.way else None)


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
      params: the model's parameters.
      prompts: see `Prompt`.
      seed: decides, with the number of a prompt in the list, all random numbers of that prompt, whatever the batch.
      config: the settings of the decoder.
      batch: prompts at a time. Their number is filled up to a power of two, or to this: one compilation serves all
        numbers in between.
      size: height and width of the latents, for models that draw any size.
      first: the number of the first prompt, where the list is a part of a longer one.

    Returns:
      Per prompt the segments that follow it in reading order: text ids int32 [n] without special tokens, and latents
      float32 [h, w, C] or codes int32 [h, w]. A prompt's segments and these, and what the user says next, are the next
      turn's prompt.

    Raises:
      UsageError: if a prompt does not fit the model or the memory.
    """
    if any(prompt.draw for prompt in prompts) and not config.max_images:
        raise UsageError("sampling.max_images is 0, but a prompt asks for an image")
    made, settings = decoder_of(task, config, size)
    images = any(map(has_images, prompts))
    results: list[Document] = []
    for start_of_part in range(0, len(prompts), batch):
        part = list(prompts[start_of_part : start_of_part + batch])
        # The last part is filled up to the shape of the others: one compilation. Copies of its last
        # row fill it, because they take no step that this row does not take.
        rows = batch if len(prompts) > batch else min(batch, bucket(len(part), 1))
        filled = part + part[-1:] * (rows - len(part))
        keys = row_keys(seed, first + start_of_part + np.minimum(np.arange(rows), len(part) - 1))
        made.check_memory(filled)
        conditions = conditions_of(filled, task.spec, made.drawable, config, images)
        prefill = prefill_of(filled, task.spec, made.drawable, think=config.think > 0)
        ids, count, drawn = jax.device_get(made.run(params, prefill, conditions, keys, settings))
        results += [made.document(ids[i, : count[i]], drawn[i], prompt) for i, prompt in enumerate(part)]
    return results
