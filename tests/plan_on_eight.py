"""Run with eight virtual CPU devices by test_plan: the training step and the sampler compiled for a mesh, and what a
vision tower sends for few and for many rows, as JSON."""

import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import tiny

from transfusion import sharding
from transfusion.chips import parse_topology
from transfusion.config import Experiment
from transfusion.model.parameters import Template
from transfusion.model.vit import ViT, ViTConfig
from transfusion.planning import compiled, shapes
from transfusion.planning.hlo import read_program
from transfusion.sampling.config import SamplerConfig
from transfusion.tasks import SequenceTask


def sent_by_a_tower(rows: int) -> float:
    """Bytes that a device sends for the gradient of a tower whose weights are split as the rows are."""
    config = ViTConfig(width=32, ffn=64, layers=2, heads=2, patch=2, channels=1, grid=(4, 4), pool=False, remat=True)
    mesh = sharding.make_mesh(sharding.MeshConfig(data=1, fsdp=8))
    template = Template(lambda rngs: ViT(config, rngs=rngs))

    def loss(params, patches, places, mask):
        return jnp.square(template.bind(params).packed(patches, places, mask).last).mean()

    shape = jax.ShapeDtypeStruct
    inputs = (shape((rows, 16, 4), "float32"), shape((rows, 16, 2), "int32"), shape((rows, 16, 16), bool))
    on = sharding.tree_shardings(template.axes, template.shapes, mesh)
    with jax.set_mesh(mesh):
        step = jax.jit(jax.grad(loss), in_shardings=(on, *sharding.batch_shardings(inputs, mesh)), out_shardings=on)
        text = step.lower(template.shapes, *inputs).compile().as_text()
    return read_program(text, 8, 8).bytes_sent()


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
    costs = [dataclasses.asdict(cost) for cost in (step, guess, sampler)]
    json.dump(costs + [[sent_by_a_tower(8), sent_by_a_tower(64)]], sys.stdout)


if __name__ == "__main__":
    main()
