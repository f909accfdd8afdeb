"""Reads the real images with which scores compare, with captions and labels, from the sources of a config."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from transfusion.data.config import DataConfig, SourceConfig
from transfusion.data.media import medium_of
from transfusion.data.sources import Source, open_source

# If none of so many first records holds an image, the source is text and is not read any further.
FIRST_RECORDS = 64
EXAMPLES_OF_A_SOURCE = 50_000


@dataclasses.dataclass(frozen=True)
class Examples:
    """N images of one size, uint8 [N, H, W, C], or clips or sounds, with captions ('' for none) and labels (-1 for
    none).
    """

    images: np.ndarray
    captions: tuple[str, ...]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.captions)

    @property
    def captioned(self) -> bool:
        return len(self) > 0 and all(self.captions)

    @property
    def labelled(self) -> bool:
        return len(self) > 0 and bool((self.labels >= 0).all())

    def take(self, indices: np.ndarray) -> "Examples":
        """The examples at the indices."""
        return Examples(self.images[indices], tuple(self.captions[i] for i in indices), self.labels[indices])


def read_examples(
    sources: Mapping[str, SourceConfig], data: DataConfig, most: int = EXAMPLES_OF_A_SOURCE, kind: str = "image"
) -> Examples:
    """The records with this kind of medium, in the sources' order, at most `most` of each source.

    Media of another size than the first one are left out.

    Raises:
      UsageError: if a source cannot be opened.
    """
    images, captions, labels = [], [], []
    for config in sources.values():
        source, found = _pixels_of(config, data), 0
        for i in range(len(source)):
            if found == most or (i == FIRST_RECORDS and not found):
                break
            record = source[i]
            if kind not in record or (images and record[kind].shape != images[0].shape):
                continue
            found += 1
            images.append(record[kind])
            captions.append(record.get("caption", ""))
            labels.append(record.get("label", -1))
    empty = np.zeros((0, 1, 1, 1), np.uint8)
    return Examples(np.stack(images) if images else empty, tuple(captions), np.array(labels, np.int64))


def _pixels_of(config: SourceConfig, data: DataConfig) -> Source:
    """The source with its media themselves, even if training reads cached latents."""
    return open_source(dataclasses.replace(config, latents=""), data.data_dir, data.pixel_limit)


def medium_of_sources(sources: Mapping[str, SourceConfig], data: DataConfig) -> str:
    """The kind of the first medium in the sources; '' if they hold only text.

    Raises:
      UsageError: if a source cannot be opened.
    """
    for config in sources.values():
        source = _pixels_of(config, data)
        for i in range(min(FIRST_RECORDS, len(source))):
            if kind := medium_of(source[i]):
                return kind
    return ""


def class_captions(examples: Examples) -> dict[int, str]:
    """The caption of the first example of each label."""
    result: dict[int, str] = {}
    for label, caption in zip(examples.labels.tolist(), examples.captions, strict=True):
        if label >= 0 and caption:
            result.setdefault(label, caption)
    return dict(sorted(result.items()))
