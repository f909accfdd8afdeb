"""Reads pictures back: pixels to the scene that they show, or to the reasons why they show none.

For each cell the parser tries every shape and size, at its place and a pixel beside it, in every colour, and takes what
leaves the least squared difference (the likeliest under white noise). Whatever the scene so found does not explain is a
leftover, so that a picture cannot be right by accident beside other things.
"""

import dataclasses
import functools

import numpy as np
from scipy.ndimage import uniform_filter

from transfusion.data.scenes import moving
from transfusion.data.scenes.graph import BACKGROUNDS, CELL, COLOURS, MARGIN, SHAPES, SIZES, Scene, Thing, centre_of
from transfusion.data.scenes.moving import State
from transfusion.data.scenes.render import SIDE, coverage, painted, plain

# A patch of 3 x 3 pixels (of a picture with 32) that is wrong by more than this, on average over it, is a leftover.
# The palest thing before the nearest background differs from it by 64.
LEFTOVER = 40.0
_COLOURS = np.array([*COLOURS.values()], np.float32)
_BACKGROUNDS = np.array([*BACKGROUNDS.values()], np.float32)


@dataclasses.dataclass(frozen=True)
class Parsed:
    """What a picture shows.

    Attributes:
      scene: the things that were found, and the background.
      faults: why the picture is no picture of a scene, each in a few words; (): it is one.
      residual: the largest mean difference of a patch from the picture of `scene`, in levels of 0 to 255.
    """

    scene: Scene
    faults: tuple[str, ...]
    residual: float


def parse(picture: np.ndarray) -> Parsed:
    """Reads a picture uint8 or float [H, H, 3] with levels from 0 to 255.

    Raises:
      ValueError: if it is no square with three channels.
    """
    picture = _checked(picture)
    pixels = len(picture)
    background = _background(_border(picture))
    found = []
    for cell in range(9):
        rows, columns = _pixels_of(cell, pixels)
        names, covers = _candidates(cell, pixels)
        best = _best(picture[rows, columns], background, covers)
        if best is not None:
            shape, size = names[best[0]]
            found.append(Thing(shape, [*COLOURS][best[1]], size, cell))
    scene = Scene(tuple(found), background)
    residual, place = _leftover(picture, _nearest_picture(picture, scene))
    faults = () if found else ("nothing is there",)
    if residual > LEFTOVER:
        faults += (f"a leftover at {place}",)
    return Parsed(scene, faults, residual)


def _checked(picture: np.ndarray) -> np.ndarray:
    if picture.ndim != 3 or picture.shape[0] != picture.shape[1] or picture.shape[2] != 3:
        raise ValueError(f"a picture of a scene is [H, H, 3], not {list(picture.shape)}")
    return picture.astype(np.float32)


def _border(picture: np.ndarray) -> np.ndarray:
    return np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])


def _background(pixels: np.ndarray) -> str:
    """The background nearest to the median of pixels [N, 3]."""
    middle = np.median(pixels, axis=0)
    return [*BACKGROUNDS][int(np.argmin(((_BACKGROUNDS - middle) ** 2).sum(-1)))]


@functools.cache
def _pixels_of(cell: int, pixels: int) -> tuple[slice, slice]:
    scale = pixels / SIDE
    starts = (round((MARGIN + CELL * at) * scale) for at in divmod(cell, 3))
    rows, columns = (slice(start, start + round(CELL * scale)) for start in starts)
    return rows, columns


@functools.cache
def _candidates(cell: int, pixels: int) -> tuple[list[tuple[str, str]], np.ndarray]:
    """The shapes and sizes that may stand in a cell, and the shares of its pixels that they cover [N, H, W]."""
    (y, x), (rows, columns) = centre_of(cell), _pixels_of(cell, pixels)
    names, covers = [], []
    for shape in SHAPES:
        for size, radius in SIZES.items():
            for down in (-1, 0, 1):
                for right in (-1, 0, 1):
                    names.append((shape, size))
                    covers.append(coverage(shape, radius, y + down, x + right, pixels)[rows, columns])
    return names, np.stack(covers)


def _best(patch: np.ndarray, background: str, covers: np.ndarray) -> tuple[int, int] | None:
    """Which of `covers` [N, H, W] in which colour explains a patch [H, W, 3] best; None: the background alone does."""
    gains = _gains(patch, background, covers)
    best = np.unravel_index(int(np.argmax(gains)), gains.shape)
    return (int(best[0]), int(best[1])) if gains[best] > 0 else None


