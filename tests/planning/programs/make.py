"""Writes the text of one compiled program, to be kept beside those of other versions of jax.

  python tests/planning/programs/make.py cpu            # with the jax that is installed: cpu-0.10.txt
  python tests/planning/programs/make.py gpu            # with the packages of the extra plan-gpu
  python tests/planning/programs/make.py tpu            # with libtpu

The program runs every kind of collective a known number of times on arrays of known sizes, which
`tests/planning/test_minors.py` names. jax alone is needed, so that any version will do.
"""

import os
import pathlib
import sys

os.environ |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-4", "TPU_WORKER_HOSTNAMES": "localhost"}
os.environ |= {"TPU_WORKER_ID": "0", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

TURNS = 3


def step(weights: jax.Array, x: jax.Array) -> tuple[jax.Array, ...]:
    """On one device: weights float32 [4, 128] of [16, 128] in four parts, x float32 [8, 128]."""

    def turn(carry: jax.Array, _: None) -> tuple[jax.Array, None]:
        whole = jax.lax.all_gather(weights * carry[0, 0], "data", tiled=True)  # [16, 128]
        product = jnp.tanh(carry @ whole.T)  # [8, 16]
        part = jax.lax.psum_scatter(product, "data", tiled=True)  # [2, 16]
        return carry + jnp.tanh(part.mean()), None

    carry, _ = jax.lax.scan(turn, x, None, length=TURNS)
    total = jax.lax.psum(jnp.sin(carry), ("slice", "data"))  # [8, 128] over all eight
    swapped = jax.lax.all_to_all(jnp.cos(carry), "data", 0, 1, tiled=True)  # [2, 512]
    passed = jax.lax.ppermute(jnp.exp(carry), "slice", [(0, 1), (1, 0)])  # [8, 128] to the other slice
    return total, swapped, passed


def compiled(devices: list[jax.Device], options: dict) -> str:
    """The text of the program for eight devices in two slices of four."""
    mesh = Mesh(np.array(devices[:8]).reshape(2, 4), ("slice", "data"))
    parts, both = PartitionSpec("data"), PartitionSpec(("slice", "data"))
    outs = (PartitionSpec(), PartitionSpec(("slice", "data"), None), both)
    function = jax.shard_map(step, mesh=mesh, in_specs=(parts, both), out_specs=outs, check_vma=False)
    inputs = [
        jax.ShapeDtypeStruct(shape, "float32", sharding=NamedSharding(mesh, spec))
        for shape, spec in (((16, 128), parts), ((64, 128), both))
    ]
    return jax.jit(function).lower(*inputs).compile(options).as_text()


def devices_of(kind: str) -> tuple[list[jax.Device], dict]:
    """Eight devices to compile for, and options of the compiler."""
    if kind == "cpu":
        return jax.devices(), {}
    if kind == "tpu":
        found = topologies.get_topology_desc("v5e:2x4", "tpu").devices
        return sorted(found, key=lambda device: device.id), {}
    from transfusion.planning.gpus import gpu_devices
    from transfusion.running.chips import parse_topology

    return gpu_devices(parse_topology("h100:8")), {}


if __name__ == "__main__":
    kind = sys.argv[1]
    text = compiled(*devices_of(kind))
    minor = ".".join(jax.__version__.split(".")[:2])
    path = pathlib.Path(__file__).parent / f"{kind}-{minor}.txt"
    path.write_text(text)
    print(f"{path}: {path.stat().st_size} bytes")
