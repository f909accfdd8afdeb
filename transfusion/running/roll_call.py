"""Waits until all processes of a run are there, and says which are missing.

This comes before jax.distributed, which ends a process that waits in vain without saying why. Process 0 listens at the
coordinator's address, which jax's service takes over from it. The other processes tell it who they are, and all of them
get the same answer. Whoever else connects (a port scanner, or a process of another run with this address) is passed
over and cannot stop the start. This protects against accidents, not attackers: jax's service asks nobody who they are,
so the port belongs behind a firewall.
"""

import errno
import hashlib
import json
import secrets
import socket
import time

from absl import logging

from transfusion.errors import PassingError, UsageError
from transfusion.running.desk import LONGEST_MESSAGE, MOST_NAMED, PATIENCE, Desk, Process, read_message

_BACKLOG = 1024  # connections that may wait to be accepted; the system takes fewer


def roll_call(address: tuple[str, int], count: int, index: int, timeout: float, run: str = "") -> str:
    """Returns when all `count` processes are there; process 0 listens at `address`, the others call it.

    Args:
      address: host and port of process 0.
      run: the same in all processes of a run, such as its workdir.

    Returns:
      The address 'host:port' of this machine at which process 0 has listened. It is '' if process 0 has listened at all
      of its addresses, and in the other processes.

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
    """Collects the other processes; returns why the run cannot start, or '', and the address where this listened."""
    server, where = _server(address, me, deadline)
    with server, Desk(server, me) as desk:
        while not desk.answer and len(desk.present) < me.count:
            if time.monotonic() >= deadline:
                missing = [str(i) for i in range(me.count) if i not in desk.present]
                named = ", ".join(missing[:MOST_NAMED]) + (" and more" * (len(missing) > MOST_NAMED))
                desk.answer = f"of {me.count} processes these have not started: {named}"
                if where.startswith("127.") and address[0] not in (where.rpartition(":")[0], "localhost"):
                    # /etc/hosts often gives a machine's own name such an address, unlike the other machines.
                    desk.answer += f" (process 0 listens at {where} only, which is what {address[0]} means there)"
                break
            desk.work(deadline)
        desk.tell_all()
    return desk.answer, where


def _server(address: tuple[str, int], me: Process, deadline: float) -> tuple[socket.socket, str]:
    """Listens at the first address of this machine that the host's name means, version 4 before 6.

    Returns:
      (the socket, its address 'host:port', or '' if it listens at all addresses).
    """
    host, port = address
    for family, *_, place in _resolved(host, port, deadline):
        try:
            server = socket.create_server(place, family=family, backlog=_BACKLOG)
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                continue
            raise _cannot_listen(port, me, error) from error
        return server, f"[{place[0]}]:{port}" if ":" in place[0] else f"{place[0]}:{port}"
    logging.warning("%s is not this machine's: process 0 listens at port %d of all its addresses", host, port)
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
    """The addresses of `host`. It waits until the name is known, which takes a while for a pod in Kubernetes."""
    while True:
        try:
            return sorted(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM), key=lambda found: found[0])
        except OSError as error:
            if time.monotonic() >= deadline:
                raise PassingError(f"--coordinator: the host {host!r} is unknown: {error.strerror}") from error
        time.sleep(0.2)


# --- the others -------------------------------------------------------------------------------------------------------


def _call(address: tuple[str, int], me: Process, timeout: float) -> str:
    """Calls process 0 until it answers; returns why the run cannot start, or ''."""
    deadline = time.monotonic() + timeout
    why = "no answer"
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection(address, timeout=min(left, PATIENCE)) as line:
                line.sendall(json.dumps(me._asdict()).encode() + b"\n")
                # Process 0 waits until its own deadline, which may be later than this one's.
                answer = _answer(line, deadline + PATIENCE)
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
    """The answer of process 0, or None if it hangs up without one, or another program listens there."""
    data = b""
    while not data.endswith(b"\n") and len(data) <= LONGEST_MESSAGE:
        line.settimeout(max(deadline - time.monotonic(), 0.001))
        if not (more := line.recv(LONGEST_MESSAGE)):
            break
        data += more
    answer = read_message(data).get("answer")
    return answer if isinstance(answer, str) and (answer.isprintable()) else None
