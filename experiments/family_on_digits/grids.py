"""The grid of drawn digits of each system, from its evaluation, as small pictures beside this file.

  python experiments/family_on_digits/grids.py --workdir runs/family_on_digits

The evaluation draws ten of each digit with a fixed seed; none are chosen, and a red frame is one that the judge read as
something else.
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
