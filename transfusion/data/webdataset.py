"""The source of kind 'webdataset': tars are indexed once and then read in place, at any offset."""

import collections
import dataclasses
import os
from collections.abc import Callable
from typing import BinaryIO, TypeVar

from absl import logging

from transfusion.data import files, foreign_text, images, tars
from transfusion.data.config import Record, SourceConfig
from transfusion.data.patterns import files_named
from transfusion.errors import UsageError

_T = TypeVar("_T")

_IMAGES = (".png", ".jpg", ".jpeg", ".webp")
_CAPTIONS = (".txt", ".json")


@dataclasses.dataclass(frozen=True)
class Shard:
    """A tar. `state` is its size and time, which tell whether it was replaced after it was indexed."""

    path: str
    state: tuple[int, int] = (0, 0)


@dataclasses.dataclass
class Sample:
    """The members of a tar whose names are the same up to the first dot, by the rest of their names."""

    shard: Shard
    key: str
    parts: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)  # extension -> (offset, size)
    error: str = ""


class WebDatasetSource:
    """One record per sample of the tars.

    A sample is the files whose names are the same up to the first dot: an image and a .txt or .json caption. `path` is
    a tar, a folder of tars, a glob, or has braces as in `shards-{000..099}.tar`. Nothing is extracted to the disk. Of a
    damaged tar the samples before the damage are read; one error record more says where the damage is.
    """

    def __init__(self, config: SourceConfig, data_dir: str, pixel_limit: int):
        self._config, self._pixel_limit = config, pixel_limit
        self._samples = [
            sample
            for path in shards_of(config.path)
            for sample in index_shard(path, path == config.path or config.follow_links)
        ]

    def __len__(self) -> int:
        return len(self._samples)

    def key(self, index: int) -> str:
        """See `hold_out.part_of`."""
        sample = self._samples[index]
        return f"{os.path.basename(sample.shard.path)}:{sample.key}"

    def __getitem__(self, index: int) -> Record:
        sample = self._samples[index]
        name = f"{sample.shard.path}:{sample.key}"
        image = next((ext for ext in _IMAGES if ext in sample.parts), None)
        caption = next((ext for ext in _CAPTIONS if ext in sample.parts), None)
        if sample.error or image is None:
            return {"id": name, "error": sample.error or f"no image ({', '.join(_IMAGES)}; a link is left out)"}
        record: dict = {"id": name}
        try:
            record["image"] = images.decode(read_member(sample, image, files.MEDIA_BYTES), self._pixel_limit)
            if self._config.caption_field:
                record["caption"] = None if caption is None else self._caption(sample, caption)
        except (OSError, ValueError) as error:
            return {"id": name, "error": str(error)}
        return record

    def _caption(self, sample: Sample, extension: str) -> object:
        try:
            text = foreign_text.decode_text(read_member(sample, extension, foreign_text.TEXT_BYTES))
            if extension == ".txt":
                return text.strip()
            content = foreign_text.parse_json(text)
        except ValueError as error:
            raise ValueError(f"{sample.key}{extension} {error}") from error
        return content.get(self._config.caption_field) if isinstance(content, dict) else None


def read_member(sample: Sample, extension: str, limit: int) -> bytes:
    """The bytes of a member of a sample.

    Raises:
      OSError, ValueError: if it cannot be read, or holds more than `limit` bytes.
    """
    offset, size = sample.parts[extension]
    if size > limit:
        raise ValueError(f"{sample.key}{extension} holds {size} bytes, over the limit of {limit}")

    def read(file: BinaryIO) -> bytes:
        if file_state(file) != sample.shard.state:
            raise ValueError(f"{sample.shard.path} has changed since it was opened")
        return files.read_part(file, offset, size)

    # The shard existed when it was indexed: if it is missing now, its storage cannot be reached.
    return with_file(sample.shard.path, read, (sample.shard.path,))


def with_file(path: str, use: Callable[[BinaryIO], _T], home: tuple[str, ...]) -> _T:
    """`use(file)`, tried again while the storage that holds `home` cannot be reached."""

    def attempt() -> _T:
        with files.open_regular(path) as file:
            return use(file)

    return files.patiently(path, attempt, home)


def file_state(file: BinaryIO) -> tuple[int, int]:
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


def shards_of(path: str) -> list[str]:
    """The tars that a source's path names."""
    if not os.path.isdir(path):
        shards = files_named(path)
        if not shards:
            raise UsageError(f"no tar file matches {path!r}")
        return shards
    names = sorted(entry.name for entry in os.scandir(path))
    shards = [os.path.join(path, name) for name in names if name.lower().endswith(".tar")]
    if not shards:
        packed = next((name for name in names if ".tar." in name.lower() or name.lower().endswith(".tgz")), None)
        advice = f"; {packed} is compressed: unpack it to a .tar (gunzip, unxz, unzstd)" if packed else ""
        raise UsageError(f"no tar file in {path!r}{advice}")
    return shards


def index_shard(path: str, follow_links: bool) -> list[Sample]:
    """The samples of one tar. If it cannot be read to its end, an error sample comes last.

    Args:
      path: the tar.
      follow_links: whether it may be a link to outside its folder.

    Raises:
      StorageError: if the storage fails and goes on failing.
      UsageError: if the tar is compressed.
    """
    try:
        # A link that the user named in full may lead anywhere. One that was found in a folder may be a stranger's.
        if not follow_links and files.leads_out(os.path.dirname(path) or ".", path):
            raise ValueError("is a link to outside its folder: set follow_links=True if it may be read")
        return with_file(path, lambda file: _index_file(path, file), (os.path.dirname(path) or ".",))
    except (OSError, ValueError) as error:
        return [Sample(Shard(path), "?", error=f"not a readable tar: {error}")]


def _index_file(path: str, file: BinaryIO) -> list[Sample]:
    start = file.read(8)
    for magic, tool in tars.COMPRESSED.items():
        if start.startswith(magic):  # samples are read by their offsets, which a compressed tar does not have
            raise UsageError(f"{path} is compressed, and only plain tars can be read: unpack it with {tool}")
    shard = Shard(path, file_state(file))
    samples: dict[str, Sample] = {}
    left_out: collections.Counter = collections.Counter()
    broken = ""
    try:
        for member in tars.members(file, shard.state[0]):
            _add(member, shard, samples, left_out)
    except tars.TarFault as error:
        broken = f"not a readable uncompressed tar from here on: {error}"
    if left_out:
        logging.info("%s: left out %s", path, ", ".join(f"{count} {what}" for what, count in left_out.items()))
    return [*samples.values(), *([Sample(shard, "?", error=broken)] if broken else [])]


def _add(member: tars.TarMember, shard: Shard, samples: dict[str, Sample], left_out: collections.Counter) -> None:
    folder, base = os.path.split(member.name)
    stem, dot, extension = base.partition(".")
    if not member.is_file:
        if not member.is_folder:
            left_out["links and devices"] += 1
        return
    if not stem or not dot:
        left_out["files whose names have no key before a dot"] += 1
        return
    key, extension = os.path.join(folder, stem), "." + extension.lower()
    sample = samples.setdefault(key, Sample(shard, key))
    if extension in sample.parts:  # nobody knows which of the two is meant
        sample.error = sample.error or f"the tar holds {member.name} twice"
    if member.fault and extension in (*_IMAGES, *_CAPTIONS):
        sample.error = sample.error or f"{member.name} {member.fault}"
    elif member.fault:
        left_out[f"members such as {member.name}, which {member.fault}"] += 1
        return
    sample.parts[extension] = (member.data, member.size)
