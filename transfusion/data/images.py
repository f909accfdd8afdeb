"""Image files to uint8 arrays: a guard before decoding, transparency on white, one crop-and-resize."""

import io

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError


def decode(data: bytes, pixel_limit: int = 50_000_000) -> np.ndarray:
    """Returns uint8 [H, W, 1] for grey images and [H, W, 3] otherwise; transparent parts become white.

    Raises:
      ValueError: with one line, when the bytes are no readable image, hold more than 8 bits per channel, or more than
        `pixel_limit` pixels (checked from the header, before any memory is taken).
    """
    try:
        image = Image.open(io.BytesIO(data))
        size = image.size
        if size[0] * size[1] <= pixel_limit:
            image.load()
            if image.getexif().get(0x0112, 1) != 1:
                image = ImageOps.exif_transpose(image)
    except Image.DecompressionBombError as error:  # Pillow's own limit, above which it does not even give the size
        raise ValueError(f"more pixels than Pillow opens, and over the limit of {pixel_limit}") from error
    except UnidentifiedImageError as error:  # whose message names a Python object
        raise ValueError("not a readable image (no format that Pillow knows)") from error
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, EOFError, ...
        raise ValueError(f"not a readable image ({_one_line(error)})") from error
    if size[0] * size[1] > pixel_limit:
        raise ValueError(f"{size[0]}x{size[1]} pixels are over the limit of {pixel_limit}")
    return _to_array(image)


def fit(image: np.ndarray, resolution: int = 0, channels: int = 0) -> np.ndarray:
    """Returns uint8 [resolution, resolution, channels]: centre crop to a square and Lanczos; 0 keeps the size."""
    height, width, depth = image.shape
    if resolution and (height, width) != (resolution, resolution):
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        square = _to_pillow(image[top : top + side, left : left + side])
        image = _from_pillow(square.resize((resolution, resolution), Image.LANCZOS))
    if channels == 3 and depth == 1:
        image = np.repeat(image, 3, axis=-1)
    elif channels == 1 and depth == 3:
        image = _from_pillow(_to_pillow(image).convert("L"))
    return image


def encode_png(image: np.ndarray) -> bytes:
    """Returns the PNG file of uint8 [H, W, 1 or 3]."""
    out = io.BytesIO()
    _to_pillow(image).save(out, "PNG")
    return out.getvalue()


def on_white(image: Image.Image) -> Image.Image:
    """Returns the RGB image with transparent parts white."""
    image = image.convert("RGBA")
    background = Image.new("RGBA", image.size, "white")
    background.alpha_composite(image)
    return background.convert("RGB")


def _to_array(image: Image.Image) -> np.ndarray:
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        raise ValueError(f"{image.mode} pixels instead of 8 bits per channel")
    if image.mode in ("L", "1"):
        return _from_pillow(image.convert("L"))
    if image.mode == "LA":
        return _from_pillow(on_white(image).convert("L"))
    if image.mode == "RGB" and "transparency" not in image.info:
        return np.asarray(image)
    return np.asarray(on_white(image))


def _to_pillow(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def _from_pillow(image: Image.Image) -> np.ndarray:
    array = np.asarray(image)
    return array[..., None] if array.ndim == 2 else array


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:160]
