"""Run with eight virtual CPU devices by test_sharding: five steps on one device and on meshes of eight, as JSON.

Once more with learning-rate groups, and from there a new run on another mesh.
"""

import dataclasses
import json
import re
import sys
import tempfile

import jax
import tiny

from transfusion import sharding
from transfusion.checkpoint import Checkpoints
from transfusion.config import Experiment
from transfusion.initial import InitConfig, from_run
from transfusion.model.paths import by_path
from transfusion.optim import LearningRateGroup, OptimConfig
from transfusion.tasks import SequenceTask
from transfusion.train import make_init, make_step, state_shardings

STEPS, ROWS = 5, 8
FROZEN = "trunk/blocks/trunk/q"
GROUPS = (LearningRateGroup(FROZEN, 0.0), LearningRateGroup("trunk", 0.5))


def experiment() -> Experiment:
    of = tiny.SPECS["transfusion"]
    model = tiny.model(kv_heads=2, qk_norm="rms")
    return Experiment(
        steps=STEPS, batch_size=ROWS, model=model, streams=dict(of.streams), layout=dict(of.layout),
        optim=OptimConfig(learning_rate=1e-2, warmup=1),
    )  # fmt: skip


def run(mesh, accumulate: int = 1, groups: tuple[LearningRateGroup, ...] = (), workdir: str = "") -> dict:
    config = experiment()
    config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, accumulate=accumulate, groups=groups))
    task = SequenceTask(config.model, tiny.SPECS["transfusion"], config.objectives)
    shardings = state_shardings(task, config, mesh)
    rows = sharding.batch_shardings(task.batch_spec(ROWS), mesh)
    with jax.set_mesh(mesh):
        init = jax.jit(make_init(task, config), out_shardings=shardings).lower().compile()
        state = init()
        step = jax.jit(make_step(task, config), in_shardings=(shardings, rows), out_shardings=shardings)
        first = by_path(state.params)[FROZEN]
        losses, before = [], 0.0
        for i in range(STEPS):
            state = step(state, jax.device_put(task.fake_batch(ROWS, i), rows))
            losses.append(float(state.log["loss"][0]) - before)
            before = float(state.log["loss"][0])
    if workdir:
        with Checkpoints(workdir) as checkpoints:
            checkpoints.save(STEPS, state, {}, {}, force=True)
    gate = state.params["trunk"]["blocks"]["trunk"]["gate"]
    return {
        "moved": bool((first != by_path(state.params)[FROZEN]).any()),
        "moments": sorted(by_path(state.opt_state[1][0].mu)),
        "losses": losses,
        "grad_norm": float(state.log["grad_norm"][0]),
        "gate": [list(gate.shape), list(gate.addressable_shards[0].data.shape)],
        "moment": list(state.opt_state[1][0].mu["trunk"]["blocks"]["trunk"]["gate"].addressable_shards[0].data.shape),
        "average": list(state.ema["trunk"]["blocks"]["trunk"]["gate"].addressable_shards[0].data.shape),
        # The shapes that one device computes while the parameters are made.
        "made": sorted(set(re.findall(r"f32\[([\d,]+)\]", init.as_text()))),
    }


def restart(mesh, workdir: str) -> dict:
    """Takes the parameters of a run on another mesh, and gives the part of one that a device holds."""
    config = experiment()
    task = SequenceTask(config.model, tiny.SPECS["transfusion"], config.objectives)
    shardings = state_shardings(task, config, mesh)
    wanted = jax.tree.map(
        lambda s, on: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=on), task.template.shapes, shardings.params
    )
    given = from_run(InitConfig(workdir), wanted)
    state = jax.jit(make_init(task, config), out_shardings=shardings)(given)
    gates = [by_path(tree)["trunk/blocks/trunk/gate"] for tree in (given, state.params, state.ema)]
    return {
        "parts": [list(gate.addressable_shards[0].data.shape) for gate in gates],
        "sums": [float(abs(gate).sum()) for gate in gates],
    }


def main() -> None:
    jax.config.update("jax_num_cpu_devices", 8)
    sizes = json.loads(sys.argv[1])
    meshes = {"one": sharding.make_mesh(sharding.MeshConfig(), jax.devices()[:1])}
    meshes |= {name: sharding.make_mesh(sharding.MeshConfig(**size)) for name, size in sizes.items()}
    results = {name: run(mesh) for name, mesh in meshes.items()}
    with tempfile.TemporaryDirectory() as workdir:
        results["one, groups"] = run(meshes["one"], groups=GROUPS, workdir=workdir)
        results["all, groups"] = run(meshes["all"], groups=GROUPS)
        results["restart"] = restart(meshes["all"], workdir)
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
