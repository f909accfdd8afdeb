"""Reads a latent cache, which `latent_cache` wrote.

Latents cannot replace pixels where training changes them before it encodes: mirroring (`data.flip`), moving (`shift`),
editing (`edit`) and streams that read pixels besides latents are refused. Cropping and resizing come before and are in
the cache.
"""

import functools
import pathlib
from collections.abc import Callable, Mapping

from array_record.python.array_record_data_source import ArrayRecordDataSource

from transfusion.data.array_records import read_record
from transfusion.data.config import DataConfig, Record, SourceConfig
from transfusion.data.faults import error_line
from transfusion.data.latent_files import LATENTS_JSON, check_source, content_of, from_bytes, read_about
from transfusion.data.media import kind_of
from transfusion.errors import UsageError


class LatentSource:
    """The records of a source with encoded media. A record whose medium is encoded has 'encoded'.

    Attributes:
      codec: digest of the codec that made the latents.
      kind: the kind of medium that is encoded, that of the first record with a medium; '' if there is none.
    """

    def __init__(self, config: SourceConfig):
        """Raises UsageError if the folder is not complete, or holds latents of another source than `config`."""
        folder = pathlib.Path(config.latents)
        if not (folder / LATENTS_JSON).is_file():
            raise UsageError(f"no latents in {folder}: write them with python -m transfusion.cache_latents")
        plan, sizes = read_about(folder)
        if sizes is None:
            raise UsageError(f"the latents in {folder} are not complete: run the command that writes them again")
        check_source(folder, plan, content_of(config))
        for name, size in sizes.items():
            found = (folder / name).stat().st_size if (folder / name).is_file() else None
            if found != size:
                state = "is missing" if found is None else f"has {found} bytes instead of {size}"
                raise UsageError(f"{folder / name} {state}: remove it and write the latents again")
        self.codec = plan.codec
        self._folder = folder
        self._files = [str(folder / name) for name in sizes]
        self._open()

    def _open(self) -> None:
        try:
            self._data = ArrayRecordDataSource(self._files)
        except (RuntimeError, ValueError, OSError) as error:  # ArrayRecord's are not OSErrors
            raise UsageError(f"cannot read the latents in {self._folder}: {error_line(error)}") from error

    def __len__(self) -> int:
        return len(self._data)

    @functools.cached_property
    def kind(self) -> str:
        return kind_of(self)

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"no record {index}")
        name = f"{self._folder}#{index}"
        try:
            return from_bytes(read_record(name, self._folder, lambda: self._data[index], self._open))
        except ValueError as error:
            return {"id": name, "error": str(error)}


def check_latents(
    sources: Mapping[str, SourceConfig], data: DataConfig, reads_pixels: bool, digest: Callable[[str], str]
) -> None:
    """Refuses cached latents if training would encode to other latents, or needs pixels.

    Args:
      sources: the sources by name; those without cached latents are passed over.
      data: the settings of the data.
      reads_pixels: whether a stream reads pixels besides latents.
      digest: gives the digest of the codec that the config names for a kind of medium. It is called only if a source
        has cached latents.

    Raises:
      UsageError: naming the source and both codecs, or what is not possible.
    """
    for name, source in sources.items():
        if not source.latents:
            continue
        wrong = [f"data.{field}" for field in ("flip", "shift", "edit") if getattr(data, field)]
        if reads_pixels:
            wrong.append("a stream with source 'pixels'")
        if wrong:
            raise UsageError(f"sources.{name}.latents: {wrong[0]} needs pixels, and the cache holds latents only")
        made = LatentSource(source)
        if made.codec != (ours := digest(made.kind)):
            raise UsageError(
                f"the latents in {source.latents} are of the codec {made.codec[:16]}, and this config's codec is "
                f"{ours[:16]}: write them again into another folder"
            )
