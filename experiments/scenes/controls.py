"""Five controls that know nothing, and what the judge of scenes gives them beside what it has to give.

  python experiments/scenes/controls.py          # a minute on a core

Writes controls.json beside this file. What each control has to reach is computed from the captions alone, before a
picture is made (`STATED`): the judge is right if what it measures agrees.

- shuffled captions: the picture of another caption of the skill, drawn at random.
- wrong counts: the picture of as many things less or more.
- blank: the background alone.
- swapped relation: the picture of 'a B left of an A' for 'an A left of a B'.
- nearest training image: for a test scene the nearest of 3,000 training pictures by squared difference, for the caption
  that lists all things. No test scene is in training, so that none of them is right.
"""

import json
import pathlib

import numpy as np
from absl import app, flags

from transfusion.data.scenes import draws, judge, tasks, words
from transfusion.data.scenes.graph import BACKGROUNDS, Scene, box_of, relations
from transfusion.data.scenes.render import render
from transfusion.evaluation.intervals import wilson

HERE = pathlib.Path(__file__).resolve().parent
NUMBER = flags.DEFINE_integer("number", 2000, "Pictures of each control.")
OUTPUT = flags.DEFINE_string("output", str(HERE / "controls.json"), "The file of results.")
NEIGHBOURS = 3000

# 'two' and 'binding' name their things in either order. A picture shows 'position' by one or two relations, each said
# in either order, which is the one number here that has to be counted: see `true_positions`.
ORDERS = {"single": 1, "two": 2, "counting": 1, "colours": 1, "binding": 2}


def true_positions(number: int = 2000) -> float:
    """How many captions of 'position' are true of a picture of one, on average, by its graph."""
    total = 0
    for i in range(number):
        scene = tasks.draw("captions", "test", i, "position").scenes[0]
        first, second = (box_of(thing) for thing in scene.things)
        total += 2 * len(relations(first, second))
    return total / number


def stated() -> dict[str, float]:
    found = {
        f"shuffled captions, {skill}": orders / len(words.all_says(skill, "test")) for skill, orders in ORDERS.items()
    }
    found["shuffled captions, position"] = true_positions() / len(words.all_says("position", "test"))
    return found | {name: 0.0 for name in ("wrong counts", "blank", "swapped relation", "nearest training image")}


def shuffled(skill: str, i: int) -> bool:
    asked, other = (tasks.draw("captions", "test", i + offset, skill) for offset in (0, NUMBER.value))
    return judge.shows(skill, asked.says, render(other.scenes[0]))


def wrong_count(i: int) -> bool:
    number, shapes = tasks.draw("captions", "test", i, "counting").says
    others = [says for says in words.all_says("counting", "test") if says[1] == shapes and says[0] != number]
    chance = draws.Chance("wrong count", i)
    other = draws.scene_for(chance, "counting", chance.of(others), "test")
    return judge.shows("counting", (number, shapes), render(other))


def blank(i: int) -> bool:
    asked = tasks.draw("captions", "test", i)
    return judge.shows(asked.kind, asked.says, render(Scene((), [*BACKGROUNDS][i % 3])))


def swapped(i: int) -> bool:
    asked = tasks.draw("captions", "test", i, "position")
    return judge.shows("position", asked.says[::-1], render(asked.scenes[0]))


def nearest() -> list[bool]:
    train = np.stack([render(tasks.draw("listed", "train", i).scenes[0]) for i in range(NEIGHBOURS)])
    flat = train.reshape(len(train), -1).astype(np.float32)
    sizes, right = (flat**2).sum(1), []
    for i in range(NUMBER.value):
        scene = tasks.draw("listed", "test", i).scenes[0]
        picture = render(scene).ravel().astype(np.float32)
        right.append(judge.same(scene, train[int(np.argmin(sizes - 2 * flat @ picture))]))
    return right


def main(argv) -> None:
    del argv
    expected, numbers = stated(), range(NUMBER.value)
    measured = {f"shuffled captions, {skill}": [shuffled(skill, i) for i in numbers] for skill in words.SKILLS}
    measured |= {
        "wrong counts": [wrong_count(i) for i in numbers],
        "blank": [blank(i) for i in numbers],
        "swapped relation": [swapped(i) for i in numbers],
        "nearest training image": nearest(),
    }
    result = {}
    print("| control | stated | measured | interval of 99 % |\n|---|---|---|---|")
    for name, right in measured.items():
        found = wilson(sum(right), len(right), 0.99)
        result[name] = {"stated": round(expected[name], 5), "right": sum(right), "of": len(right)}
        agrees = "" if found["low"] <= expected[name] <= found["high"] else " (does not agree)"
        print(
            f"| {name} | {expected[name]:.4f} | {found['value']:.4f} | "
            f"{found['low']:.4f} to {found['high']:.4f}{agrees} |"
        )
    pathlib.Path(OUTPUT.value).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    app.run(main)
