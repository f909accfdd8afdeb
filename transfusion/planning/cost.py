"""What a program costs on one device, and the least time that a chip needs for it."""

import dataclasses

from transfusion.planning.hlo import Program
from transfusion.running.chips import Topology

# How often a forward pass is computed in a step, in units of the model's own forward and backward passes.
RECOMPUTED = {"none": 1.0, "dots": 1.0, "full": 4 / 3}


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one program on one device.

    Attributes:
      how: 'compiled', or 'from shapes'.
      arguments, temporaries, peak: bytes of its memory; arguments are the train state (or parameters) and its inputs,
        the peak is all that it reserves.
      fits: whether the chip's memory holds it; where it was compiled, the compiler decides.
      program: its collectives.
      collectives: how those are known; 'from shapes' where the compiler gave no text.
      seconds: that compilation took.
    """

    how: str
    arguments: float
    temporaries: float
    peak: float
    fits: bool
    program: Program
    collectives: str
    seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class Bounds:
    """Seconds that a step takes at least, by the roofline of the chip: the longest if all three overlap."""

    compute: float
    memory: float
    network: float

    @property
    def step(self) -> float:
        return max(self.compute, self.memory, self.network)

    @property
    def total(self) -> float:
        """If nothing overlaps."""
        return self.compute + self.memory + self.network

    @property
    def by(self) -> str:
        """Which one it is."""
        return max(("compute", "memory", "network"), key=lambda name: getattr(self, name))


def bounds(cost: Cost, flops: float, remat: str, topology: Topology) -> Bounds:
    """Of a training step of `flops` model FLOPs over all devices.

    Memory counts the state read and written once, and the temporaries once each way: at least that much moves.
    """
    chip = topology.spec
    near, far = cost.program.bytes_sent(far=False), cost.program.bytes_sent(far=True)
    network = near / chip.link + (far / chip.network if chip.network else 0.0)
    return Bounds(
        flops * RECOMPUTED[remat] / topology.devices / chip.flops,
        2 * (cost.arguments + cost.temporaries) / chip.bandwidth,
        network,
    )
