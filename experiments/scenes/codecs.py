"""What does the parser still read of scenes that a codec has encoded and decoded?

  python -m transfusion.train --config configs/scenes_vq.py --workdir runs/scenes_vq          # and its other forms
  python experiments/scenes/codecs.py --runs runs/scenes_vq,runs/scenes_vq_multiscale,runs/scenes_vq_kl

No model that draws in a codec's latents or codes can be right more often than what it decodes from the true ones: the
share of scenes that are read exactly is its ceiling. Trained codecs get scenes of the world and the size that they were
trained on; codecs that need no training are measured always, on all scenes of 32 pixels. Prints a table in Markdown and
writes codecs.json beside this file.
"""

import json
import math
import pathlib

import numpy as np
from absl import app, flags

from transfusion.codecs import CodecConfig
from transfusion.codecs.levels import LevelsConfig
from transfusion.data.scenes import tasks
from transfusion.data.scenes.graph import Scene
from transfusion.data.scenes.parse import parse
from transfusion.data.scenes.render import render
from transfusion.evaluation.intervals import wilson
from transfusion.latents import Codec, open_codec
from transfusion.workdir.config_file import read_experiment

HERE = pathlib.Path(__file__).resolve().parent
RUNS = flags.DEFINE_list("runs", [], "Workdirs of trained autoencoders of scenes.")
SCENES = flags.DEFINE_integer("scenes", 1000, "Scenes of split 'test' for each codec.")


def levels(count: int, patch: int = 1) -> CodecConfig:
    return CodecConfig("levels", levels=LevelsConfig(levels=count, channels=3, patch=patch))


UNTRAINED = {
    "pixels": CodecConfig(),
    **{f"{count} levels of each channel": levels(count) for count in (17, 9, 5, 3)},
    "17 levels of each channel of 2 x 2 pixels": levels(17, 2),
}


def scenes(*names: str) -> list[Scene]:
    """Scenes of these tasks in turn."""
    return [tasks.draw(names[i % len(names)], "test", i).scenes[0] for i in range(SCENES.value)]


def of_run(run: str) -> tuple[CodecConfig, list[Scene], int]:
    """The codec of a run, scenes such as it was trained on, and the side of their pictures."""
    (source,) = read_experiment(run).data.sources.values()
    return CodecConfig("autoencoder", run), scenes(source.name), source.resolution


def measure(codec: Codec, made: list[Scene], pixels: int) -> dict:
    right = things = 0
    error, numbers = [], 0
    for scene in made:
        picture = render(scene, pixels)
        encoded = np.asarray(codec.encode(picture))
        decoded = np.asarray(codec.decode(encoded))
        shown, numbers = parse(decoded), encoded.size
        right += shown.scene == scene and not shown.faults
        things += shown.scene == scene
        error.append(np.mean((decoded.astype(np.float32) - picture) ** 2))
    worst = float(np.mean(error))
    psnr = 10 * math.log10(255**2 / worst) if worst else None
    found = wilson(int(right), len(made))
    return {"numbers": numbers, "of": len(made), "right": int(right), "scene right": int(things), "psnr": psnr} | {
        end: round(found[end], 4) for end in ("low", "high")
    }


def main(argv) -> None:
    del argv
    every = scenes("captions", "questions")
    codecs = {name: (config, every, 32) for name, config in UNTRAINED.items()}
    codecs |= {pathlib.Path(run).name: of_run(run) for run in RUNS.value}
    result = {}
    print("| codec | numbers of a picture | read exactly | interval of 95 % | things right, leftovers or not | PSNR |")
    print("|---|---|---|---|---|---|")
    for name, (config, made, pixels) in codecs.items():
        one = result[name] = measure(open_codec(config), made, pixels)
        psnr = "" if one["psnr"] is None else f"{one['psnr']:.1f}"
        print(
            f"| {name} | {one['numbers']} | {one['right']} of {one['of']} | {one['low']} to {one['high']} | "
            f"{one['scene right']} | {psnr} |"
        )
    (HERE / "codecs.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    app.run(main)
