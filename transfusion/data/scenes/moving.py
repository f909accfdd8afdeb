"""Clips: one thing that moves, appears, vanishes or takes another colour, and what is known of each of its frames.

Lengths are in 16ths of a picture's side. A clip has 8 frames; what changes, changes between the fourth and the fifth.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator

import numpy as np

from transfusion.data.scenes.graph import BACKGROUNDS, COLOURS, HELD_PAIRS, SHAPES, side_of
from transfusion.data.scenes.render import coverage, painted, plain, to_uint8

SIDE, RADIUS, FRAMES = 16, 3.2, 8
LEAST, MOST = 4, 12  # places of the centre
# How far (y, x) a thing goes from frame to frame.
STEPS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
MOTIONS = (*STEPS, "appears", "vanishes", "turns")
CHANGE = FRAMES // 2  # the first frame after the change


@dataclasses.dataclass(frozen=True)
class State:
    """What one frame shows: a thing and the place (y, x) of its centre."""

    shape: str
    colour: str
    y: float
    x: float


@dataclasses.dataclass(frozen=True)
class Clip:
    """A clip.

    Attributes:
      shape, colour: of the thing.
      motion: what it does, one of `MOTIONS`.
      y, x: where it begins.
      turned: the colour that it takes, if it turns.
      background: one of `BACKGROUNDS`.
    """

    shape: str
    colour: str
    motion: str
    y: int
    x: int
    turned: str = ""
    background: str = "white"

    @property
    def key(self) -> str:
        """A name that no other clip has."""
        return f"{self.background}|{self.motion} {self.turned} {self.y} {self.x} {self.colour} {self.shape}"

    @property
    def says(self) -> tuple[str, ...]:
        """What captions say of it: shape, colour, motion, and the colour that it takes."""
        return (self.shape, self.colour, self.motion, self.turned)

    def states(self) -> tuple[State | None, ...]:
        """What each frame shows; None: nothing."""
        found = []
        for frame in range(FRAMES):
            after = frame >= CHANGE
            down, right = STEPS.get(self.motion, (0, 0))
            state = State(
                self.shape, self.turned if after and self.turned else self.colour,
                self.y + frame * down, self.x + frame * right,
            )  # fmt: skip
            absent = {"appears": not after, "vanishes": after}.get(self.motion, False)
            found.append(None if absent else state)
        return tuple(found)


def clip_split(clip: Clip) -> str:
    """The split that a clip belongs to: 'pairs' if a held-out shape and colour come together, else by its hash."""
    if {(clip.colour, clip.shape), (clip.turned, clip.shape)} & HELD_PAIRS:
        return "pairs"
    return side_of(clip.key)


def starts(motion: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The places (all y, all x) from which a thing may begin, so that it stays in the picture."""
    ranges = []
    for step in STEPS.get(motion, (0, 0)):
        way = step * (FRAMES - 1)
        ranges.append(tuple(range(LEAST - min(way, 0), MOST - max(way, 0) + 1)))
    return ranges[0], ranges[1]


def render_state(state: State | None, background: str, pixels: int = SIDE) -> np.ndarray:
    """One frame, uint8 [pixels, pixels, 3]."""
    picture = plain(background, pixels)
    if state is not None:
        picture = painted(picture, coverage(state.shape, RADIUS, state.y, state.x, pixels, SIDE), state.colour)
    return to_uint8(picture)


def render_clip(clip: Clip, pixels: int = SIDE) -> np.ndarray:
    """The frames of a clip, uint8 [8, pixels, pixels, 3]."""
    return np.stack([render_state(state, clip.background, pixels) for state in clip.states()])


def described(states: tuple[State | None, ...]) -> tuple[str, ...]:
    """What captions say of a clip with these states, as `Clip.says`; () if they are no clip of ours.

    A place may be wrong by a pixel in each frame, but not further, and what changes has to change between the two
    middle frames.
    """
    seen = [state for state in states if state is not None]
    if len(states) != FRAMES or not seen or len({state.shape for state in seen}) > 1:
        return ()
    before, after = seen[0].colour, seen[-1].colour
    for motion in MOTIONS:
        turned = after if motion == "turns" else ""
        if (motion == "turns") == (before == after):
            continue
        down, right = STEPS.get(motion, (0, 0))
        starts_y = [s.y - down * t for t, s in enumerate(states) if s is not None]
        starts_x = [s.x - right * t for t, s in enumerate(states) if s is not None]
        model = Clip(seen[0].shape, before, motion, 0, 0, turned).states()
        same = all(
            (a is None) == (b is None) and (a is None or b is None or a.colour == b.colour)
            for a, b in zip(states, model, strict=True)
        )
        if same and max(max(starts_y) - min(starts_y), max(starts_x) - min(starts_x)) <= 2:
            return (seen[0].shape, before, motion, turned)
    return ()


@functools.cache
def all_says(split: str) -> tuple[tuple[str, ...], ...]:
    """All that captions of a split can say, each as `Clip.says`: what a clip of the split shows."""
    found = []
    for shape in SHAPES:
        for colour in COLOURS:
            for motion in MOTIONS:
                for turned in COLOURS if motion == "turns" else ("",):
                    says = (shape, colour, motion, turned)
                    if turned != colour and any(clip_split(clip) == split for clip in clips_of(says)):
                        found.append(says)
    return tuple(found)


def clips_of(says: tuple[str, ...]) -> Iterator[Clip]:
    """All clips of which captions say the same, of all splits."""
    shape, colour, motion, turned = says
    for background, y, x in itertools.product(BACKGROUNDS, *starts(motion)):
        yield Clip(shape, colour, motion, y, x, turned, background)
