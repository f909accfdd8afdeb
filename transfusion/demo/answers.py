"""The answer of a model as the page shows it: moment by moment, with each picture on its way from noise."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from transfusion.api import Trained
from transfusion.api.prompts import Part
from transfusion.sampling.drawable import chosen, drawables_of
from transfusion.sampling.drawing import DRAWINGS
from transfusion.sampling.trajectory import Prompt, Trajectory, trajectory

# What a person may wish for -> whether a drawing must come, and settings of the sampler.
WISHES: dict[str, tuple[bool, dict[str, Any]]] = {
    "the model decides": (False, {"max_images": 1}),
    "draw": (True, {"max_images": 1, "max_tokens": 0}),
    "write": (False, {"max_images": 0}),
}
FRAMES = 60  # the most moments of a picture that are shown


@dataclasses.dataclass(frozen=True)
class Moment:
    """What the page shows at one moment of an answer.

    Attributes:
      parts: the texts and media of the answer that are finished.
      noisy, guess: the picture on its way, and what the model expects it to become, uint8 [H, W, C]; None between
        pictures.
      time: from 0, all noise, to 1, the finished picture.
    """

    parts: tuple[str | np.ndarray, ...]
    noisy: np.ndarray | None = None
    guess: np.ndarray | None = None
    time: float = 1.0


def answer(run: Trained, said: Sequence[Part], wish: str, seed: int, **settings: Any) -> Iterator[Moment]:
    """Answers what was `said`, parts in reading order; the last moment holds the whole answer.

    Pictures that begin as noise are shown on their way. Such a picture is drawn a second time for that, from the same
    noise behind the same tokens, so what is watched is what the model does.

    Args:
      run: the model.
      said: texts and media.
      wish: a key of `WISHES`.
      seed: same seed, same answer.
      settings: fields of `SamplerConfig`; those that a wish decides are not read.

    Raises:
      UsageError: as `Trained.generate`.
    """
    draw, limits = WISHES[wish]
    settings |= limits
    parts = tuple(run.generate([list(said)], draw=draw, kind=run.shows if draw else "", seed=seed, **settings)[0])
    for number, part in enumerate(parts):
        if not isinstance(part, str) and shows_noise(run):
            before = parts[:number]
            yield from (
                dataclasses.replace(moment, parts=before)
                for moment in on_the_way(run, [*said, *before], seed, **settings)
            )
        yield Moment(parts[: number + 1])
    if not parts:
        yield Moment(())


def shows_noise(run: Trained) -> bool:
    """Whether the model draws pictures, from noise: codes have no way from noise to a picture."""
    if run.shows != "image":
        return False
    drawn = chosen(drawables_of(run.spec), run.shows)
    return DRAWINGS[drawn.stream.objective].record is not None


def on_the_way(run: Trained, said: Sequence[Part], seed: int, **settings: Any) -> Iterator[Moment]:
    """The moments of the picture that the model draws behind what was `said`, at most `FRAMES` of them."""
    path = way_of(run, said, seed, **settings)
    steps = np.unique(np.linspace(0, len(path.times) - 1, min(FRAMES, len(path.times))).round().astype(int))
    for step in steps:
        yield Moment((), _pixels(run, path.x[step]), _pixels(run, path.data[step]), float(path.times[step]))


def way_of(run: Trained, said: Sequence[Part], seed: int, **settings: Any) -> Trajectory:
    """The trajectory of the picture that the model draws behind what was `said`."""
    config = run.sampler(**settings)
    segments = tuple(segment for part in said for segment in run.segments(part))
    against = run.segments(config.negative) if config.negative else ()
    return trajectory(run.task, run.params, Prompt(segments, True, against, kind=run.shows), seed, config)


def _pixels(run: Trained, latents: np.ndarray) -> np.ndarray:
    return run.codecs[run.shows].decode(latents)
