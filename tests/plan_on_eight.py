"""Run with eight virtual CPU devices by test_plan: the training step and the sampler compiled for a mesh, as JSON."""

import dataclasses
import json
import sys

import jax
import tiny

from transfusion import sharding
from transfusion.chips import parse_topology
from transfusion.config import Experiment
from transfusion.planning import compiled, shapes
from transfusion.sampling.config import SamplerConfig
from transfusion.tasks import SequenceTask


def main() -> None:
    jax.config.update("jax_num_cpu_devices", 8)
    of = tiny.SPECS["experts"]
    config = Experiment(
        batch_size=8, model=tiny.model(layers=3, remat="full"), streams=dict(of.streams), layout=dict(of.layout),
        mesh=sharding.MeshConfig(data=2, fsdp=-1), sampling=SamplerConfig(steps=2, max_tokens=4),
    )  # fmt: skip
    task = SequenceTask(config.model, of, config.objectives)
    on = shapes.sharding_of(config, 8)
    mesh = sharding.make_mesh(on.of(config).mesh)
    step = compiled.compile_step(task, config, mesh, 4)
    guess = shapes.estimate(task, config, on, parse_topology("v5e:2x4"))
    sampler = compiled.compile_sampler(task, config, mesh, 4)
    json.dump([dataclasses.asdict(cost) for cost in (step, guess, sampler)], sys.stdout)


if __name__ == "__main__":
    main()
