"""Animated WebP, GIF and PNG files to uint8 arrays [T, H, W, C] and back."""

import io

import numpy as np
from PIL import Image, ImageSequence, UnidentifiedImageError

from transfusion.data import images

SUFFIXES = (".webp", ".gif", ".png")


def decode(data: bytes, pixel_limit: int = 50_000_000) -> np.ndarray:
    """Returns uint8 [T, H, W, 3]; transparent parts become white, a still image is a clip of one frame.

    Raises:
      ValueError: with one line, when the bytes are no readable image, or hold more than `pixel_limit` pixels.
    """
    try:
        file = Image.open(io.BytesIO(data))
        count = getattr(file, "n_frames", 1)
        if count * file.width * file.height > pixel_limit:
            raise ValueError(f"{count} frames of {file.width}x{file.height} are over the limit of {pixel_limit} pixels")
        return np.stack([np.asarray(images.on_white(frame)) for frame in ImageSequence.Iterator(file)])
    except UnidentifiedImageError as error:  # whose message names a Python object
        raise ValueError("not a readable image (no format that Pillow knows)") from error
    except (OSError, SyntaxError, EOFError, Image.DecompressionBombError) as error:  # what Pillow's decoders raise
        raise ValueError(f"not a readable animation ({str(error).splitlines()[0] if str(error) else error})") from error


def is_animated(data: bytes) -> bool:
    """Whether the bytes are an image of several frames."""
    try:
        return getattr(Image.open(io.BytesIO(data)), "n_frames", 1) > 1
    except (OSError, SyntaxError, EOFError, Image.DecompressionBombError):
        return False  # what reads it says why


def fit(clip: np.ndarray, resolution: int = 0, channels: int = 0, frames: int = 0) -> np.ndarray:
    """Returns uint8 [frames, resolution, resolution, channels]: evenly chosen frames, each as `images.fit`; 0 keeps."""
    if frames:
        clip = clip[np.arange(frames) * len(clip) // frames]
    return np.stack([images.fit(frame, resolution, channels) for frame in clip])


def encode(clip: np.ndarray, suffix: str, rate: float = 8.0) -> bytes:
    """The file of uint8 [T, H, W, 1 or 3], `rate` frames per second, without end.

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
