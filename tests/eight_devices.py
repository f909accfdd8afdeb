"""Run with eight virtual CPU devices by test_sharding: five steps on one device and on meshes of eight, as JSON."""

import dataclasses
import json
import re
import sys

import jax
import tiny

from transfusion import sharding
from transfusion.config import Experiment
from transfusion.optim import OptimConfig
from transfusion.tasks import SequenceTask
from transfusion.train import make_init, make_step, state_shardings

STEPS, ROWS = 5, 8


def experiment() -> Experiment:
    of = tiny.SPECS["transfusion"]
    model = tiny.model(kv_heads=2, qk_norm="rms")
    return Experiment(
        steps=STEPS, batch_size=ROWS, model=model, streams=dict(of.streams), layout=dict(of.layout),
        optim=OptimConfig(learning_rate=1e-2, warmup=1),
    )  # fmt: skip


def run(mesh, accumulate: int = 1) -> dict:
    config = experiment()
    config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, accumulate=accumulate))
    task = SequenceTask(config.model, tiny.SPECS["transfusion"], config.objectives)
    shardings = state_shardings(task, config, mesh)
    rows = sharding.batch_shardings(task.batch_spec(ROWS), mesh)
    with jax.set_mesh(mesh):
        init = jax.jit(make_init(task, config), out_shardings=shardings).lower().compile()
        state = init()
        step = jax.jit(make_step(task, config), in_shardings=(shardings, rows), out_shardings=shardings)
        losses, before = [], 0.0
        for i in range(STEPS):
            state = step(state, jax.device_put(task.fake_batch(ROWS, i), rows))
            losses.append(float(state.log["loss"][0]) - before)
            before = float(state.log["loss"][0])
    gate = state.params["trunk"]["blocks"]["trunk"]["gate"]
    return {
        "losses": losses,
        "grad_norm": float(state.log["grad_norm"][0]),
        "gate": [list(gate.shape), list(gate.addressable_shards[0].data.shape)],
        "moment": list(state.opt_state[1][0].mu["trunk"]["blocks"]["trunk"]["gate"].addressable_shards[0].data.shape),
        "average": list(state.ema["trunk"]["blocks"]["trunk"]["gate"].addressable_shards[0].data.shape),
        # The shapes that one device computes while the parameters are made.
        "made": sorted(set(re.findall(r"f32\[([\d,]+)\]", init.as_text()))),
    }


def main() -> None:
    jax.config.update("jax_num_cpu_devices", 8)
    sizes = json.loads(sys.argv[1])
    meshes = {"one": sharding.make_mesh(sharding.MeshConfig(), jax.devices()[:1])}
    meshes |= {name: sharding.make_mesh(sharding.MeshConfig(**size)) for name, size in sizes.items()}
    results = {name: run(mesh) for name, mesh in meshes.items()}
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
