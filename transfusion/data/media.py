"""Images, clips and sounds of records. `MEDIA` is the table from a kind of medium to how it is read and resized.

A record holds its medium under the name of its kind ('image', 'video', 'sound'). An array under any other name is a
medium, too (robot actions, a time series); it goes to the model's codec as it is.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from transfusion.data import clips, images, sounds
from transfusion.data.config import Record, SourceConfig
from transfusion.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Medium:
    """How one kind of medium is read.

    Attributes:
      decode: turns the bytes of a file into fields of a record; the second argument limits its pixels or samples.
      fault: says in a few words what is wrong with an array; None if nothing is.
      fit: gives the array of a record the size that the config of its source asks for.
    """

    decode: Callable[[bytes, int], Record]
    fault: Callable[[np.ndarray], str | None]
    fit: Callable[[Record, SourceConfig], np.ndarray]


def _pixels_fault(name: str, sides: str, axes: int) -> Callable[[np.ndarray], str | None]:
    def fault(array: np.ndarray) -> str | None:
        if not isinstance(array, np.ndarray) or array.dtype != np.uint8:
            return f"the {name} is {getattr(array, 'dtype', type(array).__name__)}, not uint8"
        if array.ndim != axes or array.shape[-1] not in (1, 3) or 0 in array.shape:
            return f"the {name} has shape {array.shape}, not [{sides}, 1 or 3]"
        return None

    return fault


def _sound_fault(sound: np.ndarray) -> str | None:
    if not isinstance(sound, np.ndarray) or sound.ndim != 1 or not len(sound):
        return f"the sound has shape {np.shape(sound)}, not [samples]"
    if sound.dtype != np.int16 and sound.dtype.kind != "f":
        return f"the sound is {sound.dtype}, neither int16 nor float"
    return None


def _fit_sound(record: Record, config: SourceConfig) -> np.ndarray:
    sound = sounds.to_int16(record["sound"])
    if config.rate:
        if "rate" not in record:
            raise ValueError("the sound has no rate, so it cannot be resampled")
        sound = sounds.resample(sound, int(record["rate"]), config.rate)
    return sounds.fit(sound, config.length)


MEDIA: dict[str, Medium] = {
    "image": Medium(
        lambda data, limit: {"image": images.decode(data, limit)},
        _pixels_fault("image", "height, width", 3),
        lambda record, config: images.fit(record["image"], config.fitted, config.channels),
    ),
    "video": Medium(
        lambda data, limit: {"video": clips.decode(data, limit)},
        _pixels_fault("video", "frames, height, width", 4),
        lambda record, config: clips.fit(record["video"], config.fitted, config.channels, config.length),
    ),
    "sound": Medium(
        lambda data, limit: dict(zip(("sound", "rate"), sounds.decode(data, limit), strict=True)),
        _sound_fault,
        _fit_sound,
    ),
}


def medium_of(record: Mapping[str, object]) -> str:
    """The name under which a record holds its medium; '' if it holds a text."""
    known = next((kind for kind in MEDIA if kind in record), None)
    return known or next((key for key, value in record.items() if isinstance(value, np.ndarray)), "")


def kind_of(records: Sequence[Mapping[str, object]]) -> str:
    """The kind of medium that the records of a source have, that of the first with a medium; '' if none has one."""
    return next((kind for i in range(len(records)) if (kind := medium_of(records[i]))), "")


# --- files that people name -------------------------------------------------------------------------------------------


def to_file(medium: np.ndarray, suffix: str, rate: int) -> bytes:
    """The bytes of a file with a drawn medium, in the format that `suffix` names.

    An image uint8 [H, W, C] is written as .png, a clip uint8 [T, H, W, C] as .webp, .gif or .png, a sound [samples] of
    `rate` samples per second as .wav.

    Raises:
      UsageError: if the suffix is that of another medium.
    """
    writers: dict[tuple[bool, int], tuple[str, tuple[str, ...], Callable[[], bytes]]] = {
        (True, 3): ("an image", (".png",), lambda: images.encode_png(medium)),
        (True, 4): ("a clip", clips.SUFFIXES, lambda: clips.encode_clip(medium, suffix)),
        (False, 1): ("a sound", (".wav",), lambda: sounds.encode_wav(medium, rate)),
    }
    found = writers.get((medium.dtype == np.uint8, medium.ndim))
    if found is None:
        raise UsageError(f"no file format for {medium.dtype} {list(medium.shape)}: draw it with transfusion.load_run")
    name, suffixes, write = found
    if suffix not in suffixes:
        raise UsageError(f"{name} is written as {' or '.join(suffixes)}, not {suffix!r}")
    return write()
