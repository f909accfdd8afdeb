"""Gives each of several processes its own cores, or its own accelerator, so that they do not fight.

Nothing is asked of JAX, because the device would then belong to the sweep and not to its members.
"""

import dataclasses
import glob
import os
from collections.abc import Mapping, Sequence

from transfusion.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Slot:
    """What one of the processes that run at a time may use.

    Attributes:
      cores: the CPU cores; empty for all of them.
      environment: variables that its processes get.
    """

    cores: tuple[int, ...] = ()
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def settle(self) -> None:
        """Binds the calling thread to the cores; the processes that it starts inherit that."""
        if self.cores and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, self.cores)


def slots(count: int, kind: str) -> list[Slot]:
    """`count` slots, of the kind 'cpu', 'gpu', 'tpu', or 'auto' for what this machine has.

    Raises:
      UsageError: if there are fewer accelerators than slots.
    """
    if count < 1:
        raise UsageError(f"--parallel must be at least 1, not {count}")
    if count == 1:
        return [Slot()]
    return PINS[found_kind() if kind == "auto" else kind](count)


def found_kind() -> str:
    """What the members' processes will use, by the machine's device files and JAX_PLATFORMS."""
    wanted = os.environ.get("JAX_PLATFORMS", "").split(",")[0]
    if wanted == "cpu":
        return "cpu"
    if wanted in ("cuda", "gpu", "rocm") or glob.glob("/dev/nvidia[0-9]*"):
        return "gpu"
    return "tpu" if wanted == "tpu" or glob.glob("/dev/accel[0-9]*") else "cpu"


def _cores(count: int) -> list[Slot]:
    """Splits the usable cores; each process has as many threads as cores, and at least one of both."""
    usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    each = max(1, len(usable) // count)
    result = []
    for i in range(count):
        mine = tuple(usable[(i * each + j) % len(usable)] for j in range(each))
        given = os.environ.get("XLA_FLAGS", "")
        flags = f"{given} --xla_cpu_multi_thread_eigen=false".strip() if each == 1 else given
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(each))
        result.append(Slot(mine, threads | ({"XLA_FLAGS": flags} if flags else {})))
    return result


def _gpus(count: int) -> list[Slot]:
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    found = glob.glob("/dev/nvidia[0-9]*")
    names = [n for n in given.split(",") if n] if given is not None else [str(i) for i in range(len(found))]
    _enough(names, count, "GPUs")
    return [Slot((), {"CUDA_VISIBLE_DEVICES": name}) for name in names[:count]]


def _tpus(count: int) -> list[Slot]:
    names = [str(i) for i in range(len(glob.glob("/dev/accel[0-9]*")))]
    _enough(names, count, "TPU chips")
    alone = {"TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1", "TPU_PROCESS_BOUNDS": "1,1,1"}
    return [Slot((), alone | {"TPU_VISIBLE_CHIPS": name}) for name in names[:count]]


def _enough(names: Sequence[str], count: int, what: str) -> None:
    if len(names) < count:
        raise UsageError(f"--parallel={count}: this machine shows {len(names)} {what}; give --parallel={len(names)}")


PINS = {"cpu": _cores, "gpu": _gpus, "tpu": _tpus}
