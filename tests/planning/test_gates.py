"""Gates on programs that are compiled for a GPU which is not there. `make gates` installs the compiler and runs them."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from transfusion import plan
from transfusion.planning import gpus
from transfusion.planning.assembly import compile_for_gpu
from transfusion.programs import load_experiment
from transfusion.running.chips import parse_topology

pytestmark = [pytest.mark.gates, pytest.mark.skipif(bool(gpus.missing()), reason=gpus.missing() or "nothing missing")]
CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


def one_gpu(chip: str) -> Mesh:
    return Mesh(np.array(gpus.gpu_devices(parse_topology(f"{chip}:1"))), ("devices",))


def compiled_for(chip: str, function, *inputs: jax.ShapeDtypeStruct):
    """`function` compiled for one GPU, and what its kernels take."""
    mesh = one_gpu(chip)
    whole = NamedSharding(mesh, PartitionSpec())
    inputs = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole) for x in inputs]
    with jax.set_mesh(mesh):
        lowered = jax.jit(function).lower(*inputs)
    return compile_for_gpu(lowered)


def kernel(function, name: str, side: int):
    """A Pallas kernel for Triton, of two squares."""
    out = jax.ShapeDtypeStruct((side, side), "float32")
    return pl.pallas_call(function, out_shape=out, name=name, compiler_params=triton.CompilerParams())


def product(a_ref, b_ref, out_ref):
    out_ref[...] = jnp.dot(a_ref[...], b_ref[...], preferred_element_type=jnp.float32)


@pytest.mark.parametrize(
    "chip, instruction",
    [("a100", "mma.sync"), ("h100", "wgmma.mma_async"), ("h200", "wgmma.mma_async"), ("b200", "tcgen05.mma")],
)
def test_the_report_names_each_kernel_with_the_instructions_of_its_gpu(chip, instruction):
    def twice(a, b):
        return kernel(product, "first", 64)(a, b), kernel(product, "second", 64)(a, b)

    square = jax.ShapeDtypeStruct((64, 64), "bfloat16")
    _, kernels = compiled_for(chip, twice, square, square)
    assert [use.name for use in kernels] == ["first", "second"]
    for use in kernels:
        assert 16 <= use.registers <= 255 and use.spilled == 0 and use.products[instruction] > 0


def test_kernels_that_need_more_registers_than_there_are_are_seen_to_spill():
    def large(a_ref, b_ref, out_ref):
        a, b = a_ref[...], b_ref[...]
        for _ in range(3):
            a = jnp.dot(jnp.exp(a), b, preferred_element_type=jnp.float32).astype(a.dtype) + a.T
        out_ref[...] = a.astype(jnp.float32)

    square = jax.ShapeDtypeStruct((128, 128), "bfloat16")
    _, (use,) = compiled_for("h100", kernel(large, "large", 128), square, square)
    assert use.registers == 255 and use.spilled > 0


def test_a_step_and_a_sampler_compile_for_gpus_of_two_hosts():
    experiment = load_experiment(f"{CONFIGS / 'digits.py'}:debug")
    mesh = dataclasses.replace(experiment.mesh, data=2, fsdp=8)
    experiment = dataclasses.replace(experiment, batch_size=16, mesh=mesh)
    result = plan.plan(experiment, parse_topology("h100:16"), plan.Compilation(confirm=False))
    step = result["step"]
    assert step["how"] == step["collectives_how"] == result["sampler"]["how"] == "compiled" and step["fits"]
    # Eight neighbours share the weights and sum their gradients; between the two hosts only sums of a part go.
    assert step["collectives"]["all-gather"]["count"] and 0 < step["bytes_sent_between_slices"] < step["bytes_sent"] / 2
    assert "compiled in" in plan.plan_text(result)
