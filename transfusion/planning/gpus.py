"""Describes GPUs to XLA's CUDA compiler, which then compiles for them on a machine that has none.

The compiler needs pip's CUDA plugin for jax and NVIDIA's assembler: the extra `plan-gpu`. Without a GPU it cannot try
which algorithm of a matrix product is fastest, so that those of a real run may be others; all else is as on the GPU.
"""

import dataclasses
import importlib.metadata
import importlib.util
import math
import os
import pathlib

import jax
from jax.experimental import topologies

from transfusion.errors import UsageError
from transfusion.running.chips import Topology

INSTALL = "pip install 'transfusion[plan-gpu]'"
CUDA = "major: 12 minor: 9"  # of the runtime; the wheels of `plan-gpu` are of CUDA 12
CUDNN = "major: 9 minor: 10"


@dataclasses.dataclass(frozen=True)
class Target:
    """What the compiler is told of a GPU, besides what all GPUs since 2020 share (`_SHARED`).

    Attributes:
      name: as the driver reports it.
      capability: major number of the compute capability; the minor number is 0.
      cores: streaming multiprocessors.
      lanes: float32 lanes of a core.
      clock: GHz at most.
      memory: bytes of HBM that the driver reports.
      bandwidth: bytes/s of HBM.
      cache: bytes of the second-level cache.
      shared: bytes of a core's shared memory; a block can have 1 KiB less.
    """

    name: str
    capability: int
    cores: int
    lanes: int
    clock: float
    memory: int
    bandwidth: int
    cache: int
    shared: int = 228 * 1024


# The limits of threads, blocks and registers: CUDA's programming guide, table 'Technical specifications per compute
# capability'. The numbers of each GPU: NVIDIA's white papers on A100, H100 and Blackwell, and what drivers report,
# which openxla/xla collects in xla/backends/gpu/target_config/specs.
TARGETS: dict[str, Target] = {
    "a100": Target(
        "NVIDIA A100-SXM4-80GB", 8, 108, 64, 1.41, 85_100_068_864, 2_039_040_000_000, 40 * 2**20, 164 * 1024
    ),
    "h100-pcie": Target("NVIDIA H100 PCIe", 9, 114, 128, 1.755, 84_942_979_072, 2_039_040_000_000, 50 * 2**20),
    "h100": Target("NVIDIA H100 80GB HBM3", 9, 132, 128, 1.98, 84_942_979_072, 3_352_320_000_000, 50 * 2**20),
    "h200": Target("NVIDIA H200", 9, 132, 128, 1.98, 151_397_597_184, 4_800_000_000_000, 50 * 2**20),
    "b200": Target("NVIDIA B200", 10, 148, 128, 1.965, 191_514_411_008, 7_672_320_000_000, 132_644_864),
}
_SHARED = """\
  threads_per_block_limit: 1024
  threads_per_warp: 32
  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  shared_memory_per_block: 49152
"""


def description(target: Target) -> str:
    """The target as XLA's `GpuTargetConfigProto`, in text form."""
    # From Hopper on, a compute capability has instructions of its own, such as those of the tensor cores.
    extension = " feature_extension: ACCELERATED_FEATURES" if target.capability >= 9 else ""
    return (
        f"gpu_device_info {{\n{_SHARED}"
        f"  cuda_compute_capability {{ major: {target.capability}{extension} }}\n"
        f"  core_count: {target.cores}\n"
        f"  fpus_per_core: {target.lanes}\n"
        f"  clock_rate_ghz: {target.clock}\n"
        f"  device_memory_size: {target.memory}\n"
        f"  memory_bandwidth: {target.bandwidth}\n"
        f"  l2_cache_size: {target.cache}\n"
        f"  shared_memory_per_core: {target.shared}\n"
        f"  shared_memory_per_block_optin: {target.shared - 1024}\n"
        f"}}\n"
        f'platform_name: "CUDA"\n'
        f"runtime_version {{ {CUDA} }}\n"
        f"dnn_version_info {{ {CUDNN} }}\n"
        f'device_description_str: "{target.name}"\n'
    )


def missing() -> str:
    """What is not installed to compile programs for GPUs, and how to install it; '' if nothing is."""
    if importlib.util.find_spec("jax_cuda12_plugin") is None:
        return f"the CUDA compiler is not installed: {INSTALL}"
    if assembler() is None:
        return f"NVIDIA's assembler (ptxas) is not installed: {INSTALL}"
    return ""


def assembler() -> pathlib.Path | None:
    """The program `ptxas` of pip's wheel; None if it is not installed."""
    try:
        found = importlib.metadata.distribution("nvidia-cuda-nvcc-cu12").locate_file("nvidia/cuda_nvcc/bin/ptxas")
    except importlib.metadata.PackageNotFoundError:
        return None
    path = pathlib.Path(str(found))
    return path if path.exists() else None


def gpu_devices(topology: Topology) -> list[jax.Device]:
    """The devices of a topology, host by host; they can be compiled for, and hold no arrays.

    Raises:
      UsageError: if jax's plugin refuses the topology, for example as it is of another version than jax.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # else the plugin reports that there is no driver
    per_host = math.gcd(topology.per_slice, topology.domain)
    shape = f"{topology.slices}x{topology.per_slice // per_host}x{per_host}"
    target = description(TARGETS[topology.chip])
    try:
        found = topologies.get_topology_desc(platform="cuda", target_config=target, topology=shape)
    except (jax.errors.JaxRuntimeError, NotImplementedError, RuntimeError, ValueError) as error:
        raise UsageError(f"jax's CUDA plugin gives no topology {topology.name}: {error}") from error
    return list(found.devices)