def _gains(patch: np.ndarray, background: str, covers: np.ndarray) -> np.ndarray:
    """By how much each cover in each colour [N, K] lowers the squared difference from a patch that is background."""
    plain_colour = np.asarray(BACKGROUNDS[background], np.float32)
    contrasts = _COLOURS - plain_colour
    flat = covers.reshape(len(covers), -1)
    along = flat @ (patch - plain_colour).reshape(-1, 3) @ contrasts.T
    return 2 * along - (flat**2).sum(-1)[:, None] * (contrasts**2).sum(-1)


def _nearest_picture(picture: np.ndarray, scene: Scene) -> np.ndarray:
    """The picture of a scene, its things moved by up to a pixel to where they fit the given picture best."""
    pixels, made = len(picture), plain(scene.background, len(picture))
    for thing in scene.things:
        rows, columns = _pixels_of(thing.cell, pixels)
        names, covers = _candidates(thing.cell, pixels)
        colour = [*COLOURS].index(thing.colour)
        gains = _gains(picture[rows, columns], scene.background, covers)[:, colour]
        same = [number for number, name in enumerate(names) if name == (thing.shape, thing.size)]
        best = max(same, key=lambda number: gains[number])
        down, right = divmod(same.index(best), 3)
        y, x = thing.centre
        cover = coverage(thing.shape, SIZES[thing.size], y + down - 1, x + right - 1, pixels)
        made = painted(made, cover, thing.colour)
    return made


def _leftover(picture: np.ndarray, made: np.ndarray, side: float = SIDE) -> tuple[float, str]:
    """The largest difference of two pictures, averaged over patches of 3 x 3 units, and the patch where it is."""
    width = max(round(3 * len(picture) / side), 3)
    smooth = uniform_filter(picture - made, (width, width, 0), mode="constant")
    size = np.sqrt((smooth**2).mean(-1))
    y, x = np.unravel_index(int(np.argmax(size)), size.shape)
    return float(size[y, x]), f"row {y}, column {x}"


# --- clips ------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ParsedClip:
    """What a clip shows.

    Attributes:
      states: what each frame shows; None: nothing.
      says: what captions say of it, as `moving.Clip.says`; (): it is no clip of ours.
      background: of most of its frames.
      faults: why it is none, each in a few words; (): it is one.
    """

    states: tuple[State | None, ...]
    says: tuple[str, ...]
    background: str
    faults: tuple[str, ...]


def parse_clip(clip: np.ndarray) -> ParsedClip:
    """Reads a clip uint8 or float [T, H, H, 3] with levels from 0 to 255."""
    states, faults, backgrounds = [], [], []
    for number, frame in enumerate(clip):
        state, background, fault = parse_frame(frame)
        states.append(state)
        backgrounds.append(background)
        faults += [f"frame {number}: {fault}"] * bool(fault)
    says = moving.described(tuple(states))
    if len(set(backgrounds)) > 1:
        faults.append("the background changes")
    if not says:
        faults.append("no motion of ours")
    usual = max(backgrounds, key=backgrounds.count)
    return ParsedClip(tuple(states), says if not faults else (), usual, tuple(faults))


def parse_frame(frame: np.ndarray) -> tuple[State | None, str, str]:
    """What a frame of a clip shows, its background, and what is wrong with it ('': nothing is)."""
    frame = _checked(frame)
    background = _background(frame.reshape(-1, 3))
    places, covers = _places(len(frame))
    best = _best(frame, background, covers)
    made, state = plain(background, len(frame)), None
    if best is not None:
        shape, y, x = places[best[0]]
        state = State(shape, [*COLOURS][best[1]], y, x)
        made = painted(made, covers[best[0]], state.colour)
    residual, place = _leftover(frame, made, moving.SIDE)
    return state, background, f"a leftover at {place}" if residual > LEFTOVER else ""


@functools.cache
def _places(pixels: int) -> tuple[list[tuple[str, int, int]], np.ndarray]:
    """The shapes and places (y, x) of a frame's thing, and the shares of the pixels that it covers [N, H, W]."""
    names, covers = [], []
    for shape in SHAPES:
        for y in range(moving.LEAST - 1, moving.MOST + 2):
            for x in range(moving.LEAST - 1, moving.MOST + 2):
                names.append((shape, y, x))
                covers.append(coverage(shape, moving.RADIUS, y, x, pixels, moving.SIDE))
    return names, np.stack(covers)
