"""Keeps the processes ("ranks") of a training at work: starts them, watches them, starts all again when one faults.

`python -m transfusion.train --supervise` is this parent. It uses no device. Each rank tells what it is about through a
heartbeat (`Pulse`), a small local file, so that one that hangs is seen and named as surely as one that dies. The ranks
go on from the newest intact checkpoint; a run is given up when it keeps failing without a newer one.
"""

import contextlib
import dataclasses
import datetime
import faulthandler
import math
import os
import pathlib
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

from absl import flags
from etils import epath

from transfusion.errors import PassingError, UsageError
from transfusion.running import seals
from transfusion.running.addresses import parse_address
from transfusion.running.own_files import open_own
from transfusion.storage import one_line

HEARTBEAT = "TRANSFUSION_HEARTBEAT"  # names a rank's file
READS, COMPUTES, EVALUATES, SAVES = "waits for data", "computes", "evaluates", "saves a checkpoint"
DONE = "has made all steps"
_POLL = 0.05  # seconds
_LONGEST_WAIT = 300.0
_USAGE_ERROR = 2
_INTERRUPTED = 128 + signal.SIGINT  # how one of several processes ends at Ctrl-C
_MOST_LOCAL = 256  # ranks of one machine
# What launchers tell of which rank this is: JAX, Slurm, Open MPI, Kubernetes, a TPU pod. It names the log.
_RANK_VARIABLES = ("JAX_PROCESS_ID", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "JOB_COMPLETION_INDEX", "TPU_WORKER_ID")


# --- in a rank --------------------------------------------------------------------------------------------------------


class Pulse:
    """What a rank tells its supervisor; does nothing in a run without one.

    A supervised rank writes the stacks of all its threads to stderr on SIGUSR1, and asks itself to save and leave by
    SIGTERM when its supervisor is gone.
    """

    def __init__(self):
        path = os.environ.get(HEARTBEAT)
        self._file = open_own(path, os.O_WRONLY) if path else None
        self._stepped = False
        if self._file is not None:
            self._parent = os.getppid()
            faulthandler.register(signal.SIGUSR1, all_threads=True)

    def beat(self, step: int, doing: str) -> None:
        """Says that `step` updates are made and what comes now (costs microseconds)."""
        if self._file is None:
            return
        os.pwrite(self._file, f"{step}|{doing}|{self._stepped}|{time.time():.3f}".ljust(72).encode(), 0)
        if self._parent and os.getppid() != self._parent:
            self._parent = 0
            os.kill(os.getpid(), signal.SIGTERM)

    def stepped(self, wait: Callable[[], object]) -> None:
        """After a step; `wait` returns when its result is there, and is called after the first: every rank has then
        compiled the step, and none of them waits for another's compiler any more."""
        if not self._stepped:
            wait()
            self._stepped = True


