"""A trained run in a notebook or script: load it, draw, caption, write, look.

import transfusion
run = transfusion.load_run("runs/digits")
images = run.draw(["a handwritten seven"] * 8, guidance=2.0)   # uint8 [8, H, W, C]
run.caption(images)                                            # eight captions
run.draw([[image, "negative"] for image in images])            # edited

A conversation is a list that grows; what the model says is what it reads in the next turn:

chat = ["a handwritten seven"]
chat += run.generate([chat], draw=True)[0]
chat += ["negative"]
chat += run.generate([chat], draw=True, think=32)[0]           # up to 32 bytes of text first, then the image
"""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from transfusion.checkpoint import restore_params
from transfusion.codecs.pixels import to_float
from transfusion.config import Experiment
from transfusion.data.documents import content
from transfusion.errors import UsageError
from transfusion.latents import Codec, open_codec
from transfusion.model.parameters import Params
from transfusion.programs import read_experiment
from transfusion.resume import as_trained
from transfusion.sampling.config import SamplerConfig
from transfusion.sampling.decoder import Prompt, generate
from transfusion.sampling.layout import Layout
from transfusion.sequence import Document, Segment, SequenceSpec, Stream
from transfusion.tasks import SequenceTask, make_task


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A trained model with all that sampling needs.

    Attributes:
      experiment: the config that it was trained with.
      task: what builds the model from its parameters.
      params: the averaged parameters where the run keeps an average, else the parameters.
      codec: between media and latents.
      step: training steps behind the parameters.
    """

    experiment: Experiment
    task: SequenceTask
    params: Params
    codec: Codec
    step: int

    @property
    def spec(self) -> SequenceSpec:
        return self.task.spec

    @property
    def drawn(self) -> Stream | None:
        """The stream that the model draws; one for understanding alone has none."""
        layout = Layout(self.spec)
        return layout.stream if layout.kind else None

    @property
    def sides(self) -> int:
        """How many sides the latents or codes of a drawing have: 1 of a sound, 2 of an image, 3 of a clip; 0 if the
        model draws nothing."""
        layout = Layout(self.spec)
        return self.spec.sides(layout.run) if layout.kind else 0

    def sampler(self, **overrides: Any) -> SamplerConfig:
        """The experiment's sampler settings with some replaced."""
        known = {field.name for field in dataclasses.fields(SamplerConfig)}
        if wrong := overrides.keys() - known:
            raise UsageError(f"no sampler setting {sorted(wrong)[0]!r}: there are {', '.join(sorted(known))}")
        return dataclasses.replace(self.experiment.sampling, **overrides)

    def segments(self, part: str | np.ndarray) -> Document:
        """A text, or what the codec reads (a uint8 image [H, W, C], a clip [T, H, W, C], a sound [samples]), as a part
        of a prompt: one segment, or one for each frame of a clip where the model has images only."""
        if isinstance(part, str):
            return (Segment("text", self.task.tokenizer.encode(part)),)
        medium = np.asarray(part)
        latents = content(self.codec.encode(medium))
        # Channels are no side; codes at several scales are flat, and have two.
        sides = latents.ndim - (latents.dtype.kind == "f") + bool(self.codec.scales)
        if sides == 3 and not self.kind(3):
            return tuple(segment for frame in medium for segment in self.segments(frame))
        pixels = to_float(medium) if self.spec.reads_pixels else None
        return (Segment(self.kind(sides) or "image", latents, "context", pixels=pixels),)

    def kind(self, sides: int) -> str:
        """The kind of segment of the layout whose latents or codes have so many sides; '' if there is none."""
        for key, runs in self.spec.layout.items():
            if any(self.spec.sides(run) == sides for run in runs):
                return key.partition("/")[0]
        return ""

    def generate(
        self,
        prompts: Sequence[Sequence[str | np.ndarray]],
        *,
        draw: bool = False,
        seed: int = 0,
        size: tuple[int, ...] = (0, 0),
        **overrides: Any,
    ) -> list[list[str | np.ndarray]]:
        """Continues interleaved prompts with what the model writes and draws: lists of texts and uint8 images, or what
        else the codec decodes.

        Args:
          prompts: each a list of texts and images (clips, sounds) in reading order.
          draw: an image must come: at once, or after a text of up to `think` tokens. Else the model decides.
          seed: same seed, same result.
          size: sides of the latents or codes that are drawn, for models that draw several; zeros leave it to the model.
          overrides: fields of `SamplerConfig`.
        """
        sampler = self.sampler(**overrides)
        negative = self.segments(sampler.negative) if sampler.negative else ()
        parts = [Prompt(tuple(s for part in prompt for s in self.segments(part)), draw, negative) for prompt in prompts]
        documents = generate(self.task, self.params, parts, seed, sampler, size=size)
        decode = self.task.tokenizer.decode
        return [
            [decode(s.value) if s.kind == "text" else self.codec.decode(s.value) for s in document]
            for document in documents
        ]

    def draw(
        self, prompts: Sequence[str | Sequence[str | np.ndarray]], *, seed: int = 0, **overrides: Any
    ) -> np.ndarray:
        """One drawing per prompt, a caption or a list of texts and media: uint8 [n, H, W, C] of images, [n, T, H, W, C]
        of clips, float32 [n, samples] of sounds. With `min_images` (the frames of a world model) that many images each,
        as one clip."""
        frames = overrides.get("min_images", self.experiment.sampling.min_images)
        overrides = {"max_tokens": 0, "max_images": max(1, frames)} | overrides
        parts = [[prompt] if isinstance(prompt, str) else prompt for prompt in prompts]
        results = self.generate(parts, draw=True, seed=seed, **overrides)
        drawn = [[part for part in result if not isinstance(part, str)] for result in results]
        if len({part.shape for parts in drawn for part in parts}) > 1:
            raise UsageError("the drawings have several sizes: ask for one with `size`, or use generate")
        return np.stack([np.stack(parts) if frames > 1 else parts[0] for parts in drawn])

    def caption(self, images: Sequence[np.ndarray], *, seed: int = 0, **overrides: Any) -> list[str]:
        """One caption per uint8 image [H, W, C], clip or sound, greedy unless `temperature` is given."""
        overrides = {"temperature": 0.0, "max_images": 0} | overrides
        results = self.generate([[image] for image in images], seed=seed, **overrides)
        return ["".join(part for part in result if isinstance(part, str)) for result in results]


def load_run(workdir: str | os.PathLike) -> Run:
    """The newest intact checkpoint of a training run.

    Raises:
      UsageError: if the workdir holds no run, no intact checkpoint, or a codec's run.
    """
    experiment = read_experiment(workdir)
    step, params, config = restore_params(workdir, "ema" if experiment.optim.ema else "params")
    experiment = as_trained(experiment, config, workdir)
    task = make_task(experiment)
    if not isinstance(task, SequenceTask):
        raise UsageError(f"{workdir} holds an autoencoder, not a model that samples")
    return Run(experiment, task, params, open_codec(experiment.codec), step)
