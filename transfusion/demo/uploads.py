"""Files that visitors send: they are strangers' files, so their size is judged before they are decoded."""

import os
import warnings

from PIL import Image, UnidentifiedImageError

from transfusion.errors import UsageError


def read_picture(path: str | os.PathLike, most_pixels: int) -> Image.Image:
    """Decodes a picture of at most so many pixels.

    Raises:
      UsageError: if it is none, is damaged, or has more pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit here is the stricter one
            with Image.open(path) as picture:  # reads the head of the file alone
                width, height = picture.size
                if width * height > most_pixels:
                    raise UsageError(
                        f"the picture has {width}x{height} pixels: at most {most_pixels:,} are taken, so make it "
                        "smaller, or start the page with a larger --max_pixels"
                    )
                picture.load()
                return picture.copy()
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise UsageError(f"this file is no picture that can be read: {' '.join(str(error).split())[:200]}") from error
