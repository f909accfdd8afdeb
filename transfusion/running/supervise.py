"""Keeps the processes ("ranks") of a training at work: starts them, watches them, starts all again when one faults.

`python -m transfusion.train --supervise` is this parent, which uses no device. Each rank reports what it is doing
through a heartbeat, so that a rank that hangs is found and named as surely as one that dies. The ranks continue from
the newest intact checkpoint. A run that keeps failing without a newer checkpoint is given up.
"""

import contextlib
import dataclasses
import math
import os
import pathlib
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

from absl import flags
from etils import epath

from transfusion.errors import PassingError, UsageError
from transfusion.running import seals
from transfusion.running.addresses import parse_address
from transfusion.running.heartbeat import DONE
from transfusion.running.ranks import POLL, USAGE_ERROR, Fault, Rank, first_fault, hanging, kill_all, send_signal
from transfusion.storage import one_line

_LONGEST_WAIT = 300.0
_INTERRUPTED = 128 + signal.SIGINT  # how one of several processes ends at Ctrl-C
_MOST_LOCAL = 256  # ranks of one machine
# Variables in which JAX, Slurm, Open MPI, Kubernetes and TPU pods give the number of this rank. It names the log.
_RANK_VARIABLES = ("JAX_PROCESS_ID", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "JOB_COMPLETION_INDEX", "TPU_WORKER_ID")


@dataclasses.dataclass(frozen=True)
class Patience:
    """When a rank counts as hanging, and when a run is given up. Times are in seconds.

    Attributes:
      max_failures: how many faults in a row, without a newer intact checkpoint, end the run.
      backoff: the wait before the first restart; it doubles with each further fault without a newer checkpoint.
      hang_after: a rank hangs if a step, an evaluation or a save takes longer.
      start_after: a rank hangs if start-up, restoring, compilation and its first step take longer.
    """

    max_failures: int = 5
    backoff: float = 1.0
    hang_after: float = 600.0
    start_after: float = 1800.0

    def __post_init__(self):
        if self.max_failures < 1 or self.hang_after <= 0 or self.start_after <= 0 or self.backoff < 0:
            raise UsageError("--max_failures, --hang_after and --start_after must be positive, --backoff not negative")
        if not all(map(math.isfinite, (self.backoff, self.hang_after, self.start_after))):
            raise UsageError("--backoff, --hang_after and --start_after must be finite numbers of seconds")


def define_flags() -> None:
    """Defines --supervise, and the flags that say how patient the supervisor is."""
    flags.DEFINE_bool("supervise", False, "Start the training again when it faults; with --processes=N, all N of it.")
    flags.DEFINE_integer("max_failures", Patience.max_failures, "Faults without a newer checkpoint before giving up.")
    flags.DEFINE_float("backoff", Patience.backoff, "Seconds before the first restart; doubles for each further one.")
    flags.DEFINE_float("hang_after", Patience.hang_after, "Seconds without a step after which a rank hangs.")
    flags.DEFINE_float("start_after", Patience.start_after, "The same, until a rank has made its first step.")


def patience() -> Patience:
    """The patience that the flags ask for; raises UsageError if a flag cannot be."""
    given = flags.FLAGS
    return Patience(given.max_failures, given.backoff, given.hang_after, given.start_after)


def from_flags(module: str) -> "Supervisor":
    """The supervisor of this command.

    It runs N ranks on this machine if only --processes=N is given, else the one rank that the flags or the environment
    say that this is.
    """
    given = flags.FLAGS
    if given.coordinator:
        parse_address("--coordinator", given.coordinator)
    command = [sys.executable, "-m", module, *sys.argv[1:], "--nosupervise"]
    if given.processes > 1 and not (given.coordinator or "JAX_COORDINATOR_ADDRESS" in os.environ):
        if given.processes > _MOST_LOCAL:
            raise UsageError(
                f"--supervise --processes={given.processes} would start all of them on this machine, which takes at "
                f"most {_MOST_LOCAL}; with --coordinator=HOST:PORT and --process_id it starts one"
            )

        def local(rank: int, port: int) -> list[str]:
            return [*command, f"--coordinator=127.0.0.1:{port}", f"--process_id={rank}"]

        return Supervisor(local, given.workdir, range(given.processes), patience())
    told = [given.process_id, *(int(x) for name in _RANK_VARIABLES if (x := os.environ.get(name, "")).isdecimal())]
    return Supervisor(lambda *_: command, given.workdir, [next((rank for rank in told if rank >= 0), 0)], patience())


