"""Clips that a run draws and describes, and worlds that it continues frame by frame, by the exact judge."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from transfusion.data.scenes import moving, words
from transfusion.data.scenes.moving import State, render_clip
from transfusion.data.scenes.parse import parse_clip
from transfusion.data.scenes.tasks import Drawn

KNOWN = 2  # frames that a world model gets


def clips(run: Any, drawn: Sequence[Drawn], pixels: int) -> dict[str, list]:
    """Clips from captions and captions of clips; or the next states of clips, if the run draws frames."""
    return {2: continued, 3: whole}[run.sides](run, drawn, pixels)


def whole(run: Any, drawn: Sequence[Drawn], pixels: int) -> dict[str, list]:
    """Which drawn clips show their caption, its thing and its motion, and which clips are described."""
    shown = [parse_clip(clip).says for clip in run.draw([one.texts[0] for one in drawn], kind=run.shows)]
    return {
        "drawn": [says == one.says for says, one in zip(shown, drawn, strict=True)],
        "object": [says[:2] == one.says[:2] for says, one in zip(shown, drawn, strict=True)],
        "motion": [says[2:3] == one.says[2:3] for says, one in zip(shown, drawn, strict=True)],
        "described": described(run, drawn, pixels),
    }


def described(run: Any, drawn: Sequence[Drawn], pixels: int) -> list[bool]:
    """Whether the run's caption of each clip says what is shown and how it moves."""
    written = [words.understood(text) for text in run.caption([render_clip(one.clip, pixels) for one in drawn])]
    return [read == ("clips", one.says) for read, one in zip(written, drawn, strict=True)]


def continued(run: Any, drawn: Sequence[Drawn], pixels: int) -> dict[str, list]:
    """Whether the frame after the given ones has the right state, and whether all frames have; and captions of clips,
    if the run has learned any."""
    kept = [states_kept(clip, one) for clip, one in zip(continuations(run, drawn, KNOWN), drawn, strict=True)]
    found = {"next_state": [good[0] for good in kept], "all_states": [all(good) for good in kept]}
    return found | ({"described": described(run, drawn, pixels)} if run.experiment.data.caption_first < 1 else {})


def continuations(run: Any, drawn: Sequence[Drawn], known: int) -> list[np.ndarray]:
    """Clips uint8 [8, H, W, 3] of which a world model has drawn all but the first `known` frames."""
    left, given = moving.FRAMES - known, [render_clip(one.clip)[:known] for one in drawn]
    prompts = [[one.texts[0], frames] for one, frames in zip(drawn, given, strict=True)]
    made = run.generate(prompts, draw=True, max_images=left, min_images=left)
    pictures = [[part for part in parts if not isinstance(part, str)][:left] for parts in made]
    return [np.concatenate([frames, np.stack(new)]) for frames, new in zip(given, pictures, strict=True)]


def states_kept(clip: np.ndarray, one: Drawn, known: int = KNOWN) -> list[bool]:
    """Which frames of a clip after the given ones show the very state, to a pixel, and nothing else. What appears may
    appear anywhere, but has to stay there."""
    shown, wanted = parse_clip(clip), one.clip.states()
    leftovers = {int(f.split(":")[0].removeprefix("frame ")) for f in shown.faults if ":" in f}
    first = next((state for state in shown.states if state is not None), None)
    return [
        t not in leftovers and _same(shown.states[t], wanted[t], one.clip.motion, first)
        for t in range(known, moving.FRAMES)
    ]


def _same(state: State | None, wanted: State | None, motion: str, first: State | None) -> bool:
    if state is None or wanted is None or motion != "appears":
        return state == wanted
    place = first or state
    return (state.shape, state.colour, state.y, state.x) == (wanted.shape, wanted.colour, place.y, place.x)
