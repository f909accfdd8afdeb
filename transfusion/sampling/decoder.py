"""Continues lists of prompts: they stream through the rows of the compiled loop (`transfusion.sampling.loop`).

A row that has finished takes the next prompt, so that no row waits for the longest text of a batch. What a prompt gives
depends on its number in the list and on nothing else: not on its row, the number of rows or the other prompts.
"""

from collections.abc import Sequence
from functools import lru_cache

import jax
import numpy as np

from transfusion.errors import UsageError
from transfusion.learner import Learner
from transfusion.model.parameters import Params
from transfusion.sampling.config import SamplerConfig
from transfusion.sampling.drawable import chosen, drawables_of
from transfusion.sampling.loop import Decoder
from transfusion.sampling.memory import check_memory
from transfusion.sampling.parts import Size
from transfusion.sampling.prompts import Prompt, bucket
from transfusion.sampling.queue import Queue
from transfusion.sampling.settings import Limits, Settings, limits_of, machine_of, settings_of
from transfusion.sampling.state import FINISHED, row_keys
from transfusion.sampling.ways import sizes_of
from transfusion.sequence import Document

__all__ = ["ROWS", "Prompt", "generate"]

ROWS = 64  # prompts that are decoded at a time
# New prompts are read when this share of the rows has finished, as many at a time.
ADMITTED = 4


@lru_cache(maxsize=32)
def _cached(task: Learner, limits: Limits) -> Decoder:
    """Makes the decoder of a task, compiled once per set of limits and shapes of prompts."""
    return Decoder(task, limits, machine_of(jax.default_backend()))


def decoder_of(
    task: Learner, config: SamplerConfig, size: Size, prompts: Sequence[Prompt] = ()
) -> tuple[Decoder, Settings]:
    """Makes the decoder for a config, and the settings that may change without compiling anew.

    It draws the kinds for which the `prompts` ask, and where anything is written all others of known size.

    Raises:
      UsageError: if the cache that a prompt leaves depends on the drawing after it, or the model draws no such kind, or
        none of this size.
    """
    spec = task.spec
    for name, stream in spec.streams.items():
        if stream.released.condition:
            raise UsageError(
                f"this model does not sample: the noise level of {stream.released.condition!r} modulates its stream "
                f"{name!r} (streams.{name}.released.condition), and the decoder keeps what it has read"
            )
    drawables = drawables_of(spec)
    asked = {chosen(drawables, kind).kind for kind in dict.fromkeys(prompt.kind for prompt in prompts if prompt.draw)}
    sizes = sizes_of(spec, size, asked, config.max_tokens > 0 or not prompts) if config.max_images else {}
    made = _cached(task, limits_of(config, sizes))
    schedules = {
        way.parts.drawable.kind: way.schedule(task.objectives, config.of_kind(way.parts.drawable.kind))
        for way in made.ways
    }
    return made, settings_of(config, schedules)


def generate(
    task: Learner,
    params: Params,
    prompts: Sequence[Prompt],
    seed: int,
    config: SamplerConfig,
    *,
    batch: int = ROWS,
    size: Size = (0, 0),
    first: int = 0,
    numbers: Sequence[int] | None = None,
) -> list[Document]:
    """Continues each prompt with what the model writes and draws.

    Args:
      task: builds the model.
      params: the model's parameters.
      prompts: see `Prompt`.
      seed: decides, with the number of a prompt in the list, all random numbers of that prompt, whatever the batch.
      config: the settings of the decoder.
      batch: rows, which is how many prompts are decoded at a time. Fewer prompts are filled up to a power of two, or
        to this: one compilation serves all numbers in between.
      size: sides of the latents or codes that are drawn, for models that draw several, unless a prompt says its own.
      first: the number of the first prompt, where the list is a part of a longer one.
      numbers: the numbers of all prompts, each below 2**31, in place of `first` and those after it.

    Returns:
      Per prompt the segments that follow it in reading order: text ids int32 [n] without special tokens, and latents
      float32 [h, w, C] or codes int32 [h, w]. A prompt's segments and these, and what the user says next, are the next
      turn's prompt.

    Raises:
      UsageError: if a prompt does not fit the model or the memory, or asks for what the model does not draw.
    """
    if any(prompt.draw for prompt in prompts) and not config.max_images:
        raise UsageError("sampling.max_images is 0, but a prompt asks for an image")
    groups: dict[tuple[Size, str], list[int]] = {}
    for number, prompt in enumerate(prompts):
        # Each size is a program. So is each kind where nothing is written, as rows of one kind do not wait for another.
        kind = "" if config.max_tokens else prompt.kind
        groups.setdefault((tuple(prompt.size or size), kind), []).append(number)
    results: dict[int, Document] = {}
    named = np.arange(first, first + len(prompts)) if numbers is None else np.asarray(numbers)
    for (of_group, _), places in groups.items():
        part = [prompts[number] for number in places]
        made, settings = decoder_of(task, config, of_group, part)
        documents = _generate(made, settings, params, part, named[places], seed, config, batch)
        results |= dict(zip(places, documents, strict=True))
    return [results[number] for number in range(len(prompts))]


def _generate(
    made: Decoder,
    settings: Settings,
    params: Params,
    prompts: Sequence[Prompt],
    numbers: np.ndarray,
    seed: int,
    config: SamplerConfig,
    batch: int,
) -> list[Document]:
    """Continues prompts that one decoder serves; `numbers` are those that they have in the whole list."""
    rows = min(batch, bucket(len(prompts), 1))
    queue = Queue(prompts, made.task.spec, made.drawables, config, rows)
    check_memory(made.task, rows, queue.fit.length, made.room, made.together)
    weights = made.ready(params)

    def keys(held: np.ndarray) -> jax.Array:
        return row_keys(seed, numbers[held])

    results: dict[int, Document] = {}
    few = max(1, rows // ADMITTED)
    state = made.start(weights, queue.prefill(queue.held), keys(queue.held), settings)
    while len(results) < len(prompts):
        enough = np.int32(few if queue.left else rows)
        state = made.run(weights, state, queue.conditions, keys(queue.held), settings, enough)
        mode, ids, count, images = jax.device_get((state.mode, state.ids, state.count, state.images))
        finished = np.flatnonzero(mode == FINISHED)
        for row, number in zip(finished, queue.held[finished].tolist(), strict=True):
            if number not in results:
                drawn = [of_kind[row] for of_kind in images]
                results[number] = made.document(ids[row, : count[row]], drawn, prompts[number])
        for admitted, free in queue.admitted(finished, few):
            state = made.admit(weights, state, queue.prefill(admitted), keys(admitted), settings, free)
    return [results[number] for number in range(len(prompts))]
