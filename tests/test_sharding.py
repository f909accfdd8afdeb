"""Logical axes to meshes; and eight devices compute what one does."""

import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny
from jax.sharding import AbstractMesh, PartitionSpec
from program import environment

from transfusion.errors import UsageError
from transfusion.model.config import PRESETS
from transfusion.model.unified import model_template
from transfusion.sequence import Stream
from transfusion.sharding import MeshConfig, batch_shardings, make_mesh, partition, tree_shardings

MESHES = {
    "data": {"data": 8},
    "data and fsdp": {"data": 2, "fsdp": 4},
    "all": {"data": 2, "fsdp": 2, "tensor": 2},
}


@pytest.fixture(scope="module")
def devices():
    """What tests/eight_devices.py computes on one device and on each mesh of eight."""
    script = pathlib.Path(__file__).parent / "eight_devices.py"
    done = subprocess.run(
        [sys.executable, str(script), json.dumps(MESHES)],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("name", MESHES)
def test_losses_do_not_depend_on_the_devices(devices, name):
    np.testing.assert_allclose(devices[name]["losses"], devices["one"]["losses"], rtol=1e-5)
    np.testing.assert_allclose(devices[name]["grad_norm"], devices["one"]["grad_norm"], rtol=1e-4)
    assert devices["one"]["losses"][-1] < devices["one"]["losses"][0]  # the steps do something


@pytest.mark.slow
def test_parameters_are_created_in_parts_and_never_whole(devices):
    whole, part = devices["all"]["gate"]
    assert part == [whole[0], whole[1] // 2, whole[2] // 2]
    assert devices["all"]["moment"] == devices["all"]["average"] == part
    assert devices["data and fsdp"]["gate"][1] == [whole[0], whole[1] // 4, whole[2]]
    # The compiled program of one device holds the part's shape, and the whole's nowhere.
    text = {name: {tuple(map(int, s.split(","))) for s in devices[name]["made"]} for name in ("one", "all")}
    assert tuple(whole) in text["one"]
    assert tuple(part) in text["all"] and tuple(whole) not in text["all"]


@pytest.mark.slow
def test_groups_and_the_start_from_another_run_keep_the_shardings(devices):
    one, eight = devices["one, groups"], devices["all, groups"]
    np.testing.assert_allclose(eight["losses"], one["losses"], rtol=1e-5)
    assert not one["moved"] and not eight["moved"] and devices["all"]["moved"]
    assert set(devices["all"]["moments"]) - set(eight["moments"]) == {"trunk/blocks/trunk/q"}
    assert eight["moment"] == eight["average"] == devices["all"]["moment"]
    assert devices["restart"]["parts"] == 3 * [devices["all"]["gate"][1]]
    np.testing.assert_allclose(devices["restart"]["sums"], devices["restart"]["sums"][0], rtol=1e-6)


def abstract(data=1, fsdp=1, tensor=1):
    return AbstractMesh((data, fsdp, tensor), ("data", "fsdp", "tensor"))


@pytest.mark.parametrize("mesh", [abstract(4, 64, 4), abstract(2, 8, 8), abstract(1, 512, 1)])
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
    devices = mesh.shape["fsdp"] * mesh.shape["tensor"]
    assert total < 1.02 * sum(leaf.size for leaf in shapes) / devices + 2**20


def test_the_table():
    mesh = abstract(2, 4, 8)
    assert partition(("batch", None), (16, 3), mesh) == PartitionSpec(("data", "fsdp"), None)
    assert partition(("embed", "mlp"), (8, 16), mesh) == PartitionSpec("fsdp", "tensor")
    assert partition(("mlp", "heads"), (8, 16), mesh) == PartitionSpec("tensor", None)  # an axis is used once
    assert partition(("embed",), (3,), abstract(2)) == PartitionSpec(None)  # axes of size 1 split nothing
    with pytest.raises(UsageError, match="trunk/q: axis 'heads' of size 6 does not divide over tensor=8"):
        partition((None, "heads"), (8, 6), mesh, "trunk/q")


def test_meshes():
    assert dict(make_mesh(MeshConfig(), jax.devices()[:1]).shape) == {"data": 1, "fsdp": 1, "tensor": 1}
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
