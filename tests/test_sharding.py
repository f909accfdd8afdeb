"""Logical axes to meshes; and eight devices compute what one does."""

import functools
import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny
from closeness import assert_close, trunk_operations
from jax.sharding import PartitionSpec
from program import environment

from transfusion.codecs.autoencoder_config import AutoencoderConfig
from transfusion.config import Experiment
from transfusion.errors import UsageError
from transfusion.model.config import PRESETS
from transfusion.model.unified import model_template
from transfusion.optim import OptimConfig
from transfusion.sequence import Stream
from transfusion.sharding import (
    AXES,
    MeshConfig,
    abstract_mesh,
    batch_shardings,
    make_mesh,
    partition,
    tree_shardings,
)  # fmt: skip
from transfusion.tasks import AutoencoderTask
from transfusion.training.step import state_shardings

MESHES = {
    "data": {"data": 8},
    "fsdp": {"data": 2, "fsdp": 4},
    "all": {"data": 2, "fsdp": 2, "tensor": 2},
    "context": {"data": 2, "context": 4},
    "slices": {"slice": 2, "data": 1, "context": 2, "tensor": 2},
}
# For routed experts.
WITH_EXPERTS = {
    "experts": {"data": 2, "expert": 4},
    "mixed": {"data": 1, "fsdp": 2, "expert": 2, "tensor": 2},
}
# In sequence: three steps of a trunk as `eight_devices` has it, over the 40 to 128 tokens of a row.
OPERATIONS = 3 * trunk_operations(tiny.model(), 128)


