"""Judges a run of configs/digits.py:sizes at each of its sizes: what it writes of held-out digits, and what it draws.

  python experiments/sizes/measure.py --run runs/digits_sizes

For each size a judge is trained on the real training digits of that size. The sizes of `--new` are drawn as well; no
image of training had them, and their judge sees real digits at random places of such a canvas.
"""

import dataclasses
import json
import pathlib

import numpy as np
from absl import app, flags

from transfusion.api import load_run
from transfusion.codecs.pixels import to_float
from transfusion.data.sources import open_source
from transfusion.evaluation.examples import Examples, class_captions
from transfusion.evaluation.intervals import wilson
from transfusion.evaluation.judge import JudgeConfig, train_judge
from transfusion.evaluation.scores import Generated, captioning, generation

HERE = pathlib.Path(__file__).resolve().parent
FLAGS = flags.FLAGS
flags.DEFINE_string("run", "runs/digits_sizes", "The workdir of the run.")
flags.DEFINE_string("data_dir", "", "Where the data lies, if it has moved.")
flags.DEFINE_integer("samples", 300, "Digits drawn at each size.")
flags.DEFINE_list("new", ["10x10"], "Sizes that training did not have, height x width.")
flags.DEFINE_string("out", str(HERE / "results.json"), "The JSON file; '' for none.")


def by_size(sources, data) -> dict[tuple[int, int], Examples]:
    """The real images of the sources in groups of one size."""
    groups: dict[tuple[int, int], list] = {}
    for config in sources.values():
        for record in open_source(config, FLAGS.data_dir or data.data_dir, data.pixel_limit):
            groups.setdefault(record["image"].shape[:2], []).append(record)
    return {size: _examples(records) for size, records in sorted(groups.items())}


def _examples(records) -> Examples:
    captions = tuple(record["caption"] for record in records)
    return Examples(np.stack([r["image"] for r in records]), captions, np.array([r["label"] for r in records]))


def on_canvas(digits: Examples, size: tuple[int, int]) -> Examples:
    """Digits at random places of a larger canvas."""
    rng, (height, width) = np.random.default_rng(0), digits.images.shape[1:3]
    canvases = np.zeros((len(digits), *size, digits.images.shape[-1]), np.uint8)
    for canvas, image in zip(canvases, digits.images, strict=True):
        top, left = rng.integers(0, (size[0] - height + 1, size[1] - width + 1))
        canvas[top : top + height, left : left + width] = image
    return dataclasses.replace(digits, images=canvases)


def main(argv) -> None:
    del argv
    run = load_run(FLAGS.run)
    experiment = run.experiment
    train, held_out = (by_size(s.sources, experiment.data) for s in (experiment.data, experiment.eval))
    new = [tuple(map(int, name.split("x"))) for name in FLAGS.new]
    smallest = min(train, key=lambda size: size[0] * size[1])
    results = {}
    for size in [*train, *new]:
        real = train.get(size) or on_canvas(train[smallest], size)
        test = held_out.get(size) or on_canvas(held_out[smallest], size)
        judge = train_judge(to_float(real.images), real.labels, JudgeConfig(*size, 1, 10))
        seen = judge.predict(to_float(test.images)) == test.labels
        names = class_captions(real)
        asked = np.arange(FLAGS.samples) % len(names)
        prompts = tuple(names[int(label)] for label in asked)
        drawn = Generated(run.draw(prompts, seed=0, size=size), prompts, asked)
        scores = {"judge": wilson(int(seen.sum()), len(seen)), "drawn": generation(judge, drawn).all}
        if size in train:
            scores["captions"] = captioning(run, test, len(test), 0).score
        results["x".join(map(str, size))] = {name: str(score) for name, score in scores.items()}
        print(size, results["x".join(map(str, size))], flush=True)
    if FLAGS.out:
        pathlib.Path(FLAGS.out).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    app.run(main)
