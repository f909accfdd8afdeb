"""How far can a picture be from a scene until the parser reads it wrongly, or rejects it?

  python experiments/scenes/parser.py            # 10,000 scenes and 2,000 clips: 2 minutes on a core
  python experiments/scenes/parser.py --scenes 300 --output /tmp/parser.json
  python experiments/scenes/parser.py --plain             # the plain world alone; the other numbers stay

Prints a table in Markdown and writes the numbers to parser.json beside this file: the share of rendered scenes that are
read exactly at 32 and 64 pixels, and at 16, 18 and 24 those of the plain world (large things before white), under noise
(standard deviation in levels of 0 to 255), blur (standard deviation in pixels at 32), JPEG, and after being halved and
doubled; the share of clips read exactly under noise; and the share of pictures that are rejected although the things in
them are read rightly, when something else is added to them.
The shares under noise are the ceiling of any model whose pictures are so noisy.
"""

import io
import json
import pathlib
from collections.abc import Callable

import numpy as np
from absl import app, flags
from PIL import Image
from scipy.ndimage import gaussian_filter

from transfusion.data.scenes import tasks
from transfusion.data.scenes.graph import SPLITS
from transfusion.data.scenes.moving import render_clip
from transfusion.data.scenes.parse import parse, parse_clip
from transfusion.data.scenes.render import coverage, painted, render

HERE = pathlib.Path(__file__).resolve().parent
SCENES = flags.DEFINE_integer("scenes", 10_000, "Rendered scenes at each size.")
DAMAGED = flags.DEFINE_integer("damaged", 1000, "Scenes for each kind and degree of damage.")
CLIPS = flags.DEFINE_integer("clips", 2000, "Clips.")
PLAIN = flags.DEFINE_bool("plain", False, "Measure the plain world alone.")
OUTPUT = flags.DEFINE_string("output", str(HERE / "parser.json"), "The file of results.")

Damage = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def noise(sigma: float) -> Damage:
    return lambda picture, rng: np.clip(picture + rng.normal(0, sigma, picture.shape), 0, 255)


def blur(sigma: float) -> Damage:
    def damage(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        width = sigma * len(picture) / 32
        return gaussian_filter(picture.astype(np.float32), (width, width, 0), mode="nearest")

    return damage


def jpeg(quality: int) -> Damage:
    def damage(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        out = io.BytesIO()
        Image.fromarray(picture).save(out, "JPEG", quality=quality)
        return np.asarray(Image.open(out))

    return damage


def halved(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Made half as large, and large again."""
    side = len(picture)
    small = Image.fromarray(picture).resize((side // 2, side // 2), Image.Resampling.BILINEAR)
    return np.asarray(small.resize((side, side), Image.Resampling.BILINEAR))


def blob(radius: float) -> Damage:
    """With a spot of another colour, in a random place."""

    def damage(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        cover = coverage("circle", radius, *rng.uniform(3, 29, 2).round(1).tolist(), len(picture))
        return painted(picture.astype(np.float32), cover, str(rng.choice(["red", "green", "blue", "yellow"])))

    return damage


DAMAGES: dict[str, Damage] = {
    **{f"noise {sigma}": noise(sigma) for sigma in (8, 16, 24, 32, 48, 64)},
    **{f"blur {sigma}": blur(sigma) for sigma in (0.4, 0.6, 0.8, 1.0, 1.4)},
    **{f"JPEG {quality}": jpeg(quality) for quality in (90, 75, 50)},
    "halved": halved,
}


def scenes(number: int) -> list:
    """Scenes of all splits, with 1 to 4 things."""
    names = ("captions", "listed", "questions")
    found = []
    for i in range(number):
        task, split = names[i % 3], SPLITS[i // 3 % len(SPLITS)]
        found.append(tasks.draw(task, split, i).scenes[0])
    return found


def plain_scenes(number: int) -> list:
    """Scenes of the plain world, of all splits and skills of captions, with 1 to 4 things."""
    return [tasks.draw("plain_captions", SPLITS[i % len(SPLITS)], i).scenes[0] for i in range(number)]


def exact(shown, scene) -> bool:
    return shown.scene == scene and not shown.faults


def share(right: int, of: int) -> dict:
    return {"right": right, "of": of}


def of_size(made: list, name: str, pixels: int, rng: np.random.Generator) -> dict:
    """How many scenes are read exactly, as rendered and damaged."""
    result = {name: share(sum(exact(parse(render(s, pixels)), s) for s in made), len(made))}
    made = made[: DAMAGED.value]
    for damaged, damage in DAMAGES.items():
        read = [parse(damage(render(s, pixels), rng)) for s in made]
        things = sum(shown.scene == scene for shown, scene in zip(read, made, strict=True))
        result[f"{name}, {damaged}"] = share(sum(map(exact, read, made)), len(made)) | {"scene right": things}
    return result


def measure() -> dict:
    rng = np.random.default_rng(0)
    made, result = scenes(SCENES.value), {}
    for pixels in (32, 64):
        result |= of_size(made, f"{pixels} pixels", pixels, rng)
    made = made[: DAMAGED.value]
    for radius in (1.5, 2.0, 3.0):
        read = [parse(blob(radius)(render(s, 32), rng)) for s in made]
        result[f"32 pixels, a spot of radius {radius}"] = share(sum(map(exact, read, made)), len(made))
    drawn = [tasks.draw("clips", ("train", "test", "pairs")[i % 3], i).clip for i in range(CLIPS.value)]
    damages: dict[str, Damage] = {"": lambda clip, rng: clip, **{f"noise {s}": noise(s) for s in (16, 32, 48)}}
    for name, damage in damages.items():
        read = [parse_clip(damage(render_clip(clip), rng)) for clip in drawn]
        right = sum(r.says == c.says and r.states == c.states() for r, c in zip(read, drawn, strict=True))
        says = sum(r.says == c.says for r, c in zip(read, drawn, strict=True))
        result["clips of 16 pixels" + (f", {name}" if name else "")] = share(right, len(drawn)) | {
            "caption right": says
        }
    return result


def main(argv) -> None:
    del argv
    path = pathlib.Path(OUTPUT.value)
    rng, made, plain = np.random.default_rng(0), plain_scenes(SCENES.value), {}
    for pixels in (16, 18, 24):
        plain |= of_size(made, f"plain, {pixels} pixels", pixels, rng)
    before = json.loads(path.read_text()) if PLAIN.value and path.is_file() else {}
    result = before | plain if PLAIN.value else measure() | plain
    path.write_text(json.dumps(result, indent=1) + "\n")
    print("| pictures | read exactly |\n|---|---|")
    for name, found in result.items():
        print(f"| {name} | {found['right']} of {found['of']} |")


if __name__ == "__main__":
    app.run(main)
