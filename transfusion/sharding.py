"""From logical axes to mesh axes: one table.

Every parameter and every activation boundary names its logical axes; `RULES` says over which mesh axes each of them is
split. The mesh always has the axes `data`, `fsdp` and `tensor`, any of which may have size 1.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from transfusion.errors import UsageError

# Logical axis -> mesh axes. Axes that are not named here (None, layers, head sizes, convolution kernels) are whole.
RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "embed": ("fsdp",),
    "mlp": ("tensor",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "vocab": ("tensor",),
    "conv_out": ("fsdp",),
    "act_mlp": ("tensor",),
    "act_heads": ("tensor",),
}


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; -1 on one of them takes all that are left."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The device mesh.

    Raises:
      UsageError: if the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = dataclasses.asdict(config)
    free = [name for name, size in sizes.items() if size == -1]
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if len(free) == 1 and fixed > 0 and len(devices) % fixed == 0:
        sizes[free[0]] = len(devices) // fixed
    if math.prod(sizes.values()) != len(devices) or min(sizes.values()) < 1:
        raise UsageError(f"mesh {dataclasses.asdict(config)} does not multiply to {len(devices)} devices")
    array = np.array(devices).reshape(tuple(sizes.values()))
    return Mesh(array, tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def partition(axes: Sequence[str | None], shape: Sequence[int], mesh: Mesh, where: str = "") -> PartitionSpec:
    """The PartitionSpec of an array of logical `axes`; a mesh axis is used once, by the first axis that names it.

    Raises:
      UsageError: if a dimension does not divide over its mesh axes; `where` names the array.
    """
    used: set[str] = set()
    entries = []
    for axis, size in zip(axes, shape, strict=True):
        names = tuple(n for n in RULES.get(axis or "", ()) if n not in used and mesh.shape[n] > 1)
        parts = math.prod(mesh.shape[n] for n in names)
        if size % parts:
            raise UsageError(
                f"{where or 'array'}: axis {axis!r} of size {size} does not divide over "
                f"{' x '.join(f'{n}={mesh.shape[n]}' for n in names)}"
            )
        used.update(names)
        entries.append(names if len(names) != 1 else names[0])
    return PartitionSpec(*[entry or None for entry in entries])


def tree_shardings(axes: Any, shapes: Any, mesh: Mesh) -> Any:
    """NamedShardings for a tree of arrays, given trees of logical axes and of shapes of the same structure."""

    def one(path, leaf, leaf_axes):
        where = "/".join(str(getattr(k, "key", getattr(k, "name", k))) for k in path)
        return NamedSharding(mesh, partition(leaf_axes, leaf.shape, mesh, where))

    return jax.tree_util.tree_map_with_path(one, shapes, axes)


def batch_shardings(batch: Any, mesh: Mesh) -> Any:
    """Rows of every array over the data axes."""

    def one(leaf):
        return NamedSharding(mesh, partition(("batch",) + (None,) * (len(leaf.shape) - 1), leaf.shape, mesh, "batch"))

    return jax.tree.map(one, batch)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Fixes the sharding of an activation in a jitted function that runs under `jax.set_mesh`; else does nothing."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or math.prod(mesh.shape.values()) == 1:
        return x
    return jax.lax.with_sharding_constraint(x, partition(axes, x.shape, mesh, "activation"))
