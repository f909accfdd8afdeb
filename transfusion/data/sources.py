"""Opens the sources of records that a config names. `SOURCES` is the table from a source's kind to its class.

A source has `len(source)` and `source[i]`, and gives the same record for the same i. A record that cannot be used is
{'id': ..., 'error': one line}, so that one broken file never stops a run. A fault of the whole source (no such folder,
no such column) is a UsageError when it is opened.
"""

import dataclasses
import operator
from collections.abc import Callable, Sequence

from transfusion import storage
from transfusion.data.config import Record, SourceConfig
from transfusion.data.copies import copied
from transfusion.data.faults import RECORD_FAULTS, error_line
from transfusion.data.folder import FolderSource
from transfusion.data.hold_out import part_of
from transfusion.data.latent_source import LatentSource
from transfusion.data.media import MEDIA, medium_of
from transfusion.data.record_source import RecordSource
from transfusion.data.scenes.source import ScenesSource
from transfusion.data.segments import RawSegment, text_fault
from transfusion.data.text_source import TextSource
from transfusion.data.webdataset import WebDatasetSource
from transfusion.errors import PassingError, UsageError, nearest, require

Source = Sequence[Record]


def open_source(config: SourceConfig, data_dir: str = "data", pixel_limit: int = 50_000_000) -> Source:
    """Opens the source that `config` names. Its media have the sizes that the config asks for.

    Raises:
      UsageError: if the kind, a file, a folder, a dataset or a column does not exist, or nothing is in it.
    """
    if config.kind not in SOURCES:
        raise UsageError(f"unknown source kind {config.kind!r}{nearest(config.kind, SOURCES)}: {', '.join(SOURCES)}")
    config, data_dir = copied(config, data_dir)
    if config.latents:  # they were written from the part that the config names
        source = LatentSource(config)
    else:
        source = part_of(SOURCES[config.kind](config, data_dir, pixel_limit), config)
    if not len(source):
        raise UsageError(f"the {config.kind} source at {config.path or config.name} holds no records")
    return _Checked(source, config)


def stages_of(source: Source) -> tuple[tuple[int, Source], ...]:
    """The source as training reads it while its images grow: from which record of the mixture on, and how. A source
    whose images do not grow, or that was not opened by `open_source`, has one stage."""
    return source.stages if isinstance(source, _Checked) else ((0, source),)


class _Checked(Sequence[Record]):
    """A source whose media have the sizes that its config asks for, and whose bad records are error records.

    Errors of the program, and storage that cannot be reached, are no fault of a record: they are raised.
    """

    def __init__(self, source: Source, config: SourceConfig):
        self._source, self._config = source, config

    def __len__(self) -> int:
        return len(self._source)

    @property
    def stages(self) -> tuple[tuple[int, Source], ...]:
        """See `stages_of`."""
        stages = self._config.sizes.stages
        return tuple((at, _Checked(self._source, dataclasses.replace(self._config, sizes=s))) for at, s in stages)

    def __getitem__(self, index: int) -> Record:
        index = operator.index(index)
        if not -len(self) <= index < len(self):  # this ends `for record in source`
            raise IndexError(f"record {index} of {len(self)}")
        index %= len(self)
        name = f"{self._config.path or self._config.name}#{index}"
        try:
            record = self._source[index]
            name = _printable(record["id"])
            if "encoded" in record:
                return record
            if "segments" in record:
                return {**record, "id": name, "segments": self._fitted(record["segments"])}
            error = record.get("error") or _fault(record)
            kind = medium_of(record)
            if error is None and kind in MEDIA:
                return {**record, "id": name, kind: MEDIA[kind].fit(record, self._config)}
        except PassingError:
            raise
        except RECORD_FAULTS as exception:
            if isinstance(exception, OSError) and storage.may_pass(exception):
                raise storage.StorageError(f"cannot read {name}: {error_line(exception)}") from exception
            error = error_line(exception)
        return record if error is None else {"id": name, "error": _printable(error)}

    def _fitted(self, segments: Sequence[RawSegment]) -> tuple[RawSegment, ...]:
        """The segments with their media in the sizes that the config asks for; raises ValueError if one has a fault."""
        fitted = []
        for number, segment in enumerate(segments, start=1):
            if segment.kind in MEDIA and not segment.encoded:
                medium, fields = MEDIA[segment.kind], {segment.kind: segment.value}
                if wrong := medium.fault(segment.value):
                    raise ValueError(f"segment {number}: {wrong}")
                fields |= {"rate": segment.rate} if segment.rate else {}
                segment = dataclasses.replace(segment, value=medium.fit(fields, self._config))
            fitted.append(segment)
        return tuple(fitted)


def _printable(text: object) -> str:
    """The text on one line. Characters that cannot be written become escapes, since file names need not be UTF-8."""
    return " ".join(str(text).encode("utf-8", "backslashreplace").decode("utf-8").split())


def _fault(record: Record) -> str | None:
    """What is wrong with a record, or None."""
    kind = medium_of(record)
    if not kind and "text" not in record:
        return "neither an image nor a text"
    for field in ("caption", "text"):
        if field in record and (wrong := text_fault(field, record[field])):
            return wrong
    return MEDIA[kind].fault(record[kind]) if kind in MEDIA else None


def _open_tfds(config: SourceConfig, data_dir: str, pixel_limit: int) -> Source:
    require("tensorflow_datasets", "tfds")
    from transfusion.data.tfds_source import TfdsSource  # here, as TFDS is an extra that other kinds do without

    return TfdsSource(config, data_dir, pixel_limit)


SOURCES: dict[str, Callable[[SourceConfig, str, int], Source]] = {
    "tfds": _open_tfds,
    "folder": FolderSource,
    "webdataset": WebDatasetSource,
    "text": TextSource,
    "records": RecordSource,
    "scenes": ScenesSource,
}
