"""The record form: what stands in a record, in reading order: segments before the model's codec and tokenizer.

A stored record is a table `{"segments": [...]}`. Each segment is a table that has one of the keys of `FORMS`, whose
value is a text (or a list of variants), the name of a file, the bytes of a file, or numbers, and perhaps `role`,
`turn`, `loss` and `weight`:

    {"segments": [{"image": "cat.png", "turn": "user"}, {"text": "What is it?", "turn": "user"},
                  {"text": "A cat.", "turn": "assistant"}]}

A record may be a short form instead: a text (`{"text": ...}`), or a medium, mostly with its caption
(`{"image": ..., "caption": ...}`). `documents.segments_of` turns short forms into segments, too.
"""

import dataclasses
import io
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from transfusion.data import foreign_text, images
from transfusion.data.media import MEDIA
from transfusion.errors import nearest
from transfusion.sequence import TEXT
from transfusion.sequence.chat import TURNS

ROLES = ("context", "target", "both")
_MEDIA_OF_CODES = {1: "sound", 2: "image", 3: "video"}  # by the number of their axes

Read = Callable[[str], bytes]
"""Reads the file of a record by its name; raises OSError or ValueError."""


@dataclasses.dataclass(frozen=True, eq=False)
class RawSegment:
    """A segment of a record, before the model's codec and tokenizer.

    Attributes:
      kind: its kind in the layout table: 'text', 'image', 'video', 'sound', 'series', ...
      value: the text, or a tuple of several, of which chance takes one; the array of a medium, as
        `transfusion.data.media` reads it; or codes, int32.
      role: 'context', 'target' or 'both', see `transfusion.sequence.Segment`; '' decides by its place, see
        `documents.segments_of`.
      turn: who says it in a conversation, one of `TURNS`; '': the record is none.
      loss: whether it is learned; None: where its turn is (`DataConfig.learned_turns`), or if it is in no turn.
      weight: factor of the loss of its tokens.
      rate: samples per second of a sound.
      encoded: whether the value is what the codec makes of a medium.
      dropped: streams whose tokens are left out, see `transfusion.sequence.Segment`.
      unseen: what stands in place of a text that is left out, a key of `transfusion.sequence.text.UNSEEN`.
      label: the class of what is drawn; -1: none.
    """

    kind: str
    value: str | tuple[str, ...] | np.ndarray
    role: str = ""
    turn: str = ""
    loss: bool | None = None
    weight: float = 1.0
    rate: int = 0
    encoded: bool = False
    dropped: tuple[str, ...] = ()
    unseen: str = ""
    label: int = -1


def read_segments(stored: object, read: Read, pixel_limit: int) -> tuple[RawSegment, ...]:
    """Reads a stored list of segments.

    Args:
      stored: the list, as JSON or Parquet gives it.
      read: reads the files that the segments name.
      pixel_limit: larger pictures are not decoded.

    Raises:
      OSError: if a file cannot be read.
      ValueError: with one line that names the segment, if it is none.
    """
    if not isinstance(stored, list | tuple) or not stored:
        raise ValueError("segments is no list of segments" if stored else "it has no segments")
    found = []
    for number, segment in enumerate(stored, start=1):
        try:
            found.append(_read_segment(segment, read, pixel_limit))
        except ValueError as error:
            raise ValueError(f"segment {number}: {error}") from error
    return tuple(found)


def _read_segment(stored: object, read: Read, pixel_limit: int) -> RawSegment:
    if not isinstance(stored, Mapping):
        raise ValueError(f"is of type {type(stored).__name__}, not a table of fields")
    fields = {name: value for name, value in stored.items() if value is not None}  # Parquet has all columns in each
    for name in fields:
        if name not in FORMS and name not in _CHECKS:
            raise ValueError(f"unknown field {name!r}{nearest(str(name), (*FORMS, *_CHECKS))}")
    forms = [name for name in FORMS if name in fields]
    if len(forms) != 1:
        raise ValueError(f"has {' and '.join(forms) or 'nothing'}, not one of {', '.join(FORMS)}")
    (form,) = forms
    for name, check in _CHECKS.items():
        if name in fields and (wrong := check(fields[name])):
            raise ValueError(f"{name}={fields[name]!r:.60} {wrong}")
    if "kind" in fields and form not in ("codes", "series"):
        raise ValueError(f"kind is for codes and series, not for {form}")
    made = FORMS[form](fields[form], fields.get("kind", ""), read, pixel_limit)
    stated = {name: fields[name] for name in ("role", "turn", "loss", "weight") if name in fields}
    return dataclasses.replace(made, **stated)


def _one_of(names: Sequence[str]) -> Callable[[object], str]:
    return lambda value: "" if value in names else f"is none of {', '.join(names)}{nearest(str(value), names)}"


def _wrong_weight(value: object) -> str:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return "" if number and 0 <= value < math.inf else "is no number from 0 on"


