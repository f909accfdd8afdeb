"""A trained run in a notebook or script: load it, draw, caption, write, look.

import transfusion
run = transfusion.load_run("runs/digits")
image = run.draw("a handwritten seven", guidance=2.0)          # uint8 [H, W, C]
images = run.draw(["a handwritten seven"] * 8, guidance=2.0)   # uint8 [8, H, W, C]
run.caption(image)                                             # its caption
run.caption(["my.png", image])                                 # two captions; files are fitted as in training
run.draw([[image, "negative"] for image in images])            # edited

A value that is no list is one prompt and gives one result. A list is several prompts, and a list in a list holds the
parts of one of them. A conversation is such a list that grows: the model's answers become part of its next prompt.

chat = ["a handwritten seven"]
chat += run.generate([chat], draw=True)[0]
chat += ["negative"]
chat += run.generate([chat], draw=True, think=32)[0]           # up to 32 bytes of text first, then the image

A model that draws several kinds of media is told which: `run.draw("seven", kind="sound")`. Without that, `generate`
lets it open any of them: the result holds texts, images, sounds and clips in the order in which it made them.

A model that has learned a chat template is asked turn by turn: `run.chat("Be brief.").say("Hello!")`.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from transfusion.api.chat import Chat
from transfusion.api.fitting import Fitter
from transfusion.api.prompts import (
    Asked,
    Given,
    Part,
    Prompts,
    as_asked,
    as_paths,
    as_prompts,
    checked_text,
    is_several,
    whole_number,
    yes_or_no,
)
from transfusion.api.summary import summary
from transfusion.codecs.pixels import to_float
from transfusion.config import Experiment
from transfusion.data.documents import segment_value
from transfusion.data.faults import RECORD_FAULTS, error_line
from transfusion.data.forms import Form, sized
from transfusion.errors import UsageError, nearest
from transfusion.latents import Codec, Codecs, forms_of
from transfusion.model.parameters import Params
from transfusion.sampling.config import SamplerConfig
from transfusion.sampling.decoder import generate
from transfusion.sampling.drawable import chosen, drawables_of
from transfusion.sampling.prompts import Prompt
from transfusion.sequence import TEXT, Document, Segment, SequenceSpec, Stream
from transfusion.tasks import SequenceTask

MOST_SEED = 2**32 - 1
MOST_FIRST = 2**30


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Trained:
    """A trained model with all that sampling needs.

    Attributes:
      experiment: the config that it was trained with.
      task: the learner that builds the model from its parameters.
      params: the averaged parameters where the run keeps an average, else the parameters.
      codecs: turn media into latents and back, by kind of segment.
      step: number of training steps that the parameters have seen.
      workdir: the folder of the run.
    """

    experiment: Experiment
    task: SequenceTask
    params: Params
    codecs: Codecs
    step: int
    workdir: str = ""

    @property
    def spec(self) -> SequenceSpec:
        return self.task.spec

    @property
    def codec(self) -> Codec:
        """The codec of all kinds of segments without one of their own: that of a model with one codec."""
        return self.codecs.default

    @property
    def draws(self) -> tuple[str, ...]:
        """The kinds of segments that the model draws; () for a model that only writes."""
        return tuple(drawn.kind for drawn in drawables_of(self.spec) if drawn.kind != TEXT)

    @property
    def shows(self) -> str:
        """The kind that evaluations and reports draw: the only one, or images among several; '' if there is none."""
        return "image" if "image" in self.draws else next(iter(self.draws), "")

    def check_writes(self) -> None:
        """Raises a UsageError if the model has not learned to write text: one that compares has not."""
        if self.spec.streams[TEXT].objective == "none":
            raise UsageError("this model neither writes nor draws, it compares")

    @property
    def drawn(self) -> Stream | None:
        """The stream that draws the kind that `shows`; None for a model that only writes."""
        return chosen(drawables_of(self.spec), self.shows).stream if self.draws else None

    @property
    def answers(self) -> Stream | None:
        """The stream that draws a text behind a prompt as one item; None if text is written id by id."""
        return next((drawn.stream for drawn in drawables_of(self.spec) if drawn.kind == TEXT), None)

    @property
    def sides(self) -> int:
        """The number of sides of the latents or codes of the kind that `shows`: 1 for a sound, 2 for an image, 3 for a
        clip; 0 if the model draws nothing."""
        return self.spec.content(chosen(drawables_of(self.spec), self.shows).run).sides if self.draws else 0

    def sampler(self, **overrides: Any) -> SamplerConfig:
        """Returns the experiment's sampler settings with some replaced."""
        known = {field.name for field in dataclasses.fields(SamplerConfig)}
        if wrong := overrides.keys() - known:
            name = min(wrong)
            raise UsageError(f"no sampler setting {name!r}{nearest(name, known)}: there are {', '.join(sorted(known))}")
        return dataclasses.replace(self.experiment.sampling, **overrides)

    @functools.cached_property
    def forms(self) -> dict[str, Form]:
        """The forms to which the media of prompts are fitted. If the codec takes any channels, pictures get those of
        the training data, or else three."""
        sources = self.experiment.data.sources
        known = next((source.channels for source in sources.values() if source.channels), 3)
        forms = sized(forms_of(self.spec, self.codecs), sources)
        pictures = {kind: form for kind, form in forms.items() if kind != "sound"}
        return forms | {k: dataclasses.replace(form, channels=form.channels or known) for k, form in pictures.items()}

    def fitted(self, part: Part) -> np.ndarray:
        """Fits a picture, clip or sound, a PIL image or the path of a file to what its codec reads; see
        `transfusion.api.fitting`.

        Raises:
          UsageError: if it cannot be read, or the model reads no such thing.
        """
        fitter = Fitter(self.forms)
        medium = fitter.fit(part)
        fitter.tell()
        return medium

    def segments(self, part: Part) -> Document:
        """Makes the segments of a prompt's part, a text or a medium, which is fitted first: one segment, or one for
        each frame of a clip if the model has images only."""
        fitter = Fitter(self.forms)
        segments = self._segments(part, fitter)
        fitter.tell()
        return segments

    def _segments(self, part: Part, fitter: Fitter) -> Document:
        if isinstance(part, str):
            return (Segment(TEXT, self.task.tokenizer.encode(checked_text(part))),)
        return self._media(*fitter.read(part))

    def _media(self, kind: str, medium: np.ndarray) -> Document:
        """The segments of a medium that was fitted; `kind` is '' for the first kind of the layout that is no text."""
        codec = self.codecs[kind or next((k for k in self.spec.kinds if k != TEXT), "")]
        try:
            latents = segment_value(codec.encode(medium))
        except RECORD_FAULTS as error:
            found = f"{medium.dtype} {list(medium.shape)}"
            raise UsageError(f"the model's codec does not read {found}: {error_line(error)}") from error
        sides = codec.sides(latents)
        if sides == 3 and not self.kind(3):
            return tuple(segment for frame in medium for segment in self._media(kind, frame))
        return (Segment(kind or self.kind(sides) or "image", latents, "context", pixels=self.pixels(medium)),)

    def pixels(self, medium: np.ndarray) -> np.ndarray | None:
        """What streams read that see a picture itself; None if there are none."""
        return to_float(medium) if self.spec.reads_pixels else None

    def _prompts(self, given: Given, asked: Sequence[Asked], draw: bool, negative: str) -> list[Prompt]:
        """Makes the decoder's prompts; a part that occurs in several of them is read once."""
        fitter, seen = Fitter(self.forms), {}
        for part in {id(part): part for parts in given.prompts for part in parts}.values():
            seen[id(part)] = self._segments(part, fitter)
        fitter.tell()
        against = self._segments(negative, fitter) if negative else ()
        return [
            Prompt(
                tuple(segment for part in parts for segment in seen[id(part)]), draw or bool(one.kind), against,
                one.label, kind=one.kind, size=one.size,
            )
            for parts, one in zip(given.prompts, asked, strict=True)
        ]  # fmt: skip

    def kind(self, sides: int) -> str:
        """The layout's kind of segment whose latents or codes have so many sides; '' if there is none."""
        for kind, _, runs in self.spec.entries:
            if any(self.spec.content(run).sides == sides for run in runs):
                return kind
        return ""

    def generate(
        self,
        prompts: Prompts = "",
        *,
        draw: bool = False,
        kind: str | Sequence[str] = "",
        label: int | Sequence[int] | None = None,
        seed: int = 0,
        size: Sequence[int] | Sequence[Sequence[int]] = (0, 0),
        first: int = 0,
        **overrides: Any,
    ) -> list[str | np.ndarray] | list[list[str | np.ndarray]]:
        """Continues interleaved prompts; returns lists of the texts and uint8 images that the model writes and draws,
        or of other media.

        Args:
          prompts: a text, an array, a PIL image or a path is one prompt, and the result is that of one; a list is
            several, each one of these or a list of such parts in reading order. Media are fitted to the model.
          draw: asks for an image, at once or after a text of up to `think` tokens. Without it the model decides.
          kind: asks for a drawing of this kind, such as 'sound', or of one for each prompt; '' is the model's only one.
          label: the class of the drawing, or one for each prompt; for models that have classes.
          seed: same seed, same result.
          size: sides of the latents or codes that are drawn, or those for each prompt, for models that draw several;
            zeros leave it to the model.
          first: the number of the first prompt, where the list is a part of a longer one: with the seed it decides the
            random numbers.
          overrides: fields of `SamplerConfig`.

        Raises:
          UsageError: if a prompt, a setting or the seed is not valid, or does not fit the model or the memory.
        """
        given, asked = as_asked(as_prompts(prompts, self._several_axes), label, kind, size)
        draw = yes_or_no("draw", draw)
        results = self._generate(given, asked, draw, seed, first, self.sampler(**overrides))
        return results[0] if given.one else results

    def _generate(
        self,
        given: Given,
        asked: Sequence[Asked],
        draw: bool,
        seed: int,
        first: int,
        sampler: SamplerConfig,
    ) -> list[list[str | np.ndarray]]:
        self.check_writes()
        seed, first = whole_number("seed", seed, MOST_SEED), whole_number("first", first, MOST_FIRST)
        return self.continued(self._prompts(given, asked, draw, sampler.negative), seed, sampler, first=first)

    def continued(
        self, prompts: Sequence[Prompt], seed: int, sampler: SamplerConfig, **how: Any
    ) -> list[list[str | np.ndarray]]:
        """Continues prompts of segments, as `generate` does those that people pass; `how` are further arguments of
        `transfusion.sampling.decoder.generate`."""
        self.check_writes()
        documents = generate(self.task, self.params, prompts, seed, sampler, **how)
        decode = self._text
        return [
            [decode(s.value) if s.kind == TEXT else self.codecs[s.kind].decode(s.value) for s in document]
            for document in documents
        ]

    def _text(self, ids: np.ndarray) -> str:
        """The text of ids; of an answer those before its first fill."""
        if self.answers:
            ids = ids[: [*ids, self.answers.fill].index(self.answers.fill)]
        return self.task.tokenizer.decode(ids)

    @property
    def _several_axes(self) -> int:
        """The number of axes of an array of several media: one more than a medium has; 0 if that is not known."""
        return next((axes for kind, axes in (("video", 5), ("image", 4), ("sound", 2)) if kind in self.forms), 0)

    def draw(
        self,
        prompts: Prompts = "",
        *,
        kind: str | Sequence[str] = "",
        label: int | Sequence[int] | None = None,
        seed: int = 0,
        size: Sequence[int] | Sequence[Sequence[int]] = (0, 0),
        first: int = 0,
        **overrides: Any,
    ) -> np.ndarray | list[np.ndarray]:
        """Draws for each prompt an image uint8 [H, W, C], a clip [T, H, W, C] or a sound float32 [samples]; a list of
        prompts gives one more axis in front, or a list of drawings where `kind` or `size` is a list. With `min_images`
        (the frames of a world model) each drawing is a clip of that many images. The arguments are those of `generate`.

        Raises:
          UsageError: as `generate`, and if the drawings of a list have several sizes that nobody asked for.
        """
        if self.answers and not self.draws:
            raise UsageError("this model draws no images: it answers (caption)")
        frames = self.sampler(**overrides).min_images
        sampler = self.sampler(**{"max_tokens": 0, "max_images": max(1, frames)} | overrides)
        given, asked = as_asked(as_prompts(prompts, self._several_axes), label, kind, size)
        results = self._generate(given, asked, True, seed, first, sampler)
        drawn = [[part for part in result if not isinstance(part, str)] for result in results]
        if isinstance(kind, list | tuple) or is_several(size):
            return [np.stack(parts) if frames > 1 else parts[0] for parts in drawn]
        if len({part.shape for parts in drawn for part in parts}) > 1:
            raise UsageError("the drawings have several sizes: ask for one with `size`, or use generate")
        drawings = np.stack([np.stack(parts) if frames > 1 else parts[0] for parts in drawn])
        return drawings[0] if given.one else drawings

    def caption(self, media: Prompts, *, seed: int = 0, first: int = 0, **overrides: Any) -> str | list[str]:
        """Captions a picture, clip or sound (an array, a PIL image, or the path of a file, which may be a string), or
        each of a list of them; greedy unless `temperature` is given.

        Raises:
          UsageError: as `generate`.
        """
        return self.answer(as_paths(media), seed=seed, first=first, **overrides)

    def answer(self, prompts: Prompts, *, seed: int = 0, first: int = 0, **overrides: Any) -> str | list[str]:
        """Answers a prompt in words alone, or each of a list: `run.answer([[image, "what is it?"]])`; greedy unless
        `temperature` is given. The prompts are those of `generate`.

        Raises:
          UsageError: as `generate`.
        """
        given, asked = as_prompts(prompts, self._several_axes), Asked()
        drawn: dict[str, int] = {}
        if self.answers:
            asked, drawn = Asked(kind=TEXT), {"max_images": 1, "max_tokens": 0}
        sampler = self.sampler(**{"temperature": 0.0, "max_images": 0} | overrides | drawn)
        results = self._generate(given, [asked] * len(given.prompts), False, seed, first, sampler)
        answers = ["".join(part for part in result if isinstance(part, str)) for result in results]
        return answers[0] if given.one else answers

    def chat(self, system: str = "", *, seed: int = 0, **overrides: Any) -> Chat:
        """Begins a conversation in the chat template of the tokenizer; see `transfusion.api.chat.Chat`.

        Args:
          system: the system prompt; '' has none.
          seed: decides all random numbers, together with the number of a turn.
          overrides: fields of `SamplerConfig`, for all turns.
        """
        return Chat(self, system, whole_number("seed", seed, MOST_SEED), overrides)

    def __repr__(self) -> str:
        return summary(self)
