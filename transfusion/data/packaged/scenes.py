"""Captioned pictures and clips of shapes as a TFDS data set: a fixed part of what sources of kind 'scenes' make.

Whoever trains here reads that source, which has no end and no files. The files are for other programs.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds

from transfusion.data import images
from transfusion.data.packaged.base import PackagedBuilder
from transfusion.data.scenes import tasks
from transfusion.data.scenes.source import HELD


@dataclasses.dataclass
class ScenesConfig(tfds.core.BuilderConfig):
    """Settings of `Scenes`.

    Attributes:
      task: a task whose records are media with captions.
      resolution: pixels of a side.
      train: records of the split 'train'.
      held: of every other split.
    """

    task: str = "captions"
    resolution: int = 32
    train: int = 20_000
    held: int = HELD


class Scenes(PackagedBuilder):
    """Pictures (configs '32' and '64') or clips ('clips') of shapes with captions, whose `kind` is a skill."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [
        ScenesConfig(name="32"),
        ScenesConfig(name="64", resolution=64),
        ScenesConfig(name="clips", task="clips", resolution=16),
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        config = self.builder_config
        side = config.resolution
        frames = {"video": tfds.features.Tensor(shape=(8, side, side, 3), dtype=np.uint8, encoding="zlib")}
        picture = {"image": tfds.features.Image(shape=(side, side, 3), dtype=np.uint8)}
        medium = frames if config.task == "clips" else picture
        words = {"caption": tfds.features.Text(), "kind": tfds.features.Text()}
        return tfds.core.DatasetInfo(
            builder=self,
            description="Pictures and clips of coloured shapes with captions, made by transfusion.data.scenes.",
            features=tfds.features.FeaturesDict(medium | words),
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        config = self.builder_config
        counts = {split: config.train if split == "train" else config.held for split in tasks.TASKS[config.task].splits}
        return {split: self._generate_examples(split, count) for split, count in counts.items()}

    def _generate_examples(self, split: str, count: int) -> Iterator[tuple[int, dict]]:
        config = self.builder_config
        for number in range(count):
            drawn = tasks.draw(config.task, split, number)
            record = tasks.TASKS[config.task].record(drawn, config.resolution)
            if "image" in record:
                record["image"] = images.encode_png(record["image"])  # TFDS would ask TensorFlow to do it
            yield number, record | {"kind": drawn.kind}
