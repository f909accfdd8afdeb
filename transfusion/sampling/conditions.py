"""What guidance compares with: versions of the prompts without text, or without one kind of their media.

Shape letters: B rows.
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from transfusion.sampling.config import SamplerConfig
from transfusion.sampling.drawable import Drawable
from transfusion.sampling.prompts import Prefill, Prompt, prefill_of
from transfusion.sequence import TEXT, Segment, SequenceSpec, text


def held(prompts: Sequence[Prompt]) -> list[str]:
    """The kinds of media that some of the prompts hold, by their names."""
    return sorted({segment.kind for prompt in prompts for segment in prompt.segments} - {TEXT})


def guiding(prompts: Sequence[Prompt], config: SamplerConfig) -> list[str]:
    """The kinds of media of the prompts by which something is guided."""
    return [kind for kind in held(prompts) if config.of_condition(kind) != 1]


def without_text(prompt: Prompt, how: str = "drop") -> Prompt:
    """Returns the prompt without its text, about to draw.

    In the text's place stands `negative` or, without one, what `text.UNSEEN[how]` makes of the text.
    """
    parts = []
    for segment in prompt.segments:
        if segment.kind != TEXT:
            parts.append(segment)
        elif not prompt.negative and (ids := text.UNSEEN[how](segment.value)) is not None:
            parts.append(dataclasses.replace(segment, value=ids))
    return Prompt((*parts, *prompt.negative), draw=True, kind=prompt.kind)


def without_kind(prompt: Prompt, kind: str, spec: SequenceSpec, against: str) -> Prompt:
    """Returns the prompt without its media of one kind, about to draw.

    `against` is the field of `Guidance`: with 'text' all else stays at its position, with 'nothing' the text is left
    out, too.
    """

    def dropped(segment: Segment) -> Segment:
        return dataclasses.replace(segment, dropped=tuple(run.stream for run in spec.runs(segment)))

    if against == "nothing":
        rest = tuple(segment for segment in prompt.segments if segment.kind not in (TEXT, kind))
        return Prompt(rest, draw=True, kind=prompt.kind)
    segments = tuple(dropped(s) if s.kind == kind else s for s in prompt.segments)
    return dataclasses.replace(prompt, segments=segments, draw=True)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Conditions:
    """The other versions of the prompts with which guidance compares.

    Attributes:
      without_text: the prompts' media alone; one row for all where they are the same.
      without: the prompts without one kind of media, for each kind that guides.
      scales: float32 [B], the scale of each of these kinds; 1 of prompts that hold none of it.
    """

    without_text: Prefill
    without: tuple[Prefill, ...]
    scales: tuple[jax.Array, ...]


ByKind = tuple[Conditions | None, ...]  # for each kind that is drawn; None without guidance


def compared(prompts: Sequence[Prompt], config: SamplerConfig, spec: SequenceSpec) -> list[list[Prompt]]:
    """Makes the versions of the prompts with which guidance compares, all about to draw.

    Returns:
      Nothing without guidance, else the prompts' media alone, and then for each kind of media that guides the prompts
      without it. Each is a list of as many prompts, or of one prompt for all where they are the same. Media left out
      still take their rotary indices, text does not, as in BAGEL's condition dropout.
    """
    kinds = guiding(prompts, config)
    if not config.max_images or not (kinds or config.guidance != 1):
        return []
    rows = [without_text(prompt, config.without_text) for prompt in prompts]
    if not held(prompts) and len({tuple(part.value.tobytes() for part in row.segments) for row in rows}) == 1:
        rows = rows[:1]
    return [rows, *([without_kind(prompt, kind, spec, config.image_against) for prompt in prompts] for kind in kinds)]


def scales_of(prompts: Sequence[Prompt], config: SamplerConfig) -> list[np.ndarray]:
    """The scales float32 [B] of `Conditions`, for each kind of `guiding`."""

    def scale(prompt: Prompt, kind: str) -> float:
        return config.of_condition(kind) if kind in held([prompt]) else 1.0

    return [np.array([scale(p, kind) for p in prompts], np.float32) for kind in guiding(prompts, config)]


def as_drawing(prompts: Sequence[Prompt], drawn: Drawable) -> list[Prompt]:
    """The prompts, about to draw this kind."""
    return [dataclasses.replace(prompt, draw=True, kind=drawn.kind) for prompt in prompts]


def conditions_of(
    prompts: Sequence[Prompt], spec: SequenceSpec, drawables: Sequence[Drawable], config: SamplerConfig
) -> ByKind:
    """Lays out the versions of the prompts with which guidance compares, see `compared`, for each kind that is drawn;
    None without guidance."""
    result = []
    for drawn in drawables:
        asked, of_kind = as_drawing(prompts, drawn), config.of_kind(drawn.kind)
        versions = [prefill_of(version, spec, drawables) for version in compared(asked, of_kind, spec)]
        scales = tuple(scales_of(asked, of_kind))
        result.append(Conditions(versions[0], tuple(versions[1:]), scales) if versions else None)
    return tuple(result)
