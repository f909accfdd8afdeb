"""Clips: animated WebP, GIF and PNG files to uint8 arrays [T, H, W, C] and back."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from transfusion.data import images
from transfusion.data.sizes import Size

SUFFIXES = (".webp", ".gif", ".png")


def decode(data: bytes, pixel_limit: int = images.PIXEL_LIMIT) -> np.ndarray:
    """Returns uint8 [T, H, W, 3], decoded by the rules of `images.decode`. A still image is a clip of one frame.

    Raises:
      ValueError: with one line, when the bytes are no readable image, frames are missing, or all of them hold more than
        `pixel_limit` pixels (checked before any is decoded).
    """
    file = images.open_image(data, pixel_limit)
    first, count = images.translated(lambda: _frames(file))
    if count * file.width * file.height > pixel_limit:
        raise ValueError(f"{count} frames of {file.width}x{file.height} are over the limit of {pixel_limit} pixels")
    frames: list[np.ndarray] = []
    for number in range(first, first + count):
        images.translated(lambda number=number: file.seek(number))
        frame = images.frame_array(file, data)
        if frames and frame.shape[:2] != frames[0].shape[:2]:
            raise ValueError(f"frame {number} has another size than the first")
        frames.append(np.repeat(frame, 3, axis=-1) if frame.shape[-1] == 1 else frame)
    return np.stack(frames)


def _frames(file: Image.Image) -> tuple[int, int]:
    """The number of the first frame, and how many frames there are.

    An animated PNG may begin with a picture that is not one of its frames.
    """
    if file.format not in images.ANIMATED:
        return 0, 1
    first = int(getattr(file, "default_image", False))
    return first, getattr(file, "n_frames", 1) - first


def is_animated(data: bytes) -> bool:
    """Whether the bytes are an image of several frames."""
    try:
        file = images.open_image(data)
        return images.translated(lambda: _frames(file))[1] > 1
    except ValueError:
        return False  # whoever reads it will say why


def fit(clip: np.ndarray, sizes: Sequence[Size] = (), channels: int = 0, frames: int = 0) -> np.ndarray:
    """Returns uint8 [frames, height, width, channels]: evenly chosen frames, each fitted by `images.fit`.

    No sizes keep the frames' own, and a 0 keeps the number of frames or the channels.
    """
    if frames:
        clip = clip[np.arange(frames) * len(clip) // frames]
    return np.stack([images.fit(frame, sizes, channels) for frame in clip])


def encode_clip(clip: np.ndarray, suffix: str, rate: float = 8.0) -> bytes:
    """The bytes of a file that shows uint8 [T, H, W, 1 or 3] at `rate` frames per second, again and again.

    Args:
      suffix: one of `SUFFIXES`; WebP and PNG keep every pixel, a GIF has 256 colours.
    """
    first, *rest = (Image.fromarray(frame[..., 0] if frame.shape[-1] == 1 else frame) for frame in clip)
    out = io.BytesIO()
    lossless = {"lossless": True} if suffix == ".webp" else {}
    first.save(
        out, suffix[1:], save_all=True, append_images=rest, duration=round(1000 / rate), loop=0, **lossless
    )  # fmt: skip
    return out.getvalue()
