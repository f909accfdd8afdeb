"""Measures runs that draw in few steps beside the run of flow matching whose 25 steps are their teacher.

  python experiments/few_steps/measure.py --runs digits=runs/digits,shortcut=runs/digits_shortcut

Prints a table and adds to `results.json` beside this file: of each run the accuracy by the judge, the feature distance
at 1, 2, 4, 8 and 25 steps, and the bits per byte of its text. A run of flow matching draws by Euler's method with
guidance, the others by mean velocities without it. The judge is that of the first run.
"""

import json
import pathlib

import jax
from absl import app, flags

from transfusion.api import load_run
from transfusion.evaluation import scores
from transfusion.evaluation.examples import read_examples
from transfusion.evaluation.losses import held_out_batches, text_bits

HERE = pathlib.Path(__file__).resolve().parent
STEPS = (1, 2, 4, 8)
TEACHER = 25
FLAGS = flags.FLAGS
flags.DEFINE_list("runs", [], "name=workdir of each run; the first is the teacher.")
flags.DEFINE_integer("samples", 500, "Images to draw.")
flags.DEFINE_string("out", str(HERE / "results.json"), "The JSON file; '' for none.")
flags.DEFINE_bool("text", True, "Whether to measure text, too.")


def samplers(run) -> dict[str, dict]:
    """The settings of each way of drawing, by its name in the table."""
    if not run.drawn.ahead:
        return {f"{n} Euler": {"solver": "euler", "steps": n} for n in (*STEPS, TEACHER)}
    own = {f"{n}": {"solver": "shortcut", "steps": n, "guidance": 1.0} for n in STEPS}
    return own | {f"{TEACHER} Euler": {"solver": "euler", "steps": TEACHER, "guidance": 2.0}}


def drawings(name: str, run, judge, real) -> dict[str, dict]:
    """The scores of each way of drawing."""
    rows = {}
    for how, sampler in samplers(run).items():
        drawn = scores.draw_classes(run, real, FLAGS.samples, seed=0, **sampler)
        distance, _ = scores.feature_distances(judge, drawn, real, 0)
        rows[how] = {"accuracy": scores.generation(judge, drawn).all, "feature_distance": distance["distance"]}
        print(
            f"| {name} | {how} | {percent(rows[how]['accuracy'])} | {number(rows[how]['feature_distance'])} |",
            flush=True,
        )
    return rows


def percent(score: dict) -> str:
    return f"{100 * score['value']:.1f} % ({100 * score['low']:.1f} to {100 * score['high']:.1f})"


def number(score: dict) -> str:
    return f"{score['value']:.4g} ({score['low']:.4g} to {score['high']:.4g})"


def main(argv) -> None:
    del argv
    runs = dict(pair.split("=", 1) for pair in FLAGS.runs)
    first = next(iter(runs.values()))
    data = load_run(first).experiment.data
    real = read_examples(data.sources, data)
    judge = scores.open_judge(pathlib.Path(first), real)
    path = pathlib.Path(FLAGS.out) if FLAGS.out else None
    results = json.loads(path.read_text()) if path and path.is_file() else {}
    print("| run | steps | judged accuracy | feature distance |\n| --- | --- | --- | --- |")
    for name, workdir in runs.items():
        run = load_run(workdir)
        results[name] = {"drawn": drawings(name, run, judge, real)}
        if FLAGS.text:
            source = next(iter(run.experiment.eval.sources.values()))
            bits = text_bits(run.task, run.params, held_out_batches(run.task, run.experiment, source)).score()
            results[name]["text_bits_per_byte"] = bits
            print(f"{name}: text bits per byte {number(bits)}", flush=True)
        jax.clear_caches()
    if path:
        path.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    app.run(main)
