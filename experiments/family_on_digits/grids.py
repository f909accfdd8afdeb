"""Copies each system's grid of drawn digits from its evaluation, as a small picture beside this file.

  python experiments/family_on_digits/grids.py --workdir runs/family_on_digits

The evaluation draws ten of each digit with a fixed seed, and none are selected. A red frame marks a drawing that the
judge read as another digit.
"""

import pathlib

from absl import app, flags
from PIL import Image
from sweep import MEMBERS

HERE = pathlib.Path(__file__).resolve().parent
WORKDIR = flags.DEFINE_string("workdir", "runs/family_on_digits", "Folder of the sweep.")


def main(argv) -> None:
    del argv
    for name in MEMBERS:
        path = pathlib.Path(WORKDIR.value) / name / "samples" / "generated.png"
        if path.is_file():
            Image.open(path).quantize(64, method=Image.Quantize.FASTOCTREE).save(HERE / f"{name}.png", optimize=True)
            print(f"{name}.png")


if __name__ == "__main__":
    app.run(main)
