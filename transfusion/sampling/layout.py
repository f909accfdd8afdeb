"""How the decoder's tokens are laid out: prompts, the parts that it appends, all from the config's layout table.

Shape letters: B rows, N tokens of a part, A rotary axes, E numbers of a patch.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np

from transfusion.errors import UsageError
from transfusion.model.inputs import Inputs, inputs_of
from transfusion.model.vit import patchify as patchify_images
from transfusion.sampling.config import SamplerConfig
from transfusion.sampling.prompt import Prompt, has_images, without_images, without_text
from transfusion.sequence import TEXT, Document, Run, Segment, SequenceSpec, Stream
from transfusion.sequence.batch import StreamSlice
from transfusion.sequence.rows import Expanded, assemble, expand, unpatchify
from transfusion.sequence.spelling import Grid


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Asked:
    """What is asked of the items that rows draw besides their prompts' tokens: the class int32 [B], -1 for none, and
    the pooled vector float32 [B, C]; each is None of a model that has no such condition."""

    label: jax.Array | None = None
    pooled: jax.Array | None = None

    def of(self, stream: Stream) -> dict[str, jax.Array]:
        """The same as the fields of a `StreamSlice` whose rows have one item each."""
        fields = {}
        if stream.labels:
            fields["label"] = jnp.where(self.label < 0, stream.labels, self.label)[:, None]
        if stream.pooled:
            fields["pooled"] = self.pooled[:, None]
        return fields


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Place:
    """Where rows stand, int32 [B] each: reading order, rotary index and number of spans so far; and what is asked of
    what they draw."""

    order: jax.Array
    counter: jax.Array
    spans: jax.Array
    asked: Asked = Asked()

    def after(self, part: Expanded, rows: jax.Array) -> "Place":
        """The place after `part`, for the rows bool [B]."""
        n = rows.astype(jnp.int32)
        order, counter = self.order + n * part.length, self.counter + n * part.counter
        return Place(order, counter, self.spans + n * part.spans, self.asked)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prefill:
    """Prompts of B rows, padded: the forward pass' inputs, the last text token int32 [B], which rows draw at once and
    which after a text, bool [B], and where the rows stand."""

    inputs: dict[str, Inputs]
    last: jax.Array
    draw: jax.Array
    thinks: jax.Array
    place: Place


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Conditions:
    """What guidance compares a prompt with.

    Attributes:
      without_text: the prompts' images alone; one row for all where they are the same.
      without_images: the prompts' texts alone, or nothing; None if images do not guide.
      images: bool [B], which prompts have images.
    """

    without_text: Prefill
    without_images: Prefill | None
    images: jax.Array


def lay(
    part: Expanded, spec: SequenceSpec, place: Place, rows: jax.Array, content: Mapping[str, jax.Array], time: jax.Array
) -> dict[str, Inputs]:
    """Inputs of a part appended at `place`.

    Args:
      part: numbered from 0.
      place: of the rows.
      rows: bool [B]; the others' tokens are padding.
      content: ids [B, N] or patches [B, N, E] per stream; streams that it lacks keep the part's own.
      time: noise level [B] of the part's items.
    """
    batch = {name: _slice(name, part, spec, place, rows) for name in part.pieces}
    result = {}
    for name, piece in batch.items():
        own = piece.tokens if piece.values is None else piece.values
        media = spec.streams[name].media
        result[name] = inputs_of(name, batch, spec, content.get(name, own), time[:, None] if media else None)
    return result


def _slice(name: str, part: Expanded, spec: SequenceSpec, place: Place, rows: jax.Array) -> StreamSlice:
    """One stream of a part that is appended at `place`, as if it were packed: a row holds one item at most."""
    stream, piece = spec.streams[name], part.pieces[name]
    b, n = len(rows), len(piece["order"])
    order, span, position = (piece[field][None] for field in ("order", "span", "position"))  # of every row

    def spread(x: np.ndarray) -> jax.Array:
        return jnp.broadcast_to(jnp.asarray(x), (b, *x.shape))

    return StreamSlice(
        document=jnp.broadcast_to(rows[:, None], (b, n)).astype(jnp.int32),
        order=place.order[:, None] + order,
        span=jnp.where(span > 0, place.spans[:, None] + span, 0),
        private=spread(piece["private"]),
        position=place.counter[:, None, None] + position,
        item=jnp.zeros((b, n), jnp.int32),
        loss_weight=spread(piece["loss_weight"]),
        tokens=spread(piece["tokens"]) if stream.discrete else None,
        values=None if stream.discrete else spread(piece["values"]),
        place=spread(piece["place"]) if stream.media else None,
        **place.asked.of(stream),
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """The parts that the decoder appends, read from the layout table.

    `size` is the sides of the latents that are drawn, height and width of an image; zeros take the stream's grid.
    """

    spec: SequenceSpec
    size: tuple[int, ...] = (0, 0)

    @cached_property
    def kind(self) -> str:
        """The kind of segment that can be drawn; '' if there is none."""
        kinds = {}
        for key, runs in self.spec.layout.items():
            kind, _, role = key.partition("/")
            if role != "context" and runs and runs[0].opener >= 0 and any(self._drawn(run) for run in runs):
                kinds[kind] = True
        if len(kinds) > 1:
            raise UsageError(f"the decoder draws one kind of segment, but the layout has {', '.join(kinds)}")
        return next(iter(kinds), "")

    def _drawn(self, run: Run) -> bool:
        stream = self.spec.streams[run.stream]
        return run.spelling.codes > 0 or stream.media and stream.objective != "none"

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        """The run that is drawn, and those that come before it, in reading order.

        Raises:
          UsageError: if there is a token of text between them.
        """
        runs = self.spec.runs(Segment(self.kind, np.zeros(0), "target"))
        last = next(i for i, run in enumerate(runs) if self._drawn(run))
        if runs[last].spelling.codes and (last or len(runs) > 1 or runs[0].closer < 0):
            raise UsageError(f"layout {self.kind!r}: what is drawn must be one run of codes, with a closer")
        if last and runs[last].opener >= 0 and runs[last].boundary == "outside":
            raise UsageError(f"layout {self.kind!r}: the first run opens a drawing, the noised run has no opener")
        return runs[: last + 1]

    @property
    def run(self) -> Run:
        """The run that is drawn."""
        return self.runs[-1]

    @property
    def stream(self) -> Stream:
        return self.spec.streams[self.run.stream]

    @property
    def spelled(self) -> bool:
        """Whether it is drawn id by id, in the text's vocabulary."""
        return bool(self.kind) and self.run.spelling.codes > 0

    @cached_property
    def grids(self) -> tuple[Grid, ...]:
        """The sizes of what is spelled; of several the model chooses.

        Raises:
          UsageError: if `size` is none of them.
        """
        spelling = self.run.spelling
        if not any(self.size):
            return spelling.grids if spelling.size else spelling.grids[:1]
        if self.size not in spelling.grids:
            known = ", ".join(map(str, spelling.grids))
            raise UsageError(f"this model draws no images of {self.size} codes: the sizes are {known}")
        return (self.size,)

    @property
    def opener(self) -> int:
        """The id that begins a drawing; -1 if nothing is drawn."""
        return self.runs[0].opener if self.kind else -1

    @property
    def opener_is_text(self) -> bool:
        """Whether the opener is an ordinary token before the image, and so in the cache when it is drawn."""
        inside = self.spelled or self.spec.streams[self.runs[0].stream].start_tokens
        return self.runs[0].boundary == "outside" and not inside

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a drawn item: latents [*sides, C] or codes, see `Stream.item_shape`; the first size of what is spelled.

        Raises:
          UsageError: if neither the stream nor `size` says.
        """
        if self.spelled:
            return self.grids[0]
        sides = self.size if any(self.size) else self.stream.grid
        if not all(sides):
            raise UsageError("this model draws images of any size: say which (height and width of the latents)")
        return self.stream.item_shape(sides)

    @cached_property
    def token(self) -> Expanded:
        """One token of text."""
        return expand((Segment("text", np.zeros(1, np.int32)),), self.spec, begin=False, end=False)

    @cached_property
    def code(self) -> Expanded:
        """One id of what is spelled."""
        spec = dataclasses.replace(self.spec, layout={self.kind: (Run(self.run.stream),)})
        return expand((Segment(self.kind, np.zeros(1, np.int32)),), spec, begin=False, end=False)

    @cached_property
    def before(self) -> Expanded:
        """What is computed once when a drawing begins (learned queries)."""
        return self._part(self._opened(self.runs[:-1]))

    @cached_property
    def noisy(self) -> Expanded:
        """What an evaluation of the velocity computes: the noised tokens, with their edges where those see them."""
        edges = {"opener": -1, "closer": -1} if self.run.boundary == "outside" else {}
        return self._part((dataclasses.replace(self.run, **edges),))

    def _opened(self, runs: tuple[Run, ...]) -> tuple[Run, ...]:
        """Runs without the opener that is in the cache already."""
        return (dataclasses.replace(runs[0], opener=-1), *runs[1:]) if runs and self.opener_is_text else runs

    @property
    def tokens(self) -> int:
        """N of a drawn image, its time or start token included."""
        return len(self.noisy.pieces[self.run.stream]["order"])

    @property
    def content(self) -> jax.ShapeDtypeStruct:
        """What a drawn image's tokens hold: patches float32 [N, E] or ids int32 [N]."""
        if self.stream.discrete:
            return jax.ShapeDtypeStruct((self.tokens,), np.int32)
        return jax.ShapeDtypeStruct((self.tokens, self.stream.features), np.float32)

    @cached_property
    def finished(self) -> Expanded:
        """What of a finished image stays in the cache: what an image of a prompt yields ('context'), clean.

        Raises:
          UsageError: if a stream of it reads pixels, and what is drawn is something else.
        """
        runs = tuple(r for r in self.spec.runs(Segment(self.kind, np.zeros(0), "context")) if not r.private)
        for run in runs:
            stream = self.spec.streams[run.stream]
            # Latents of the images' own size and channels are the pixels.
            same = (*stream.grid, stream.channels) == self.shape
            if stream.source == "pixels" and not same:
                raise UsageError(
                    f"no text can follow a drawing: the stream {run.stream!r} reads pixels, and latents are drawn; "
                    "set sampling.max_tokens=0, and put the drawn image into the next prompt"
                )
        return self._part(self._opened(runs))

    @property
    def goes_on(self) -> bool:
        """Whether text can follow an image: it is predicted from the closer.

        Raises:
          UsageError: if an image that is read has more tokens than the codes of one that is drawn.
        """
        if self.spelled:
            read = self.spec.runs(Segment(self.kind, np.zeros(0), "context"))
            if [(run.stream, run.spelling) for run in read] != [(self.run.stream, self.run.spelling)]:
                raise UsageError(
                    "no text can follow a drawing: an image that is read has more tokens than its codes; "
                    "set sampling.max_tokens=0, and put the drawn image into the next prompt"
                )
            return True
        return TEXT in self.finished.pieces and self.finished.pieces[TEXT]["order"][-1] == self.finished.length - 1

    def drawn_as(self, name: str, x: jax.Array) -> jax.Array:
        """Drawn patches [B, N, E] or codes [B, N] as those of another stream of the same image."""
        stream = self.spec.streams[name]
        if self.stream.discrete:
            return jnp.pad(x[:, self.stream.lead_tokens :], ((0, 0), (stream.lead_tokens, 0)))
        if (stream.patch_sides, stream.time_tokens) == (self.stream.patch_sides, self.stream.time_tokens):
            return x
        patches = patchify_images(
            unpatchify(x[:, self.stream.time_tokens :], self.shape[:-1], self.stream.patch), stream.patch
        )
        return jnp.pad(patches, ((0, 0), (stream.time_tokens, 0), (0, 0)))

    def _part(self, runs: tuple[Run, ...]) -> Expanded:
        spec = dataclasses.replace(self.spec, layout={self.kind: runs})
        value = np.zeros(self.shape, np.int32 if self.stream.discrete else np.float32)
        return expand((Segment(self.kind, value),), spec, begin=False, end=False)

    def conditions(self, prompts: Sequence[Prompt], config: SamplerConfig, with_images: bool) -> Conditions | None:
        """What guidance compares the prompts with, all about to draw; None without guidance.

        Images left out still take their rotary indices, text does not, as in BAGEL's condition dropout. `with_images`
        says whether some prompt has images, here or in another part of the batch.
        """
        images_guide = with_images and config.image_guidance != 1
        if not self.kind or not config.max_images or not (images_guide or config.guidance != 1):
            return None
        images = [has_images(prompt) for prompt in prompts]
        rows = [without_text(prompt, config.without_text) for prompt in prompts]
        if not with_images and len({tuple(part.value.tobytes() for part in row.segments) for row in rows}) == 1:
            rows = rows[:1]
        keeps = config.image_against == "text"
        others = [without_images(prompt, self.spec) if keeps else Prompt(draw=True) for prompt in prompts]
        return Conditions(self.prefill(rows), self.prefill(others) if images_guide else None, np.array(images))

    def prefill(self, prompts: Sequence[Prompt], think: bool = False) -> Prefill:
        """Lays prompts out as one padded batch; lengths are rounded up to powers of two, to compile seldom.

        With `think` those that draw write first.

        Raises:
          UsageError: if an image does not fit its stream or the model reads none, or a prompt ends where no text can
            follow.
        """
        thinks = np.array([prompt.draw and think for prompt in prompts])
        draw = np.array([prompt.draw and not think for prompt in prompts])
        expanded = [self._expand(prompt.segments, at_once) for prompt, at_once in zip(prompts, draw, strict=True)]
        streams = {}
        for name, stream in self.spec.streams.items():
            tokens = max(part.cost.get(name, 0) for part in expanded)
            items = max(part.items.get(name, 0) for part in expanded)
            if tokens and not stream.media:
                streams[name] = dataclasses.replace(stream, budget=bucket(tokens, 16))
            elif tokens and stream.aligned:
                count = bucket(items, 1)
                streams[name] = dataclasses.replace(stream, budget=count * stream.tokens_per_item, items=count)
            elif tokens:
                streams[name] = dataclasses.replace(stream, budget=bucket(tokens, 16), items=bucket(items, 1))
        spec = dataclasses.replace(self.spec, streams=dict(self.spec.streams) | streams)
        batch = assemble([[part] for part in expanded], spec)
        inputs = {}
        for name in streams:
            part = batch[name]
            content = part.tokens if part.values is None else part.values
            time = None if part.time_low is None else np.ones_like(part.time_low)
            inputs[name] = inputs_of(name, batch, spec, content, time)
        last = np.array([part.cost[TEXT] - 1 for part in expanded], np.int32)
        where = [np.array([getattr(p, f) for p in expanded], np.int32) for f in ("length", "counter", "spans")]
        return Prefill(inputs, last, draw, thinks, Place(*where, self._asked(prompts)))

    def _asked(self, prompts: Sequence[Prompt]) -> Asked:
        """What the prompts ask of their drawings.

        Raises:
          UsageError: if the model has no such classes or vectors.
        """
        streams = self.spec.streams.values()
        classes = min((stream.labels for stream in streams if stream.labels), default=0)
        size = max((stream.pooled for stream in streams), default=0)
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

    def length(self, prompt: Prompt) -> int:
        """Tokens of a prompt.

        Raises:
          UsageError: as `prefill`.
        """
        return self._expand(prompt.segments, prompt.draw).length

    def _expand(self, segments: Document, draw: bool) -> Expanded:
        for segment in segments:
            if not self.spec.reads(segment.kind):
                raise UsageError(f"this model reads no {segment.kind}s: its layout gives them no tokens")
        if draw:
            if not self.kind:
                raise UsageError(
                    "this model draws no images: its layout has no run with an opener and a stream that is drawn"
                )
            if self.opener_is_text:
                segments = (*segments, Segment("text", np.array([self.opener], np.int32)))
        part = expand(segments, self.spec, end=False)
        if not draw and part.pieces[TEXT]["order"][-1] != part.length - 1:
            raise UsageError("a prompt must end in text or in an item with a closer, from which the next token follows")
        return part


def bucket(count: int, least: int) -> int:
    """The power of two times `least` that holds `count`."""
    size = least
    while size < count:
        size *= 2
    return size
