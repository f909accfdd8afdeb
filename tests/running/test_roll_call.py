"""Process 0 waits for its own, whoever else knocks, and at its own address only."""

import contextlib
import json
import socket
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfusion.errors import PassingError, UsageError
from transfusion.running.addresses import parse_address
from transfusion.running.desk import Process, read_process
from transfusion.running.roll_call import roll_call

RUN = "runs/w"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


class Waiting:
    """Process 0 of two, in a thread; `end` gives what it returned, or the error."""

    def __init__(self, count: int = 2, timeout: float = 20.0, host: str = "127.0.0.1"):
        self.address, self._result = (host, free_port()), []
        self._thread = threading.Thread(target=self._call, args=(count, timeout))
        self._thread.start()

    def _call(self, count: int, timeout: float) -> None:
        try:
            self._result.append(roll_call(self.address, count, 0, timeout, RUN))
        except Exception as error:
            self._result.append(error)

    def connect(self) -> socket.socket:
        end = time.monotonic() + 10
        while True:
            with contextlib.suppress(ConnectionRefusedError):
                return socket.create_connection(self.address, timeout=10)
            assert time.monotonic() < end
            time.sleep(0.01)

    def end(self):
        self._thread.join(40)
        (result,) = self._result
        return result


@pytest.fixture
def said(monkeypatch):
    """What it has logged."""
    lines = []
    monkeypatch.setattr("absl.logging.warning", lambda form, *given: lines.append(form % given))
    return lines


OURS = {"index": 1, "count": 2, "host": "x", "run": "r", "token": "t"}
STRANGERS = [
    {"index": [1], "count": 2, "host": "x"},
    {"index": 7, "count": 2, "host": "x"},
    {"index": "x", "count": 2, "host": "x"},
    {"index": 1, "count": 9, "host": "x"},
    OURS | {"index": True},
    OURS | {"index": 1.0},
    OURS | {"index": -1},
    OURS | {"index": 10**400},
    OURS | {"host": ["x"]},
    OURS | {"host": "a\nerror: b"},
    OURS | {"host": "x" * 300},
    OURS | {"token": None},
    OURS | {"more": 1},
    OURS,  # of another run
    OURS | {"count": 9},
    [],
    1,
    b"[" * 4000 + b"\n",
    b'{"index": NaN}\n',
    b"\xff\xfe\n",
    b"GET / HTTP/1.1\r\n\r\n",
    b"x" * 10_000,
    b"\n",
    b"",
]


def test_strangers_are_passed_over_and_named_once(said):
    first = Waiting()
    for stranger in STRANGERS:
        with first.connect() as line, contextlib.suppress(OSError):
            line.sendall(stranger if isinstance(stranger, bytes) else json.dumps(stranger).encode() + b"\n")
            line.shutdown(socket.SHUT_WR)
            line.recv(1000)
    assert roll_call(first.address, 2, 1, 20, RUN + "/") == ""
    assert first.end() == f"127.0.0.1:{first.address[1]}"
    assert said == [
        "a caller from 127.0.0.1 is ignored: it sent no message of a process",
        "a caller from 127.0.0.1 is ignored: process 1 on x was started with another --workdir",
    ]


def test_many_who_connect_and_say_nothing_do_not_hold_the_others_up(said):
    first = Waiting()
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(first.connect()) for _ in range(100)]
        silent[-1].sendall(b'{"index"')  # and nothing more
        begin = time.monotonic()
        assert roll_call(first.address, 2, 1, 20, RUN) == ""
        assert time.monotonic() - begin < 4
        first.end()
    assert said == ["a caller from 127.0.0.1 is ignored: it sent nothing"]


def test_a_process_of_another_run_is_told_so_at_once():
    first = Waiting()
    begin = time.monotonic()
    with pytest.raises(PassingError, match="was started with another --workdir"):
        roll_call(first.address, 2, 1, 20, "runs/other")
    assert time.monotonic() - begin < 5
    roll_call(first.address, 2, 1, 20, RUN)
    assert isinstance(first.end(), str)


