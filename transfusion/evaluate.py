"""Evaluates a trained run; every number has its interval and count.

  python -m transfusion.evaluate --workdir runs/digits [--samples=500 --captions=500 --seed=0 --guidance=2 --steps=25]

Writes evaluation.json, judge.safetensors and pictures in samples/ into the workdir, and prints a table. What cannot be
measured (no labels, no captions, an extra that is not installed) is null, with the reason under 'absent'. The run of
a codec is evaluated too: how well it gives held-out images back, and in how many bits.
"""

import dataclasses
import json
import os
import pathlib
import time
from typing import Any

from absl import flags

from transfusion import programs, storage
from transfusion.config import Experiment
from transfusion.errors import UsageError
from transfusion.evaluation import reconstruction
from transfusion.evaluation.judge import JudgeConfig
from transfusion.evaluation.measures import Measures, Options
from transfusion.evaluation.score_table import score_table
from transfusion.running import provenance
from transfusion.running.jax_setup import set_up_jax
from transfusion.running.restore import restore_params
from transfusion.tasks import make_task
from transfusion.workdir.config_file import read_experiment
from transfusion.workdir.resume import as_trained


def about(experiment: Experiment, step: int, seed: int, seconds: dict[str, float]) -> dict[str, Any]:
    """The fields of every evaluation that say where its numbers come from."""
    return {
        "step": step,
        "weights": "moving average" if experiment.optim.ema else "parameters",
        "seed": seed,
        "config": dataclasses.asdict(experiment),
        "command": provenance.command(),
        "versions": provenance.versions(),
        "code": provenance.code(),
        "machine": provenance.machine(),
        "date": provenance.now(),
        "seconds": seconds,
    }


def evaluate_sequence(workdir: str | os.PathLike, options: Options) -> dict[str, Any]:
    """The content of evaluation.json of a unified model's run."""
    measures = Measures(workdir, options)
    found = measures.all()
    return found | about(measures.experiment, measures.run.step, measures.seed, measures.seconds)


def evaluate_codec(workdir: str | os.PathLike, options: Options) -> dict[str, Any]:
    """The content of evaluation.json of an autoencoder's run."""
    start, experiment = time.perf_counter(), read_experiment(workdir)
    step, params, config = restore_params(workdir, "ema" if experiment.optim.ema else "params")
    experiment = as_trained(experiment, config, workdir)
    seed = experiment.seed if options.seed is None else options.seed
    folder = pathlib.Path(workdir) / "samples"
    found = reconstruction.measure(make_task(experiment), params, experiment, seed, folder / "reconstructions.png")
    other = "codes have none of it" if experiment.autoencoder.form != "kl" else "Gaussian latents have none of it"
    absent = {name: other for name, value in found.items() if value is None}
    seconds = {"reconstruction": round(time.perf_counter() - start, 3)}
    return found | {"absent": absent, "how": reconstruction.CODEC_MEANINGS} | about(experiment, step, seed, seconds)


EVALUATIONS = {"sequence": evaluate_sequence, "autoencoder": evaluate_codec}


def evaluate(workdir: str | os.PathLike, options: Options | None = None) -> dict[str, Any]:
    """Measures the newest intact checkpoint of a run and writes evaluation.json; returns its content.

    Raises:
      UsageError: if the workdir holds no run or cannot be written, or its data is missing.
    """
    experiment, path = read_experiment(workdir), pathlib.Path(workdir) / "evaluation.json"
    storage.check_writable(path)  # before minutes of work
    storage.make_folder(path.parent / "samples")
    result = EVALUATIONS[experiment.task](workdir, options or Options())
    storage.write_whole(path, json.dumps(result, indent=2, allow_nan=False))
    return result


def main(argv) -> None:
    set_up_jax()
    if not FLAGS.workdir:
        raise UsageError("--workdir is missing: the folder of a training run, for example runs/digits")
    options = Options(*(getattr(FLAGS, field.name) for field in dataclasses.fields(Options)))
    print(score_table(evaluate(FLAGS.workdir, options)))
    print(f"written to {pathlib.Path(FLAGS.workdir) / 'evaluation.json'}")


FLAGS = flags.FLAGS

if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of a training run.")
    flags.DEFINE_integer("samples", None, "Images to draw; default: eval.samples of the config.")
    flags.DEFINE_integer("captions", None, "Held-out images to caption at most; default: eval.captions of the config.")
    flags.DEFINE_integer("seed", None, "Of noise and of the choice of prompts; default: that of the config.")
    flags.DEFINE_float("guidance", None, "Guidance scale; default: sampling.guidance of the config.")
    flags.DEFINE_integer("steps", None, "Steps of the solver; default: sampling.steps of the config.")
    flags.DEFINE_string("similarity", None, "Folder of a released CLIP or SigLIP that compares drawings with prompts.")
    flags.DEFINE_integer("judge_steps", JudgeConfig.steps, "Training steps of the judge.")
    flags.DEFINE_string("judges", None, "Folder of judges that several runs share, each trained once; default: none.")
    programs.run(main)
