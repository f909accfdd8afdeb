"""Several processes, each with devices of its own, that train one model: how they find each other, and how they end.

A process learns which one it is from flags, from JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or
from the launcher (Slurm, Open MPI, Kubernetes, a TPU pod), as jax.distributed finds it; without any of these, it is
alone.
"""

import contextlib
import glob
import importlib.util
import os
import re
import sys
import threading
from collections.abc import Iterator

import jax
from absl import flags

from transfusion.errors import PassingError, UsageError
from transfusion.running.addresses import parse_address
from transfusion.running.roll_call import roll_call

# Launcher -> the variables with the number of processes that it has started, and the number of this one.
LAUNCHERS: dict[str, tuple[str, str]] = {
    "JAX_NUM_PROCESSES": ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"),
    "Slurm": ("SLURM_NTASKS", "SLURM_PROCID"),
    "Open MPI": ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
}
_LEAVE = 5.0  # seconds that process 0 stays after it has failed
_LONGEST_WAIT = 7 * 24 * 3600  # seconds; a process that has not come by then never will
_MOST = 65536  # processes
_NUMBER = re.compile(r"[0-9]{1,9}")


def define_flags() -> None:
    """--coordinator, --processes, --process_id and --start_timeout: the arguments of `start`."""
    flags.DEFINE_string("coordinator", "", "HOST:PORT of process 0, for several processes that no launcher started.")
    flags.DEFINE_integer("processes", 0, "How many processes train together; 1 looks for no others.", 0, _MOST)
    flags.DEFINE_integer("process_id", -1, "Which of them this is, from 0.", -1, _MOST)
    flags.DEFINE_float("start_timeout", 300.0, "Seconds to wait at the start for the other processes.", 0.0)


def start(
    coordinator: str = "", processes: int = 0, process_id: int = -1, timeout: float = 300.0, run: str = ""
) -> None:
    """Joins the other processes, if there are any. Call it before anything uses a device.

    Args:
      coordinator: 'host:port' of process 0.
      processes: how many there are; 1 never looks for others, 0 leaves it to the environment.
      process_id: which of them this is; -1 leaves it to the environment.
      timeout: seconds to wait for the others.
      run: the same in all processes of a run, such as its workdir; a process with another value is passed over.

    Raises:
      UsageError: if the others do not come, or not all were started with the same numbers.
    """
    if not 0 < timeout <= _LONGEST_WAIT:  # false for nan, too
        raise UsageError(f"--start_timeout={timeout} is not between 0 and {_LONGEST_WAIT} seconds")
    if processes == 1:
        return
    flag, address = "--coordinator", coordinator
    if not address:
        flag, address = "JAX_COORDINATOR_ADDRESS", os.environ.get("JAX_COORDINATOR_ADDRESS", "")
    if address:
        _start_at(address, parse_address(flag, address), processes, process_id, timeout, run)
    elif processes or process_id >= 0:
        raise UsageError("--processes and --process_id need --coordinator=HOST:PORT, where process 0 listens")
    elif launcher := _launcher():
        _detect(launcher, timeout)


def _start_at(address: str, place: tuple[str, int], processes: int, process_id: int, timeout: float, run: str) -> None:
    told = bool(processes) and process_id >= 0
    for name in LAUNCHERS:
        found = None if told else _told(name)
        if found:
            processes, process_id = processes or found[0], found[1] if process_id < 0 else process_id
            told = name == "JAX_NUM_PROCESSES"
            break
    if not processes or process_id < 0:
        raise UsageError("--coordinator needs --processes=N and --process_id=0 to N-1 (or the launcher's variables)")
    if process_id >= processes:
        raise UsageError(f"--process_id={process_id} is not below --processes={processes}")
    if processes == 1:
        return
    listens = roll_call(place, processes, process_id, timeout, run)
    # A process that was told its number uses all devices that it sees; one of a launcher uses the device of its rank.
    method = "deactivate" if told else None
    with _deadline(timeout, f"after {timeout:g} seconds not all of {processes} processes have joined {address}"):
        _initialize(
            coordinator_address=address, num_processes=processes, process_id=process_id,
            cluster_detection_method=method, initialization_timeout=int(timeout) + 60,
            # By default jax's service listens at all addresses of the machine.
            **({"coordinator_bind_address": listens} if listens else {}),
        )  # fmt: skip


