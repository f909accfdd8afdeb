"""Are all processes there? Asked before jax.distributed, which ends a process that waits in vain without a word to it.

Process 0 listens at the coordinator's address, which jax's service takes after it; the others tell it who they are, and
all are told the same answer. The messages are lines of JSON. Whoever else calls (a scanner of ports, a process of
another run that was told this address) is passed over, and never ends the start. This tells accidents apart, not
attackers: jax's service itself asks nobody who they are, so the port belongs behind a firewall.
"""

import contextlib
import errno
import hashlib
import json
import secrets
import selectors
import socket
import time
from typing import Any, NamedTuple

from absl import logging

from transfusion.errors import PassingError, UsageError

_LONGEST = 4096  # bytes of a message
_PATIENCE = 5.0  # seconds that somebody who has connected may take for a message
_MOST_SILENT = 64  # who have connected and said nothing yet; of more, the first go
_BACKLOG = 1024  # who may wait to be let in; the system takes fewer
_MOST_NAMED = 5  # strangers in the log, and missing processes in an answer


class Process(NamedTuple):
    """One of the processes, as it tells the others. `run` is a digest of what all of a run are started with, `token`
    tells one process that calls twice from two that are given the same number."""

    index: int
    count: int
    host: str
    run: str
    token: str


def roll_call(address: tuple[str, int], count: int, index: int, timeout: float, run: str = "") -> str:
    """Returns when `count` processes have called; process 0 listens at `address`.

    Args:
      address: host and port of process 0.
      run: the same in all processes of a run, such as its workdir.

    Returns:
      In process 0, where it has listened ('host:port', of this machine alone); '' if that was at all of its addresses,
      and in the other processes.

    Raises:
      PassingError: if some are missing after `timeout` seconds, or two do not agree on who they are.
      UsageError: if process 0 may not listen at the port.
    """
    digest = hashlib.sha256(run.rstrip("/").encode("utf-8", "surrogateescape")).hexdigest()[:16]
    me = Process(index, count, socket.gethostname() or "?", digest, secrets.token_hex(8))
    if index == 0:
        answer, where = _listen(address, me, time.monotonic() + timeout)
    else:
        answer, where = _call(address, me, timeout), ""
    if answer:
        raise PassingError(answer)
    return where


# --- process 0 --------------------------------------------------------------------------------------------------------


def _listen(address: tuple[str, int], me: Process, deadline: float) -> tuple[str, str]:
    """What is wrong, or '', and where it has listened."""
    server, where = _server(address, me, deadline)
    with server, _Desk(server, me) as desk:
        while not desk.answer and len(desk.present) < me.count:
            if time.monotonic() >= deadline:
                missing = [str(i) for i in range(me.count) if i not in desk.present]
                named = ", ".join(missing[:_MOST_NAMED]) + (" and more" * (len(missing) > _MOST_NAMED))
                desk.answer = f"of {me.count} processes these have not started: {named}"
                if where.startswith("127.") and address[0] not in (where.rpartition(":")[0], "localhost"):
                    # As /etc/hosts often has a machine's own name; the others' machines know it better.
                    desk.answer += f" (process 0 listens at {where} only, which is what {address[0]} means there)"
                break
            desk.work(deadline)
        desk.tell_all()
    return desk.answer, where


def _server(address: tuple[str, int], me: Process, deadline: float) -> tuple[socket.socket, str]:
    """A socket that listens at the first address that the host's name means (version 4 before 6), and where that is."""
    host, port = address
    for family, *_, place in _resolved(host, port, deadline):
        try:
            server = socket.create_server(place, family=family, backlog=_BACKLOG)
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                continue
            raise _cannot_listen(port, me, error) from error
        return server, f"[{place[0]}]:{port}" if ":" in place[0] else f"{place[0]}:{port}"
    logging.warning("%s is no address of this machine: process 0 listens at port %d of all that it has", host, port)
    six = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if six else socket.AF_INET
    try:
        return socket.create_server(("", port), family=family, backlog=_BACKLOG, dualstack_ipv6=six), ""
    except OSError as error:
        raise _cannot_listen(port, me, error) from error


def _cannot_listen(port: int, me: Process, error: OSError) -> UsageError:
    kind = UsageError if error.errno in (errno.EACCES, errno.EPERM) else PassingError
    return kind(f"process 0 cannot listen at port {port} of {me.host}: {error.strerror}")


def _resolved(host: str, port: int, deadline: float) -> list[tuple]:
    """What the system knows of `host`, whose name may take a while to be known (a pod's, in Kubernetes)."""
    while True:
        try:
            return sorted(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM), key=lambda found: found[0])
        except OSError as error:
            if time.monotonic() >= deadline:
                raise PassingError(f"--coordinator: nothing is known of the host {host!r}: {error.strerror}") from error
        time.sleep(0.2)


class _Caller:
    """Somebody who has connected: by when it must have said who it is, and what it has said."""

    def __init__(self, line: socket.socket):
        self.line, self.data, self.until = line, b"", time.monotonic() + _PATIENCE
        self.process: Process | None = None


