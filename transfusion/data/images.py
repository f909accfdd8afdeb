"""Image files to uint8 arrays and back. All pictures of the project are opened here, by the same rules.

The rules: only some formats, limits that are checked before anything is decoded, transparent parts become white.
"""

import io
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from transfusion.data.sizes import Size, nearest_size

_T = TypeVar("_T")

# Pillow knows many more formats. Some of them run other programs: EPS runs Ghostscript, on what may be any program in
# PostScript. The bytes of a file decide its format, not its name.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
ANIMATED = ("PNG", "WEBP", "GIF")  # the pages of a TIFF and the second picture in a camera's JPEG are no frames
PIXEL_LIMIT = 50_000_000
_ORIENTATION = 0x0112
# For each EXIF orientation, the function that turns [H, W, C] upright.
_TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda array: array[:, ::-1],
    3: lambda array: array[::-1, ::-1],
    4: lambda array: array[::-1],
    5: lambda array: array.swapaxes(0, 1),
    6: lambda array: np.rot90(array, -1),
    7: lambda array: array.swapaxes(0, 1)[::-1, ::-1],
    8: lambda array: np.rot90(array),
}


def open_image(data: bytes, limit: int = PIXEL_LIMIT) -> Image.Image:
    """Opens a picture without decoding it.

    Raises:
      ValueError: with one line, if the bytes are none of `FORMATS`, break off, or hold more than `limit` pixels.
    """
    _check_pixels(_webp_size(data), limit)  # now, because libwebp takes an animation's memory when it is opened
    image = translated(lambda: Image.open(io.BytesIO(data), formats=FORMATS))
    _check_pixels(image.size, limit)
    if image.format == "GIF" and not _gif_is_whole(data):  # Pillow would give the frames before the end
        raise ValueError("not a readable image (the GIF breaks off)")
    return image


def decode(data: bytes, pixel_limit: int = PIXEL_LIMIT, frame: int = 0) -> np.ndarray:
    """Returns uint8 [H, W, 1] for grey images and [H, W, 3] otherwise; transparent parts become white.

    A file with several pictures (an animation, the pages of a TIFF) gives the one of the number `frame`, and 16 bits
    per channel give the higher eight. A picture that is stored turned (EXIF) is turned back.

    Raises:
      ValueError: with one line, when the bytes are no readable image, hold 32 bits per channel, or more than
        `pixel_limit` pixels (checked from the header, before any memory is taken).
    """
    image = open_image(data, pixel_limit)
    if frame:
        if frame >= (count := translated(lambda: getattr(image, "n_frames", 1))):
            raise ValueError(f"it has {count} pictures, and none of the number {frame}")
        translated(lambda: image.seek(frame))
    return frame_array(image, data)


def translated(action: Callable[[], _T]) -> _T:
    """`action()`, which calls Pillow and nothing else. Any error becomes a ValueError of one line.

    Pillow's decoders raise nearly any class (OSError, SyntaxError, struct.error, IndexError, ...) for damaged bytes. A
    list of these classes would never be complete.
    """
    try:
        return action()
    except Image.DecompressionBombError as error:  # Pillow's own limit, above which it does not even give the size
        raise ValueError("more pixels than Pillow opens, and over the limit") from error
    except UnidentifiedImageError as error:  # whose message names a Python object
        raise ValueError(f"not a readable image (none of {', '.join(FORMATS)}, or broken at its start)") from error
    except Exception as error:
        raise ValueError(f"not a readable image ({_one_line(error)})") from error


def frame_array(image: Image.Image, data: bytes) -> np.ndarray:
    """The picture (of an animation, its current frame) as uint8 [H, W, 1 or 3], turned upright and on white.

    Args:
      image: the opened picture.
      data: the bytes of its file. In a PNG they say how many bits a channel has.

    Raises:
      ValueError: with one line, if it cannot be decoded or has 32 bits per channel.
    """
    translated(image.load)
    array = _to_array(image, data[24] if image.format == "PNG" else 8)
    turn = _TURNS.get(translated(lambda: image.getexif().get(_ORIENTATION)))
    return np.ascontiguousarray(turn(array)) if turn else array


