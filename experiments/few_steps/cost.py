"""What a training step of mean velocities costs beside one of flow matching.

  python experiments/few_steps/cost.py --rounds 20

Steps of all objectives take turns in one process on the same random rows. The time is the processor time of this
process, which other programs on the machine hardly change.
"""

import importlib.util
import json
import pathlib
import time

import jax
import numpy as np
from absl import app, flags

from transfusion.config import from_config
from transfusion.tasks import make_task
from transfusion.training.step import make_init, make_step

HERE = pathlib.Path(__file__).resolve().parent
FLAGS = flags.FLAGS
flags.DEFINE_integer("rounds", 20, "Steps of each.")
flags.DEFINE_list("forms", ["", "shortcut", "mean_flow"], "Forms of the config.")
flags.DEFINE_string("config", "digits", "The config, without its folder.")
flags.DEFINE_string("out", str(HERE / "cost.json"), "The JSON file; '' for none.")


def config_of(form: str):
    path = HERE.parents[1] / "configs" / f"{FLAGS.config}.py"
    spec = importlib.util.spec_from_file_location(FLAGS.config, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return from_config(module.get_config(form))


def main(argv) -> None:
    del argv
    steps, states, batches, seconds = {}, {}, {}, {}
    for form in FLAGS.forms:
        experiment = config_of(form)
        task = make_task(experiment)
        states[form] = jax.jit(make_init(task, experiment))()
        steps[form] = jax.jit(make_step(task, experiment), donate_argnums=0)
        batches[form] = jax.device_put(task.fake_batch(experiment.batch_size))
        states[form] = jax.block_until_ready(steps[form](states[form], batches[form]))
        seconds[form] = []
    for _ in range(FLAGS.rounds):
        for form in FLAGS.forms:
            start = time.process_time()
            states[form] = jax.block_until_ready(steps[form](states[form], batches[form]))
            seconds[form].append(time.process_time() - start)
    median = {form: float(np.median(found)) for form, found in seconds.items()}
    ratio = {form or "plain": round(found / median[FLAGS.forms[0]], 3) for form, found in median.items()}
    print("| objective | processor seconds a step | ratio |\n| --- | --- | --- |")
    for form, found in median.items():
        print(f"| {form or 'plain'} | {found:.3f} | {ratio[form or 'plain']} |")
    if FLAGS.out:
        path = pathlib.Path(FLAGS.out)
        known = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps(known | {FLAGS.config: ratio}, indent=1) + "\n")


if __name__ == "__main__":
    app.run(main)
