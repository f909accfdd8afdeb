"""Which panels are wrong in the stories that a run writes and draws in one go?

  python experiments/scenes/stories.py --workdir runs/scenes_codes --number 120

Writes stories.png beside this file: the first stories of split 'test', none selected, a row each. The first sentence is
given; the run writes the others and draws every panel. A red frame marks a panel that does not show what its sentence
makes of the panel before. Prints how many panels of all stories are right, by what their sentence changes and by how
many things they show; a sentence that does not fit the panel before it counts by itself.
"""

import argparse
import collections
import pathlib
from collections.abc import Iterator

import numpy as np

import transfusion
from transfusion.data.scenes import changes, tasks
from transfusion.data.scenes.parse import parse
from transfusion.evaluation.pictures import grid
from transfusion.evaluation.scenes.tasks import sentence, story

HERE = pathlib.Path(__file__).resolve().parent
SHOWN = 6  # stories of the picture


def panels(first: str, parts: list) -> list[tuple[np.ndarray, str]]:
    """(picture, its sentence) of each panel."""
    found, said = [], first
    for part in parts:
        if isinstance(part, str):
            said += part
        else:
            found.append((part, said))
            said = ""
    return found[: tasks.PANELS]


def kinds(told: list[tuple[np.ndarray, str]], good: list[bool]) -> Iterator[tuple[str, int, bool]]:
    """(what the sentence changes, things in the panel, right) of each panel."""
    before = None
    for (picture, said), right in zip(told, good, strict=False):
        understood, scene = changes.understood(sentence(said)), parse(picture).scene
        fits = before is not None and changes.changed(before, sentence(said)) is not None
        kind = "first panel" if before is None else understood[0] if understood and fits else "does not fit"
        yield kind, len(scene.things), right
        before = scene


def draw(told: list[list[tuple[np.ndarray, str]]], good: list[list[bool]]) -> None:
    """Writes the picture of stories."""
    pictures, sentences, wrong = [], [], []
    for row, right in zip(told, good, strict=True):
        for picture, said in row + row[-1:] * (tasks.PANELS - len(row)):
            pictures.append(picture)
            sentences.append(sentence(said))
        wrong += [not one for one in right]
    grid(pictures, tasks.PANELS, sentences, scale=5, marks=wrong, path=HERE / "stories.png")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--workdir", required=True, help="folder of the run")
    parser.add_argument("--number", type=int, default=120, help="stories")
    given = parser.parse_args()
    run = transfusion.load_run(given.workdir)
    (name,) = (s.name for s in run.experiment.data.sources.values() if s.name.endswith("stories"))
    drawn = [tasks.draw(name, "test", number) for number in range(given.number)]
    prompts = [one.texts[0] for one in drawn]
    made = run.generate(prompts, draw=True, max_images=tasks.PANELS, max_tokens=tasks.PANELS * 64)
    told = [panels(one, parts) for one, parts in zip(prompts, made, strict=True)]
    good = [story(one, parts) for one, parts in zip(drawn, made, strict=True)]
    draw(told[:SHOWN], good[:SHOWN])
    seen, right = collections.Counter(), collections.Counter()
    for row, marks in zip(told, good, strict=True):
        for kind, things, one in kinds(row, marks):
            seen[kind, things] += 1
            right[kind, things] += one
    for kind, things in sorted(seen):
        print(f"{kind}, {things} things: {right[kind, things]} of {seen[kind, things]}")
    print(f"panels: {sum(right.values())} of {given.number * tasks.PANELS}")


if __name__ == "__main__":
    main()
