"""Times a training step of this tree beside that of earlier commits, in turns, so that both see the same machine.

python experiments/house/step_time.py aef441a --rounds 4

Prints, for each tree, the shortest step of every round in seconds, and the ratio of the shortest of all. Nothing else
should run on the machine. Needs git and the history.
"""

import argparse
import io
import pathlib
import subprocess
import sys
import tarfile
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
STEPS = 40
TIMED = f"""
import pathlib, sys, time
tree, config = sys.argv[1:]
sys.path.insert(0, tree)
import jax
from transfusion.programs import load_experiment
from transfusion.tasks import make_task
try:
    from transfusion.training.step import make_init, make_step
except ImportError:  # before the rooms
    from transfusion.train import make_init, make_step
experiment = load_experiment(pathlib.Path(tree) / "configs" / config)
task = make_task(experiment)
state = jax.jit(make_init(task, experiment))()
batch = jax.device_put(task.fake_batch(experiment.batch_size))
step = jax.jit(make_step(task, experiment), donate_argnums=0)
best = float("inf")
for number in range({STEPS} + 5):
    start = time.perf_counter()
    state = jax.block_until_ready(step(state, batch))
    if number >= 5:
        best = min(best, time.perf_counter() - start)
print(best)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("before", help="the commit to compare with")
    parser.add_argument("--config", default="digits.py", help="a file of configs/, with ':' and a form if wanted")
    parser.add_argument("--rounds", type=int, default=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        packed = subprocess.run(["git", "archive", options.before], cwd=ROOT, check=True, capture_output=True).stdout
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            archive.extractall(folder, filter="data")
        trees = {options.before: folder, "now": str(ROOT)}
        found: dict[str, list[float]] = {name: [] for name in trees}
        for _ in range(options.rounds):
            for name, tree in trees.items():
                found[name].append(seconds(tree, options.config))
    for name, values in found.items():
        print(f"{name}: {' '.join(f'{value:.4f}' for value in values)} s")
    print(f"now / {options.before}: {min(found['now']) / min(found[options.before]):.3f}")


def seconds(tree: str, config: str) -> float:
    """The shortest of `STEPS` steps of a config of a tree, in a process of its own."""
    command = [sys.executable, "-c", TIMED, tree, config]
    return float(subprocess.run(command, cwd=tree, check=True, capture_output=True, text=True).stdout.split()[-1])


if __name__ == "__main__":
    main()