@functools.cache
def computed(group: str) -> dict:
    """What tests/eight_devices.py computes on one device and on meshes of eight: of 'dense', or of the 'others'."""
    script = pathlib.Path(__file__).parent / "eight_devices.py"
    done = subprocess.run(
        [sys.executable, str(script), group, json.dumps(WITH_EXPERTS if group == "routed" else MESHES)],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=1500,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def devices() -> dict:
    return computed("dense")


OTHERS = [(system, name) for system in ("experts", "codes", "pairs") for name in MESHES] + [("codec", "fsdp")]
SYSTEMS = [("dense", name) for name in MESHES] + [("routed", name) for name in WITH_EXPERTS]
SYSTEMS += [pytest.param(*one, marks=pytest.mark.soak) for one in OTHERS]


@pytest.mark.slow
@pytest.mark.parametrize("system, mesh", SYSTEMS)
def test_losses_do_not_depend_on_the_devices(system, mesh):
    """Nor on microbatches ('all'), nor on where the moments are between steps ('fsdp')."""
    results = computed(system if system in ("dense", "routed") else "others")[system]
    one, eight = results["one"], results[mesh]
    assert_close(eight["losses"], one["losses"], OPERATIONS)
    assert_close(eight["grad_norm"], one["grad_norm"], 3 * OPERATIONS)
    assert one["grad_norm"] > 0
    if system == "codec":
        assert_close(eight["codebook"], one["codebook"], OPERATIONS)


@pytest.mark.slow
def test_telemetry_sees_the_same_on_eight_devices():
    one, eight = (computed("routed")["seen"][mesh] for mesh in ("one", "mixed"))
    assert len(one) > 10
    assert_close(eight, one, 3 * OPERATIONS, largest=max(one.values()))


@pytest.mark.slow
def test_moments_wait_in_the_hosts_memory(devices):
    dense = devices["dense"]
    assert (dense["fsdp"]["memory"], dense["all"]["memory"]) == ("pinned_host", "device")


@pytest.mark.slow
def test_parameters_are_created_in_parts_and_never_whole(devices):
    devices = devices["dense"]
    whole, part = devices["all"]["gate"]
    assert part == [whole[0], whole[1] // 2, whole[2] // 2]
    assert devices["all"]["moment"] == devices["all"]["average"] == part
    assert devices["fsdp"]["gate"][1] == devices["context"]["gate"][1] == [whole[0], whole[1] // 4, whole[2]]
    assert devices["slices"]["gate"][1] == part  # whole on every slice
    # The compiled program of one device holds the part's shape, and the whole's nowhere.
    text = {name: {tuple(map(int, s.split(","))) for s in devices[name]["made"]} for name in ("one", "all")}
    assert tuple(whole) in text["one"]
    assert tuple(part) in text["all"] and tuple(whole) not in text["all"]


@pytest.mark.slow
def test_groups_and_the_start_from_another_run_keep_the_shardings(devices):
    dense, restart = devices["dense"], devices["restart"]
    for result in dense.values():
        assert result["still"] == ["trunk/blocks/trunk/q"] and not result["optimized"]
        assert result["moment"] == result["average"] == result["gate"][1]
    assert restart["parts"] == 3 * [dense["all"]["gate"][1]]
    assert_close(restart["sums"], restart["sums"][0], OPERATIONS)


def abstract(data=1, fsdp=1, tensor=1, **sizes):
    return abstract_mesh({"data": data, "fsdp": fsdp, "tensor": tensor} | sizes)


@pytest.mark.parametrize(
    "mesh", [abstract(4, 64, 4), abstract(2, 8, 8), abstract(1, 512, 1), abstract(1, 64, context=8)]
)
def test_every_parameter_of_the_largest_preset_divides(mesh):
    streams = {
        "text": Stream(vocabulary=32_000, budget=128, expert="a"),
        "image": tiny.image_stream(channels=8, grid=(32, 32), budget=256, expert="b"),
    }
    template = model_template(PRESETS["7B"], tiny.spec(streams))
    shardings = tree_shardings(template.axes, template.shapes, mesh)
    shapes, total = jax.tree.leaves(template.shapes), 0
    for leaf, on in zip(shapes, jax.tree.leaves(shardings), strict=True):
        part = int(np.prod(on.shard_shape(leaf.shape)))
        total += part
        # Nothing of a megabyte or more is left whole.
        assert part < leaf.size or leaf.size * 4 < 2**20
    devices = mesh.shape["fsdp"] * mesh.shape["tensor"] * mesh.shape["context"]
    assert total < 1.02 * sum(leaf.size for leaf in shapes) / devices + 2**20


def test_the_table():
    mesh = abstract(2, 4, 8)
    assert partition(("batch", "tokens", None), (16, 5, 3), mesh) == PartitionSpec(("data", "fsdp"), None, None)
    assert partition(("embed", "mlp"), (8, 16), mesh) == PartitionSpec("fsdp", "tensor")
    assert partition(("embed",), (3,), abstract(2)) == PartitionSpec(None)  # axes of size 1 split nothing
    everything = abstract(2, 2, 2, slice=2, context=2)
    assert partition(("batch", "tokens"), (8, 4), everything) == PartitionSpec(("slice", "data", "fsdp"), "context")
    among = abstract(2, expert=2)
    assert partition(("batch", "tokens"), (8, 4), among) == PartitionSpec(("data", "expert"), None)
    assert partition(("experts", "embed"), (8, 4), among) == PartitionSpec("expert", None)
    assert partition(("vocab", "embed"), (8, 4), everything) == PartitionSpec("tensor", ("fsdp", "context"))
    with pytest.raises(UsageError, match="trunk/o: axes 'mlp' and 'heads' are both split over 'tensor'"):
        partition(("mlp", "heads"), (8, 16), abstract(), "trunk/o")
    with pytest.raises(UsageError, match="trunk/o: axis: 'headz' is none of batch, .*did you mean 'heads'"):
        partition(("headz",), (8,), mesh, "trunk/o")
    with pytest.raises(UsageError, match="trunk/q: axis 'heads' of size 6 does not divide over tensor=8"):
        partition((None, "heads"), (8, 6), mesh, "trunk/q")


def test_meshes():
    assert dict(make_mesh(MeshConfig(), jax.devices()[:1]).shape) == dict.fromkeys(AXES, 1)
    assert MeshConfig(fsdp=4, context=2).sizes(64, slices=2)["data"] == 4
    for wrong in (MeshConfig(data=2), MeshConfig(fsdp=0), MeshConfig(data=-1, fsdp=-1)):
        with pytest.raises(UsageError, match="does not multiply to 1 devices"):
            make_mesh(wrong, jax.devices()[:1])


def test_rows_of_a_batch_are_spread_over_the_data_axes():
    spec = tiny.task().batch_spec(8)
    shardings = batch_shardings(spec, abstract(2, 4, 1))
    for leaf, on in zip(jax.tree.leaves(spec), jax.tree.leaves(shardings), strict=True):
        assert on.shard_shape(leaf.shape) == (1, *leaf.shape[1:])
    with pytest.raises(UsageError, match="'batch' of size 6 does not divide"):
        batch_shardings(tiny.task().batch_spec(6), abstract(2, 4, 1))


@pytest.mark.parametrize(
    "sizes, changes, said",
    [
        ({"data": 8}, {"accumulate": 2}, "batch_size / optim.accumulate: axis 'batch' of size 4 does not .* data=8"),
        ({"context": 6}, {}, "streams.image.budget: axis 'tokens' of size 16 does not divide over context=6"),
        ({"tensor": 8}, {}, "model.heads: axis 'act_heads' of size 4 does not divide over tensor=8"),
        ({"fsdp": 8, "context": 8}, {}, "embed.*: axis 'embed' of size 32 does not divide over fsdp=8 x context=8"),
    ],
)
def test_a_config_that_does_not_divide_is_refused_before_anything_is_compiled(sizes, changes, said):
    task = tiny.task()
    config = Experiment(batch_size=8, model=task.model, optim=OptimConfig(**changes))
    with pytest.raises(UsageError, match=said):
        state_shardings(task, config, abstract_mesh(sizes))


def test_a_codec_has_no_tokens_to_split():
    codec = AutoencoderConfig(channels=(8,), norm_groups=4)
    with pytest.raises(UsageError, match="task 'autoencoder': axis 'tokens' of size 1 does not divide over context=2"):
        state_shardings(AutoencoderTask(codec, (8, 8)), Experiment(batch_size=8), abstract_mesh({"context": 2}))
