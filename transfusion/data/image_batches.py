"""Batches of images or clips without text, for codecs: row r of the global batch reads the records r, r + B, ..."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from transfusion.data.config import DataConfig, Record
from transfusion.data.documents import pixels
from transfusion.data.packing import Bad
from transfusion.data.records import BadRecords, Records
from transfusion.errors import UsageError

ImageBatch = dict[str, np.ndarray]


class ImageBatches:
    """Endless {'images' float32 [rows, H, W, C] in [-1, 1], 'weight' [rows]} with an exact, elastic state.

    `rows` are those of the global batch that are made, all by default. `medium` is the key of the records that is read:
    'video' gives clips [rows, T, H, W, C].
    """

    def __init__(
        self,
        config: DataConfig,
        batch_size: int,
        seed: int = 0,
        rows: Sequence[int] | None = None,
        medium: str = "image",
    ):
        """Raises UsageError if the sources cannot be opened."""
        self._records = Records(config, seed)
        self._bad = BadRecords(config.max_bad_share, config.max_bad_after)
        self._batch_size, self._medium = batch_size, medium
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
            record = self._records[self._cursors[row]]
            self._cursors[row] += self._batch_size
            self._read += 1
            if self._medium in record:
                return pixels(record[self._medium])
            self._bad.add(Bad(str(record["id"]), str(record.get("error", f"has no {self._medium}"))))
            self._bad.check(self._read)

    def state(self) -> dict:
        """JSON: where each of these rows reads on."""
        return {"batch_size": self._batch_size, "rows": {str(row): at for row, at in self._cursors.items()}}

    def restore(self, state: Mapping) -> None:
        """Raises UsageError if the state is of another batch size."""
        if state.get("batch_size") != self._batch_size:
            raise UsageError(
                f"the data position was saved with batch_size={state.get('batch_size')}, not {self._batch_size}"
            )
        self._cursors = {row: state["rows"][str(row)] for row in self._cursors}

    def fingerprint(self) -> dict[str, str]:
        """See `Records.fingerprint`."""
        return self._records.fingerprint()

    def stats(self) -> dict:
        """'bad' (count) and 'errors'; images fill their batch."""
        return {"bad": self._bad.count, "errors": dict(self._bad.errors), "efficiency": {"all": 1.0}}


def image_epoch(records: Sequence[Record], batch_size: int, medium: str = "image") -> Iterator[ImageBatch]:
    """Every image (or clip) once, in order; the last batch is filled with images of weight 0."""
    images = [pixels(r[medium]) for r in (records[i] for i in range(len(records))) if medium in r]
    for start in range(0, len(images), batch_size):
        part = images[start : start + batch_size]
        weight = np.zeros(batch_size, np.float32)
        weight[: len(part)] = 1
        yield {"images": np.stack(part + [part[0]] * (batch_size - len(part))), "weight": weight}
