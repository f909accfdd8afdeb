"""The counter of bytes: slices count as slices, loops by their turns, and the training step keeps to its budget."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import pytest

from transfusion.model.unified import parameter_count
from transfusion.planning import compiled, gpus
from transfusion.planning.assembly import compile_for_gpu
from transfusion.planning.traffic import by_class, kernels
from transfusion.programs import load_experiment
from transfusion.running.chips import parse_topology
from transfusion.sharding import make_mesh
from transfusion.tasks import make_task

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
PROGRAM = """
HloModule step

%cast (p.0: f32[3,16,8], p.1: s32[]) -> bf16[16,8] {
  %p.0 = f32[3,16,8]{2,1,0} parameter(0)
  %p.1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %slice = f32[1,16,8]{2,1,0} dynamic-slice(%p.0, %p.1, %zero, %zero), dynamic_slice_sizes={1,16,8}
  %flat = f32[16,8]{1,0} bitcast(%slice)
  ROOT %half = bf16[16,8]{1,0} convert(%flat)
}

%put (q.0: f32[3,4,8], q.1: f32[4,8], q.2: s32[]) -> f32[3,4,8] {
  %q.0 = f32[3,4,8]{2,1,0} parameter(0)
  %q.1 = f32[4,8]{1,0} parameter(1)
  %q.2 = s32[] parameter(2)
  %nought = s32[] constant(0)
  %one = f32[1,4,8]{2,1,0} bitcast(%q.1)
  ROOT %new = f32[3,4,8]{2,1,0} dynamic-update-slice(%q.0, %one, %q.2, %nought, %nought)
}

%update (r.0: f32[3,16,8], r.1: f32[3,16,8]) -> (f32[3,16,8], f32[3,16,8]) {
  %r.0 = f32[3,16,8]{2,1,0} parameter(0)
  %r.1 = f32[3,16,8]{2,1,0} parameter(1)
  %sum = f32[3,16,8]{2,1,0} add(%r.0, %r.1)
  %less = f32[3,16,8]{2,1,0} subtract(%r.0, %r.1)
  ROOT %both = (f32[3,16,8]{2,1,0}, f32[3,16,8]{2,1,0}) tuple(%sum, %less)
}

%body (c: (s32[], f32[3,16,8], f32[3,4,8])) -> (s32[], f32[3,16,8], f32[3,4,8]) {
  %c = (s32[], f32[3,16,8]{2,1,0}, f32[3,4,8]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%c), index=0
  %w = f32[3,16,8]{2,1,0} get-tuple-element(%c), index=1
  %kept = f32[3,4,8]{2,1,0} get-tuple-element(%c), index=2
  %cast.1 = bf16[16,8]{1,0} fusion(%w, %i), kind=kLoop, calls=%cast, metadata={op_name="jit(step)/jvp()/while/body/convert"}
  %x = f32[4,8]{1,0} constant({...})
  %y = f32[4,8]{1,0} custom-call(%x, %cast.1), custom_call_target="__cublas$gemm", metadata={op_name="jit(step)/jvp()/while/body/dot"}
  %put.1 = f32[3,4,8]{2,1,0} fusion(%kept, %y, %i), kind=kLoop, calls=%put, metadata={op_name="jit(step)/jvp()/while/body/put"}
  ROOT %t = (s32[], f32[3,16,8]{2,1,0}, f32[3,4,8]{2,1,0}) tuple(%i, %w, %put.1)
}

%condition (d: (s32[], f32[3,16,8], f32[3,4,8])) -> pred[] {
  %d = (s32[], f32[3,16,8]{2,1,0}, f32[3,4,8]{2,1,0}) parameter(0)
  ROOT %go = pred[] constant(true)
}

ENTRY %main (state_params.1: f32[3,16,8], g.1: f32[3,16,8]) -> (f32[3,16,8], f32[3,16,8]) {
  %state_params.1 = f32[3,16,8]{2,1,0} parameter(0)
  %g.1 = f32[3,16,8]{2,1,0} parameter(1)
  %start = (s32[], f32[3,16,8]{2,1,0}, f32[3,4,8]{2,1,0}) tuple(%g.1)
  %while.1 = (s32[], f32[3,16,8]{2,1,0}, f32[3,4,8]{2,1,0}) while(%start), condition=%condition, body=%body, metadata={op_name="w"}, backend_config={"known_trip_count":{"n":"3"}}
  ROOT %both.1 = (f32[3,16,8]{2,1,0}, f32[3,16,8]{2,1,0}) fusion(%state_params.1, %g.1), kind=kLoop, calls=%update, metadata={op_name="jit(step)/add"}
}
"""  # noqa: E501


def test_slices_count_as_slices_and_loops_by_their_turns():
    found = {kernel.kind: kernel for kernel in kernels(PROGRAM)}
    weights, product, moves, update = (found[kind] for kind in ("weights", "products", "moves", "update"))
    assert (weights.reads, weights.writes, weights.times) == (4 * 16 * 8 + 4, 2 * 16 * 8, 3)
    assert (product.reads, product.writes, product.times) == (4 * 4 * 8 + 2 * 16 * 8, 4 * 4 * 8, 3)
    assert (moves.reads, moves.writes, moves.times) == (4 * 4 * 8 + 4, 4 * 4 * 8, 3)
    assert (update.reads, update.writes, update.times) == (2 * 4 * 3 * 16 * 8, 2 * 4 * 3 * 16 * 8, 1)
    assert sum(by_class(kernels(PROGRAM)).values()) == sum(kernel.moved for kernel in found.values())


def test_a_program_of_this_processor_is_read():
    a = jnp.ones((300, 7))
    text = jax.jit(lambda a, b: 2 * a + b).lower(a, a).compile().as_text()
    assert sum(kernel.moved for kernel in kernels(text)) == 3 * a.nbytes


@pytest.fixture(scope="module")
def step():
    """The kernels of a small training step on an H100, as many parameters as it has, and the shapes of its weights."""
    experiment = load_experiment(f"{CONFIGS / 'transfusion_paper.py'}:0.16B")
    short = {name: dataclasses.replace(stream, budget=256) for name, stream in experiment.streams.items()}
    model = dataclasses.replace(experiment.model, layers=3, remat="full")
    mesh = dataclasses.replace(experiment.mesh, fsdp=1)
    experiment = dataclasses.replace(experiment, model=model, streams=short, batch_size=2, mesh=mesh)
    task = make_task(experiment)
    devices = gpus.gpu_devices(parse_topology("h100:1"))
    program = compile_for_gpu(compiled.lowered_step(task, experiment, make_mesh(mesh, devices)))[0]
    return kernels(program.as_text()), parameter_count(task.template.shapes)


@pytest.mark.gates
@pytest.mark.skipif(bool(gpus.missing()), reason=gpus.missing() or "nothing missing")
def test_the_update_moves_at_most_40_bytes_per_parameter(step):
    found, parameters = step
    # Parameter, two moments and average are read and written, the gradient is read for its norm and for the update.
    assert 32 * parameters < by_class(found)["update"] <= 40 * parameters


@pytest.mark.gates
@pytest.mark.skipif(bool(gpus.missing()), reason=gpus.missing() or "nothing missing")
def test_weights_are_cast_once_and_each_layer_reads_half_the_bytes(step):
    found, parameters = step
    weights = [kernel for kernel in found if kernel.kind == "weights"]
    assert not [k for k in weights if k.times > 1 and "convert" in k.where]
    # A cast reads 4 bytes and writes 2. Slices for the two passes, and for the gradient, move 4 bytes each.
    assert sum(k.moved for k in weights) < (4 + 2 + 3 * 4 + 2) * parameters
