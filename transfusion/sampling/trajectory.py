"""The trajectory of an image: the states that it passes through while a solver draws it."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from transfusion.errors import UsageError
from transfusion.learner import Learner
from transfusion.model.parameters import Params
from transfusion.sampling.config import SamplerConfig
from transfusion.sampling.decoder import decoder_of
from transfusion.sampling.drawing import DRAWINGS
from transfusion.sampling.prompts import Prompt, conditions_of, prefill_of
from transfusion.sampling.state import row_keys

__all__ = ["Prompt", "Trajectory", "trajectory"]


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """One image from noise to data: float32 times [k], x_t and the estimates of the data [k, h, w, C]."""

    times: np.ndarray
    x: np.ndarray
    data: np.ndarray


def trajectory(
    task: Learner,
    params: Params,
    prompt: Prompt,
    seed: int,
    config: SamplerConfig,
    *,
    at: Sequence[int] | None = None,
    size: tuple[int, ...] = (0, 0),
) -> Trajectory:
    """Draws the image that `generate` draws first for [prompt] with draw=True, and returns its trajectory.

    `at` names the steps (default: all); the finished image, as x and data at t = 1, is always the last entry.

    Raises:
      UsageError: if the model draws nothing, or codes.
    """
    config = dataclasses.replace(config, max_images=max(config.max_images, 1))
    config = dataclasses.replace(config, max_tokens=0)  # nothing comes after it, so only its kind is drawn
    prompt = dataclasses.replace(prompt, draw=True)
    made, settings = decoder_of(task, config, size, [prompt])
    (drawn,), (way,) = made.drawables, made.ways
    prefill = prefill_of([prompt], task.spec, made.drawables)
    if DRAWINGS[drawn.stream.objective].record is None:
        raise UsageError("codes are drawn without noise: there is no trajectory from noise to an image")
    conditions = conditions_of([prompt], task.spec, made.drawables, config)
    last, (x, data) = made.trace(params, prefill, conditions, row_keys(seed, np.zeros(1, np.int32)), settings)
    times = settings.kinds[0].schedule
    steps = list(range(len(times) - 1) if at is None else at)
    x, data, last = (way.parts.media(np.asarray(a)[..., 0, :, :]) for a in (x, data, last))
    end = last[None]
    return Trajectory(times[[*steps, -1]], np.concatenate([x[steps], end]), np.concatenate([data[steps], end]))