# What is wrong with the fields besides the value, in a few words; '' if nothing is.
_CHECKS: dict[str, Callable[[object], str]] = {
    "role": _one_of(ROLES),
    "turn": _one_of(TURNS),
    "loss": lambda value: "" if isinstance(value, bool) else "is not true or false",
    "weight": _wrong_weight,
    "kind": lambda value: "" if isinstance(value, str) and value.isidentifier() else "is no name",
}


def text_fault(what: str, value: object) -> str | None:
    """What is wrong with a text of a record; None if nothing is."""
    if wrong := foreign_text.not_text(value):
        return f"the {what} {wrong}"
    if not (isinstance(value, str) and value.strip()):
        return f"the {what} is empty or missing"
    if not foreign_text.is_unicode(value):
        return f"the {what} is not Unicode text (it holds half a character, as of an emoji that was cut)"
    return None


def _read_text(value: object, kind: str, read: Read, pixel_limit: int) -> RawSegment:
    variants = tuple(value) if isinstance(value, list) and value else (value,)
    for one in variants:
        if wrong := text_fault("text", one):
            raise ValueError(wrong)
    return RawSegment(TEXT, variants if len(variants) > 1 else variants[0])


def read_medium(kind: str, value: object, read: Read, pixel_limit: int) -> dict:
    """The fields of a short record with a medium of this kind: its array and, of a sound, its rate.

    Args:
      value: the name of its file, the bytes of it, or `{bytes, path}` as Hugging Face `datasets` stores them, perhaps
        with the number `frame` of a picture in a file with several.

    Raises:
      OSError, ValueError: if it cannot be read.
    """
    data, name, frame = _file(value, read)
    try:
        if frame and kind == "image":
            return {kind: images.decode(data, pixel_limit, frame)}
        return dict(MEDIA[kind].decode(data, pixel_limit))
    except ValueError as error:
        raise ValueError(f"{name}: {error}" if name else str(error)) from error


def _file(value: object, read: Read) -> tuple[bytes, str, int]:
    """The bytes of a file, its name if it has one, and which of its pictures is meant."""
    frame = 0
    if isinstance(value, Mapping):
        frame = value.get("frame") or 0
        if not isinstance(frame, int) or frame < 0:
            raise ValueError(f"frame={frame!r:.40} is no number of a picture")
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value), "", frame
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"holds neither the name of a file nor its bytes, but {type(value).__name__}")
    if "://" in value:
        raise ValueError(f"{value:.200} is an address: download the file, and name it here")
    try:
        return read(value), value, frame
    except ValueError as error:
        raise ValueError(f"{value} {error}") from error


def _medium(kind: str) -> Callable[[object, str, Read, int], RawSegment]:
    def make(value: object, named: str, read: Read, pixel_limit: int) -> RawSegment:
        fields = read_medium(kind, value, read, pixel_limit)
        return RawSegment(kind, fields[kind], rate=int(fields.get("rate", 0)))

    return make


def _numbers(value: object, read: Read) -> np.ndarray:
    """An array that is written out as lists, or lies in a .npy file."""
    if not isinstance(value, list | tuple | np.ndarray):
        data, name, _ = _file(value, read)
        try:
            value = _npy(data)
        except (ValueError, TypeError, SyntaxError) as error:
            raise ValueError(f"{name or 'it'} is no .npy file with numbers") from error
    try:
        array = np.asarray(value)
    except ValueError as error:  # rows of several lengths
        raise ValueError("its rows differ in length") from error
    if array.dtype.kind not in "iuf" or not array.size:
        raise ValueError("is no array of numbers")
    return array


def _npy(data: bytes) -> np.ndarray:
    """The array of a .npy file; raises ValueError and others if it is none.

    `np.load` would take the memory that the file's head asks for, whatever the file holds.
    """
    file = io.BytesIO(data)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(file)
    if version not in readers:
        raise ValueError(f"version {version}")
    shape, columns_first, dtype = readers[version](file)
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(data) - file.tell():
        raise ValueError("it does not hold what its head says")
    return np.frombuffer(data, dtype, offset=file.tell()).reshape(shape, order="F" if columns_first else "C")


def _read_codes(value: object, kind: str, read: Read, pixel_limit: int) -> RawSegment:
    codes = _numbers(value, read)
    if codes.dtype.kind == "f" or codes.ndim not in _MEDIA_OF_CODES or not 0 <= codes.min() <= codes.max() < 2**31:
        raise ValueError("codes are whole numbers from 0 on: [T] of a sound, [h][w] of an image, [t][h][w] of a clip")
    return RawSegment(kind or _MEDIA_OF_CODES[codes.ndim], codes.astype(np.int32), encoded=True)


def _read_series(value: object, kind: str, read: Read, pixel_limit: int) -> RawSegment:
    series = _numbers(value, read)
    if series.ndim != 2:
        raise ValueError(f"a series has rows of numbers [T][C], not {series.ndim} axes")
    return RawSegment(kind or "series", series.astype(np.float32))


FORMS: dict[str, Callable[[object, str, Read, int], RawSegment]] = {
    "text": _read_text,
    "image": _medium("image"),
    "clip": _medium("video"),
    "sound": _medium("sound"),
    "codes": _read_codes,
    "series": _read_series,
}
