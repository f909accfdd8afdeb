"""The processes ("ranks") that a supervisor starts: their logs, their heartbeats, and which of them is at fault."""

import contextlib
import dataclasses
import datetime
import os
import pathlib
import shlex
import signal
import subprocess
import time
from collections.abc import Sequence

from transfusion.running.heartbeat import COMPUTES, HEARTBEAT
from transfusion.running.own_files import open_own

USAGE_ERROR = 2  # exit code
POLL = 0.05  # seconds


class Rank:
    """One running process, with its log and its heartbeat.

    Attributes:
      number: the rank's.
      log: the file with its output.
      step, doing: what its last heartbeat says; -1 and 'starts' before the first.
      stepped: whether it has made a step.
    """

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
            # It has a session of its own, so that Ctrl-C reaches it once, and its workers end with it.
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                env=os.environ | {HEARTBEAT: str(self._beats)},
            )  # fmt: skip
        self._since = time.monotonic()

    def look(self) -> None:
        """Reads the heartbeat, unless it cannot be read."""
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
        """The last line that the rank wrote in this attempt."""
        with open(self.log, "rb") as log:
            log.seek(max(self._begin, log.seek(0, os.SEEK_END) - 20_000))
            lines = log.read().decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "nothing")


@dataclasses.dataclass(frozen=True)
class Fault:
    """Why an attempt ended.

    Attributes:
      rank: the number of the rank at fault.
      how: how it ended, in words that follow 'rank 0'.
      code: its exit code; None if it hangs or could not be started.
      log, last_line: its log, and the last line there.
    """

    rank: int
    how: str
    code: int | None
    log: pathlib.Path
    last_line: str

    def __str__(self) -> str:
        return f"rank {self.rank} {self.how}"


def first_fault(ranks: Sequence[Rank]) -> Fault:
    """The fault of the rank that ended first by itself: others may abort or fail because that one did."""
    end = time.monotonic() + 1.0
    while True:
        ended = [rank for rank in ranks if rank.process.poll()]
        cause = min(ended, key=lambda rank: _severity(rank.process.returncode))
        if _severity(cause.process.returncode) < 2 or len(ended) == len(ranks) or time.monotonic() > end:
            break
        time.sleep(POLL)
    code = cause.process.returncode
    how = f"ended with exit code {code}" if code > 0 else f"was killed by {_name(-code)}"
    return Fault(cause.number, how, code, cause.log, cause.last_line())


def _name(number: int) -> str:
    with contextlib.suppress(ValueError):  # most of the real-time signals have no name
        return signal.Signals(number).name
    return f"signal {number}"


def _severity(code: int) -> int:
    """How likely this exit code is a consequence: a killed rank is the cause; jax aborts ranks that lose another."""
    return 3 if code == -signal.SIGABRT else 0 if code < 0 else 1 if code == USAGE_ERROR else 2


def hanging(ranks: Sequence[Rank]) -> Fault:
    """The fault of the rank that the others wait for: it does not answer a signal, or is behind the others."""
    alive = [rank for rank in ranks if rank.process.poll() is None]
    sizes = {rank.number: rank.log.stat().st_size for rank in alive}
    lines = {rank.number: rank.last_line() for rank in alive}
    send_signal(alive, signal.SIGUSR1)  # they write their stacks
    answers, end = {}, time.monotonic() + 2.0
    while not (answers and all(answers.values())) and time.monotonic() < end:
        time.sleep(POLL)
        answers = {rank.number: rank.log.stat().st_size > sizes[rank.number] for rank in alive}
    worst = min(alive, key=lambda r: (answers[r.number], r.step, r.doing == COMPUTES, -r.silent))
    state = "its stacks are in its log" if answers[worst.number] else "it does not answer a signal"
    after = f"after step {worst.step}, where it {worst.doing}" if worst.step >= 0 else "while it starts"
    how = f"hangs: nothing for {worst.silent:.0f} s {after}; {state}"
    return Fault(worst.number, how, None, worst.log, lines[worst.number])


def send_signal(ranks: Sequence[Rank], number: int) -> None:
    for rank in ranks:
        if rank.process.poll() is None:
            rank.process.send_signal(number)


def kill_all(ranks: Sequence[Rank]) -> None:
    """Ends the ranks and the processes that they started. Only a checkpoint that is being written is lost."""
    for rank in ranks:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(rank.process.pid, signal.SIGKILL)
    for rank in ranks:
        rank.process.wait()
