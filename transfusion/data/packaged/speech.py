"""Recordings of one speaker with their words as a TFDS data set."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from transfusion.data import sounds
from transfusion.data.packaged import speech_catalogue
from transfusion.data.packaged.base import PackagedBuilder, in_held_out_tenth, splits_of
from transfusion.data.packaged.digits import DIGIT_WORDS
from transfusion.errors import UsageError

RECORDINGS = "/usr/share/asterisk/sounds/en_US_f_Allison"


@dataclasses.dataclass
class SpeechConfig(tfds.core.BuilderConfig):
    """Settings of `Speech`.

    Attributes:
      pattern: the WAV files below `folder` that are taken.
      folder: where Debian's package asterisk-core-sounds-en-wav puts its recordings.
    """

    pattern: str = "digits/*.wav"
    folder: str = RECORDINGS


class Speech(PackagedBuilder):
    """Recordings of one speaker at 8 kHz with their words: 94 numbers, ordinals, days and months, or all 568.

    A tenth, chosen by hash, is split 'heldout'; the words zero to nine are in training.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [SpeechConfig(name="digits"), SpeechConfig(name="all", pattern="**/*.wav")]

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "sound": tfds.features.Tensor(shape=(None,), dtype=np.int16, encoding="zlib"),
            "rate": tfds.features.Scalar(np.int32),
            "caption": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Recordings of Asterisk's English core sounds, CC BY-SA 3.0.",
            features=tfds.features.FeaturesDict(features),
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        config, root = self.builder_config, Path(self.builder_config.folder)
        if not root.is_dir():
            raise UsageError(f"no recordings at {root}: apt-get install asterisk-core-sounds-en-wav")
        paths = {str(path.relative_to(root).with_suffix("")): path for path in sorted(root.glob(config.pattern))}
        rows = [(n, p, speech_catalogue.spoken(p.stem)) for n, p in paths.items() if not n.startswith("silence")]
        out = {name for name, _, caption in rows if in_held_out_tenth(name) and caption not in DIGIT_WORDS}
        return splits_of(rows, out, self._generate_examples)

    def _generate_examples(self, rows: list[tuple[str, Path, str]]) -> Iterator[tuple[str, dict]]:
        for name, path, caption in rows:
            sound, rate = sounds.decode(path.read_bytes())
            yield name, {"sound": sound, "rate": rate, "caption": caption}
