"""Bytes that the kernels of a compiled training step read and write, by class, before and after a change.

    python experiments/speed/traffic.py                                  # 0.76B, 4 rows of 4,096 tokens, on an H100
    python experiments/speed/traffic.py --before 4391904                 # beside an earlier commit of this repository
    python experiments/speed/traffic.py --config configs/digits.py:debug --on cpu

A program for an H100 is compiled without one (extra `plan-gpu`); for a CPU nothing more is needed. Nothing runs: the
numbers are operands and results of every kernel (`transfusion.planning.traffic`), loops by their turns, caches ignored.
Without a GPU the compiler does not try which algorithm of a matrix product is fastest, so products may be others there.
"""

import argparse
import io
import json
import pathlib
import subprocess
import sys
import tarfile
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Compiles the step of a tree, which may be of another commit; prints its number of parameters, and writes the program.
PROGRAM = """
import dataclasses, json, pathlib, sys
tree, about = sys.argv[1], json.loads(sys.argv[2])
sys.path.insert(0, tree)
import jax
from jax.experimental import topologies
from transfusion import sharding
from transfusion.model.unified import parameter_count
from transfusion.programs import load_experiment
from transfusion.tasks import make_task
from transfusion.training.step import abstract_state, jit_step, state_shardings
experiment = load_experiment(pathlib.Path(tree) / about["config"])
model = dataclasses.replace(experiment.model, **about["model"])
mesh = dataclasses.replace(experiment.mesh, data=1, fsdp=1)
rows = about["rows"] or experiment.batch_size
experiment = dataclasses.replace(experiment, model=model, mesh=mesh, batch_size=rows)
devices = jax.devices("cpu")[:1]
if about["target"]:
    devices = topologies.get_topology_desc(platform="cuda", target_config=about["target"], topology="1x1x1").devices
task, mesh = make_task(experiment), sharding.make_mesh(mesh, list(devices))
spec = task.batch_spec(rows)
with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
    where = state_shardings(task, experiment, mesh)
    state = abstract_state(task, experiment, where)
on = sharding.batch_shardings(spec, mesh)
batch = jax.tree.map(lambda s, at: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=at), spec, on)
with jax.set_mesh(mesh):
    step = jit_step(task, experiment, where, on).lower(state, batch).compile()
pathlib.Path(about["out"]).write_text(step.as_text())
print(parameter_count(task.template.shapes))
"""


def program(tree: pathlib.Path, about: dict) -> tuple[str, int]:
    """The compiled step of a tree as HLO text, and the number of its parameters."""
    with tempfile.TemporaryDirectory() as folder:
        about |= {"out": str(pathlib.Path(folder) / "program.txt")}
        command = [sys.executable, "-c", PROGRAM, str(tree), json.dumps(about)]
        made = subprocess.run(command, cwd=tree, capture_output=True, text=True)
        if made.returncode:
            raise SystemExit(made.stderr[-3000:])
        return pathlib.Path(about["out"]).read_text(), int(made.stdout.split()[-1])


def checkout(commit: str, folder: str) -> pathlib.Path:
    """The files of an earlier commit, in `folder`."""
    packed = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(folder, filter="data")
    return pathlib.Path(folder)


def table(found: dict[str, dict[str, int]], parameters: int) -> str:
    from transfusion.planning.traffic import CLASSES

    lines = ["| GB per step | " + " | ".join(found) + " |", "|---|" + "---|" * len(found)]
    for kind, what in CLASSES.items():
        cells = [f"{moved[kind] / 1e9:.2f}" for moved in found.values()]
        lines.append(f"| {kind}: {what} | " + " | ".join(cells) + " |")
    lines.append("| **sum** | " + " | ".join(f"**{sum(moved.values()) / 1e9:.2f}**" for moved in found.values()) + " |")
    each = [f"{moved['update'] / parameters:.1f}" for moved in found.values()]
    lines.append("| bytes per parameter, update | " + " | ".join(each) + " |")
    each = [f"{(moved['update'] + moved['weights']) / parameters:.1f}" for moved in found.values()]
    lines.append("| bytes per parameter, update and weights | " + " | ".join(each) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--config", default="configs/transfusion_paper.py:0.76B", help="file, with ':' and a form")
    parser.add_argument("--rows", type=int, default=4, help="rows of a step; 0: as the config says")
    parser.add_argument("--on", default="h100", help="a GPU of transfusion.planning.gpus.TARGETS, or cpu")
    parser.add_argument("--before", default="", help="a commit to compare with")
    parser.add_argument("--model", default="{}", help='fields of the model as JSON, such as {"layers": 4}')
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    from transfusion.planning import gpus, traffic

    target = "" if options.on == "cpu" else gpus.description(gpus.TARGETS[options.on])
    if target and gpus.missing():
        raise SystemExit(f"{gpus.missing()}, or take --on cpu")
    about = {"config": options.config, "rows": options.rows, "model": json.loads(options.model), "target": target}
    found, parameters = {}, 1
    with tempfile.TemporaryDirectory() as folder:
        trees = {options.before: checkout(options.before, folder)} if options.before else {}
        for name, tree in (trees | {"now": ROOT}).items():
            text, parameters = program(tree, about)
            found[name] = traffic.by_class(traffic.kernels(text))
    print(f"{options.config}, {options.rows} rows, {options.on}, {parameters:,} parameters\n")
    print(table(found, parameters))


if __name__ == "__main__":
    main()
