"""Prompts of the decoder, their versions without text or images for guidance, and the inputs made of them.

Shape letters: B rows, C numbers of a pooled vector.
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from transfusion.errors import UsageError
from transfusion.model.inputs import Inputs, inputs_of
from transfusion.sampling.config import SamplerConfig
from transfusion.sampling.drawable import Drawable
from transfusion.sampling.place import Asked, Place
from transfusion.sequence import TEXT, Document, Segment, SequenceSpec, text
from transfusion.sequence.rows import Expanded, assemble, expand


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt, with which a row begins.

    Attributes:
      segments: text and clean images in reading order.
      draw: whether an image must be drawn, at once or, with `SamplerConfig.think`, after a text.
      negative: the text that replaces the prompt's in the prediction with which guidance by the text compares.
      label, pooled: class and pooled vector of the drawing, see `Segment`; guidance by the text compares with neither.
    """

    segments: Document = ()
    draw: bool = False
    negative: Document = ()
    label: int = -1
    pooled: np.ndarray | None = None


def has_images(prompt: Prompt) -> bool:
    return any(segment.kind != TEXT for segment in prompt.segments)


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
    return Prompt((*parts, *prompt.negative), draw=True)


def without_images(prompt: Prompt, spec: SequenceSpec) -> Prompt:
    """Returns the prompt without its images, about to draw; its texts stay at their positions."""

    def dropped(segment: Segment) -> Segment:
        return dataclasses.replace(segment, dropped=tuple(run.stream for run in spec.runs(segment)))

    segments = tuple(s if s.kind == TEXT else dropped(s) for s in prompt.segments)
    return dataclasses.replace(prompt, segments=segments, draw=True)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prefill:
    """Prompts of B rows, padded to one batch.

    Attributes:
      inputs: the inputs of the forward pass.
      last: int32 [B], the last token of text.
      draw: bool [B], the rows that draw at once.
      thinks: bool [B], the rows that draw after a text.
      place: the place of the rows after their prompts.
    """

    inputs: dict[str, Inputs]
    last: jax.Array
    draw: jax.Array
    thinks: jax.Array
    place: Place


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Conditions:
    """The other versions of the prompts with which guidance compares.

    Attributes:
      without_text: the prompts' images alone; one row for all where they are the same.
      without_images: the prompts' texts alone, or nothing; None if images do not guide.
      images: bool [B], the prompts that have images.
    """

    without_text: Prefill
    without_images: Prefill | None
    images: jax.Array


def compared(prompts: Sequence[Prompt], config: SamplerConfig, spec: SequenceSpec) -> list[list[Prompt]]:
    """Makes the versions of the prompts with which guidance compares, all about to draw.

    Returns:
      Nothing without guidance, else the prompts' images alone, and then, if images guide, the prompts' texts alone, or
      nothing. Each is a list of as many prompts, or of one prompt for all where they are the same. Images left out
      still take their rotary indices, text does not, as in BAGEL's condition dropout.
    """
    with_images = any(map(has_images, prompts))
    images_guide = with_images and config.image_guidance != 1
    if not config.max_images or not (images_guide or config.guidance != 1):
        return []
    rows = [without_text(prompt, config.without_text) for prompt in prompts]
    if not with_images and len({tuple(part.value.tobytes() for part in row.segments) for row in rows}) == 1:
        rows = rows[:1]
    if not images_guide:
        return [rows]
    keeps = config.image_against == "text"
    return [rows, [without_images(prompt, spec) if keeps else Prompt(draw=True) for prompt in prompts]]


def conditions_of(
    prompts: Sequence[Prompt], spec: SequenceSpec, drawn: Drawable | None, config: SamplerConfig
) -> Conditions | None:
    """Lays out the versions of the prompts with which guidance compares, see `compared`; None without guidance."""
    versions = [] if drawn is None else compared(prompts, config, spec)
    if not versions:
        return None
    plain, *others = (prefill_of(version, spec, drawn) for version in versions)
    return Conditions(plain, others[0] if others else None, np.array([has_images(prompt) for prompt in prompts]))


@dataclasses.dataclass(frozen=True)
class Fit:
    """The shape into which prompts are laid out.

    Attributes:
      spec: the tables of the model, with budgets that the prompts fit.
      names: the streams that the prompts use.
      length: the number of tokens of the longest prompt.
    """

    spec: SequenceSpec
    names: tuple[str, ...]
    length: int


