"""Judges digits that were drawn by DDPM: by runs of this project, and by an independent implementation.

  python experiments/ddpm_on_digits/measure.py --export digits.npz
  python experiments/ddpm_on_digits/measure.py --runs flow=runs/digits,ddpm=runs/ddpm --drawn diffusers=noise.npz

Prints a table and adds to `results.json` beside this file. The judge is that of the first run.
"""

import json
import pathlib

import numpy as np
from absl import app, flags

from transfusion.api import load_run
from transfusion.codecs.pixels import to_float, to_uint8
from transfusion.evaluation import scores
from transfusion.evaluation.examples import read_examples

HERE = pathlib.Path(__file__).resolve().parent
FLAGS = flags.FLAGS
flags.DEFINE_string("judge", "runs/digits", "The run whose data and judge are used.")
flags.DEFINE_string("export", "", "A file to write the training images [-1, 1] and labels to, for `independent.py`.")
flags.DEFINE_list("runs", [], "name=workdir of each run.")
flags.DEFINE_list("drawn", [], "name=FILE.npz that `independent.py` wrote.")
flags.DEFINE_integer("samples", 500, "Images to draw.")
flags.DEFINE_list("solvers", [], "solver:steps:guidance of each way of drawing; the run's own when there is none.")
flags.DEFINE_string("out", str(HERE / "results.json"), "The JSON file; '' for none.")


def ways() -> dict[str, dict]:
    """The settings of each way of drawing by a run."""
    if not FLAGS.solvers:
        return {"own": {}}
    parts = {way: way.split(":") for way in FLAGS.solvers}
    return {way: {"solver": s, "steps": int(n), "guidance": float(g)} for way, (s, n, g) in parts.items()}


def note(results: dict, name: str, score: dict) -> None:
    results[name] = score
    print(
        f"| {name} | {100 * score['value']:.1f} % ({100 * score['low']:.1f} to {100 * score['high']:.1f}) |", flush=True
    )


def main(argv) -> None:
    del argv
    experiment = load_run(FLAGS.judge).experiment
    real = read_examples(experiment.data.sources, experiment.data)
    if FLAGS.export:
        np.savez_compressed(FLAGS.export, images=to_float(real.images), labels=real.labels)
    judge = scores.open_judge(pathlib.Path(FLAGS.judge), real)
    path = pathlib.Path(FLAGS.out) if FLAGS.out else None
    results = json.loads(path.read_text()) if path and path.is_file() else {}
    for name, workdir in (pair.split("=", 1) for pair in FLAGS.runs):
        run = load_run(workdir)
        for way, sampler in ways().items():
            drawn = scores.draw_classes(run, real, FLAGS.samples, seed=0, **sampler)
            note(results, f"{name}, {way}", scores.generation(judge, drawn).all)
    for name, file in (pair.split("=", 1) for pair in FLAGS.drawn):
        data = np.load(file)
        prompts = tuple(str(label) for label in data["asked"])
        for way in set(data.files) - {"asked"}:
            images = to_uint8(np.clip(data[way], -1, 1))
            note(
                results,
                f"{name}, {way}",
                scores.generation(judge, scores.Generated(images, prompts, data["asked"])).all,
            )
    if path:
        path.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    app.run(main)
