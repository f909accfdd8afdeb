"""Prompts of the decoder, and the inputs made of them.

Shape letters: B rows, C numbers of a pooled vector.
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from transfusion.errors import UsageError
from transfusion.model.inputs import Inputs, inputs_of
from transfusion.sampling.drawable import Drawable, chosen
from transfusion.sampling.place import Asked, Place
from transfusion.sequence import TEXT, Document, Segment, SequenceSpec
from transfusion.sequence.rows import Expanded, assemble, expand


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt, with which a row begins.

    Attributes:
      segments: text and clean media in reading order.
      draw: whether an item must be drawn, at once or, with `SamplerConfig.think`, after a text.
      kind: the kind of that item; '' is the only one that the model draws.
      size: sides of the latents or codes of what is drawn, where the model draws several; () leaves it to the call.
      negative: the text that replaces the prompt's in the prediction with which guidance by the text compares.
      label, pooled: class and pooled vector of the drawing, see `Segment`; guidance by the text compares with neither.
    """

    segments: Document = ()
    draw: bool = False
    negative: Document = ()
    label: int = -1
    pooled: np.ndarray | None = None
    kind: str = ""
    size: tuple[int, ...] = ()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prefill:
    """Prompts of B rows, padded to one batch.

    Attributes:
      inputs: the inputs of the forward pass.
      last: int32 [B], the last token of text.
      draw: bool [B], the rows that draw at once.
      thinks: bool [B], the rows that draw after a text.
      kind: int32 [B], the number of the kind that these draw in the table of what is drawn; 0 of other rows.
      place: the place of the rows after their prompts.
    """

    inputs: dict[str, Inputs]
    last: jax.Array
    draw: jax.Array
    thinks: jax.Array
    kind: jax.Array
    place: Place


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


SHORT = 32  # tokens of a stream for which all prompts that have no more share one program


def fit_of(
    prompts: Sequence[Prompt],
    spec: SequenceSpec,
    drawables: Sequence[Drawable],
    think: bool = False,
    begin: bool = True,
) -> Fit:
    """Finds the shape that prompts fit; lengths are rounded up to powers of two from `SHORT` on, to compile seldom.

    Raises:
      UsageError: as `prefill_of`.
    """
    most: dict[str, tuple[int, int]] = {}  # of each stream: tokens and items
    length = 0
    for prompt in {id(prompt): prompt for prompt in prompts}.values():  # one may be asked for many times
        part = expand_prompt(prompt.segments, spec, _opened(prompt, drawables, think), begin)
        length = max(length, part.length)
        for name, tokens in part.cost.items():
            before = most.get(name, (0, 0))
            most[name] = max(before[0], tokens), max(before[1], part.items.get(name, 0))
    streams = {}
    for name, stream in spec.streams.items():
        tokens, items = most.get(name, (0, 0))
        if tokens:
            items = bucket(items, 1)
            budget = stream.content.slots(bucket(tokens, SHORT), items)
            streams[name] = dataclasses.replace(stream, budget=budget, items=items)
    return Fit(dataclasses.replace(spec, streams=dict(spec.streams) | streams), tuple(streams), length)


def prefill_of(
    prompts: Sequence[Prompt],
    spec: SequenceSpec,
    drawables: Sequence[Drawable],
    think: bool = False,
    fit: Fit | None = None,
    begin: bool = True,
) -> Prefill:
    """Lays prompts out as one padded batch, in the shape `fit` or in that which they fit themselves.

    `drawables` are the kinds that may be drawn. With `think` those that draw write first. Without `begin` they do not
    begin a document, but go on with one.

    Raises:
      UsageError: if an image does not fit its stream or the model reads none, or a prompt ends where no text can
        follow.
    """
    fit = fit or fit_of(prompts, spec, drawables, think, begin)
    thinks = np.array([prompt.draw and think for prompt in prompts])
    draw = np.array([prompt.draw and not think for prompt in prompts])
    expanded = [expand_prompt(prompt.segments, spec, _opened(prompt, drawables, think), begin) for prompt in prompts]
    batch = assemble([[part] for part in expanded], fit.spec)
    inputs = {}
    for name in fit.names:
        part = batch[name]
        content = part.tokens if part.values is None else part.values
        time = None if part.time_low is None else np.ones_like(part.time_low)
        inputs[name] = inputs_of(name, batch, fit.spec, content, time)
    last = np.array([part.cost[TEXT] - 1 for part in expanded], np.int32)
    where = [np.array([getattr(p, f) for p in expanded], np.int32) for f in ("length", "counter", "spans")]
    numbers = [drawables.index(chosen(drawables, prompt.kind)) if prompt.draw else 0 for prompt in prompts]
    return Prefill(inputs, last, draw, thinks, np.array(numbers, np.int32), Place(*where, _asked(prompts, spec)))


def _opened(prompt: Prompt, drawables: Sequence[Drawable], think: bool) -> Drawable | None:
    """The kind that is drawn at once after a prompt; None: it is followed by text.

    Raises:
      UsageError: if the model draws no such kind.
    """
    return chosen(drawables, prompt.kind) if prompt.draw and not think else None


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


def expand_prompt(segments: Document, spec: SequenceSpec, opened: Drawable | None, begin: bool = True) -> Expanded:
    """Expands a prompt's segments into tokens.

    If an item of the kind `opened` follows, its opener is the last of them where it is an ordinary token.

    Raises:
      UsageError: as `prefill_of`.
    """
    for segment in segments:
        if not spec.reads(segment.kind):
            raise UsageError(f"this model reads no {segment.kind}s: its layout gives them no tokens")
    if opened and opened.opener_is_text:
        segments = (*segments, Segment(TEXT, np.array([opened.opener], np.int32)))
    part = expand(segments, spec, begin=begin, end=False)
    if not opened and part.pieces[TEXT]["order"][-1] != part.length - 1:
        raise UsageError("a prompt must end in text or in an item with a closer, from which the next token follows")
    return part


def bucket(count: int, least: int) -> int:
    """Rounds `count` up to `least` times a power of two."""
    size = least
    while size < count:
        size *= 2
    return size
