"""Run with eight virtual CPU devices by test_plan: the training step and the sampler compiled for a mesh, and what a
vision tower and a codec send for few and for many rows, as JSON."""

import dataclasses
import json
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import tiny

from transfusion import sharding
from transfusion.codecs.autoencoder_config import AutoencoderConfig
from transfusion.codecs.convolutions import PixelDecoder
from transfusion.config import Experiment
from transfusion.model.parameters import Template
from transfusion.model.vit import ViT, ViTConfig
from transfusion.planning import compiled, shapes
from transfusion.planning.hlo import read_program
from transfusion.running.chips import parse_topology
from transfusion.sampling.config import SamplerConfig
from transfusion.tasks import SequenceTask

SHAPE = jax.ShapeDtypeStruct


def sent(template: Template, apply: Callable, *inputs: jax.ShapeDtypeStruct) -> float:
    """Bytes that a device sends for a gradient through `apply(module, *inputs)`; weights are split as the rows are."""
    mesh = sharding.make_mesh(sharding.MeshConfig(data=2, fsdp=4))
    on = sharding.tree_shardings(template.axes, template.shapes, mesh)
    gradient = jax.grad(lambda params, *rest: jnp.square(apply(template.bind(params), *rest)).mean())
    with jax.set_mesh(mesh):
        step = jax.jit(gradient, in_shardings=(on, *sharding.batch_shardings(inputs, mesh)), out_shardings=on)
        text = step.lower(template.shapes, *inputs).compile().as_text()
    return read_program(text, 8, 8).bytes_sent()


def sent_by_a_tower(rows: int) -> float:
    config = ViTConfig(width=32, ffn=64, layers=2, heads=2, patch=2, channels=1, grid=(4, 4), pool=False, remat=True)
    inputs = (SHAPE((rows, 16, 4), "float32"), SHAPE((rows, 16, 2), "int32"), SHAPE((rows, 16, 16), bool))
    return sent(Template(lambda rngs: ViT(config, rngs=rngs)), lambda vit, *rest: vit.packed(*rest).last, *inputs)


def sent_by_a_decoder(rows: int) -> float:
    config = AutoencoderConfig(channels=(8, 16), latent_channels=4, norm_groups=4)
    template = Template(lambda rngs: PixelDecoder(config, rngs=rngs))
    return sent(template, lambda decoder, x: decoder(x), SHAPE((rows, 4, 4, 4), "float32"))


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
    two = parse_topology("v5e:2x2", 2)
    step = compiled.compile_step(task, config, mesh, two)
    guess = shapes.estimate(task, config, on, parse_topology("v5e:2x4"))
    sampler = compiled.compile_sampler(task, config, mesh, two)
    costs = [dataclasses.asdict(cost) for cost in (step, guess, sampler)]
    json.dump(costs + [[part(8), part(64)] for part in (sent_by_a_tower, sent_by_a_decoder)], sys.stdout)


if __name__ == "__main__":
    main()
