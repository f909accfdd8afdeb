"""A grid of drawn digits per system, from the runs of the sweep.

  python experiments/family_on_digits/grids.py --workdir runs/family_on_digits

Two of each digit, the first that a fixed seed gives, none chosen; written to experiments/family_on_digits/NAME.png.
"""

import pathlib

from absl import app, flags
from sweep import MEMBERS

import transfusion
from transfusion import pictures
from transfusion.data.builders import DIGIT_WORDS

HERE = pathlib.Path(__file__).resolve().parent
WORKDIR = flags.DEFINE_string("workdir", "runs/family_on_digits", "Folder of the sweep.")


def main(argv) -> None:
    del argv
    prompts = [f"a handwritten {word}" for word in DIGIT_WORDS for _ in range(2)]
    for name in MEMBERS:
        workdir = pathlib.Path(WORKDIR.value) / name
        run = transfusion.load_run(workdir)
        if run.drawn is not None:
            images = list(run.draw(prompts, seed=0))
            pictures.grid(images, 20, scale=4, path=HERE / f"{name}.png")
            print(f"{name}.png")


if __name__ == "__main__":
    app.run(main)
