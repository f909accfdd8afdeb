"""A kernel on a mesh of devices: each has its own rows, heads and queries, and all keys of its rows, or passes them on.

Shape letters: see `transfusion.kernels.kernel`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec

from transfusion.kernels.kernel import Head, Kernel, Layout, Result, merge
from transfusion.sequence.masks import Metadata
from transfusion.sharding import fitting, per_device

Slices = tuple[int, ...]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Planned:
    """The plans of all devices.

    Attributes:
      each: what `Kernel.plan` returns, with a leading axis over devices.
      split: whether queries are split over devices.
    """

    each: Any
    split: bool = dataclasses.field(metadata={"static": True})


def plan(kernel: Kernel, q: Metadata, k: Metadata, may: np.ndarray | None, layout: Layout) -> Planned:
    """Plans attention of queries that stay on the devices of their tokens, over keys that are gathered."""
    split = layout.shares > 1
    queries, keys = fitting(q.order.shape, "batch", "tokens" if split else None), fitting(k.order.shape, "batch", None)
    slices = (tuple(size // layout.shares for size in layout.q), layout.k)

    def make(q: Metadata, k: Metadata) -> Any:
        return jax.tree.map(lambda x: x[None], kernel.plan(q, k, may, *slices, layout.head))

    return Planned(per_device(make, (queries, keys), _of_devices(queries))(q, k), split)


def attend(of_device: Callable[..., Result], q: jax.Array, k: jax.Array, v: jax.Array, planned: Planned) -> jax.Array:
    """Computes attention: rows over 'data' and 'fsdp', heads over 'tensor', queries over 'context'.

    `of_device` is what each device runs on its part: `attend` or `forward_mode` of a kernel."""
    heads = "act_heads" if any(fitting(k.shape[2:3], "act_heads")) else None
    keys = fitting(k.shape, "batch", None, heads, None)
    queries = fitting(q.shape, "batch", "tokens" if planned.split else None, heads, None)

    def run(q: jax.Array, k: jax.Array, v: jax.Array, each: Any) -> jax.Array:
        return of_device(q, k, v, jax.tree.map(lambda x: x[0], each))[0]

    return per_device(run, (queries, keys, keys, _of_devices(queries)), queries)(q, k, v, planned.each)


def read(kernel: Kernel, q: jax.Array, parts: list[tuple[jax.Array, jax.Array]], planned: list[Planned]) -> jax.Array:
    """Attends to keys and values [B, G, S, K] in several parts, such as a cache and new tokens."""
    heads = "act_heads" if any(fitting(parts[0][0].shape[1:2], "act_heads")) else None
    keys = [fitting(k.shape, "batch", heads, None, None) for k, _ in parts]
    queries = fitting(q.shape, "batch", None, heads, None)

    def run(q: jax.Array, parts: list, each: list) -> jax.Array:
        plans = [jax.tree.map(lambda x: x[0], one) for one in each]
        results = [kernel.read(q, k, v, made) for (k, v), made in zip(parts, plans, strict=True)]
        return (merge(results) if len(results) > 1 else results[0])[0]

    into = (queries, [(spec, spec) for spec in keys], _of_devices(queries))
    return per_device(run, into, queries)(q, parts, [one.each for one in planned])


def _of_devices(queries: PartitionSpec) -> PartitionSpec:
    """That of an array whose leading axis is over the devices among which rows and queries are split."""
    names = [name for entry in queries[:2] for name in ((entry,) if isinstance(entry, str) else entry or ())]
    return PartitionSpec(tuple(names) or None)


# --- keys that are passed on ------------------------------------------------------------------------------------------


def ring_plans(
    kernel: Kernel, q: Metadata, k: Metadata, may: np.ndarray | None, q_slices: Slices, k_slices: Slices, head: Head,
    axis: str,
) -> list[Any]:  # fmt: skip
    """Plans `ring` inside `jax.shard_map`: a plan for the keys of each device along `axis`, the own ones first.

    Args:
      q, k: metadata of the device's own queries and keys.
      q_slices, k_slices: the sizes of their slices, the same on all devices.
      head: of the queries, keys and values.
    """
    everyone = jax.tree.map(lambda x: jax.lax.all_gather(x, axis), k)
    devices, own = jax.lax.axis_size(axis), jax.lax.axis_index(axis)
    others = [jax.tree.map(lambda x, i=i: x[(own + i) % devices], everyone) for i in range(devices)]
    return [kernel.plan(q, other, may, q_slices, k_slices, head) for other in others]


def ring(kernel: Kernel, q: jax.Array, k: jax.Array, v: jax.Array, plans: list[Any], axis: str) -> Result:
    """Attention inside `jax.shard_map` in which no device ever holds more than one other's keys (arXiv 2310.01889).

    The keys and values go around along `axis`, and each device merges what it finds by the log-sum-exps.

    Args:
      q, k, v: the device's own queries, keys and values.
      plans: from `ring_plans`.
    """
    devices, results = len(plans), []
    passed = [(i, (i - 1) % devices) for i in range(devices)]
    for number, made in enumerate(plans):
        results.append(kernel.attend(q, k, v, made))
        if number + 1 < devices:
            k, v = (jax.lax.ppermute(x, axis, passed) for x in (k, v))
        if len(results) == 2:
            results = [merge(results)]
    return results[0]