class Supervisor:
    """Runs the ranks of a training to its end.

    Args:
      command: gives a rank's command from its number and a free port of this machine.
      workdir: the run's. Its `logs/rank_<i>.log` gets what rank i writes, attempt after attempt. The logs of a run in a
        bucket are on this machine, in a folder of the run's name below the current one.
      ranks: numbers of the ranks that are started here.

    Attributes:
      newest: the newest step that has a seal; -1 if there is none.
    """

    def __init__(
        self,
        command: Callable[[int, int], Sequence[str]],
        workdir: str | os.PathLike,
        ranks: Sequence[int] = (0,),
        patience: Patience | None = None,
    ):
        root = epath.Path(workdir)
        # A file in a bucket cannot grow, so that the logs of such a run stay on this machine.
        folder = pathlib.Path(root.name) if "://" in str(workdir) else pathlib.Path(workdir).expanduser()
        self._command, self._numbers, self._patience = command, ranks, patience or Patience()
        self._checkpoints, self._logs = root / "checkpoints", folder.absolute() / "logs"
        self._ranks: list[Rank] = []
        self._stop = 0
        self._attempt = self._failures = 0
        self.newest = self._newest_sealed()

    def run(self) -> int:
        """Runs until the training ends, or is given up.

        Returns:
          The exit code: 0 at the end of the training or after a SIGTERM that was passed on, 2 if a rank says that it
          was called wrongly, 1 if the run is given up.
        """
        try:
            self._logs.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"cannot write to {self._logs}: {error.strerror}") from error
        before = {number: signal.signal(number, self._pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            with _heartbeats() as beats:
                while (code := self._once(pathlib.Path(beats))) is None:
                    pass
                return code
        finally:
            kill_all(self._ranks)
            for number, handler in before.items():
                signal.signal(number, handler)

    def _once(self, beats: pathlib.Path) -> int | None:
        """Makes one attempt; returns the exit code, or None if another attempt follows."""
        self._attempt += 1
        fault = self._start(beats) or self._watch()
        kill_all(self._ranks)
        if self._stop:
            return self._stopped(fault)
        if fault is None and all(rank.doing == DONE for rank in self._ranks):
            _say(f"done at step {self._ranks[0].step}")
            return 0
        if fault and fault.code == USAGE_ERROR:
            print(fault.last_line, file=sys.stderr, flush=True)
            return USAGE_ERROR
        return self._again(fault)

    def _start(self, beats: pathlib.Path) -> Fault | None:
        """Starts the ranks; returns a fault if one of them cannot be started."""
        port = _free_port()
        self._ranks = []
        for number in self._numbers:
            if self._stop:
                break
            try:
                rank = Rank(number, self._command(number, port), self._attempt, self._logs, beats)
            except (OSError, PassingError) as error:  # a full disk, too many processes
                log = self._logs / f"rank_{number}.log"
                return Fault(number, f"cannot be started: {one_line(error)}", None, log, "nothing")
            self._ranks.append(rank)
        pids = ", ".join(f"rank {rank.number} is process {rank.process.pid}" for rank in self._ranks)
        _say(f"attempt {self._attempt}: {pids}; logs in {self._logs}")
        if self._stop:  # the signal came while they were being started
            send_signal(self._ranks, self._stop)
        return None

    def _watch(self) -> Fault | None:
        """Waits until all ranks have ended well (None), or one of them faults."""
        while True:
            codes = [rank.process.poll() for rank in self._ranks]
            if any(codes):
                return first_fault(self._ranks)
            if not any(code is None for code in codes):
                for rank in self._ranks:
                    rank.look()
                return None
            for rank, code in zip(self._ranks, codes, strict=True):
                rank.look()
                if code is None and rank.silent > self._limit(rank):
                    return hanging(self._ranks)
            time.sleep(POLL)

    def _limit(self, rank: Rank) -> float:
        return self._patience.hang_after if rank.stepped else max(self._patience.start_after, self._patience.hang_after)

    def _again(self, fault: Fault | None) -> int | None:
        """Waits before the next attempt and returns None, or gives up and returns the exit code."""
        what = str(fault) if fault else f"the ranks left at step {self._ranks[0].step}, as a signal asked them to"
        newest = self._newest_sealed()
        if newest > self.newest:
            self.newest, self._failures = newest, 0
            if fault is None:  # the ranks have saved, and nothing is lost by starting again at once
                _say(f"{what}: all start again from step {newest}")
                return None
        self._failures += 1
        since = f"step {self.newest}" if self.newest >= 0 else "the start"
        if self._failures >= self._patience.max_failures:
            line = f"{what}; the last line of {fault.log}: {fault.last_line}" if fault else what
            failures = f"{self._failures} failure{'s' if self._failures > 1 else ''}"
            print(f"error: given up after {failures} without a newer checkpoint since {since}: {line}", file=sys.stderr)
            return 1
        doublings = min(self._failures - 1, 60)  # a float cannot hold many more
        wait = min(self._patience.backoff * 2**doublings, _LONGEST_WAIT)
        count = f"failure {self._failures} of {self._patience.max_failures} since {since}"
        _say(f"{what}: all start again in {wait:g} s ({count})")
        end = time.monotonic() + wait
        while not self._stop and time.monotonic() < end:
            time.sleep(POLL)
        return self._stopped(None) if self._stop else None

    def _stopped(self, fault: Fault | None) -> int:
        # A rank that gets the signal before it listens for it has nothing to save.
        if fault is None or fault.code in (-self._stop, -signal.SIGINT, _INTERRUPTED):
            _say("stopped; the same command continues")
            return 0
        print(f"error: {fault} while it was being stopped", file=sys.stderr)
        return 1

    def _pass_on(self, number: int, frame: object) -> None:
        self._stop = number
        send_signal(self._ranks, number)

    def _newest_sealed(self) -> int:
        """The newest sealed step, -1 if there is none. The ranks move checkpoints aside that are damaged."""
        with contextlib.suppress(OSError):
            for step in reversed(seals.steps_on_disk(self._checkpoints)):
                if seals.seal_path(self._checkpoints, step).exists():
                    return step
        return -1


def _heartbeats() -> tempfile.TemporaryDirectory:
    """A folder for the ranks' heartbeats, on a disk of this machine."""
    try:
        return tempfile.TemporaryDirectory(prefix="transfusion-", ignore_cleanup_errors=True)
    except OSError as error:
        raise UsageError(f"no folder for temporary files: {error.strerror}: set TMPDIR to one") from error


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _say(line: str) -> None:
    print(f"supervisor: {line}", file=sys.stderr, flush=True)
