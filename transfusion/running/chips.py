"""Accelerators: their speed, memory and links, and the topologies in which they are rented."""

import dataclasses
import math
import re

from transfusion.errors import UsageError, check

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device as JAX counts devices (a chip, not a core), from its vendor's data sheet.

    Attributes:
      kinds: parts of `jax.Device.device_kind` that name it, longer ones first.
      flops: dense bfloat16 FLOP/s.
      memory: bytes of HBM.
      bandwidth: bytes/s of HBM.
      link: bytes/s that it sends to its neighbours (ICI, NVLink), one way, all links together.
      network: bytes/s that it sends beyond them (data-centre network, InfiniBand), its share of the host's; 0: unknown.
      shapes: the shapes of the slices that exist; () means any number of devices.
      domain: how many devices `link` connects; 0: the whole slice.
    """

    kinds: tuple[str, ...]
    flops: float
    memory: float
    bandwidth: float
    link: float
    network: float
    shapes: tuple[str, ...] = ()
    domain: int = 0


_FLAT = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = (
    "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16", "16x16x16"
)  # fmt: skip

# TPUs: cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}, 'System architecture'. Its figures for ICI count both directions
# (v5e 400, v5p 1200 GB/s) or one (v4 2400, v6e 3200 Gbit/s); the network is the chip's share of a pod's.
# GPUs: NVIDIA's data sheets 'A100 80GB', 'H100', 'H200' and 'DGX B200' (dense rates; NVLink counts both directions),
# and the user guides of the DGX systems: one network adapter per GPU, of 200 (A100) or 400 Gbit/s.
CHIPS: dict[str, Chip] = {
    "v4": Chip(("TPU v4",), 275e12, 32 * GIB, 1228e9, 300e9, 0.0, _CUBES),
    "v5e": Chip(("TPU v5e", "TPU v5 lite"), 197e12, 16 * GIB, 819e9, 200e9, 3.1e9, _FLAT),
    "v5p": Chip(("TPU v5p", "TPU v5"), 459e12, 95 * GIB, 2765e9, 600e9, 6.25e9, (*_CUBES, "16x16x24")),
    "v6e": Chip(("TPU v6e", "TPU v6 lite"), 918e12, 32 * GIB, 1600e9, 400e9, 12.5e9, _FLAT),
    "b200": Chip(("B200",), 2250e12, 180e9, 8000e9, 900e9, 50e9, domain=8),
    "h200": Chip(("H200",), 989e12, 141e9, 4800e9, 450e9, 50e9, domain=8),
    "h100-pcie": Chip(("H100 PCIe",), 756e12, 80e9, 2000e9, 300e9, 50e9, domain=2),
    "h100": Chip(("H100",), 989e12, 80e9, 3350e9, 450e9, 50e9, domain=8),
    "a100": Chip(("A100",), 312e12, 80e9, 2039e9, 300e9, 25e9, domain=8),
}

# Dense bfloat16 FLOP/s (float16 of those without it) of devices for which nothing is planned, by a part of their
# `device_kind`: enough for the utilisation of a run. A TPU v2, v3 or 7x is two devices of JAX. Sources: the TPUs' pages
# as above, NVIDIA's and AMD's data sheets; of GeForce cards with sums in float32.
RATES: dict[str, float] = {
    "TPU v2": 23e12, "TPU v3": 61.5e12, "TPU7x": 1153.5e12,
    "GB200": 2500e12, "GH200": 989e12, "L40S": 362e12, "L4": 121e12, "A40": 149.7e12, "A10": 125e12, "A10G": 70e12,
    "T4": 65e12, "V100": 125e12,
    "RTX 4090": 165.2e12, "RTX 5090": 209.5e12, "MI300X": 1307.4e12,
}  # fmt: skip


def rate_of(kind: str) -> float | None:
    """Dense bfloat16 FLOP/s of a `jax.Device.device_kind`; None if it is unknown."""
    rates = {part: chip.flops for chip in CHIPS.values() for part in chip.kinds} | RATES
    # As a word of its own: an 'L4' is no 'L40', and an 'A10' no 'A100'.
    named = [part for part in rates if re.search(rf"(?<![a-z0-9]){part}(?![0-9a-z])", kind, re.IGNORECASE)]
    return rates[max(named, key=len)] if named else None


def chip_of(kind: str) -> tuple[str, Chip] | None:
    """The part of a `jax.Device.device_kind` that names a chip, and the chip; None if it is unknown."""
    named = [(part, chip) for chip in CHIPS.values() for part in chip.kinds if part.lower() in kind.lower()]
    return max(named, key=lambda pair: len(pair[0]), default=None)


@dataclasses.dataclass(frozen=True)
class Topology:
    """A number of `slices` of `chip`; the `shape` of each is such as '8x8x8', or a number of GPUs."""

    chip: str
    shape: str
    slices: int = 1

    @property
    def name(self) -> str:
        return f"{self.chip}:{self.shape}" + (f" x {self.slices}" if self.slices > 1 else "")

    @property
    def spec(self) -> Chip:
        return CHIPS[self.chip]

    @property
    def is_tpu(self) -> bool:
        return bool(self.spec.shapes)

    @property
    def per_slice(self) -> int:
        """How many devices a slice has."""
        return math.prod(map(int, self.shape.split("x")))

    @property
    def devices(self) -> int:
        return self.slices * self.per_slice

    @property
    def domain(self) -> int:
        """Neighbouring devices that the fast links connect; collectives of more use the network."""
        return min(self.spec.domain or self.per_slice, self.per_slice)


def parse_topology(name: str, slices: int = 1) -> Topology:
    """Reads a topology such as 'v5p:8x8x8' or 'h100:64', of `slices` slices.

    Raises:
      UsageError: naming the topologies that exist.
    """
    chip, _, shape = name.lower().partition(":")
    check("--topology", chip, CHIPS)
    shapes = CHIPS[chip].shapes
    if shapes:
        check("--topology", f"{chip}:{shape}", [f"{chip}:{shape}" for shape in shapes])
    elif not shape.isdigit() or int(shape) < 1:
        raise UsageError(f"--topology: {name!r} lacks the number of GPUs, for example {chip}:8")
    if slices < 1:
        raise UsageError(f"--slices must be positive, not {slices}")
    return Topology(chip, shape, slices)
