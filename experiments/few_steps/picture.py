"""Draws the picture of the README: ten digits in a row, in different numbers of steps.

python experiments/few_steps/picture.py --plain runs/digits --shortcut runs/digits_shortcut --mean_flow RUN
"""

import io
import pathlib

import numpy as np
from absl import app, flags
from PIL import Image

from transfusion.api import load_run
from transfusion.evaluation import pictures
from transfusion.evaluation.examples import class_captions, read_examples

HERE = pathlib.Path(__file__).resolve().parent
FLAGS = flags.FLAGS
for name in ("plain", "shortcut", "mean_flow"):
    flags.DEFINE_string(name, None, "Folder of the run.", required=True)

AHEAD = {"solver": "shortcut", "guidance": 1.0}
ROWS = (
    ("plain", {"steps": 25}),
    *(("shortcut", {"steps": n} | AHEAD) for n in (8, 4, 2, 1)),
    ("plain", {"steps": 1}),
    *(("mean_flow", {"steps": n} | AHEAD) for n in (4, 1)),
)


def main(argv) -> None:
    del argv
    runs = {name: load_run(FLAGS[name].value) for name in ("plain", "shortcut", "mean_flow")}
    data = runs["plain"].experiment.data
    captions = list(class_captions(read_examples(data.sources, data)).values())[:10]
    drawn = [runs[name].draw(captions, seed=0, **sampler) for name, sampler in ROWS]
    path = HERE / "samples.png"
    pictures.grid(np.concatenate(drawn), 10, path=path)
    image = Image.open(io.BytesIO(path.read_bytes()))
    image.quantize(64, method=Image.Quantize.FASTOCTREE).save(path, optimize=True)


if __name__ == "__main__":
    app.run(main)
