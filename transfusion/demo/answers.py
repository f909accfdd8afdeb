"""The answer of a model as the page shows it: moment by moment, with each picture on its way from noise."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from transfusion.api import Trained
from transfusion.api.prompts import Part
from transfusion.sampling.config import SamplerConfig
from transfusion.sampling.drawable import chosen, drawables_of
from transfusion.sampling.drawing import DRAWINGS
from transfusion.sampling.prompts import Prompt
from transfusion.sampling.trajectory import trajectory
from transfusion.sequence import TEXT, Document, Segment

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


Turn = tuple[str, Sequence[Part]]  # 'user' or 'assistant', and texts and media in reading order


def usual(run: Trained) -> dict[str, Any]:
    """The settings of the sampler with which the page begins."""
    own = run.experiment.sampling
    limit = own.max_tokens or 32
    return {"guidance": own.guidance, "steps": own.steps, "temperature": own.temperature, "max_tokens": limit}


def apart(run: Trained) -> dict[str, Any]:
    """Settings of single kinds of drawings would hide those of the page."""
    return {"kinds": {}} if run.experiment.sampling.kinds else {}


def document_of(run: Trained, turns: Sequence[Turn], template: bool) -> Document:
    """The conversation as the model reads it before it answers.

    With `template`, each turn stands in the chat template of the run's tokenizer, as in `transfusion.api.chat.Chat`;
    without it, the parts of all turns follow each other.
    """
    chat, segments = run.task.tokenizer.chat, []
    for whose, parts in turns:
        content = [segment for part in parts for segment in run.segments(part)]
        if template:
            content = [Segment(TEXT, chat.before(whose)), *content, Segment(TEXT, chat.after(whose))]
        segments += content
    if template:
        segments.append(Segment(TEXT, chat.before("assistant")))
    return tuple(segment for segment in segments if len(segment.value))


def answer(run: Trained, said: Document, wish: str, seed: int, **settings: Any) -> Iterator[Moment]:
    """Answers what was `said`; the last moment holds the whole answer.

    Pictures that begin as noise are shown on their way. Such a picture is drawn a second time for that, from the same
    noise behind the same tokens, so what is watched is what the model does.

    Args:
      run: the model.
      said: the conversation, see `document_of`.
      wish: a key of `WISHES`.
      seed: same seed, same answer.
      settings: fields of `SamplerConfig`; those that a wish decides are not read.

    Raises:
      UsageError: as `Trained.generate`.
    """
    draw, limits = WISHES[wish]
    sampler = run.sampler(**settings | limits)
    prompt = Prompt(said, draw, _against(run, sampler), kind=run.shows if draw else "")
    parts = tuple(run.continued([prompt], seed, sampler)[0])
    for number, part in enumerate(parts):
        if not isinstance(part, str) and shows_noise(run):
            before = tuple(segment for one in parts[:number] for segment in run.segments(one))
            for moment in on_the_way(run, (*said, *before), seed, sampler):
                yield dataclasses.replace(moment, parts=parts[:number])
        yield Moment(parts[: number + 1])
    if not parts:
        yield Moment(())


def _against(run: Trained, sampler: SamplerConfig) -> Document:
    return run.segments(sampler.negative) if sampler.negative else ()


def shows_noise(run: Trained) -> bool:
    """Whether the model draws pictures, from noise: codes have no way from noise to a picture."""
    if run.shows != "image":
        return False
    drawn = chosen(drawables_of(run.spec), run.shows)
    return DRAWINGS[drawn.stream.objective].record is not None


def on_the_way(run: Trained, said: Document, seed: int, sampler: SamplerConfig) -> Iterator[Moment]:
    """The moments of the picture that the model draws behind what was `said`, at most `FRAMES` of them."""
    prompt = Prompt(said, True, _against(run, sampler), kind=run.shows)
    path = trajectory(run.task, run.params, prompt, seed, sampler)
    decode = run.codecs[run.shows].decode
    steps = np.unique(np.linspace(0, len(path.times) - 1, min(FRAMES, len(path.times))).round().astype(int))
    for step in steps:
        yield Moment((), decode(path.x[step]), decode(path.data[step]), float(path.times[step]))
