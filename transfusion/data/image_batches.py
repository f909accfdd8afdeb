"""The pipeline of autoencoders: batches of images or clips without text.

Row r of a global batch of B rows reads the records r, r + B, r + 2B, ... Where images are learned and a record has a
clip, one frame of it is its image.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from transfusion.data.config import DataConfig, Record
from transfusion.data.documents import pixel_latents
from transfusion.data.packing import Bad
from transfusion.data.position import check_same_batches, warn_of_changes
from transfusion.data.records import BadRecords, Records
from transfusion.data.sources import Source
from transfusion.errors import UsageError

ImageBatch = dict[str, np.ndarray]


class ImageBatches:
    """An endless iterator of {'images': float32 [rows, H, W, C] in [-1, 1], 'weight': [rows]} with an exact state.

    Args:
      config: the settings of the data.
      batch_size: rows of the global batch, on all hosts together.
      seed: decides the order of the records.
      rows: the rows of the global batch that this host makes; all by default.
      medium: 'image', or 'video' for clips [rows, T, H, W, C].
      shape: records of another shape are bad; () takes any.
    """

    def __init__(
        self,
        config: DataConfig,
        batch_size: int,
        seed: int = 0,
        rows: Sequence[int] | None = None,
        medium: str = "image",
        shape: tuple[int, ...] = (),
    ):
        """Raises UsageError if the sources cannot be opened."""
        self._records = Records(config, seed)
        self._bad = BadRecords(config, self._records.epoch)
        self._batch_size, self._seed, self._medium, self._shape = batch_size, seed, medium, shape
        self._cursors = {row: row for row in (range(batch_size) if rows is None else rows)}
        self._read = 0

    def __iter__(self) -> Iterator[ImageBatch]:
        return self

    def __next__(self) -> ImageBatch:
        images = [self._next(row) for row in self._cursors]
        return {"images": np.stack(images), "weight": np.ones(len(images), np.float32)}

    def __enter__(self) -> "ImageBatches":
        return self

    def __exit__(self, *_) -> None:
        pass

    def _next(self, row: int) -> np.ndarray:
        while True:
            number = self._cursors[row]
            record = self._records[number]
            self._cursors[row] += self._batch_size
            self._read += 1
            found = usable_image(record, self._medium, self._shape, number)
            if not isinstance(found, Bad):
                return pixel_latents(found)
            self._bad.add(found)
            self._bad.check(self._read)

    def state(self) -> dict:
        """The place where each of these rows continues, as JSON."""
        rows = {str(row): at for row, at in self._cursors.items()}
        data = self._records.identity()
        return {"batch_size": self._batch_size, "seed": self._seed, "data": data, "rows": rows}

    def restore(self, state: Mapping) -> None:
        """Continues where `state` was taken.

        If the data has changed, a line of the log says what has, and the rows continue at the same places in the new
        data's order.

        Raises:
          UsageError: if the state is of another batch size or seed, or lacks rows of this host.
        """
        check_same_batches(state, self._batch_size, self._seed)
        missing = [row for row in self._cursors if str(row) not in state.get("rows", ())]
        if missing:
            raise UsageError(f"the saved data position lacks rows {missing[:5]}: it has rows of other hosts only")
        warn_of_changes(state, self._records)
        self._cursors = {row: int(state["rows"][str(row)]) for row in self._cursors}
        self._bad.restart()
        self._read = 0

    def fingerprint(self) -> dict[str, str]:
        """See `Records.fingerprint`."""
        return self._records.fingerprint()

    @property
    def sources(self) -> Mapping[str, Source]:
        """The opened sources."""
        return self._records.sources

    def stats(self) -> dict:
        """'bad' (a count), 'errors' ({name: what is wrong}) and 'efficiency', which is 1 as images fill their batch."""
        return {"bad": self._bad.count, "errors": dict(self._bad.errors), "efficiency": {"all": 1.0}}


def usable_image(record: Record, medium: str, shape: tuple[int, ...], number: int = 0) -> np.ndarray | Bad:
    """The image or clip of a record, or why it cannot be used. It must have this `shape`, unless that is ().

    An image may be a frame of a clip: which one, the `number` of the record says.
    """
    frames = record.get("video") if medium == "image" else None
    if medium not in record and frames is None or "error" in record:
        return Bad(str(record["id"]), str(record.get("error", f"has no {medium}")))
    image = record[medium] if medium in record else frames[number % len(frames)]
    if shape and image.shape != tuple(shape):
        return Bad(str(record["id"]), f"the {medium} is {list(image.shape)}, not {list(shape)}")
    return image


def image_epoch(
    records: Sequence[Record], batch_size: int, medium: str = "image", shape: tuple[int, ...] = ()
) -> Iterator[ImageBatch]:
    """Yields every usable image (or clip) once, in order. The last batch is filled with images of weight 0."""
    found = (usable_image(records[i], medium, shape, i) for i in range(len(records)))
    images = (pixel_latents(image) for image in found if not isinstance(image, Bad))
    while part := list(itertools.islice(images, batch_size)):
        weight = np.zeros(batch_size, np.float32)
        weight[: len(part)] = 1
        yield {"images": np.stack(part + [part[0]] * (batch_size - len(part))), "weight": weight}
