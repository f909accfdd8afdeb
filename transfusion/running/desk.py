"""Where process 0 meets the others at the start, and the messages between them: lines of JSON."""

import contextlib
import json
import selectors
import socket
import time
from typing import Any, NamedTuple

from absl import logging

LONGEST_MESSAGE = 4096  # bytes of a message
PATIENCE = 5.0  # seconds that somebody who has connected may take for a message
MOST_NAMED = 5  # strangers in the log, and missing processes in an answer
_MOST_SILENT = 64  # connections that have said nothing yet; when there are more, the oldest is closed


class Process(NamedTuple):
    """One of the processes, as it presents itself to process 0.

    Attributes:
      index, count: its number, and how many processes it expects.
      host: the name of its machine.
      run: a digest that is the same in all processes of a run.
      token: random, so that one process that calls twice differs from two that were given the same number.
    """

    index: int
    count: int
    host: str
    run: str
    token: str


class _Caller:
    """Somebody who has connected, with the data that it has sent.

    Attributes:
      until: the time by which it must have said who it is.
      process: who it is, once it has said so.
    """

    def __init__(self, line: socket.socket):
        self.line, self.data, self.until = line, b"", time.monotonic() + PATIENCE
        self.process: Process | None = None


class Desk:
    """Talks to all who connect to process 0 at once, so that no connection can keep it from the others.

    Attributes:
      present: the processes that are there, by number, process 0 included.
      answer: why the run cannot start, or ''; all processes are told.
    """

    def __init__(self, server: socket.socket, me: Process):
        server.setblocking(False)
        self.present, self.answer = {0: me}, ""
        self._me, self._server = me, server
        self._callers: list[_Caller] = []
        self._passed_over: set[str] = set()
        self._selector = selectors.DefaultSelector()
        self._selector.register(server, selectors.EVENT_READ)

    def __enter__(self) -> "Desk":
        return self

    def __exit__(self, *_) -> None:
        for caller in self._callers:
            caller.line.close()
        self._selector.close()

    def work(self, deadline: float) -> None:
        """Waits until somebody connects, says something, or has been silent too long; at most to the deadline."""
        silent = [caller for caller in self._callers if caller.process is None]
        end = min([deadline, *(caller.until for caller in silent)])
        for key, _ in self._selector.select(max(end - time.monotonic(), 0)):
            if key.fileobj is self._server:
                self._accept()
            elif key.data in self._callers:
                self._hear(key.data)
        for caller in silent:
            if caller in self._callers and caller.process is None and caller.until < time.monotonic():
                self._dismiss(caller, "it sent nothing")

    def _accept(self) -> None:
        try:
            line, _ = self._server.accept()
        except OSError:  # it has gone again, or there are no more file descriptors for a while
            time.sleep(0.01)
            return
        line.setblocking(False)
        self._callers.append(caller := _Caller(line))
        self._selector.register(line, selectors.EVENT_READ, caller)
        silent = [caller for caller in self._callers if caller.process is None]
        if len(silent) > _MOST_SILENT:
            self._dismiss(silent[0], "it sent nothing")

    def _hear(self, caller: _Caller) -> None:
        try:
            more = caller.line.recv(LONGEST_MESSAGE)
        except BlockingIOError:
            return
        except OSError:
            more = b""
        if caller.process is not None:
            if not more:  # it has given up or died; it may call again
                del self.present[caller.process.index]
                self._dismiss(caller)
            return
        caller.data += more
        if not more or len(caller.data) > LONGEST_MESSAGE:
            self._dismiss(caller, "it sent no message of a process")
        elif caller.data.endswith(b"\n"):
            self._admit(caller)

    def _admit(self, caller: _Caller) -> None:
        """Admits the caller as one of the processes, or passes it over, or sets `answer` if the two disagree."""
        other = read_process(caller.data)
        if other is None:
            self._dismiss(caller, "it sent no message of a process")
            return
        if other.run != self._me.run:
            send_answer(
                caller.line, f"the process at this address, on {self._me.host}, was started with another --workdir"
            )
            self._dismiss(caller, f"process {other.index} on {other.host} was started with another --workdir")
            return
        if other.count == self._me.count and not other.index < other.count:
            self._dismiss(caller, "its number is not below the number of processes")
            return
        if (known := self.present.get(other.index)) is not None and known.token == other.token:
            self._dismiss(next(one for one in self._callers if one.process == known))
        else:
            self.answer = _disagreement(self.present, other)
        self.present.setdefault(other.index, other)
        caller.process = other

    def _dismiss(self, caller: _Caller, why: str = "") -> None:
        """Closes the connection. With a reason `why` it is logged, each reason once, and only the first few."""
        if why and why not in self._passed_over and len(self._passed_over) < MOST_NAMED:
            self._passed_over.add(why)
            with contextlib.suppress(OSError):
                logging.warning("a caller from %s is ignored: %s", caller.line.getpeername()[0], why)
        self._selector.unregister(caller.line)
        self._callers.remove(caller)
        caller.line.close()

    def tell_all(self) -> None:
        """Sends all processes the answer, and waits until they hang up, so that the port is free for jax's service."""
        lines = [caller.line for caller in self._callers if caller.process is not None]
        for line in lines:
            send_answer(line, self.answer)
        end = time.monotonic() + PATIENCE
        for line in lines:
            line.settimeout(max(end - time.monotonic(), 0.001))
            with contextlib.suppress(OSError):
                line.recv(1)


def read_process(data: bytes) -> Process | None:
    """The process that sent a message, or None if the message is not of this form."""
    message = read_message(data)
    if set(message) != set(Process._fields):
        return None
    numbers = [message["index"], message["count"]]
    words = [message["host"], message["run"], message["token"]]
    if not all(type(number) is int and 0 <= number < 2**31 for number in numbers):
        return None
    if not all(isinstance(word, str) and word.isprintable() and 0 < len(word) <= 255 for word in words):
        return None
    return Process(**message)


def _disagreement(present: dict[int, Process], other: Process) -> str:
    """Why `other` cannot be one more of the processes, or ''."""
    first, index = present[0], other.index
    if other.count != first.count:
        return (
            f"process {index} ({other.host}) was started as one of {other.count} processes, "
            f"process 0 ({first.host}) as one of {first.count}"
        )
    if index in present:
        return f"two processes were started as number {index}: on {present[index].host} and on {other.host}"
    return ""


def send_answer(line: socket.socket, answer: str) -> None:
    """Sends an answer, unless the other side has gone."""
    with contextlib.suppress(OSError):
        line.sendall(json.dumps({"answer": answer}).encode() + b"\n")


def read_message(data: bytes) -> dict[str, Any]:
    """The object of JSON in a message; {} if it cannot be read."""
    try:
        message = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return message if isinstance(message, dict) else {}
