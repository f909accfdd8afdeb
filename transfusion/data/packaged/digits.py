"""The handwritten digits of scikit-learn as a TFDS data set."""

from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds

from transfusion.data import images
from transfusion.data.packaged.base import PackagedBuilder
from transfusion.errors import require

DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class Digits(PackagedBuilder):
    """1,797 handwritten digits, 8x8 pixels, of scikit-learn: 1,500 to train, 297 to test by a fixed permutation.

    The file is ordered by writer, so its last 297 digits come from writers that the first 1,500 never show. The split
    measures digits, not writers.
    """

    VERSION = tfds.core.Version("1.1.0")
    SHAPE: tuple[int | None, ...] = (8, 8, 1)
    ABOUT = "Handwritten digits (UCI ML, BSD-licensed copy in scikit-learn), 8x8 grey."

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.ABOUT,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=self.SHAPE, dtype=np.uint8),
                    "label": tfds.features.ClassLabel(num_classes=10),
                    "caption": tfds.features.Text(),
                }
            ),
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        order = np.random.default_rng(0).permutation(1797)
        return {"train": self._generate_examples(order[:1500]), "test": self._generate_examples(order[1500:])}

    def _generate_examples(self, numbers: np.ndarray) -> Iterator[tuple[int, dict]]:
        digits = require("sklearn.datasets", "demo").load_digits()
        for i in map(int, numbers):
            label = int(digits.target[i])
            # Stored values are 0..16; 255/16 is exact enough that 16 becomes white.
            pixels = np.round(digits.images[i] * (255 / 16)).astype(np.uint8)[..., None]
            caption = f"a handwritten {DIGIT_WORDS[label]}"
            yield i, {"image": images.encode_png(pixels), "label": label, "caption": caption}


SIZES = ((8, 8), (8, 12), (12, 8))  # height and width


class SizedDigits(Digits):
    """The same digits, each three times: as it is, and at a random place of a wider and of a higher canvas of black."""

    VERSION = tfds.core.Version("1.0.0")
    SHAPE = (None, None, 1)
    ABOUT = "Handwritten digits (UCI ML, BSD-licensed copy in scikit-learn), 8x8 grey, on canvases of three sizes."

    def _generate_examples(self, numbers: np.ndarray) -> Iterator[tuple[int, dict]]:
        for i, record in super()._generate_examples(numbers):
            digit, rng = images.decode(record["image"]), np.random.default_rng(i)
            for number, (height, width) in enumerate(SIZES):
                top, left = rng.integers(0, (height - 7, width - 7))
                canvas = np.zeros((height, width, 1), np.uint8)
                canvas[top : top + 8, left : left + 8] = digit
                yield 3 * i + number, record | {"image": images.encode_png(canvas)}
