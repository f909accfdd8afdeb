"""Condition maps: the edges, the masks and the layout of a scene, as pictures."""

from collections.abc import Callable

import numpy as np
from scipy.ndimage import maximum_filter, minimum_filter

from transfusion.data.scenes.graph import Scene, box_of
from transfusion.data.scenes.render import SIDE, of_thing, painted, plain, to_uint8


def masks(scene: Scene, pixels: int = SIDE) -> np.ndarray:
    """White where a thing is, black elsewhere: uint8 [pixels, pixels, 3]. It says shape, size and place."""
    covers = [of_thing(thing, pixels) for thing in scene.things]
    mask = np.max(covers, axis=0) if covers else np.zeros((pixels, pixels), np.float32)
    return to_uint8(np.repeat(mask[..., None] * 255, 3, -1))


def edges(scene: Scene, pixels: int = SIDE) -> np.ndarray:
    """White along the edges of things: uint8 [pixels, pixels, 3]. It says shape, size and place."""
    mask = masks(scene, pixels)[..., 0]
    edge = maximum_filter(mask, 3) - minimum_filter(mask, 3)
    return np.repeat(edge[..., None], 3, -1)


def layout(scene: Scene, pixels: int = SIDE) -> np.ndarray:
    """A filled box round each thing, in its colour: uint8 [pixels, pixels, 3]. It says place, extent and colour."""
    picture = plain(scene.background, pixels)
    middles = (np.arange(pixels) + 0.5) * (SIDE / pixels)
    for thing in scene.things:
        top, left, bottom, right = box_of(thing)
        rows, columns = (middles >= top) & (middles < bottom), (middles >= left) & (middles < right)
        picture = painted(picture, (rows[:, None] & columns).astype(np.float32), thing.colour)
    return to_uint8(picture)


def _coloured(scene: Scene) -> str:
    things = ", ".join(f"a {thing.colour} {thing.shape}" for thing in scene.things)
    return f"{things} on {scene.background}"


# Each map, and the words that say of a scene what the map does not.
MAPS: dict[str, tuple[Callable[[Scene, int], np.ndarray], Callable[[Scene], str]]] = {
    "edges": (edges, _coloured),
    "masks": (masks, _coloured),
    "layouts": (layout, lambda scene: ", ".join(f"a {thing.size} {thing.shape}" for thing in scene.things)),
}
