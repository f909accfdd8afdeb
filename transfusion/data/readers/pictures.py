"""Pictures as Hugging Face `datasets` has them: an `imagefolder`, and the Parquet files that it writes.

A row has a picture (`image`, or `file_name` beside the metadata), and perhaps a caption (`text`, `caption` or several
`captions`) and a class (`label`). A folder without metadata has a folder for each class, whose name is the caption.
"""

import os
from collections.abc import Mapping

from transfusion.data.readers import conversations
from transfusion.data.record_files import Row
from transfusion.errors import UsageError

_PICTURES = ("image", "img", "file_name", "image_file_name", "jpg", "png")
_CAPTIONS = ("text", "caption", "captions", "prompt", "description")
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tiff")


def read(row: Mapping[str, object]) -> dict:
    """One row of pictures with captions or questions as a record with segments; raises ValueError if it is none."""
    if row.get("conversations") or row.get("messages"):
        return conversations.read(row)
    picture = next((row[name] for name in _PICTURES if row.get(name)), None)
    if picture is None:
        raise ValueError(f"it has no picture: none of {', '.join(_PICTURES)}")
    words = next((row[name] for name in _CAPTIONS if row.get(name)), None)
    label = row.get("label")
    record: dict[str, object] = {"image": picture}
    if words is None and isinstance(label, str):  # the name of a class
        words = label
    if isinstance(label, int):
        record["label"] = label
    return record | ({} if words is None else {"captions" if isinstance(words, list) else "caption": words})


class Folder:
    """The pictures in the folders below a folder, sorted by name."""

    def __init__(self, path: str):
        self._path = path
        self._names = sorted(
            os.path.relpath(os.path.join(folder, name), path)
            for folder, _, names in os.walk(path)
            for name in names
            if name.lower().endswith(_SUFFIXES)
        )
        if not self._names:
            raise UsageError(f"no metadata and no pictures in {path!r}")

    def __len__(self) -> int:
        return len(self._names)

    def where(self, index: int) -> str:
        return os.path.join(self._path, self._names[index])

    def row(self, index: int) -> Row:
        name = self._names[index]
        return Row(self.where(index), {"file_name": name, "label": os.path.basename(os.path.dirname(name)) or None})