def fit_of(
    prompts: Sequence[Prompt], spec: SequenceSpec, drawn: Drawable | None, think: bool = False, begin: bool = True
) -> Fit:
    """Finds the shape that prompts fit; lengths are rounded up to powers of two, to compile seldom.

    Raises:
      UsageError: as `prefill_of`.
    """
    most: dict[str, tuple[int, int]] = {}  # of each stream: tokens and items
    length = 0
    for prompt in {id(prompt): prompt for prompt in prompts}.values():  # one may be asked for many times
        part = expand_prompt(prompt.segments, spec, drawn, prompt.draw and not think, begin)
        length = max(length, part.length)
        for name, tokens in part.cost.items():
            before = most.get(name, (0, 0))
            most[name] = max(before[0], tokens), max(before[1], part.items.get(name, 0))
    streams = {}
    for name, stream in spec.streams.items():
        tokens, items = most.get(name, (0, 0))
        if tokens:
            items = bucket(items, 1)
            budget = stream.content.slots(bucket(tokens, 16), items)
            streams[name] = dataclasses.replace(stream, budget=budget, items=items)
    return Fit(dataclasses.replace(spec, streams=dict(spec.streams) | streams), tuple(streams), length)


def prefill_of(
    prompts: Sequence[Prompt],
    spec: SequenceSpec,
    drawn: Drawable | None,
    think: bool = False,
    fit: Fit | None = None,
    begin: bool = True,
) -> Prefill:
    """Lays prompts out as one padded batch, in the shape `fit` or in that which they fit themselves.

    With `think` those that draw write first. Without `begin` they do not begin a document, but go on with one.

    Raises:
      UsageError: if an image does not fit its stream or the model reads none, or a prompt ends where no text can
        follow.
    """
    fit = fit or fit_of(prompts, spec, drawn, think, begin)
    thinks = np.array([prompt.draw and think for prompt in prompts])
    draw = np.array([prompt.draw and not think for prompt in prompts])
    pairs = zip(prompts, draw, strict=True)
    expanded = [expand_prompt(prompt.segments, spec, drawn, at_once, begin) for prompt, at_once in pairs]
    batch = assemble([[part] for part in expanded], fit.spec)
    inputs = {}
    for name in fit.names:
        part = batch[name]
        content = part.tokens if part.values is None else part.values
        time = None if part.time_low is None else np.ones_like(part.time_low)
        inputs[name] = inputs_of(name, batch, fit.spec, content, time)
    last = np.array([part.cost[TEXT] - 1 for part in expanded], np.int32)
    where = [np.array([getattr(p, f) for p in expanded], np.int32) for f in ("length", "counter", "spans")]
    return Prefill(inputs, last, draw, thinks, Place(*where, _asked(prompts, spec)))


def _asked(prompts: Sequence[Prompt], spec: SequenceSpec) -> Asked:
    """Collects the classes and pooled vectors that the prompts ask for.

    Raises:
      UsageError: if the model has no such classes or vectors.
    """
    streams = spec.streams.values()
    classes = min((stream.labels for stream in streams if stream.labels), default=0)
    size = max((stream.released.pooled for stream in streams), default=0)
    for prompt in prompts:
        if prompt.label >= classes:
            known = f"its classes are 0 to {classes - 1}" if classes else "it has no classes"
            raise UsageError(f"this model draws nothing of class {prompt.label}: {known}")
        if prompt.pooled is not None and np.shape(prompt.pooled) != (size,):
            raise UsageError(
                f"a pooled vector of shape {list(np.shape(prompt.pooled))}: this model's has {size} numbers"
            )
    label = np.array([prompt.label for prompt in prompts], np.int32) if classes else None
    zeros = np.zeros(size, np.float32)
    pooled = np.stack([zeros if p.pooled is None else np.float32(p.pooled) for p in prompts]) if size else None
    return Asked(label, pooled)


def expand_prompt(
    segments: Document, spec: SequenceSpec, drawn: Drawable | None, draw: bool, begin: bool = True
) -> Expanded:
    """Expands a prompt's segments into tokens, followed by the opener if it is an ordinary token and an item follows.

    Raises:
      UsageError: as `prefill_of`.
    """
    for segment in segments:
        if not spec.reads(segment.kind):
            raise UsageError(f"this model reads no {segment.kind}s: its layout gives them no tokens")
    if draw and drawn is None:
        raise UsageError("this model draws no images: its layout has no run with an opener and a stream that is drawn")
    if draw and drawn.opener_is_text:
        segments = (*segments, Segment(TEXT, np.array([drawn.opener], np.int32)))
    part = expand(segments, spec, begin=begin, end=False)
    if not draw and part.pieces[TEXT]["order"][-1] != part.length - 1:
        raise UsageError("a prompt must end in text or in an item with a closer, from which the next token follows")
    return part


def bucket(count: int, least: int) -> int:
    """Rounds `count` up to `least` times a power of two."""
    size = least
    while size < count:
        size *= 2
    return size