def _detect(launcher: str, timeout: float) -> None:
    """Joins the processes that jax.distributed finds. On a TPU machine without others it finds none."""
    with _deadline(timeout, f"after {timeout:g} seconds not all processes have joined that {launcher} was to start"):
        try:
            _initialize(initialization_timeout=int(timeout) + 60)
        except ValueError as error:
            if launcher != "a TPU pod":
                raise UsageError(
                    f"{launcher} does not say who the processes are ({error}): give --coordinator"
                ) from error
        except (RuntimeError, OSError) as error:
            raise PassingError(f"the processes that {launcher} started cannot be joined: {error}") from error


def _initialize(**arguments) -> None:
    # Only some CPU backends can talk to each other; this names one because jax's default has changed before.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(**arguments)


def _told(name: str) -> tuple[int, int] | None:
    """(number of processes, number of this one) from the variables of a launcher; None if they do not say.

    Raises:
      UsageError: if JAX's variables, which a user sets, do not fit each other.
    """
    (first, count), (second, index) = ((variable, os.environ.get(variable, "")) for variable in LAUNCHERS[name])
    if _NUMBER.fullmatch(count) and _NUMBER.fullmatch(index) and int(index) < int(count) <= _MOST:
        return int(count), int(index)
    if name == "JAX_NUM_PROCESSES" and count and index:
        raise UsageError(f"{first}={count} and {second}={index} do not fit: set them to N and a number from 0 to N-1")
    return None


def _launcher() -> str | None:
    """The launcher that has started several processes and knows where the first is, told by the environment alone."""
    has = os.environ.__contains__
    if os.environ.get("JAX_NUM_PROCESSES", "1") not in ("", "1"):
        raise UsageError("JAX_NUM_PROCESSES needs JAX_COORDINATOR_ADDRESS=HOST:PORT, where process 0 listens")
    several = [name for name in LAUNCHERS if (told := _told(name)) and told[0] > 1]
    # The batch script of a Slurm job has a number, too, but is not one of its processes.
    if "Slurm" in several and all(map(has, ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_LOCALID"))):
        return "Slurm"
    if "Open MPI" in several:
        return "Open MPI"
    if _on_tpu():
        return "a TPU pod"
    if has("KUBERNETES_SERVICE_HOST") and has("JOB_COMPLETION_INDEX"):
        return "Kubernetes"
    return None


def _on_tpu() -> bool:
    if platforms := os.environ.get("JAX_PLATFORMS"):
        return "tpu" in platforms.split(",")
    return bool(importlib.util.find_spec("libtpu") and (glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")))


@contextlib.contextmanager
def _deadline(seconds: float, line: str) -> Iterator[None]:
    """Ends the process with `line` when the time is over, before jax aborts with a stack trace at its own deadline."""

    def end() -> None:
        print(f"error: {line}", file=sys.stderr, flush=True)
        os._exit(PassingError.code)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def leave(code: int) -> None:
    """Ends this process at once with `code` if it is one of several; returns if it is the only one.

    The usual way out would wait for the others, which may wait for this one in their next step. Process 0 stays a few
    seconds, because jax aborts the others when it is gone, and they may be about to report the same error.
    """
    if not jax.distributed.is_initialized():
        return
    sys.stdout.flush()
    sys.stderr.flush()
    timer = threading.Timer(_LEAVE, os._exit, [code])
    timer.daemon = True
    timer.start()
    if jax.process_index() == 0:  # this never waits for longer than the timer, whatever has happened
        timer.join()
    os._exit(code)
