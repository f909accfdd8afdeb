"""Media that users pass to a run are fitted to the model as its training data were: size, channels, length, rate.

A picture is centre-cropped to the model's aspect and resized, a clip's frames are taken evenly, and a sound is cut or
followed by silence. One line tells the user of all changes to the media of a call.
"""

import dataclasses
import io
import os

import numpy as np
from absl import logging
from PIL import Image, ImageOps, ImageSequence

from transfusion.api.prompts import Part
from transfusion.data import clips, images
from transfusion.data.config import Record, SourceConfig
from transfusion.data.files import read_whole
from transfusion.data.forms import Form
from transfusion.data.images import PIXEL_LIMIT
from transfusion.data.media import MEDIA
from transfusion.data.sizes import nearest_size
from transfusion.errors import UsageError, shown

_NAMES = {"sound": "sound", "image": "picture", "video": "clip"}
_PNG_MODES = ("1", "L", "LA", "I", "I;16", "P", "RGB", "RGBA")


@dataclasses.dataclass(frozen=True)
class Fitter:
    """Fits media to the `forms` that a model reads, and keeps `notes` of what it changed."""

    forms: dict[str, Form]
    notes: list[str] = dataclasses.field(default_factory=list)

    def tell(self) -> None:
        """Tells the user what was changed, in one line."""
        if self.notes:
            more = f" (and {len(self.notes) - 1} more were changed)" if len(self.notes) > 1 else ""
            logging.warning("%s, as in training%s", self.notes[0], more)
            self.notes.clear()

    def fit(self, part: Part) -> np.ndarray:
        """Fits a picture uint8 [H, W, C], a clip uint8 [T, H, W, C] or a sound [samples] to what the codec reads.

        It may be an array or the path of a file; a picture may also be grey [H, W] or have an alpha channel.

        Raises:
          UsageError: if it cannot be read, or the model reads no such medium.
        """
        return self.read(part)[1]

    def read(self, part: Part) -> tuple[str, np.ndarray]:
        """As `fit`, with the kind of segment as which the model reads it; '' where the model has no `forms`."""
        if isinstance(part, str | os.PathLike):
            return self._of_file(part)
        if isinstance(part, Image.Image):
            return self._fitted(_of_pillow(part))
        array = np.asarray(part)
        return self._fitted(self._of_array(array)) if self.forms else ("", array)

    def _fitted(self, record: Record) -> tuple[str, np.ndarray]:
        kind = next(kind for kind in MEDIA if kind in record)
        if kind == "image" and kind not in self.forms and "video" in self.forms:
            kind, record = "video", {"video": record["image"][None]}  # a clip in which nothing moves
        form, read_as = self.forms.get(kind), kind
        if form is None and kind == "video" and "image" in self.forms:  # its frames are the images
            form, read_as = dataclasses.replace(self.forms["image"], length=0), "image"
        if form is None:
            known = " or ".join(f"{_NAMES[kind]}s" for kind in self.forms) or "no files"
            raise UsageError(f"this model reads {known}, not a {_NAMES[kind]}")
        if kind == "sound":
            return read_as, self._sound(record, form)
        array = self._pictures(record[kind], form, kind)
        channels = form.channels if form.channels in (1, 3) else 0
        if kind == "video" and form.length and len(array) != form.length:
            self.notes.append(f"of a clip of {len(array)} frames {form.length} are taken evenly")
        return read_as, MEDIA[kind].fit({kind: array}, SourceConfig(channels=channels, length=form.length))

    def _pictures(self, array: np.ndarray, form: Form, kind: str) -> np.ndarray:
        """Fits pictures [..., H, W, C] to a size that the model reads."""
        height, width = found = array.shape[-3:-1]
        if not form.sizes and (height % form.multiple or width % form.multiple):
            raise UsageError(
                f"a {_NAMES[kind]} of {width}x{height} pixels: this model reads any size whose sides are multiples of "
                f"{form.multiple}"
            )
        grey = form.channels == 1 and array.shape[-1] == 3
        if form.sizes and found not in form.sizes:
            size = nearest_size(found, form.sizes)
            how = "is resized" if size[0] * width == size[1] * height else "is cropped and resized"
            colour = ", in grey," if grey else ""
            self.notes.append(f"a {_NAMES[kind]} of {width}x{height} {how} to {size[1]}x{size[0]}{colour}".rstrip(","))
            if kind == "video":
                return np.stack([images.crop_and_resize(frame, *size) for frame in array])
            return images.crop_and_resize(array, *size)
        if grey and (array != array[..., :1]).any():
            self.notes.append(f"a {_NAMES[kind]} in colour is made grey")
        return array

    def _sound(self, record: Record, form: Form) -> np.ndarray:
        fields = {"rate": form.rate} | dict(record)
        count = len(record["sound"]) * form.rate / max(fields["rate"], 1)
        if count > PIXEL_LIMIT:
            raise UsageError(
                f"a sound of {count:,.0f} samples at {form.rate} a second is over the limit of {PIXEL_LIMIT:,}"
            )
        sound = MEDIA["sound"].fit(fields, SourceConfig(rate=form.rate))
        if form.length and len(sound) > form.length:
            self.notes.append(f"a sound of {len(sound)} samples is cut after {form.length}")
        elif form.length and len(sound) < form.length:
            self.notes.append(f"a sound of {len(sound)} samples is followed by silence up to {form.length}")
        return MEDIA["sound"].fit({"sound": sound, "rate": form.rate}, SourceConfig(length=form.length))

    def _of_array(self, array: np.ndarray) -> Record:
        """Makes a record of an array; its axes and the media that the model reads decide what it is."""
        pictures = [kind for kind in ("image", "video") if kind in self.forms]
        if not pictures or (array.ndim == 1 and "sound" in self.forms):
            record = {"sound": array}
        elif array.ndim == 4 or (array.ndim == 3 and array.shape[-1] > 4 and "video" in self.forms):
            record = {"video": array if array.ndim == 4 else array[..., None]}
        else:
            record = {"image": array[..., None] if array.ndim == 2 else array}
        (kind,) = record
        shape = record[kind].shape
        if kind != "sound" and record[kind].dtype == np.uint8 and shape[-1] in (2, 4) and 0 not in shape:
            if self.forms.get(kind, self.forms[pictures[0]]).channels != shape[-1]:
                record = {kind: _opaque(record[kind])}
        elif fault := MEDIA[kind].fault(record[kind]):
            wanted = {
                "image": "a picture is uint8 [H, W] or [H, W, 1, 3 or 4], of 0 to 255",
                "video": "a clip is uint8 [T, H, W, 1, 3 or 4], of 0 to 255",
                "sound": "a sound is int16 or float [samples]",
            }
            raise UsageError(f"{wanted[kind]}, not {array.dtype} {list(array.shape)} ({fault})")
        return record

    def _of_file(self, path: str | os.PathLike) -> tuple[str, np.ndarray]:
        """Reads a file and fits the medium in it.

        Raises:
          UsageError: naming the file, if it cannot be read, or the model reads nothing of its kind.
        """
        named = shown(os.fsdecode(path))
        try:
            data = read_whole(os.fsdecode(path))
            return self._fitted(MEDIA[self._kind(data)].decode(data, PIXEL_LIMIT))
        except OSError as error:
            raise UsageError(f"cannot read {named}: {error.strerror or error}") from error
        except (ValueError, UsageError) as error:
            raise UsageError(f"cannot read {named}: {error}") from error

    def _kind(self, data: bytes) -> str:
        pictures = [kind for kind in ("image", "video") if kind in self.forms]
        if not pictures and "sound" in self.forms or data[:4] == b"RIFF" and data[8:12] == b"WAVE":
            return "sound"
        return "video" if pictures == ["video"] or clips.is_animated(data) else "image"


