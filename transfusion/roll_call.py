"""Are all processes there? Asked before jax.distributed, which ends a process that waits in vain without a word to it.

Process 0 listens at the coordinator's port, which jax's service takes after it; the others tell it who they are, and
all are told the same answer. The messages are lines of JSON.
"""

import contextlib
import json
import socket
import time
from typing import Any

from transfusion.errors import PassingError

_LONGEST = 4096  # bytes of a message
_PATIENCE = 5.0  # seconds that somebody who has connected may take for a message


def roll_call(address: str, count: int, index: int, timeout: float) -> None:
    """Returns when `count` processes have called; process 0 listens at the port of `address`, 'host:port'.

    Raises:
      PassingError: if some are missing after `timeout` seconds, or two do not agree on who they are.
    """
    host, _, port = address.rpartition(":")
    me = {"index": index, "count": count, "host": socket.gethostname()}
    if index == 0:
        answer = _listen(int(port), me, time.monotonic() + timeout)
    else:
        answer = _call((host.strip("[]"), int(port)), me, timeout)
    if answer:
        raise PassingError(answer)


def _listen(port: int, me: dict[str, Any], deadline: float) -> str:
    """What process 0 does; returns what is wrong, or ''."""
    six = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if six else socket.AF_INET
    try:
        server = socket.create_server(("", port), family=family, backlog=me["count"], dualstack_ipv6=six)
    except OSError as error:
        raise PassingError(f"process 0 cannot listen at port {port} of {me['host']}: {error.strerror}") from error
    present, answer = {0: me}, ""
    with contextlib.ExitStack() as stack:
        stack.enter_context(server)
        lines = []
        while not answer and len(present) < me["count"]:
            server.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                line = stack.enter_context(server.accept()[0])
            except TimeoutError:
                missing = sorted(set(range(me["count"])) - set(present))
                answer = f"of {me['count']} processes these have not started: {', '.join(map(str, missing))}"
                break
            other = _read(line)
            if not {"index", "count", "host"} <= other.keys():
                continue  # a stranger
            lines.append(line)
            answer = _disagreement(present, other)
            present[other["index"]] = other
        for line in lines:
            with contextlib.suppress(OSError):
                line.sendall(json.dumps({"answer": answer}).encode() + b"\n")
        for line in lines:  # so that this end closes last: the port is free at once for jax's service
            with contextlib.suppress(OSError):
                line.recv(1)
    return answer


def _disagreement(present: dict[int, dict[str, Any]], other: dict[str, Any]) -> str:
    """Why `other` cannot be one more of the processes, or ''."""
    first, index = present[0], other["index"]
    if other["count"] != first["count"]:
        return (
            f"process {index} ({other['host']}) was started as one of {other['count']} processes, "
            f"process 0 ({first['host']}) as one of {first['count']}"
        )
    if index in present:
        return f"two processes were started as number {index}: on {present[index]['host']} and on {other['host']}"
    return ""


def _call(address: tuple[str, int], me: dict[str, Any], timeout: float) -> str:
    """What the others do; returns what is wrong, or ''."""
    deadline = time.monotonic() + timeout
    why = "no answer"
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection(address, timeout=min(left, _PATIENCE)) as line:
                line.sendall(json.dumps(me).encode() + b"\n")
                # Process 0 waits until its own deadline, which may be later than this one's.
                answer = _read(line, left + _PATIENCE)
        except OSError as error:
            why = error.strerror or str(error)
        else:
            if "answer" in answer:
                return str(answer["answer"])
            why = "it ended, or another program listens there"
        time.sleep(min(0.2, max(left, 0)))
    where = f"{address[0]}:{address[1]}"
    return f"process {me['index']} cannot reach process 0 at {where} within {timeout:g} seconds: {why}"


def _read(line: socket.socket, patience: float = _PATIENCE) -> dict[str, Any]:
    """One message; {} if none comes that can be read."""
    line.settimeout(patience)
    data = b""
    try:
        while not data.endswith(b"\n") and len(data) < _LONGEST:
            if not (more := line.recv(_LONGEST)):
                break
            data += more
        message = json.loads(data)
    except (OSError, ValueError):
        return {}
    return message if isinstance(message, dict) else {}
