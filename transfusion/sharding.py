"""Arrays are split over devices by one table, `RULES`, from logical axes to axes of the device mesh.

Every parameter and every activation boundary names its logical axes, and the table says over which mesh axes each of
them is split. The mesh always has the axes of `MeshConfig`, any of which may have size 1.

Over `context` every stream's slice of a row is split evenly, so that each device holds the same share of every stream.
Queries stay with their tokens; keys and values are gathered for attention.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from transfusion.errors import UsageError, check

PyTree = Any  # nested dicts, tuples or dataclasses of arrays, or of values that describe one array each

# Logical axis -> mesh axes over which it is split. An axis with () is not split, and neither is one that an array calls
# None (head sizes, vectors, sides of kernels). No parameter is split over slices: between them only gradients travel.
RULES: dict[str, tuple[str, ...]] = {
    "batch": ("slice", "data", "fsdp", "expert"),
    "replicas": ("slice", "data"),
    "tokens": ("context",),
    "embed": ("fsdp", "context"),
    "experts": ("expert",),
    "mlp": ("tensor",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "vocab": ("tensor",),
    "conv_out": ("fsdp", "context"),
    "conv_in": (),
    "patch": (),
    "layers": (),
    "act_mlp": ("tensor",),
    "act_heads": ("tensor",),
}


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """The number of devices along each mesh axis; one axis may have -1, and takes all devices that are left.

    The later an axis comes, the more its devices communicate.

    Attributes:
      slice: splits rows over TPU slices, which only a data-centre network joins; 0 means as many as there are.
      data: splits rows and leaves parameters whole.
      fsdp: splits rows, parameters, and the average and moments of parameters.
      expert: splits rows, and the experts among which tokens choose; other parameters stay whole.
      context: splits the tokens of each stream, and parameters as fsdp does.
      tensor: splits heads, hidden widths and vocabularies.
    """

    slice: int = 0
    data: int = -1
    fsdp: int = 1
    expert: int = 1
    context: int = 1
    tensor: int = 1

    def sizes(self, devices: int, slices: int = 1) -> dict[str, int]:
        """The size of each axis for this number of devices, which belong to this number of slices.

        Raises:
          UsageError: if the axes do not multiply to the number of devices.
        """
        sizes = dataclasses.asdict(self) | {"slice": self.slice or slices}
        free = [name for name, size in sizes.items() if size == -1]
        fixed = math.prod(size for size in sizes.values() if size != -1)
        if len(free) == 1 and fixed > 0 and devices % fixed == 0:
            sizes[free[0]] = devices // fixed
        if math.prod(sizes.values()) != devices or min(sizes.values()) < 1:
            raise UsageError(f"mesh {dataclasses.asdict(self)} does not multiply to {devices} devices")
        return sizes


AXES = tuple(field.name for field in dataclasses.fields(MeshConfig))


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Makes the device mesh; on TPUs, neighbours along an axis are neighbours on the torus where possible.

    Raises:
      UsageError: if the axes do not multiply to the number of devices, or `slice` is not the number of TPU slices.
    """
    devices = jax.devices() if devices is None else list(devices)
    slices = len({getattr(device, "slice_index", 0) for device in devices}) if devices[0].platform == "tpu" else 1
    sizes = config.sizes(len(devices), slices)
    if devices[0].platform != "tpu":
        array = np.array(devices).reshape(tuple(sizes.values()))
    elif sizes["slice"] != slices:
        raise UsageError(f"mesh.slice: {sizes['slice']}, but the devices are of {slices} slices")
    else:
        inside = (1, *list(sizes.values())[1:])
        array = _on_tpus(inside, slices, devices)
    return Mesh(array, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _on_tpus(inside: Sequence[int], slices: int, devices: Sequence[jax.Device]) -> np.ndarray:
    """The devices in the order of a mesh, of which every slice holds a part with the sizes `inside`."""
    if slices == 1:
        return mesh_utils.create_device_mesh(inside, devices, allow_split_physical_axes=True)
    across = (slices, *(1,) * (len(inside) - 1))
    return mesh_utils.create_hybrid_device_mesh(inside, across, devices, allow_split_physical_axes=True)


def abstract_mesh(sizes: Mapping[str, int]) -> AbstractMesh:
    """A mesh without devices; axes that are not in `sizes` have size 1."""
    return AbstractMesh(tuple(sizes.get(name, 1) for name in AXES), AXES)


# --- where arrays lie -------------------------------------------------------------------------------------------------


def partition(
    axes: Sequence[str | None], shape: Sequence[int], mesh: Mesh | AbstractMesh, where: str = "array"
) -> PartitionSpec:
    """The PartitionSpec of an array of logical `axes`.

    Raises:
      UsageError: naming the array (`where`) and its axis, if an axis is not in the table, two axes want the same mesh
        axis, or a dimension does not divide over its mesh axes.
    """
    owner: dict[str, str] = {}
    entries = []
    for axis, size in zip(axes, shape, strict=True):
        if axis is None:
            entries.append(None)
            continue
        check(f"{where}: axis", axis, RULES)
        for name in RULES[axis]:
            if name in owner:
                raise UsageError(f"{where}: axes {owner[name]!r} and {axis!r} are both split over {name!r}")
            owner[name] = axis
        names = tuple(name for name in RULES[axis] if mesh.shape[name] > 1)
        if size % math.prod(mesh.shape[name] for name in names):
            over = " x ".join(f"{name}={mesh.shape[name]}" for name in names)
            raise UsageError(f"{where}: axis {axis!r} of size {size} does not divide over {over}")
        entries.append(names[0] if len(names) == 1 else names or None)
    return PartitionSpec(*entries)


def tree_shardings(axes: Any, shapes: Any, mesh: Mesh | AbstractMesh) -> Any:
    """NamedShardings for a tree of arrays, given trees of logical axes and of shapes of the same structure."""

    def one(path, leaf, leaf_axes):
        where = "/".join(str(getattr(k, "key", getattr(k, "name", k))) for k in path)
        return NamedSharding(mesh, partition(leaf_axes, leaf.shape, mesh, where))

    return jax.tree_util.tree_map_with_path(one, shapes, axes)


def check_activations(table: Mapping[str, tuple[Sequence[str], Sequence[int]]], mesh: Mesh | AbstractMesh) -> None:
    """Refuses activations that do not divide over the mesh.

    `table` has the logical axes and the shape of each activation, under the name of the config's field to blame.

    Raises:
      UsageError: as `partition` does.
    """
    for where, (axes, shape) in table.items():
        partition(axes, shape, mesh, where)


def batch_shardings(batch: Any, mesh: Mesh | AbstractMesh) -> Any:
    """The shardings of a batch: the rows of every array are split as `RULES` says of "batch"."""

    def one(leaf):
        return NamedSharding(mesh, partition(("batch",) + (None,) * (len(leaf.shape) - 1), leaf.shape, mesh, "batch"))

    return jax.tree.map(one, batch)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array of which every device holds a whole copy."""
    return NamedSharding(mesh, PartitionSpec())


def on_host(shardings: Any) -> Any:
    """The same shardings, but in the memory of each device's host instead of the device's own."""
    return jax.tree.map(lambda on: on.with_memory_kind("pinned_host"), shardings)


# --- inside a jitted function that runs under `jax.set_mesh`; without a mesh these do nothing -------------------------


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Fixes the sharding of an activation, given its logical axes.

    An axis that does not divide (a sampler's one row or token) stays whole: `check_activations` guards training.
    """
    mesh = _current()
    return x if mesh is None else jax.lax.with_sharding_constraint(x, fitting(x.shape, *axes))


def by_heads(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Fixes the shardings of queries, keys and values [B, N, H, K] for attention.

    Queries stay on the devices of their tokens; keys and values are gathered, so that each query meets all of them.
    """
    k, v = (constrain(t, "batch", None, "act_heads", None) for t in (k, v))
    return constrain(q, "batch", "tokens", "act_heads", None), k, v


def by_rows(x: jax.Array) -> jax.Array:
    """Splits an activation by its rows alone, so that weights travel to the activation and not the other way."""
    return constrain(x, "batch", *(None,) * (x.ndim - 1))


def fitting(shape: Sequence[int], *axes: str | None) -> PartitionSpec:
    """The PartitionSpec of an array on the current mesh, where axes that do not divide stay whole; see `partition`."""
    mesh = _current()
    if mesh is None:
        return PartitionSpec()
    parts = {axis: math.prod(mesh.shape[name] for name in names) for axis, names in RULES.items()}
    fits = [axis if axis and size % parts[axis] == 0 else None for axis, size in zip(axes, shape, strict=True)]
    return partition(fits, shape, mesh)


def on_devices(tree: Any) -> Any:
    """Moves arrays from the memory of the hosts into that of the devices."""
    return jax.device_put(tree, jax.memory.Space.Device)


def per_device(function: Callable[..., Any], into: Any, out: Any) -> Callable[..., Any]:
    """Makes every device run `function` on its own part of the arguments.

    `into` and `out` are the PartitionSpecs of arguments and results. Loops over rows need this, because the compiler
    would otherwise run them over all rows on every device.
    """
    return function if _current() is None else jax.shard_map(function, in_specs=into, out_specs=out, check_vma=False)


def parts(axis: str) -> int:
    """The number of parts into which the current mesh splits a logical axis; 1 without a mesh."""
    mesh = _current()
    return 1 if mesh is None else math.prod(mesh.shape[name] for name in RULES[axis])


def shares(sizes: Iterable[int] = ()) -> int:
    """The number of shares into which the tokens of a row are split; 1 if one of the `sizes` does not divide by it."""
    mesh = _current()
    parts = 1 if mesh is None else mesh.shape["context"]
    return 1 if any(size % parts for size in sizes) else parts


def join(parts: Sequence[jax.Array], shares: int = 1) -> jax.Array:
    """Joins arrays [B, N, ...] along the tokens, ordered so that each device holds its share of every one of them."""
    if len(parts) == 1:
        return parts[0]
    if shares == 1:
        return jnp.concatenate(parts, 1)
    whole = jnp.concatenate([x.reshape(x.shape[0], shares, -1, *x.shape[2:]) for x in parts], 2)
    return whole.reshape(whole.shape[0], -1, *whole.shape[3:])


def cut(x: jax.Array, sizes: Sequence[int], shares: int = 1) -> list[jax.Array]:
    """Undoes `join`: returns the arrays that were joined; `sizes` are their numbers of tokens."""
    if shares == 1 or len(sizes) == 1:
        return jnp.split(x, np.cumsum(sizes)[:-1], axis=1)
    apart = x.reshape(x.shape[0], shares, -1, *x.shape[2:])
    parts = jnp.split(apart, np.cumsum(sizes)[:-1] // shares, axis=2)
    return [part.reshape(part.shape[0], -1, *part.shape[3:]) for part in parts]


def flat(x: jax.Array) -> jax.Array:
    """[B, N, ...] -> [B N, ...]; x itself if tokens are split over devices, because no flat order suits both splits."""
    return x if shares() > 1 else x.reshape(-1, *x.shape[2:])


def platform() -> str:
    """The platform of the mesh that `jax.set_mesh` set, even if its devices are a compiler's only; else that of jax."""
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    return getattr(device, "platform", None) or jax.default_backend()


def _current() -> AbstractMesh | None:
    """The mesh that `jax.set_mesh` set; None without one, or if it has a single device."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or mesh.size == 1 else mesh