def _of_pillow(image: Image.Image) -> Record:
    """Makes a record of a Pillow image by way of a file, so that transparency and modes are treated as in files."""
    try:
        count = getattr(image, "n_frames", 1)
        if count * image.width * image.height > PIXEL_LIMIT:
            raise UsageError(f"{count} frames of {image.width}x{image.height} are over {PIXEL_LIMIT} pixels")
        if count > 1:
            return {"video": np.stack([_decoded(frame.convert("RGBA")) for frame in ImageSequence.Iterator(image)])}
        return {"image": _decoded(ImageOps.exif_transpose(image))}
    except (OSError, ValueError, SyntaxError, EOFError) as error:  # of an image that is read only now
        raise UsageError(f"a PIL image cannot be read: {error}") from error


def _decoded(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I;16"):  # in the other order of bytes Pillow would clip it at 255
        image = Image.fromarray(np.asarray(image).astype(np.uint16))
    if image.mode not in _PNG_MODES and image.mode != "F":
        image = image.convert({"La": "LA", "PA": "RGBA", "RGBa": "RGBA"}.get(image.mode, "RGB"))
    if image.mode == "F":
        raise UsageError("a PIL image of mode F has no known range: convert it to 'L' or 'RGB' first")
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=1)
    return images.decode(out.getvalue(), PIXEL_LIMIT)


def _opaque(array: np.ndarray) -> np.ndarray:
    """Lays pictures with alpha, uint8 [..., H, W, 2 or 4], on white."""
    if array.ndim == 4:
        return np.stack([_opaque(frame) for frame in array])
    bands = [Image.fromarray(np.ascontiguousarray(array[..., i])) for i in range(array.shape[-1])]
    return _decoded(Image.merge("LA" if len(bands) == 2 else "RGBA", bands))
