"""A conversation with one person: what was read in earlier turns stays in the cache, and only what is new is read.

What the model said in a turn is read again, as a part of what is new in the next turn, because a prompt holds drawings
as they are read, and the decoder's cache as they are drawn. So an answer is what `decoder.generate` gives for the whole
conversation as one prompt.

Shape letters: S slots of the cache, N tokens of a stream.
"""

import dataclasses
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np

from transfusion.errors import UsageError
from transfusion.learner import Learner
from transfusion.model.cache import KeyValues
from transfusion.model.inputs import Inputs
from transfusion.model.parameters import Params
from transfusion.sampling.config import SamplerConfig
from transfusion.sampling.decoder import decoder_of
from transfusion.sampling.loop import Decoder, Weights
from transfusion.sampling.memory import check_memory
from transfusion.sampling.place import Place
from transfusion.sampling.prompts import Prefill, Prompt, bucket, conditions_of, prefill_of
from transfusion.sampling.settings import Settings
from transfusion.sampling.state import State, logits_at, row_keys
from transfusion.sequence import TEXT, Document
from transfusion.sequence.rows import expand

LEAST = 64  # slots of the smallest cache; larger ones have a power of two times as many, to compile seldom


@dataclasses.dataclass(frozen=True)
class Kept:
    """What has been read of a conversation.

    Attributes:
      cache: keys and values of its tokens in reading order, in one row of S slots; the rest is padding.
      used: how many slots hold a token.
      counter, spans: see `Place`.
    """

    cache: KeyValues
    used: int
    counter: int
    spans: int


def reply(
    task: Learner,
    params: Params,
    prompt: Prompt,
    new: Document,
    kept: Kept | None,
    seed: int,
    config: SamplerConfig,
    *,
    size: tuple[int, ...] = (0, 0),
    number: int = 0,
) -> tuple[Document, Kept]:
    """Answers a turn: the same segments as `decoder.generate` gives for `prompt`, and what has been read then.

    Args:
      task: builds the model.
      params: the model's parameters.
      prompt: the whole conversation, which `Prompt.draw` asks to answer with an image.
      new: its last segments, those that `kept` does not hold; all of them without it.
      kept: what earlier turns have read.
      seed: decides all random numbers, together with `number`.
      config: the settings of the decoder.
      size: height and width of the latents, for models that draw any size.
      number: that of the turn, as `decoder.generate` numbers prompts with `first`.

    Raises:
      UsageError: if the prompt does not fit the model or the memory.
    """
    if prompt.draw and not config.max_images:
        raise UsageError("sampling.max_images is 0, but a prompt asks for an image")
    made, settings = decoder_of(task, config, size, [prompt])
    spec, part = task.spec, dataclasses.replace(prompt, segments=new)
    prefill = prefill_of([part], spec, made.drawables, config.think > 0, begin=kept is None)
    read = expand(new, spec, begin=kept is None, end=False)  # without the opener of a drawing that follows
    before = (kept.used, kept.counter, kept.spans) if kept else (0, 0, 0)
    check_memory(task, 1, before[0] + int(prefill.place.order[0]), made.room, made.together)
    weights, keys = made.ready(params), row_keys(seed, np.array([number]))
    if kept is None:
        state = made.start(weights, prefill, keys, settings)
    else:
        state = _behind(made)(weights, kept.cache, np.int32(kept.used), _moved(prefill, before), keys, settings)
    after = Kept(
        *_in_order(state.line.cache, before[0] + read.length), before[1] + read.counter, before[2] + read.spans
    )
    conditions = conditions_of([prompt], spec, made.drawables, config)
    state = made.run(weights, state, conditions, keys, settings, np.int32(1))  # which gives the state away
    ids, count, images = jax.device_get((state.ids, state.count, state.images))
    return made.document(ids[0, : count[0]], [of_kind[0] for of_kind in images], prompt), after


def _moved(prefill: Prefill, before: tuple[int, int, int]) -> Prefill:
    """The prompt behind so many tokens, rotary indices and spans."""
    order, counter, spans = before

    def moved(part: Inputs) -> Inputs:
        meta = part.metadata
        span = np.where(np.asarray(meta.span) > 0, np.asarray(meta.span) + spans, 0).astype(np.int32)
        meta = dataclasses.replace(meta, order=meta.order + np.int32(order), span=span)
        return dataclasses.replace(part, metadata=meta, position=part.position + np.int32(counter))

    place = prefill.place
    there = Place(place.order + order, place.counter + counter, place.spans + spans, place.asked)
    return dataclasses.replace(prefill, inputs={n: moved(x) for n, x in prefill.inputs.items()}, place=there)


@lru_cache(maxsize=32)
def _behind(made: Decoder):
    return jax.jit(partial(_start_behind, made))


def _start_behind(
    made: Decoder,
    weights: Weights,
    cache: KeyValues,
    used: jax.Array,
    prefill: Prefill,
    keys: jax.Array,
    settings: Settings,
) -> State:
    """Reads a prompt behind a cache of which `used` slots hold tokens, and chooses what comes first."""
    model, slots = made.once.bind(weights.params), {}
    at = used
    for name, part in prefill.inputs.items():
        n = part.metadata.order.shape[1]
        slots[name] = at + jnp.arange(n)[None]
        at += n
    new = sum(part.metadata.order.shape[1] for part in prefill.inputs.values())
    encoded, cache = model.extend(prefill.inputs, cache.grown(new), slots)
    logits = logits_at(model, encoded[TEXT], prefill.last)
    return made.first(cache, prefill, logits, keys, settings)


def _in_order(cache: KeyValues, length: int) -> tuple[KeyValues, int]:
    """The first `length` tokens of a document in a cache of one row, without the padding between them."""
    document, order = (np.asarray(getattr(cache.metadata, name))[0] for name in ("document", "order"))
    found = np.flatnonzero((document > 0) & (order < length))
    found = found[np.argsort(order[found], kind="stable")]
    slots = np.zeros(bucket(len(found), LEAST), np.int32)
    slots[: len(found)] = found
    return _chosen(cache, slots, np.int32(len(found))), len(found)


@jax.jit
def _chosen(cache: KeyValues, slots: jax.Array, used: jax.Array) -> KeyValues:
    k, v = jax.tree.map(lambda x: x[:, :, slots], (cache.k, cache.v))
    holds = jnp.arange(len(slots)) < used
    return KeyValues(k, v, jax.tree.map(lambda x: jnp.where(holds, x[:, slots], 0), cache.metadata))
