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
from transfusion.sampling.drawable import drawable_of
from transfusion.sampling.loop import Decoder
from transfusion.sampling.memory import check_memory
from transfusion.sampling.parts import Size
from transfusion.sampling.prompts import Prompt, bucket
from transfusion.sampling.queue import Queue
from transfusion.sampling.settings import Limits, Settings, limits_of, machine_of, settings_of
from transfusion.sampling.state import FINISHED, row_keys
from transfusion.sequence import Document

__all__ = ["ROWS", "Prompt", "generate"]

ROWS = 64  # prompts that are decoded at a time
# New prompts are read when this share of the rows has finished, as many at a time.
ADMITTED = 4


@lru_cache(maxsize=32)
def _cached(task: Learner, limits: Limits, size: Size) -> Decoder:
    """Makes the decoder of a task, compiled once per set of limits and shapes of prompts."""
    return Decoder(task, limits, machine_of(jax.default_backend()), size)


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
      batch: rows, which is how many prompts are decoded at a time. Fewer prompts are filled up to a power of two, or
        to this: one compilation serves all numbers in between.
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
    if not prompts:
        return []
    made, settings = decoder_of(task, config, size)
    rows = min(batch, bucket(len(prompts), 1))
    queue = Queue(prompts, task.spec, made.drawable, config, rows)
    check_memory(task, rows, queue.fit.length, made.room, made.together)
    weights = made.ready(params)

    def keys(numbers: np.ndarray) -> jax.Array:
        return row_keys(seed, first + numbers)

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
                results[number] = made.document(ids[row, : count[row]], images[row], prompts[number])
        for numbers, free in queue.admitted(finished, few):
            state = made.admit(weights, state, queue.prefill(numbers), keys(numbers), settings, free)
    return [results[number] for number in range(len(prompts))]