def fit(image: np.ndarray, sizes: Sequence[Size] = (), channels: int = 0) -> np.ndarray:
    """Returns uint8 [height, width, channels]: the image in the nearest of the `sizes`, see `nearest_size`.

    No sizes keep its own, and a 0 keeps the channels.
    """
    depth = image.shape[-1]
    if sizes:
        image = crop_and_resize(image, *nearest_size(image.shape[:2], sizes))
    if channels == 3 and depth == 1:
        image = np.repeat(image, 3, axis=-1)
    elif channels == 1 and depth == 3:
        image = _from_pillow(_to_pillow(image).convert("L"))
    return image


def crop_and_resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Crops the centre of uint8 [H, W, 1 or 3] to the aspect of height:width and resizes it (Lanczos).

    Returns uint8 [height, width, 1 or 3]; an image that already has this size is returned untouched.
    """
    found_height, found_width = image.shape[:2]
    if (height, width) == (found_height, found_width):
        return image
    rows = min(found_height, max(1, round(found_width * height / width)))
    columns = min(found_width, max(1, round(found_height * width / height)))
    top, left = (found_height - rows) // 2, (found_width - columns) // 2
    crop = _to_pillow(image[top : top + rows, left : left + columns])
    return _from_pillow(crop.resize((width, height), Image.LANCZOS))


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


def _check_pixels(size: tuple[int, int], limit: int) -> None:
    if size[0] * size[1] > limit:
        raise ValueError(f"{size[0]}x{size[1]} pixels are over the limit of {limit}")


def _to_array(image: Image.Image, depth: int) -> np.ndarray:
    clear = image.info.get("transparency")
    if image.mode in ("I", "F") and not (image.format == "PNG" and depth == 16):
        raise ValueError(f"{image.mode} pixels of 32 bits instead of 8 or 16 bits per channel")
    if image.mode.startswith("I"):  # grey of 16 bits; older versions of Pillow give a PNG's as I
        wide = np.asarray(image)
        grey = (wide >> 8).astype(np.uint8)[..., None]
        return _cleared(grey, wide == clear) if isinstance(clear, int) else grey
    if image.mode in ("L", "1"):
        grey = _from_pillow(image.convert("L"))
        if not isinstance(clear, int):
            return grey
        # The file names the transparent grey in its own bits, Pillow has spread the pixels over 0 to 255.
        return _cleared(grey, grey[..., 0] == clear * 255 // (2 ** min(depth, 8) - 1))
    if image.mode in ("LA", "La"):
        return _from_pillow(translated(lambda: on_white(image.convert("LA")).convert("L")))
    if image.mode == "RGB":
        if clear is None:
            return np.asarray(image)
        if depth == 16:
            raise ValueError("16 bits per channel with one transparent colour: save it with an alpha channel")
    if image.mode in ("RGB", "RGBA", "RGBa", "P", "PA"):
        return np.asarray(translated(lambda: on_white(image)))
    return np.asarray(translated(lambda: image.convert("RGB")))  # CMYK, YCbCr, LAB, ... have no transparency


def _cleared(grey: np.ndarray, clear: np.ndarray) -> np.ndarray:
    return np.where(clear[..., None], np.uint8(255), grey)


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height of the canvas of an extended WebP, (0, 0) of anything else."""
    if data[:4] != b"RIFF" or data[8:16] != b"WEBPVP8X" or len(data) < 30:
        return 0, 0
    return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")


def _gif_is_whole(data: bytes) -> bool:
    """Whether the blocks of a GIF follow each other up to its end mark."""
    at = 13 + (3 << (1 + (data[10] & 7)) if data[10] & 128 else 0)
    while at < len(data) and data[at] != 0x3B:
        if data[at] == 0x2C and at + 9 < len(data):  # a frame: its place, perhaps its colours, a size of codes
            flags = data[at + 9]
            at += 11 + (3 << (1 + (flags & 7)) if flags & 128 else 0)
        elif data[at] == 0x21:
            at += 2
        else:  # bytes between blocks, which decoders pass over
            at += 1
            continue
        while at < len(data) and data[at]:
            at += 1 + data[at]
        at += 1
    return at < len(data)


def _to_pillow(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def _from_pillow(image: Image.Image) -> np.ndarray:
    array = np.asarray(image)
    return array[..., None] if array.ndim == 2 else array


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:160]
