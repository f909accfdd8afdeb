"""Draws scenes: smooth-edged shapes before a plain background."""

import functools

import numpy as np

from transfusion.data.scenes.graph import BACKGROUNDS, COLOURS, SIZES, Scene, Thing

SIDE = 32  # of a picture, in the units of `graph`
_SAMPLES = 8  # per pixel and axis


def inside(shape: str, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Whether points are inside a shape with radius 1 and its centre at 0; y points down."""
    far, near = np.maximum(abs(y), abs(x)), np.minimum(abs(y), abs(x))
    square = y * y + x * x
    return {
        "circle": lambda: square <= 1,
        "square": lambda: far <= 0.85,
        "triangle": lambda: (y <= 0.8) & (abs(x) <= (y + 0.95) / 1.75),
        "cross": lambda: (near <= 0.32) & (far <= 1),
        "diamond": lambda: far + near <= 1.1,
        "ring": lambda: (square <= 1) & (square >= 0.3),
    }[shape]()


@functools.lru_cache(maxsize=100_000)
def coverage(shape: str, radius: float, y: float, x: float, pixels: int, side: float = SIDE) -> np.ndarray:
    """The share of each pixel that a shape covers, float32 [pixels, pixels], read-only.

    Args:
      shape: one of `SHAPES`.
      radius: its radius.
      y, x: its centre.
      pixels: of a side of the picture.
      side: length of a side of the picture, in the unit of the other lengths.
    """
    points = (np.arange(pixels * _SAMPLES, dtype=np.float64) + 0.5) * (side / (pixels * _SAMPLES))
    found = np.zeros((pixels, pixels), np.float32)
    # Only the pixels round the shape are sampled.
    scale = pixels / side
    (top, bottom), (left, right) = (
        (max(int((at - 1.2 * radius) * scale), 0), min(int((at + 1.2 * radius) * scale) + 2, pixels)) for at in (y, x)
    )
    if bottom > top and right > left:
        rows = (points[top * _SAMPLES : bottom * _SAMPLES, None] - y) / radius
        columns = (points[None, left * _SAMPLES : right * _SAMPLES] - x) / radius
        hit = inside(shape, rows, columns).reshape(bottom - top, _SAMPLES, right - left, _SAMPLES)
        found[top:bottom, left:right] = hit.mean((1, 3))
    found.flags.writeable = False
    return found


def of_thing(thing: Thing, pixels: int) -> np.ndarray:
    """The share of each pixel that a thing covers, float32 [pixels, pixels], read-only."""
    return coverage(thing.shape, SIZES[thing.size], *thing.centre, pixels)


def plain(background: str, pixels: int) -> np.ndarray:
    """A picture of nothing, float32 [pixels, pixels, 3]."""
    return np.full((pixels, pixels, 3), BACKGROUNDS[background], np.float32)


def painted(picture: np.ndarray, cover: np.ndarray, colour: str) -> np.ndarray:
    """The picture float32 [H, W, 3] with `colour` where `cover` [H, W] is 1."""
    return picture + cover[..., None] * (np.asarray(COLOURS[colour], np.float32) - picture)


def to_uint8(picture: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(picture, 0, 255)).astype(np.uint8)


def render(scene: Scene, pixels: int = 32) -> np.ndarray:
    """The picture of a scene, uint8 [pixels, pixels, 3]."""
    picture = plain(scene.background, pixels)
    for thing in scene.things:
        picture = painted(picture, of_thing(thing, pixels), thing.colour)
    return to_uint8(picture)
