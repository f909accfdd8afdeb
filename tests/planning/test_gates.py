"""Gates on programs that are compiled for a GPU that is not there. `make gates` installs the compiler and runs them."""

import dataclasses
import pathlib
import re

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from transfusion import plan
from transfusion.kernels.kernel import Layout
from transfusion.model.attention import BACKENDS
from transfusion.planning import compiled, gpus
from transfusion.planning.assembly import compile_for_gpu
from transfusion.planning.hlo import computations_of
from transfusion.programs import load_experiment
from transfusion.running.chips import parse_topology
from transfusion.sequence.masks import Metadata
from transfusion.sharding import MeshConfig, make_mesh
from transfusion.tasks import make_task

pytestmark = [pytest.mark.gates, pytest.mark.skipif(bool(gpus.missing()), reason=gpus.missing() or "nothing missing")]
KERNEL = "triton"  # the backend of attention that these gates are for
NAMES = ("forward", "keys_backward", "queries_backward", "tangents")
CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


def one_gpu(chip: str) -> Mesh:
    return make_mesh(MeshConfig(data=1, fsdp=1), gpus.gpu_devices(parse_topology(f"{chip}:1")))


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
    model = dataclasses.replace(experiment.model, attention=KERNEL)
    experiment = dataclasses.replace(experiment, batch_size=16, mesh=mesh, model=model)
    result = plan.plan(experiment, parse_topology("h100:16"), plan.Compilation(confirm=False))
    step = result["step"]
    assert step["how"] == step["collectives_how"] == result["sampler"]["how"] == "compiled" and step["fits"]
    # Eight neighbours share the weights and sum their gradients; between the two hosts only sums of a part go.
    assert step["collectives"]["all-gather"]["count"] and 0 < step["bytes_sent_between_slices"] < step["bytes_sent"] / 2
    assert "compiled in" in plan.plan_text(result) and " 0 B spilled, " in plan.plan_text(result)
    assert len(step["kernels"]) >= 3


# --- attention --------------------------------------------------------------------------------------------------------


def compiled_attention(length: int, heads: int = 12, size: int = 128, dtype: str = "bfloat16"):
    """Attention and its gradients on one row, compiled for an H100."""

    slices = (length // 2, length // 2)

    def both(q, k, v, change, *columns):
        tokens = Metadata(*columns)
        plan = BACKENDS[KERNEL].plan(tokens, tokens, None, Layout(slices, slices, size, dtype))
        out, pull = jax.vjp(lambda q, k, v: BACKENDS[KERNEL].attend(q, k, v, plan), q, k, v)
        return out, pull(change)

    array = jax.ShapeDtypeStruct((1, length, heads, size), dtype)
    column = jax.ShapeDtypeStruct((1, length), "int32")
    return compiled_for("h100", both, *[array] * 4, *[column] * 5)


def compiled_tangents(length: int, heads: int, size: int, dtype: str):
    """Outputs and tangents on one row, compiled for an H100."""

    def both(q, k, v, t_q, t_k, t_v, *columns):
        tokens = Metadata(*columns)
        plan = BACKENDS[KERNEL].plan(tokens, tokens, None, Layout((length,), (length,), size, dtype))
        attend = BACKENDS[KERNEL].forward_mode
        return jax.jvp(lambda q, k, v: attend(q, k, v, plan), (q, k, v), (t_q, t_k, t_v))

    array, column = jax.ShapeDtypeStruct((1, length, heads, size), dtype), jax.ShapeDtypeStruct((1, length), "int32")
    return compiled_for("h100", both, *[array] * 6, *[column] * 5)


@pytest.mark.parametrize("length", [4096, 16384, 65536])
def test_attention_takes_memory_as_the_tokens_and_not_as_their_pairs(length):
    """Dense attention takes 1,936 MiB for 4k tokens (506 KB a token), and 16 times as much for four times as many."""
    program, kernels = compiled_attention(length)
    assert program.memory_analysis().temp_size_in_bytes <= 144 * length
    assert len(kernels) >= 3  # forwards, and backwards for the queries and for the keys
    for use in kernels:
        assert use.spilled <= 64 and use.products["wgmma.mma_async"] > 0, use


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("size", [64, 72, 80, 96, 128, 256])
def test_kernels_of_every_head_size_use_the_tensor_cores_and_hardly_spill(size, dtype):
    _, kernels = compiled_attention(4096, heads=4, size=size, dtype=dtype)
    kernels += compiled_tangents(4096, 4, size, dtype)[1]
    assert [use.name for use in kernels] == [f"attention_{name}" for name in NAMES]
    for use in kernels:
        assert use.spilled <= 64 and use.products, use
        # Blocks of float32, and those of tangents, may be too small for these.
        assert use.products.keys() == {"wgmma.mma_async"} or dtype == "float32" or use.name.endswith("tangents"), use


def test_forward_mode_gets_outputs_and_tangents_from_one_kernel():
    program, kernels = compiled_tangents(4096, 2, 64, "bfloat16")
    assert [use.name for use in kernels] == ["attention_tangents"]
    assert program.as_text().count("__gpu$xla.gpu.triton") == 1


# --- a step -----------------------------------------------------------------------------------------------------------


def compiled_step(size: str, rows: int, backend: str, text: int = 2048):
    """The training step of a size of the Transfusion paper, compiled for an H100.

    The rows have `text` tokens of text and 2,048 patches of images.
    """
    experiment = load_experiment(f"{CONFIGS / 'transfusion_paper.py'}:{size}")
    streams = experiment.streams | {"text": dataclasses.replace(experiment.streams["text"], budget=text)}
    experiment = dataclasses.replace(experiment, streams=streams)
    model = dataclasses.replace(experiment.model, attention=backend, remat="full")
    mesh = dataclasses.replace(experiment.mesh, data=1, fsdp=1)
    experiment = dataclasses.replace(experiment, model=model, mesh=mesh, batch_size=rows)
    on = make_mesh(mesh, gpus.gpu_devices(parse_topology("h100:1")))
    return compile_for_gpu(compiled.lowered_step(make_task(experiment), experiment, on))


def test_a_step_of_the_0_76b_model_needs_a_quarter_of_the_memory_of_dense_attention():
    dense, none = compiled_step("0.76B", 4, "dense")
    quick, kernels = compiled_step("0.76B", 4, KERNEL)
    temporaries = [program.memory_analysis().temp_size_in_bytes for program in (quick, dense)]
    assert temporaries[0] <= 0.25 * temporaries[1]
    assert not none and len(kernels) >= 3
    for use in kernels:
        assert use.spilled <= 64 and use.products["wgmma.mma_async"] > 0, use


def pairs(text: str, length: int) -> set[str]:
    """The arrays of a compiled program that have a number for each pair of tokens of a row.

    Inside of a fusion there are none: such numbers live in registers there.
    """
    bodies, _ = computations_of(text)
    fused = set(re.findall(r" fusion\(.*?calls=%?([\w.\-]+)", text))
    lines = [line for name, body in bodies.items() if name not in fused for line in body]
    found = set(re.findall(r"\b\w+\[[\d,]+\]", "\n".join(lines)))
    return {array for array in found if re.findall(r"\d+", array.partition("[")[2]).count(str(length)) > 1}


def test_no_array_of_a_step_has_a_number_for_each_pair_of_tokens():
    # Rows of 3,584 tokens: no width of the model is as large, or twice as large.
    assert not pairs(compiled_step("0.16B", 1, KERNEL, 1536)[0].as_text(), 3584)
    assert pairs(compiled_step("0.16B", 1, "dense", 1536)[0].as_text(), 3584)
