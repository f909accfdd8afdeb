"""What a row of the decoder begins with, and what of it guidance leaves out."""

import dataclasses

import numpy as np

from transfusion.sequence import TEXT, Document, Segment, SequenceSpec, text


@dataclasses.dataclass(frozen=True)
class Prompt:
    """What a row begins with.

    Attributes:
      segments: text and clean images in reading order.
      draw: an image must be drawn, at once or, with `SamplerConfig.think`, after a text.
      negative: what guidance by the text compares with in the text's place.
      label, pooled: of what is drawn, see `Segment`; guidance by the text compares with neither.
    """

    segments: Document = ()
    draw: bool = False
    negative: Document = ()
    label: int = -1
    pooled: np.ndarray | None = None


def has_images(prompt: Prompt) -> bool:
    return any(segment.kind != TEXT for segment in prompt.segments)


def without_text(prompt: Prompt, how: str = "drop") -> Prompt:
    """Its images, and for its text `negative` or, without one, what `text.UNSEEN[how]` makes of it, about to draw."""
    parts = []
    for segment in prompt.segments:
        if segment.kind != TEXT:
            parts.append(segment)
        elif not prompt.negative and (ids := text.UNSEEN[how](segment.value)) is not None:
            parts.append(dataclasses.replace(segment, value=ids))
    return Prompt((*parts, *prompt.negative), draw=True)


def without_images(prompt: Prompt, spec: SequenceSpec) -> Prompt:
    """Its texts at their old positions, about to draw."""

    def dropped(segment: Segment) -> Segment:
        return dataclasses.replace(segment, dropped=tuple(run.stream for run in spec.runs(segment)))

    segments = tuple(s if s.kind == TEXT else dropped(s) for s in prompt.segments)
    return dataclasses.replace(prompt, segments=segments, draw=True)