# --- in the supervisor ------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Patience:
    """When a run is given up, and what counts as a fault. Times are seconds.

    Attributes:
      max_failures: faults in a row, without a newer intact checkpoint, after which the run is given up.
      backoff: wait before the first restart; doubles with each further fault without a newer checkpoint.
      hang_after: a rank that takes longer for a step, an evaluation or a save hangs.
      start_after: the same until the first step is made: start-up, restoring, compilation.
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
    """--supervise and how patient it is."""
    flags.DEFINE_bool("supervise", False, "Start the training again when it faults; with --processes=N, all N of it.")
    flags.DEFINE_integer("max_failures", Patience.max_failures, "Faults without a newer checkpoint before giving up.")
    flags.DEFINE_float("backoff", Patience.backoff, "Seconds before the first restart; doubles with each further one.")
    flags.DEFINE_float("hang_after", Patience.hang_after, "Seconds without a step after which a rank hangs.")
    flags.DEFINE_float("start_after", Patience.start_after, "The same until the first step.")


def from_flags(module: str) -> "Supervisor":
    """The supervisor of this command: of N ranks on this machine if only --processes=N is given, else of the one rank
    that the flags or the environment say that this is."""
    given = flags.FLAGS
    if given.coordinator:
        parse_address("--coordinator", given.coordinator)
    patience = Patience(given.max_failures, given.backoff, given.hang_after, given.start_after)
    command = [sys.executable, "-m", module, *sys.argv[1:], "--nosupervise"]
    if given.processes > 1 and not (given.coordinator or "JAX_COORDINATOR_ADDRESS" in os.environ):
        if given.processes > _MOST_LOCAL:
            raise UsageError(
                f"--supervise --processes={given.processes} would start all of them on this machine, which takes at "
                f"most {_MOST_LOCAL}; with --coordinator=HOST:PORT and --process_id it starts one"
            )

        def local(rank: int, port: int) -> list[str]:
            return [*command, f"--coordinator=127.0.0.1:{port}", f"--process_id={rank}"]

        return Supervisor(local, given.workdir, range(given.processes), patience)
    told = [given.process_id, *(int(x) for name in _RANK_VARIABLES if (x := os.environ.get(name, "")).isdecimal())]
    return Supervisor(lambda *_: command, given.workdir, [next((rank for rank in told if rank >= 0), 0)], patience)


class Supervisor:
    """Runs the ranks of a training to its end.

    Args:
      command: gives a rank's command from its number and a free port of this machine.
      workdir: the run's; its `logs/rank_<i>.log` get what rank i writes, attempt after attempt. Of a bucket's folder
        they are in a folder of its name here.
      ranks: numbers of the ranks that are started here.
    """

    def __init__(
        self,
        command: Callable[[int, int], Sequence[str]],
        workdir: str | os.PathLike,
        ranks: Sequence[int] = (0,),
        patience: Patience | None = None,
    ):
        root = epath.Path(workdir)
        # A file of a bucket cannot grow: there the logs stay on this machine.
        folder = pathlib.Path(root.name) if "://" in str(workdir) else pathlib.Path(workdir).expanduser()
        self._command, self._numbers, self._patience = command, ranks, patience or Patience()
        self._checkpoints, self._logs = root / "checkpoints", folder.absolute() / "logs"
        self._ranks: list[_Rank] = []
        self._stop = 0
        self._attempt = self._failures = 0
        self._newest = self._newest_intact()

    def run(self) -> int:
        """Returns the exit code: 0 at the end of the training or after a SIGTERM that was passed on, 2 if a rank says
        that it was called wrongly, 1 if the run is given up."""
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
            _kill(self._ranks)
            for number, handler in before.items():
                signal.signal(number, handler)

    def _once(self, beats: pathlib.Path) -> int | None:
        """One attempt; returns the exit code, or None if there is to be another."""
        self._attempt += 1
        fault = self._start(beats) or self._watch()
        _kill(self._ranks)
        if self._stop:
            return self._stopped(fault)
        if fault is None and all(rank.doing == DONE for rank in self._ranks):
            _say(f"done at step {self._ranks[0].step}")
            return 0
        if fault and fault.code == _USAGE_ERROR:
            print(fault.last_line, file=sys.stderr, flush=True)
            return _USAGE_ERROR
        return self._again(fault)

    def _start(self, beats: pathlib.Path) -> "_Fault | None":
        """Starts the ranks; returns why one cannot be."""
        port = _free_port()
        self._ranks = []
        for number in self._numbers:
            if self._stop:
                break
            try:
                rank = _Rank(number, self._command(number, port), self._attempt, self._logs, beats)
            except (OSError, PassingError) as error:  # a full disk, too many processes
                log = self._logs / f"rank_{number}.log"
                return _Fault(number, f"cannot be started: {one_line(error)}", None, log, "nothing")
            self._ranks.append(rank)
        pids = ", ".join(f"rank {rank.number} is process {rank.process.pid}" for rank in self._ranks)
        _say(f"attempt {self._attempt}: {pids}; logs in {self._logs}")
        if self._stop:  # the signal came while they were being started
            _signal(self._ranks, self._stop)
        return None

    def _watch(self) -> "_Fault | None":
        """Waits until all ranks have ended well (None), or one has not."""
        while True:
            codes = [rank.process.poll() for rank in self._ranks]
            if any(codes):
                return _first_fault(self._ranks)
            if not any(code is None for code in codes):
                for rank in self._ranks:
                    rank.look()
                return None
            for rank, code in zip(self._ranks, codes, strict=True):
                rank.look()
                if code is None and rank.silent > self._limit(rank):
                    return _hanging(self._ranks)
            time.sleep(_POLL)

    def _limit(self, rank: "_Rank") -> float:
        return self._patience.hang_after if rank.stepped else max(self._patience.start_after, self._patience.hang_after)

    def _again(self, fault: "_Fault | None") -> int | None:
        """Waits before the next attempt (None), or gives up."""
        what = str(fault) if fault else f"the ranks left at step {self._ranks[0].step}, as a signal asked them to"
        newest = self._newest_intact()
        if newest > self._newest:
            self._newest, self._failures = newest, 0
            if fault is None:  # they have saved: nothing is lost by starting again at once
                _say(f"{what}: all start again from step {newest}")
                return None
        self._failures += 1
        since = f"step {self._newest}" if self._newest >= 0 else "the start"
        if self._failures >= self._patience.max_failures:
            line = f"{what}; the last line of {fault.log}: {fault.last_line}" if fault else what
            failures = f"{self._failures} failure{'s' if self._failures > 1 else ''}"
            print(f"error: given up after {failures} without a newer checkpoint since {since}: {line}", file=sys.stderr)
            return 1
        doublings = min(self._failures - 1, 60)  # of many more a float knows nothing
        wait = min(self._patience.backoff * 2**doublings, _LONGEST_WAIT)
        count = f"failure {self._failures} of {self._patience.max_failures} since {since}"
        _say(f"{what}: all start again in {wait:g} s ({count})")
        end = time.monotonic() + wait
        while not self._stop and time.monotonic() < end:
            time.sleep(_POLL)
        return self._stopped(None) if self._stop else None

    def _stopped(self, fault: "_Fault | None") -> int:
        # A rank that the signal meets before it listens has nothing to save.
        if fault is None or fault.code in (-self._stop, -signal.SIGINT, _INTERRUPTED):
            _say("stopped; the same command continues")
            return 0
        print(f"error: {fault} while it was being stopped", file=sys.stderr)
        return 1

    def _pass_on(self, number: int, frame: object) -> None:
        self._stop = number
        _signal(self._ranks, number)

    def _newest_intact(self) -> int:
        """The newest sealed step, -1 if there is none; what the ranks find damaged they set aside."""
        with contextlib.suppress(OSError):
            for step in reversed(seals.steps_on_disk(self._checkpoints)):
                if seals.seal_path(self._checkpoints, step).exists():
                    return step
        return -1


class _Rank:
    """One running process and what is known of it."""

    def __init__(self, number: int, command: Sequence[str], attempt: int, logs: pathlib.Path, beats: pathlib.Path):
        self.number, self.log = number, logs / f"rank_{number}.log"
        self.step, self.doing, self.stepped = -1, "starts", False
        self._beats, self._last = beats / str(number), ""
        self._beats.write_text("")
        with open(open_own(self.log, os.O_WRONLY | os.O_APPEND), "a") as log:
            now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            log.write(f"=== attempt {attempt} of rank {number}, {now}: {shlex.join(command)}\n")
            log.flush()
            self._begin = log.tell()
            # A session of its own: Ctrl-C reaches it once, and its workers end with it.
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                env=os.environ | {HEARTBEAT: str(self._beats)},
            )  # fmt: skip
        self._since = time.monotonic()

    def look(self) -> None:
        """Reads the heartbeat. One that cannot be read is none."""
        with contextlib.suppress(OSError, ValueError):
            beat = self._beats.read_text()
            if beat != self._last:
                step, self.doing, stepped, _ = beat.split("|")
                self.step, self.stepped, self._last, self._since = int(step), stepped == "True", beat, time.monotonic()

    @property
    def silent(self) -> float:
        """Seconds since the last heartbeat."""
        return time.monotonic() - self._since

    def last_line(self) -> str:
        """What it wrote last in this attempt."""
        with open(self.log, "rb") as log:
            log.seek(max(self._begin, log.seek(0, os.SEEK_END) - 20_000))
            lines = log.read().decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "nothing")


@dataclasses.dataclass(frozen=True)
class _Fault:
    """Which rank, how it ended, its exit code (None: it hangs), its log and the last line there."""

    rank: int
    how: str
    code: int | None
    log: pathlib.Path
    last_line: str

    def __str__(self) -> str:
        return f"rank {self.rank} {self.how}"


def _first_fault(ranks: Sequence[_Rank]) -> _Fault:
    """The rank whose end is the cause: what aborts or fails may do so because another did."""
    end = time.monotonic() + 1.0
    while True:
        ended = [rank for rank in ranks if rank.process.poll()]
        cause = min(ended, key=lambda rank: _severity(rank.process.returncode))
        if _severity(cause.process.returncode) < 2 or len(ended) == len(ranks) or time.monotonic() > end:
            break
        time.sleep(_POLL)
    code = cause.process.returncode
    how = f"ended with exit code {code}" if code > 0 else f"was killed by {_name(-code)}"
    return _Fault(cause.number, how, code, cause.log, cause.last_line())


def _name(number: int) -> str:
    with contextlib.suppress(ValueError):  # most of the real-time signals have no name
        return signal.Signals(number).name
    return f"signal {number}"


def _severity(code: int) -> int:
    """Whoever is killed is the cause; jax aborts those that lose another."""
    return 3 if code == -signal.SIGABRT else 0 if code < 0 else 1 if code == _USAGE_ERROR else 2


def _hanging(ranks: Sequence[_Rank]) -> _Fault:
    """Of the ranks that wait for each other, the one that the others wait for: it does not answer, or is behind."""
    alive = [rank for rank in ranks if rank.process.poll() is None]
    sizes = {rank.number: rank.log.stat().st_size for rank in alive}
    lines = {rank.number: rank.last_line() for rank in alive}
    _signal(alive, signal.SIGUSR1)  # they write their stacks
    answers, end = {}, time.monotonic() + 2.0
    while not (answers and all(answers.values())) and time.monotonic() < end:
        time.sleep(_POLL)
        answers = {rank.number: rank.log.stat().st_size > sizes[rank.number] for rank in alive}
    worst = min(alive, key=lambda r: (answers[r.number], r.step, r.doing == COMPUTES, -r.silent))
    state = "its stacks are in its log" if answers[worst.number] else "it does not answer a signal"
    after = f"after step {worst.step}, where it {worst.doing}" if worst.step >= 0 else "while it starts"
    how = f"hangs: nothing for {worst.silent:.0f} s {after}; {state}"
    return _Fault(worst.number, how, None, worst.log, lines[worst.number])


def _signal(ranks: Sequence[_Rank], number: int) -> None:
    for rank in ranks:
        if rank.process.poll() is None:
            rank.process.send_signal(number)


def _kill(ranks: Sequence[_Rank]) -> None:
    """Ends the ranks and the processes that they started. A checkpoint that is being written is lost, no other."""
    for rank in ranks:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(rank.process.pid, signal.SIGKILL)
    for rank in ranks:
        rank.process.wait()


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