def test_a_process_that_died_while_waiting_may_call_again():
    first = Waiting(count=3)
    with pytest.raises(PassingError, match="cannot reach process 0|it ended"):
        _call_and_leave(first, 1)
    threads = [threading.Thread(target=roll_call, args=(first.address, 3, i, 20, RUN)) for i in (1, 2)]
    for thread in threads:
        thread.start()
    assert isinstance(first.end(), str)
    for thread in threads:
        thread.join()


def _call_and_leave(first: Waiting, index: int) -> None:
    from transfusion.running import roll_call as module

    first.connect().close()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_answer", lambda line, deadline: None)  # hangs up instead of waiting
        roll_call(first.address, 3, index, 0.5, RUN)


def test_missing_processes_are_few_names_however_many_they_are():
    assert str(Waiting(count=60_000, timeout=0.2).end()) == (
        "of 60000 processes these have not started: 1, 2, 3, 4, 5 and more"
    )


def test_it_listens_at_the_coordinators_address_only():
    first = Waiting(host="127.0.0.1", timeout=3)
    first.connect().close()
    for other in ("127.0.0.2", "::1"):
        with pytest.raises(OSError):
            socket.create_connection((other, first.address[1]), timeout=2)
    assert "have not started: 1" in str(first.end())


def test_an_address_of_another_machine_is_said(said, monkeypatch):
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("203.0.113.7", 0))]
    port = free_port()
    found[0] = (*found[0][:4], ("203.0.113.7", port))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with pytest.raises(PassingError, match="have not started"):
        roll_call(("elsewhere", port), 2, 0, 0.1)
    assert said == [f"elsewhere is not this machine's: process 0 listens at port {port} of all its addresses"]


def test_a_name_that_nobody_knows_and_a_port_that_is_taken_are_one_line():
    with pytest.raises(PassingError, match="the host 'nowhere.invalid' is unknown"):
        roll_call(("nowhere.invalid", 1234), 2, 0, 0.1)
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(PassingError, match="process 0 cannot listen at port"),
    ):
        roll_call(("127.0.0.1", taken.getsockname()[1]), 2, 0, 0.1)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("host:1", ("host", 1)),
        ("a-b.c_d.example.:65535", ("a-b.c_d.example.", 65535)),
        ("10.0.0.1:80", ("10.0.0.1", 80)),
        ("[::1]:80", ("::1", 80)),
        ("host", None), (":1", None), ("host:", None), ("host:0", None), ("host:65536", None), ("host:99999", None),
        ("host:-1", None), ("host:1.5", None), ("host:٣", None), ("host:" + "9" * 5000, None), ("ho st:1", None),
        ("::1:80", None), ("[::g]:80", None), ("[host]:80", None), ("http://host:80", None), ("a" * 64 + ":1", None),
        ("a..b:1", None), ("ü:1", None), ("host:1\n", None), ("a." * 130 + "b:1", None),
    ],
)  # fmt: skip
def test_addresses(address, expected):
    if expected:
        assert parse_address("--coordinator", address) == expected
        return
    with pytest.raises(UsageError, match="^--coordinator: .* is not of the form HOST:PORT"):
        parse_address("--coordinator", address)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.fixed_dictionaries({name: JSON for name in Process._fields})


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.binary(max_size=60)
    | JSON.map(lambda value: json.dumps(value).encode())
    | FIELDS.map(lambda value: json.dumps(value).encode())
)
def test_any_message_is_a_process_or_none(data):
    found = read_process(data)
    if found is not None:
        assert type(found.index) is int and found.index >= 0 and type(found.count) is int
        assert all(isinstance(word, str) and word.isprintable() for word in found[2:])


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.text(max_size=20), st.text(max_size=6) | st.integers().map(str))
def test_any_address_is_a_host_and_a_port_or_one_line(host, port):
    try:
        found = parse_address("--coordinator", f"{host}:{port}")
    except UsageError as error:
        assert "\n" not in str(error)
    else:
        assert found[0] and 1 <= found[1] <= 65535
