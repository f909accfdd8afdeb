"""Gates on the decoder that is compiled for an H100 that is not there: what its loops read and copy."""

import dataclasses
import math
import pathlib
import re

import jax
import pytest

from transfusion.planning import gpus
from transfusion.planning.assembly import compile_for_gpu
from transfusion.planning.compiled import lowered_sampler
from transfusion.planning.traffic import kernels
from transfusion.programs import load_experiment
from transfusion.running.chips import parse_topology
from transfusion.sampling.config import SamplerConfig
from transfusion.sampling.settings import MACHINES
from transfusion.sharding import make_mesh
from transfusion.tasks import SequenceTask, make_task

pytestmark = [pytest.mark.gates, pytest.mark.skipif(bool(gpus.missing()), reason=gpus.missing() or "nothing missing")]
CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "transfusion_paper.py"
WIDTH, LAYERS, SIZE = 320, 3, 64  # no activation has as many numbers as a weight
TURNS = 8  # of the loop that writes tokens between two looks at the end

_HEADER = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_ARRAY = re.compile(r"^\s*(?:ROOT )?%?[\w.\-]+ = (\w+)\[([\d,]*)\]\S* ([a-z\-]+)\(")
_CALLED = re.compile(r"(?:calls|body|to_apply|true_computation|false_computation)=%?([\w.\-]+)")


def compiled_decoder(unrolled: int, **changes) -> tuple[SequenceTask, str]:
    """A model of few layers in bfloat16, and the text of its decoder, which writes text and draws guided images."""
    experiment = load_experiment(f"{CONFIG}:0.16B")
    model = dataclasses.replace(experiment.model, width=WIDTH, layers=LAYERS, heads=WIDTH // SIZE, dtype="bfloat16")
    sampling = dataclasses.replace(SamplerConfig(steps=4, max_tokens=16, guidance=2.0), **changes)
    mesh = dataclasses.replace(experiment.mesh, data=1, fsdp=1)
    experiment = dataclasses.replace(experiment, model=model, mesh=mesh, sampling=sampling)
    machine = dataclasses.replace(MACHINES["gpu"], unrolled=unrolled)
    on = make_mesh(mesh, gpus.gpu_devices(parse_topology("h100:1")))
    task = make_task(experiment)
    return task, compile_for_gpu(lowered_sampler(task, experiment, on, machine, 1))[0].as_text()


def computations(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    name = None
    for line in text.splitlines():
        if header := _HEADER.match(line):
            name = header[1]
            found[name] = []
        elif name and not line.startswith("}"):
            found[name].append(line)
    return found


def below(found: dict[str, list[str]], bodies: list[str]) -> list[str]:
    """The lines of these computations and of all that they call."""
    seen, left = [], list(bodies)
    while left:
        name = left.pop()
        if name not in seen and name in found:
            seen.append(name)
            left += _CALLED.findall("\n".join(found[name]))
    return [line for name in seen for line in found[name]]


def arrays(lines: list[str], operation: str, least: int) -> list[tuple[str, list[int]]]:
    """Type and shape of what an operation gives, where that has at least so many numbers."""
    shapes = [
        (m[1], [int(n) for n in m[2].split(",") if n])
        for line in lines
        if (m := _ARRAY.match(line)) and m[3] == operation
    ]
    return [(dtype, shape) for dtype, shape in shapes if math.prod(shape) >= least]


@pytest.mark.parametrize("unrolled", [LAYERS, 0])
def test_loops_of_the_decoder_cast_no_weights_and_copy_no_cache(unrolled):
    task, text = compiled_decoder(unrolled)
    found = computations(text)
    loops = [line for lines in found.values() for line in lines if " while(" in line]
    lines = below(found, [re.search(r"body=%?([\w.\-]+)", line)[1] for line in loops])
    # Neither slices of weights in float32, nor weights that are cast in a turn.
    weights = {math.prod(x.shape[1:]) for x in jax.tree.leaves(task.template.shapes["trunk"]["blocks"])}
    weights = {size for size in weights if size >= WIDTH * WIDTH}
    assert not [shape for dtype, shape in arrays(lines, "dynamic-slice", WIDTH * WIDTH) if dtype == "f32"]
    casts = [shape for dtype, shape in arrays(lines, "convert", WIDTH * WIDTH) if dtype == "bf16"]
    assert not [shape for shape in casts if math.prod(shape) in weights]
    # A cache is the only array of so many axes and numbers.
    writes = [shape for _, shape in arrays(lines, "scatter", 0) if len(shape) == 4]
    assert writes and all(shape[-1] == SIZE for shape in writes)
    caches = {tuple(shape) for shape in writes}
    assert not [shape for _, shape in arrays(lines, "copy", 0) if tuple(shape) in caches]
    # The loop that writes tokens of text reads unrolled layers where they lie.
    turns = [line for line in loops if f'"known_trip_count":{{"n":"{TURNS}"}}' in line]
    assert turns
    written = below(found, [re.search(r"body=%?([\w.\-]+)", line)[1] for line in turns])
    assert bool(unrolled) == (not arrays(written, "dynamic-slice", WIDTH * WIDTH))


def test_a_token_reads_each_weight_once_in_bfloat16():
    """With weights in float32 that are sliced and cast in every turn, a token of 0.16B moved 3.8 times its weights."""
    task, text = compiled_decoder(LAYERS, max_images=0)
    shapes = task.template.shapes
    leaves = [*jax.tree.leaves(shapes["trunk"]["blocks"]), shapes["parts"]["text"]["head"]["kernel"]]
    weights = 2 * sum(leaf.size for leaf in leaves)
    token = [kernel for kernel in kernels(text) if kernel.where.count("while/body") == 3]
    moved = sum((kernel.reads + kernel.writes) * kernel.times for kernel in token) / TURNS
    assert weights < moved <= 1.5 * weights, (moved, weights)
