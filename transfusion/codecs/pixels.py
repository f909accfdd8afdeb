"""The codec whose latents are the pixels, and the conversions between uint8 images and float32 images in [-1, 1]."""

import dataclasses

import jax
import numpy as np

from transfusion.errors import UsageError
from transfusion.model.blocks import check_size


def to_float(image: np.ndarray) -> np.ndarray:
    """The image uint8 [..., H, W, C] as float32 in [-1, 1].

    Raises:
      UsageError: if the image is not uint8, since the range of another type is not known.
    """
    image = np.asarray(image)
    if image.dtype != np.uint8:
        raise UsageError(f"an image must be uint8, not {image.dtype}: convert it to 0..255 first")
    return image.astype(np.float32) / np.float32(127.5) - np.float32(1)


def to_uint8(image: np.ndarray) -> np.ndarray:
    """The image float [..., H, W, C] in [-1, 1] as uint8. Values outside are clipped, NaN becomes 0."""
    image = np.nan_to_num(np.asarray(image, np.float32), nan=-1.0, posinf=1.0, neginf=-1.0)
    return np.round((np.clip(image, -1, 1) + 1) * np.float32(127.5)).astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class PixelCodec:
    """The codec whose latents are the pixels: [B, H, W, C] <-> [B, h = H, w = W, c = C], float32 in [-1, 1]."""

    channels: int = 3
    down: int = 1

    def __post_init__(self):
        if self.channels < 1:
            raise UsageError(f"codec.channels is {self.channels}: give the number of image channels, 1 or 3")
        if self.down != 1:
            raise UsageError(f"codec.down is {self.down}: pixels are not compressed, so leave it at 1")

    @property
    def latent_channels(self) -> int:
        return self.channels

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Returns (h, w, c) of the latents of an image of height x width pixels."""
        check_size(height, width, self.down)
        return height, width, self.channels

    def encode(self, images: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """The images [B, H, W, C] themselves. Nothing is random, so `key` is not used.

        Raises:
          UsageError: if the images have another number of channels.
        """
        if images.ndim != 4 or images.shape[-1] != self.channels:
            raise UsageError(
                f"images of shape {list(images.shape)} for a codec of {self.channels} channels [B, H, W, C]"
            )
        return images

    def decode(self, latents: jax.Array) -> jax.Array:
        """The latents [B, h, w, c] themselves, as images. They are not clipped."""
        return latents
