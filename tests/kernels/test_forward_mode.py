"""An objective that needs `jax.jvp` gets outputs and tangents from one kernel, and the same numbers."""

import re

import jax
import numpy as np
import pytest
import tiny
from interpreted import BACKENDS

from transfusion.model import attention
from transfusion.objectives import ObjectivesConfig
from transfusion.objectives.paths import AheadConfig, ContinuousConfig
from transfusion.sequence.rows import assemble, expand

LAYERS = 1


def targets_of(backend: str):
    """The function of random parameters and draws that makes the targets of MeanFlow, and what it is given."""
    objectives = ObjectivesConfig(continuous={"image": ContinuousConfig(ahead=AheadConfig(share=1.0))})
    spec = tiny.spec({"text": tiny.text_stream(), "image": tiny.image_stream(objective="mean_flow")})
    task = tiny.task(spec, objectives, attention=backend, layers=LAYERS, scan=False)
    batch = assemble([[expand(document, spec) for document in tiny.documents()[:3]]], spec)
    leaves, tree = jax.tree.flatten(task.template.init(jax.random.key(0)))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    params = tree.unflatten([x + 0.05 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)])
    draws = task.draw(batch, jax.random.key(2))
    return lambda params, draws: task.with_targets(params, batch, draws)["image"]["target"], (params, draws)


def kernels_of(function, given) -> list[str]:
    """The names of the attention kernels of a program, in the text that is handed to the compiler."""
    closed = jax.make_jaxpr(function)(*given)
    return re.findall(r"name=\w*?(forward|tangents|backward)\w*\n", str(closed))


def in_two_passes(name, layout):
    return attention.backend_of(name, layout)


@pytest.mark.parametrize("backend", ["triton", "mosaic"])
def test_the_targets_of_mean_flow_come_in_one_pass(monkeypatch, backend):
    monkeypatch.setattr(attention, "BACKENDS", attention.BACKENDS | BACKENDS)
    function, given = targets_of(backend)
    # Each layer attends once for the velocity, and once for the derivative along it.
    assert sorted(kernels_of(function, given)) == ["forward"] * LAYERS + ["tangents"] * LAYERS
    ours = jax.jit(function)(*given)
    dense, given = targets_of("dense")
    plain = jax.jit(dense)(*given)
    assert np.linalg.norm(ours - plain) <= 1e-5 * np.linalg.norm(plain)


def test_a_kernel_with_gradients_would_need_another_pass(monkeypatch):
    monkeypatch.setattr(attention, "BACKENDS", attention.BACKENDS | BACKENDS)
    monkeypatch.setattr("transfusion.learner.backend_in_forward_mode", in_two_passes)
    assert kernels_of(*targets_of("triton")).count("forward") == 2 * LAYERS
