"""The parts of a document that the decoder appends to a prompt, as tokens that are numbered from 0.

They are what the layout table makes of an item of zeros; `transfusion.sampling.place` lays them where a row stands.

Shape letters: B rows, N tokens of an item, C channels, E numbers of a patch.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from transfusion.errors import UsageError
from transfusion.sampling.drawable import Drawable
from transfusion.sampling.grammar import Grammar, grammar_of
from transfusion.sequence import TEXT, Run, Segment, SequenceSpec, Stream
from transfusion.sequence.rows import Expanded, expand
from transfusion.sequence.spelling import Grid

Size = tuple[int, ...]  # sides of the latents or codes that are drawn; zeros leave it to the model


def token_of_text(spec: SequenceSpec) -> Expanded:
    """Makes the part that is one token of text."""
    return expand((Segment(TEXT, np.zeros(1, np.int32)),), spec, begin=False, end=False)


# --- items with a stream of their own ---------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class PaintedParts:
    """The parts of an item that is drawn by a stream of its own.

    Attributes:
      spec: the tables of the model.
      drawable: what is drawn.
      sides: sides of an item's latents or codes.
      preamble: tokens that are computed once when a drawing begins (learned queries).
      noisy: tokens that each evaluation of the model computes: the noised ones, and their edges where those see them.
      finished: tokens that stay of a drawn item, clean, as for an item of a prompt. None where nothing may follow it.
    """

    spec: SequenceSpec
    drawable: Drawable
    sides: Size
    preamble: Expanded
    noisy: Expanded
    finished: Expanded | None

    @property
    def name(self) -> str:
        """The name of the stream that draws."""
        return self.drawable.run.stream

    @property
    def stream(self) -> Stream:
        return self.drawable.stream

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of an item: [*sides, C] of latents, or that of its codes."""
        return self.stream.content.item_shape(self.sides)

    @property
    def tokens(self) -> int:
        """N, the number of an item's tokens, its time or start token included."""
        return len(self.noisy.pieces[self.name]["order"])

    @property
    def held(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of the contents of an item's tokens: patches float32 [N, E] or ids int32 [N]."""
        content = self.stream.content
        return jax.ShapeDtypeStruct((self.tokens, *content.token_shape), content.dtype)

    def media(self, x: np.ndarray) -> np.ndarray:
        """Turns drawn patches [..., N, E] into latents [..., *sides, C], or drawn ids [..., N] into codes."""
        return np.asarray(self.stream.content.media(x, self.sides))

    def drawn_as(self, name: str, x: jax.Array) -> jax.Array:
        """Turns drawn patches [B, N, E] or codes [B, N] into those of another stream of the same item."""
        return self.spec.streams[name].content.laid(self.stream.content.media(x, self.sides), jnp)


def painted_parts(spec: SequenceSpec, drawn: Drawable, size: Size, goes_on: bool) -> PaintedParts:
    """Makes the parts of an item of this size; `goes_on` says whether anything is to follow it.

    Raises:
      UsageError: if neither the stream nor `size` says how large an item is, or the layout has runs after it that
        cannot be made of a drawing.
    """
    sides, run = _sides(drawn, size), drawn.run
    shape = drawn.stream.content.item_shape(sides)
    edges = {"opener": -1, "closer": -1} if run.boundary == "outside" else {}
    preamble = _expanded(spec, drawn, shape, _opened(drawn, drawn.runs[:-1]))
    noisy = _expanded(spec, drawn, shape, (dataclasses.replace(run, **edges),))
    finished = _finished(spec, drawn, shape) if goes_on else None
    return PaintedParts(spec, drawn, sides, preamble, noisy, finished)


def _sides(drawn: Drawable, size: Size) -> Size:
    """The sides of the latents or codes of what is drawn: `size`, or if it is zeros those of the stream.

    Raises:
      UsageError: if the model draws none of that size, or any size and none is named.
    """
    content, kind = drawn.stream.content, drawn.kind
    if content.aligned:
        if any(size) and tuple(size) != tuple(drawn.stream.grid):
            known = _shown(drawn.stream.grid)
            raise UsageError(f"this model draws no {kind} of {_shown(size)} latents or codes: it draws {known}")
        return tuple(drawn.stream.grid)
    named = "height and width" if content.sides == 2 else f"{content.sides} sides"
    if not any(size):
        raise UsageError(f"this model draws {kind}s of any size: say which ({named} of the latents)")
    patch = content.patch
    if len(size) != len(patch) or any(side % p for side, p in zip(size, patch, strict=True)):
        raise UsageError(
            f"this model draws no {kind} of {_shown(size)} latents: it draws any size of {named} that are multiples of "
            f"{_shown(patch)}"
        )
    return tuple(size)


def _shown(sides: Sequence[int]) -> str:
    return " x ".join(map(str, sides))


def _finished(spec: SequenceSpec, drawn: Drawable, shape: tuple[int, ...]) -> Expanded | None:
    """Makes the tokens of a finished item that stay in the cache.

    The result is None if no text can follow, since the next text is predicted from a closer."""
    runs = tuple(r for r in spec.runs(Segment(drawn.kind, np.zeros(0), "context")) if not r.private)
    for run in runs:
        stream = spec.streams[run.stream]
        # Latents that have the size and channels of the images are the pixels themselves.
        same = (*stream.grid, stream.channels) == shape
        if stream.source == "pixels" and not same:
            raise UsageError(
                f"no text can follow a drawing: the stream {run.stream!r} reads pixels, and latents are drawn; "
                "set sampling.max_tokens=0, and put the drawn image into the next prompt"
            )
    part = _expanded(spec, drawn, shape, _opened(drawn, runs))
    ends_in_text = TEXT in part.pieces and part.pieces[TEXT]["order"][-1] == part.length - 1
    return part if ends_in_text else None


def _opened(drawn: Drawable, runs: tuple[Run, ...]) -> tuple[Run, ...]:
    """Drops the opener that is in the cache already from the runs."""
    return (dataclasses.replace(runs[0], opener=-1), *runs[1:]) if runs and drawn.opener_is_text else runs


def _expanded(spec: SequenceSpec, drawn: Drawable, shape: tuple[int, ...], runs: tuple[Run, ...]) -> Expanded:
    """Expands an item of zeros into the tokens of these runs."""
    value = np.zeros(shape, drawn.stream.content.dtype)
    spec = dataclasses.replace(spec, layout={drawn.kind: runs})
    return expand((Segment(drawn.kind, value),), spec, begin=False, end=False)


# --- items that are spelled in the text's vocabulary ------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class SpelledParts:
    """The parts of an item that is drawn id by id in the text's vocabulary.

    Attributes:
      spec: the tables of the model.
      drawable: what is drawn.
      token: one token of text.
      code: the part that is one id of an item.
      grids: the sizes that an item may have; if there are several, the model chooses.
      grammar: says which id may come next in an item.
      goes_on: whether anything may follow an item.
    """

    spec: SequenceSpec
    drawable: Drawable
    token: Expanded
    code: Expanded
    grids: tuple[Grid, ...]
    grammar: Grammar
    goes_on: bool


def spelled_parts(spec: SequenceSpec, drawn: Drawable, size: Size, goes_on: bool) -> SpelledParts:
    """Makes the parts of an item of this size; `goes_on` says whether anything is to follow it.

    Raises:
      UsageError: if items have no such size, or an item that is read has more tokens than the codes that are drawn.
    """
    run = drawn.run
    if goes_on:
        read = spec.runs(Segment(drawn.kind, np.zeros(0), "context"))
        if [(other.stream, other.spelling) for other in read] != [(run.stream, run.spelling)]:
            raise UsageError(
                "no text can follow a drawing: an image that is read has more tokens than its codes; "
                "set sampling.max_tokens=0, and put the drawn image into the next prompt"
            )
    one = dataclasses.replace(spec, layout={drawn.kind: (Run(run.stream),)})
    code = expand((Segment(drawn.kind, np.zeros(1, np.int32)),), one, begin=False, end=False)
    grids = spelled_grids(drawn, size)
    grammar = grammar_of(run, grids, spec.streams[TEXT].vocabulary)
    return SpelledParts(spec, drawn, token_of_text(spec), code, grids, grammar, goes_on)


def spelled_grids(drawn: Drawable, size: Size) -> tuple[Grid, ...]:
    """Lists the sizes that an item may have; if there are several, the model chooses.

    Raises:
      UsageError: if `size` is none of them.
    """
    spelling = drawn.run.spelling
    if not any(size):
        return spelling.grids if spelling.size else spelling.grids[:1]
    if size not in spelling.grids:
        known = ", ".join(map(str, spelling.grids))
        raise UsageError(f"this model draws no {drawn.kind} of {size} codes: the sizes are {known}")
    return (size,)
