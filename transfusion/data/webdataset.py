"""WebDataset tars, read in place: indexed once, then random access by offset."""

import dataclasses
import glob
import json
import os
import tarfile

from transfusion.data import images
from transfusion.data.config import Record, SourceConfig
from transfusion.errors import UsageError

_IMAGES = (".png", ".jpg", ".jpeg", ".webp")
_CAPTIONS = (".txt", ".json")


@dataclasses.dataclass(frozen=True)
class _Sample:
    shard: str
    key: str
    parts: dict[str, tuple[int, int]]  # extension -> (offset, size)
    error: str = ""


class WebDatasetSource:
    """Samples of one or more tars: files that share the name up to the first dot, an image and a .txt or .json caption.

    `path` is a tar, a folder of tars or a glob. Nothing is extracted to disk. A tar that breaks off keeps the samples
    before the break and adds one error record.
    """

    def __init__(self, config: SourceConfig, data_dir: str, pixel_limit: int):
        self._config, self._pixel_limit = config, pixel_limit
        pattern = os.path.join(config.path, "*.tar") if os.path.isdir(config.path) else config.path
        shards = [pattern] if os.path.isfile(pattern) else sorted(glob.glob(pattern))
        if not shards:
            raise UsageError(f"no tar file matches {pattern!r}")
        self._samples = [sample for shard in shards for sample in _index(shard)]

    def __len__(self) -> int:
        return len(self._samples)

    def key(self, index: int) -> str:
        """See `hold_out.part_of`."""
        sample = self._samples[index]
        return f"{os.path.basename(sample.shard)}:{sample.key}"

    def __getitem__(self, index: int) -> Record:
        sample = self._samples[index]
        name = f"{sample.shard}:{sample.key}"
        image = next((ext for ext in _IMAGES if ext in sample.parts), None)
        caption = next((ext for ext in _CAPTIONS if ext in sample.parts), None)
        if sample.error or image is None:
            return {"id": name, "error": sample.error or f"no image ({', '.join(_IMAGES)})"}
        record: dict = {"id": name}
        try:
            record["image"] = images.decode(self._read(sample, image), self._pixel_limit)
            if self._config.caption_field:
                record["caption"] = None if caption is None else self._caption(sample, caption)
        except (OSError, ValueError) as error:
            return {"id": name, "error": str(error)}
        return record

    def _caption(self, sample: _Sample, extension: str) -> object:
        text = self._read(sample, extension).decode("utf-8")
        if extension == ".txt":
            return text.strip()
        content = json.loads(text)
        return content.get(self._config.caption_field) if isinstance(content, dict) else None

    def _read(self, sample: _Sample, extension: str) -> bytes:
        offset, size = sample.parts[extension]
        with open(sample.shard, "rb") as file:
            file.seek(offset)
            data = file.read(size)
        if len(data) != size:
            raise ValueError(f"{extension} breaks off after {len(data)} of {size} bytes")
        return data


def _index(shard: str) -> list[_Sample]:
    parts: dict[str, dict[str, tuple[int, int]]] = {}
    broken = ""
    try:
        with tarfile.open(shard, "r:") as tar:  # uncompressed only: offsets into a compressed tar mean nothing
            for member in tar:
                folder, base = os.path.split(member.name)
                stem, dot, extension = base.partition(".")
                if member.isreg() and stem and dot:
                    key = os.path.join(folder, stem)
                    parts.setdefault(key, {})["." + extension.lower()] = (member.offset_data, member.size)
    except (tarfile.TarError, EOFError, OSError) as error:
        broken = f"not a readable uncompressed tar from here on ({error})"
    samples = [_Sample(shard, key, files) for key, files in parts.items()]
    return samples + ([_Sample(shard, "?", {}, broken)] if broken else [])