class _Desk:
    """Where process 0 meets all who connect, none of whom can keep it from the others.

    Attributes:
      present: the processes that are there, by number; process 0 too.
      answer: what is wrong, or ''.
    """

    def __init__(self, server: socket.socket, me: Process):
        server.setblocking(False)
        self.present, self.answer = {0: me}, ""
        self._me, self._server = me, server
        self._callers: list[_Caller] = []
        self._passed_over: set[str] = set()
        self._selector = selectors.DefaultSelector()
        self._selector.register(server, selectors.EVENT_READ)

    def __enter__(self) -> "_Desk":
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
                self._dismiss(caller, "has said nothing")

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
            self._dismiss(silent[0], "has said nothing")

    def _hear(self, caller: _Caller) -> None:
        try:
            more = caller.line.recv(_LONGEST)
        except BlockingIOError:
            return
        except OSError:
            more = b""
        if caller.process is not None:
            if not more:  # it has given up, or died, and may call again
                del self.present[caller.process.index]
                self._dismiss(caller)
            return
        caller.data += more
        if not more or len(caller.data) > _LONGEST:
            self._dismiss(caller, "speaks another language")
        elif caller.data.endswith(b"\n"):
            self._admit(caller)

    def _admit(self, caller: _Caller) -> None:
        """Takes the caller as one of the processes, or passes it over, or finds what is wrong."""
        other = read_process(caller.data)
        if other is None:
            self._dismiss(caller, "speaks another language")
            return
        if other.run != self._me.run:
            _say(caller.line, f"the process at this address, on {self._me.host}, was started with another --workdir")
            self._dismiss(caller, f"(process {other.index} on {other.host}) was started with another --workdir")
            return
        if other.count == self._me.count and not other.index < other.count:
            self._dismiss(caller, "has a number that no process has")
            return
        if (known := self.present.get(other.index)) is not None and known.token == other.token:
            self._dismiss(next(one for one in self._callers if one.process == known))
        else:
            self.answer = _disagreement(self.present, other)
        self.present.setdefault(other.index, other)
        caller.process = other

    def _dismiss(self, caller: _Caller, why: str = "") -> None:
        """Hangs up. The first few of those who are passed over are named in the log, each reason once."""
        if why and why not in self._passed_over and len(self._passed_over) < _MOST_NAMED:
            self._passed_over.add(why)
            with contextlib.suppress(OSError):
                logging.warning("passed over at the start: somebody at %s %s", caller.line.getpeername()[0], why)
        self._selector.unregister(caller.line)
        self._callers.remove(caller)
        caller.line.close()

    def tell_all(self) -> None:
        """Gives every process the answer, and lets it hang up first: so the port is free at once for jax's service."""
        lines = [caller.line for caller in self._callers if caller.process is not None]
        for line in lines:
            _say(line, self.answer)
        end = time.monotonic() + _PATIENCE
        for line in lines:
            line.settimeout(max(end - time.monotonic(), 0.001))
            with contextlib.suppress(OSError):
                line.recv(1)


def read_process(data: bytes) -> Process | None:
    """The process that a message tells of, or None if it is none of ours."""
    message = _read(data)
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


# --- the others -------------------------------------------------------------------------------------------------------


def _call(address: tuple[str, int], me: Process, timeout: float) -> str:
    """What the others do; returns what is wrong, or ''."""
    deadline = time.monotonic() + timeout
    why = "no answer"
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection(address, timeout=min(left, _PATIENCE)) as line:
                line.sendall(json.dumps(me._asdict()).encode() + b"\n")
                # Process 0 waits until its own deadline, which may be later than this one's.
                answer = _answer(line, deadline + _PATIENCE)
        except OSError as error:
            why = error.strerror or str(error)
        else:
            if answer is not None:
                return answer
            why = "it ended, or another program listens there"
        time.sleep(min(0.2, max(left, 0)))
    where = f"{address[0]}:{address[1]}"
    return f"process {me.index} cannot reach process 0 at {where} within {timeout:g} seconds: {why}"


def _answer(line: socket.socket, deadline: float) -> str | None:
    """What process 0 says, or None if it hangs up without, or somebody else speaks there."""
    data = b""
    while not data.endswith(b"\n") and len(data) <= _LONGEST:
        line.settimeout(max(deadline - time.monotonic(), 0.001))
        if not (more := line.recv(_LONGEST)):
            break
        data += more
    answer = _read(data).get("answer")
    return answer if isinstance(answer, str) and (answer.isprintable()) else None


# --- messages ---------------------------------------------------------------------------------------------------------


def _say(line: socket.socket, answer: str) -> None:
    with contextlib.suppress(OSError):
        line.sendall(json.dumps({"answer": answer}).encode() + b"\n")


def _read(data: bytes) -> dict[str, Any]:
    """One message; {} if it cannot be read."""
    try:
        message = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return message if isinstance(message, dict) else {}
