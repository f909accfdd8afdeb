"""Does a run of `configs/moving.py` draw the motion that is asked for, describe clips, and keep the state of a world?

  python experiments/moving/run.py --workdir runs/moving            # clips from captions, captions of held-out clips
  python experiments/moving/run.py --workdir runs/moving_world      # the next frames of held-out clips

Prints numbers with Wilson intervals of 95 %, and writes them to RUN.json beside this file. The judge is the exact
parser of scenes: what is drawn is right if every frame shows the asked thing, in the asked colour and with the asked
motion, to a pixel, and nothing else. RUN.png shows drawn clips, each in a row; those with a red edge are wrong.

A model of clips draws all that captions can say, `--rounds` times, and describes `--described` clips of split 'test',
whose scenes are not in training (the caption has to name shape, colour and motion; any paraphrase will do). A world
model gets the caption and the first two frames of such clips and draws the other six one after the other; a frame is
right if it shows the very state, to a pixel. What appears may appear anywhere, but has to stay there.
"""

import argparse
import datetime
import json
import pathlib
from collections import Counter

import numpy as np
from PIL import Image

import transfusion
from transfusion.data.scenes import moving, tasks, words
from transfusion.data.scenes.parse import parse_clip
from transfusion.evaluation.intervals import wilson
from transfusion.evaluation.scenes.clips import continuations, states_kept

HERE = pathlib.Path(__file__).resolve().parent


def share(right: list[bool]) -> dict:
    found = wilson(sum(right), len(right))
    return {"right": sum(right), "of": len(right)} | {name: round(found[name], 4) for name in ("low", "high")}


def by_kind(kinds: list[str], right: list[bool]) -> dict[str, str]:
    totals, found = Counter(kinds), Counter(kind for kind, one in zip(kinds, right, strict=True) if one)
    return {kind: f"{found[kind]} of {totals[kind]}" for kind in sorted(totals)}


def picture(clips: list[np.ndarray], right: list[bool]) -> Image.Image:
    """Each clip a row of its frames, with a red edge if it is wrong."""
    rows = []
    for clip, good in zip(clips, right, strict=True):
        edge = (200, 200, 200) if good else (255, 0, 0)
        frames = [np.pad(frame, ((1, 1), (1, 1), (0, 0))) for frame in clip]
        for frame in frames:
            frame[[0, -1], :] = frame[:, [0, -1]] = edge
        rows.append(np.concatenate(frames, axis=1))
    image = Image.fromarray(np.concatenate(rows))
    return image.resize((3 * image.width, 3 * image.height), Image.Resampling.NEAREST)


def clips_and_captions(run, given: argparse.Namespace) -> tuple[dict, Image.Image]:
    asked = list(moving.all_says("train")) * given.rounds
    captions = [words.clip_caption(says, words.templates(words.clip_skill(says), "train")[0]) for says in asked]
    drawn = run.draw(captions)
    right = [parse_clip(clip).says == says for clip, says in zip(drawn, asked, strict=True)]
    held_out = [tasks.draw("clips", "test", number) for number in range(given.described)]
    written = run.caption([moving.render_clip(one.clip) for one in held_out])
    read = [words.understood(caption) == ("clips", one.says) for caption, one in zip(written, held_out, strict=True)]
    result = {
        "drawn clips that show what was asked": share(right)
        | {"by motion": by_kind([says[2] for says in asked], right)},
        "held-out clips described right": share(read) | {"by motion": by_kind([one.says[2] for one in held_out], read)},
    }
    step = max(len(asked) // given.shown, 1)
    chosen = slice(0, step * given.shown, step)
    return result, picture(list(drawn[chosen]), right[chosen])


def worlds(run, given: argparse.Namespace) -> tuple[dict, Image.Image]:
    held_out = [tasks.draw("clips", "test", number) for number in range(given.worlds)]
    clips = continuations(run, held_out, given.frames)
    kept = [states_kept(clip, one, given.frames) for clip, one in zip(clips, held_out, strict=True)]
    whole, frames = [all(good) for good in kept], [list(right) for right in zip(*kept, strict=True)]
    result = {
        "clips whose state is kept over all frames": share(whole)
        | {"by motion": by_kind([one.says[2] for one in held_out], whole)},
        "frames with the right state, by number": {
            str(given.frames + t + 1): share(right) for t, right in enumerate(frames)
        },
    }
    return result, picture(clips[: given.shown], whole[: given.shown])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="folder of the run")
    parser.add_argument("--rounds", type=int, default=1, help="how often each of the captions' contents is drawn")
    parser.add_argument("--described", type=int, default=500, help="held-out clips that are described")
    parser.add_argument("--worlds", type=int, default=200, help="held-out clips that a world model continues")
    parser.add_argument("--frames", type=int, default=2, help="frames that a world model gets")
    parser.add_argument("--shown", type=int, default=10, help="clips of the picture")
    given = parser.parse_args()
    run = transfusion.load_run(given.workdir)
    result, shown = (clips_and_captions if run.sides == 3 else worlds)(run, given)
    result = {"date": datetime.date.today().isoformat(), "steps": run.step} | result
    (HERE / f"{given.workdir.name}.json").write_text(json.dumps(result, indent=2) + "\n")
    shown.save(HERE / f"{given.workdir.name}.png", optimize=True)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
