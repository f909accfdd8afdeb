"""Draws stories that a run writes and draws in one go, as a picture.

  python experiments/scenes/stories.py --workdir runs/scenes_codes

Writes stories.png beside this file: the first stories of split 'test', none selected, a row each. The first sentence is
given; the run writes the others and draws every panel. A red frame marks a panel that does not show what its sentence
makes of the panel before.
"""

import argparse
import pathlib

import transfusion
from transfusion.data.scenes import tasks
from transfusion.evaluation.pictures import grid
from transfusion.evaluation.scenes.tasks import story

HERE = pathlib.Path(__file__).resolve().parent


def panels(first: str, parts: list) -> list[tuple]:
    """(picture, its sentence) of each panel."""
    found, said = [], first
    for part in parts:
        if isinstance(part, str):
            said += part
        else:
            found.append((part, said))
            said = ""
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--workdir", required=True, help="folder of the run")
    parser.add_argument("--number", type=int, default=6, help="stories")
    given = parser.parse_args()
    run = transfusion.load_run(given.workdir)
    (name,) = (s.name for s in run.experiment.data.sources.values() if s.name.endswith("stories"))
    drawn = [tasks.draw(name, "test", number) for number in range(given.number)]
    made = run.generate(
        [one.texts[0] for one in drawn], draw=True, max_images=tasks.PANELS, max_tokens=tasks.PANELS * 64
    )
    shown = [panels(one.texts[0], parts)[: tasks.PANELS] for one, parts in zip(drawn, made, strict=True)]
    right = [good for one, parts in zip(drawn, made, strict=True) for good in story(one, parts)]
    for row in shown:
        row += [row[-1]] * (tasks.PANELS - len(row))
    pictures, sentences = zip(*(panel for row in shown for panel in row), strict=True)
    wrong = [not good for good in right]
    grid(pictures, tasks.PANELS, sentences, scale=5, marks=wrong, path=HERE / "stories.png")
    print(f"{sum(right)} of {len(right)} panels are right")


if __name__ == "__main__":
    main()
