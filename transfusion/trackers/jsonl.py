"""The tracker that every run has: metrics.jsonl, and pictures in samples/training/ of the workdir."""

import io
import json
from collections.abc import Sequence

from etils import epath
from PIL import Image

from transfusion import storage
from transfusion.running.metrics import MetricWriter
from transfusion.trackers.tracker import Numbers, Picture, Tracked

FOLDER = "samples/training"


class Jsonl:
    """Writes rows of numbers as `MetricWriter` does, and raises what it raises: a run must not go on without them."""

    def __init__(self, workdir: epath.Path):
        self._writer, self._folder = MetricWriter(workdir), epath.Path(workdir) / FOLDER

    def start(self, run: Tracked, at: int) -> None:
        """Removes rows of later steps."""
        self._writer.truncate(at)

    def scalars(self, step: int, numbers: Numbers) -> None:
        self._writer.write(step, numbers)

    def media(self, step: int, pictures: Sequence[Picture]) -> None:
        """Writes step-00000400.json, a list of names and captions, and a PNG of each picture beside it."""
        storage.make_folder(self._folder)
        rows = []
        for picture in pictures:
            file = f"step-{step:08d}-{picture.name.replace('/', '-')}.png"
            out = io.BytesIO()
            Image.fromarray(picture.image).save(out, "PNG")
            storage.write_whole(self._folder / file, out.getvalue())
            rows.append({"step": step, "name": picture.name, "caption": picture.caption, "file": file})
        storage.write_whole(self._folder / f"step-{step:08d}.json", json.dumps(rows, indent=1, ensure_ascii=False))

    def finish(self) -> None:
        """Each row is on disk already."""
