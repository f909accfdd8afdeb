"""The cost of a program on one device, and the least time that a chip needs for it."""

import dataclasses

from transfusion.planning.assembly import KernelUse
from transfusion.planning.hlo import Program
from transfusion.running.chips import Topology

# The share of the memory that a program may fill where no compiler says so. The rest is for the runtime and fragments.
USABLE = 0.92
UNKNOWN = "unknown"  # how collectives are known, where they are not
# FLOPs of a step with each way of rematerialisation, in units of the model's own forward and backward passes.
RECOMPUTED = {"none": 1.0, "dots": 1.0, "full": 4 / 3}


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of one program on one device.

    Attributes:
      how: 'compiled', or estimated 'from shapes'.
      arguments: bytes of the train state (or the parameters) and of the inputs.
      temporaries: bytes of temporary arrays.
      peak: bytes of all memory that the program reserves.
      fits: whether the chip's memory holds the program. If it was compiled for a TPU, the compiler has decided that.
      program: the collectives.
      collectives: how the collectives are known: 'compiled', 'from shapes', or `UNKNOWN` if the compiler gave no text,
        or one that is not understood; what `program` says means nothing then.
      seconds: how long compilation took.
      kernels: the program's own kernels, if it was compiled for a GPU.
    """

    how: str
    arguments: float
    temporaries: float
    peak: float
    fits: bool
    program: Program
    collectives: str
    seconds: float = 0.0
    kernels: tuple[KernelUse, ...] = ()


@dataclasses.dataclass(frozen=True)
class Bounds:
    """The least seconds of a step by the chip's roofline, for computation, memory and network each."""

    compute: float
    memory: float
    network: float

    @property
    def step(self) -> float:
        """The least seconds if all three overlap."""
        return max(self.compute, self.memory, self.network)

    @property
    def total(self) -> float:
        """The seconds if nothing overlaps."""
        return self.compute + self.memory + self.network

    @property
    def by(self) -> str:
        """The one that takes longest: 'compute', 'memory' or 'network'."""
        return max(("compute", "memory", "network"), key=lambda name: getattr(self, name))


def bounds(cost: Cost, flops: float, remat: str, topology: Topology) -> Bounds:
    """The least time of a training step of `flops` model FLOPs over all devices.

    For memory, the state and the temporaries are read and written once: at least so much moves.
    """
    chip = topology.spec
    near, far = cost.program.bytes_sent(far=False), cost.program.bytes_sent(far=True)
    network = near / chip.link + (far / chip.network if chip.network else 0.0)
    return Bounds(
        flops * RECOMPUTED[remat] / topology.devices / chip.flops,
        2 * (cost.arguments + cost.temporaries) / chip.bandwidth,
        network,
    )
