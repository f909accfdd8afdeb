"""In bfloat16 the trunk casts its matrices before its layers, so that no layer casts them, whatever is recomputed."""

import math

import jax
import jax.numpy as jnp
import packed
import pytest
import tiny
from jax.extend.core import ClosedJaxpr, Jaxpr

from transfusion.model.block import MATRICES
from transfusion.model.parameters import Template
from transfusion.model.vit import ViT, ViTConfig
from transfusion.objectives.next_token import cross_entropy


def casts(jaxpr, inside=False):
    """The shapes that loops of a program cast from float32 to bfloat16."""
    for equation in jaxpr.eqns:
        loop = inside or equation.primitive.name in ("scan", "while")
        for value in jax.tree.leaves(equation.params, is_leaf=lambda x: isinstance(x, Jaxpr | ClosedJaxpr)):
            if isinstance(value, Jaxpr | ClosedJaxpr):
                yield from casts(getattr(value, "jaxpr", value), loop)
        if inside and equation.primitive.name == "convert_element_type":
            (source,) = equation.invars
            if source.aval.dtype == jnp.float32 and equation.params["new_dtype"] == jnp.bfloat16:
                yield source.aval.shape


def flattened(shapes):
    return {(s[0], math.prod(s[1:])) for s in shapes} | {(math.prod(s[:-1]), s[-1]) for s in shapes} | {*shapes}


def cast_in_layers(**changes):
    """The shapes of the trunk's matrices that a training step of two experts casts inside of its layers."""
    spec = tiny.SPECS["experts"]
    task = tiny.task(spec, dtype="bfloat16", **changes)
    documents = tiny.documents()
    batch, drawn = packed.pack([[0, 3], [2]], documents, packed.noise_of(documents), spec)
    shapes = task.template.shapes
    blocks = [block for block in shapes["trunk"]["blocks"].values()]
    matrices = flattened([s.shape[1:] for block in blocks for name, s in block.items() if name in MATRICES])
    step = jax.make_jaxpr(jax.grad(lambda p: task.loss(p, batch, drawn, task.totals(batch))[0]))(shapes)
    return [shape for shape in casts(step.jaxpr) if shape in matrices]


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_no_layer_casts_its_matrices(remat):
    assert not cast_in_layers(remat=remat)


def test_each_use_casts_matrices_that_several_experts_share():
    # Their gradients are summed over the experts, and the sums stay float32.
    apart, shared = ("norms", "qkv", "o"), {(32, 96), (96, 32)}
    assert {*cast_in_layers(untied=apart)} == shared


def test_no_layer_of_a_tower_casts_its_matrices():
    config = ViTConfig(width=32, ffn=80, layers=2, heads=4, patch=2, channels=1, grid=(4, 4), pool=False, remat=True)
    tower = Template(lambda rngs: ViT(config, rngs=rngs))
    pixels = jnp.ones((2, 8, 8, 1), jnp.bfloat16)

    def loss(params):
        return tower.bind(params)(pixels).last.astype(jnp.float32).sum()

    found = {*casts(jax.make_jaxpr(jax.grad(loss))(tower.shapes).jaxpr)}
    assert not found & flattened([(32, 4, 8), (4, 8, 32), (32, 80), (80, 32)])


def test_no_chunk_of_the_logits_casts_its_part_of_the_head():
    hidden, kernel = jnp.ones((6, 16), jnp.bfloat16), jnp.ones((16, 24))

    def loss(kernel):
        return cross_entropy(hidden, kernel, jnp.zeros(6, jnp.int32), chunk=8)[0].sum()

    program = jax.make_jaxpr(jax.grad(loss))(kernel)
    assert len([shape for shape in casts(program.jaxpr) if shape == (16, 8)]) == 1  # that of the gradient
    assert program.out_avals[0].dtype == jnp.float32
