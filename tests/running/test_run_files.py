"""The files of a run: replaced whole, appended to line by line, read as far as they go, one line when that fails."""
# ruff: noqa: F811 - fixtures of test_checkpoint

import errno
import json
import os
import subprocess
import sys

import pytest
import watched
from hypothesis import given, settings
from hypothesis import strategies as st
from test_checkpoint import messages  # noqa: F401 - a fixture

from transfusion import storage
from transfusion.errors import UsageError
from transfusion.running import provenance
from transfusion.running.metrics import MetricWriter, is_row, read_metrics


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(storage, "PAUSES", (0.01, 0.02))


def fails(number: int, times: int = 10**6):
    """A function that raises this OSError so often, and calls `then` from then on."""
    left = [times]

    def of(then):
        def function(*arguments, **named):
            if left[0]:
                left[0] -= 1
                raise OSError(number, os.strerror(number))
            return then(*arguments, **named)

        return function

    return of


# --- writing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [
        (errno.ENOSPC, 1, "No space left on device"),
        (errno.EDQUOT, 1, "Disk quota exceeded"),
        (errno.EIO, 1, r"Input/output error \(3 attempts\)"),
        (errno.EROFS, 2, "Read-only file system"),
        (errno.EFBIG, 2, "File too large"),
    ],
)
def test_a_write_that_fails_is_one_line_and_leaves_the_old_file(number, code, words, tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    storage.write_whole(path, "old")
    monkeypatch.setattr(storage.os, "replace", fails(number)(os.replace))
    with pytest.raises(UsageError, match=f"cannot write .*config.json: .*{words}") as error:
        storage.write_whole(path, "new")
    assert error.value.code == code and "\n" not in str(error.value)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["config.json"]


def test_a_write_that_fails_for_a_while_is_tried_again(tmp_path, monkeypatch):
    monkeypatch.setattr(storage.os, "replace", fails(errno.ESTALE, 2)(os.replace))
    storage.write_whole(tmp_path / "x", "caf\u00e9 \udc80")
    assert (tmp_path / "x").read_text("utf-8") == "caf\u00e9 \\udc80"


@pytest.mark.parametrize(
    ("name", "words"),
    [("folder", "Is a directory"), ("file/below", "Not a directory"), ("m" * 300, "File name too long")],
)
def test_what_is_in_the_way_is_one_line(name, words, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    for write in (lambda path: storage.write_whole(path, "x"), lambda path: storage.append_line(path, "x")):
        with pytest.raises(UsageError, match=f"cannot write .*: {words}") as error:
            write(tmp_path / name)
        assert error.value.code == 2
    with pytest.raises(UsageError, match=words):
        storage.check_writable(tmp_path / name)
    with pytest.raises(UsageError, match="cannot write to .*file/below: Not a directory"):
        provenance.record_command(tmp_path / "file" / "below")


def test_links_pipes_and_leftovers_are_not_followed(tmp_path):
    outside = tmp_path / "outside"
    outside.write_text("theirs")
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.json", "config.json.tmp", "commands.jsonl"):
        (run / name).symlink_to(outside)
    os.mkfifo(run / "pipe")
    storage.write_whole(run / "config.json", "ours")
    with pytest.raises(UsageError, match="cannot write .*commands.jsonl: a symbolic link is in its place"):
        provenance.record_command(run)
    with pytest.raises(UsageError, match="pipe: it is no file"):
        storage.append_line(run / "pipe", "x")
    with pytest.raises(UsageError, match="pipe: it is no file"):
        read_metrics(run / "pipe")
    assert outside.read_text() == "theirs" and (run / "config.json").read_text() == "ours"
    assert not (run / "config.json").is_symlink()


def test_lines_survive_a_line_that_a_crash_cut_short(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"st')
    storage.append_line(path, '{"step": 2}')
    assert path.read_text() == '{"step": 1}\n{"st\n{"step": 2}\n'
    assert read_metrics(path) == [{"step": 1}, {"step": 2}]


LIMITED = """
import resource, sys
from transfusion import storage
from transfusion.running.metrics import MetricWriter
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
writer = MetricWriter(sys.argv[1])
for step in range(1, 100):
    try:
        writer.write(step, {"loss": 1 / 3})
    except storage.UsageError as error:
        print(error)
        break
"""


def test_a_file_that_may_not_grow_keeps_whole_lines(tmp_path):
    command = [sys.executable, "-c", LIMITED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"JAX_PLATFORMS": "cpu"})
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"cannot write {tmp_path / 'metrics.jsonl'}: File too large\n"
    content = (tmp_path / "metrics.jsonl").read_text()
    assert content.endswith("}\n") and 900 < len(content) <= 1000
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == list(range(1, content.count("\n") + 1))


def test_a_folder_that_is_away_for_a_while_is_waited_for(tmp_path, monkeypatch):
    run, away = tmp_path / "run", tmp_path / "away"
    writer = MetricWriter(run)
    writer.write(1, {"loss": 1.0})
    run.rename(away)
    monkeypatch.setattr(storage.time, "sleep", lambda _: away.rename(run))
    writer.write(2, {"loss": 0.5})
    assert len(read_metrics(run / "metrics.jsonl")) == 2
    run.rename(away)
    monkeypatch.setattr(storage.time, "sleep", lambda _: None)
    with pytest.raises(storage.StorageError, match="its folder is gone") as error:
        writer.write(3, {"loss": 0.5})
    assert error.value.code == 1


# --- reading ----------------------------------------------------------------------------------------------------------

GOOD = [{"step": 10, "loss": 0.5}, {"step": 20, "loss": None, "nonfinite": {"loss": "nan"}}]
BAD = [
    b"\xff", b'{"step": 1e999}', b"[" * 200_000, b'{"step": -1}', b'{"step": 1.5}', b'{"step": true}', b'{"step": "3"}',
    b'{"loss": 1}', b"[]", b"3", b'{"step": 15, "loss": "low"}', b'{"step": 15, "loss": NaN}',
    b'{"step": 15, "loss": 1e999}', b'{"step": 15, "loss": ' + b"9" * 5000 + b"}", b'{"step": 15, "los', b"\0\0\0",
    b'{"step": ' + b"9" * 30 + b"}",
]  # fmt: skip


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: repr(bad[:20]))
def test_a_damaged_line_is_left_out_with_a_warning_and_the_file_is_kept(bad, tmp_path, messages):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps(row).encode() for row in GOOD]
    path.write_bytes(lines[0] + b"\n" + bad + b"\n" + lines[1] + b"\n" + bad)
    before = path.read_bytes()
    assert read_metrics(path) == GOOD
    assert messages == [f"{path}: line 2 and 1 more lines are damaged, and left out; 2 rows were read"]
    writer = MetricWriter(tmp_path)
    writer.truncate(20)
    writer.write(30, {"loss": 0.25})
    assert [row["step"] for row in read_metrics(path)] == [10, 20, 30]
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == before


def test_a_line_separator_inside_a_string_ends_no_line(tmp_path):
    path = tmp_path / provenance.COMMANDS
    path.write_text(json.dumps({"command": "a\u2028b\x0cc"}, ensure_ascii=False) + "\n", "utf-8")
    assert provenance.read_commands(tmp_path) == [{"command": "a\u2028b\x0cc"}]


def test_what_can_never_be_read_is_one_line_and_is_not_replaced(tmp_path, monkeypatch):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(UsageError, match="cannot read .*metrics.jsonl: Is a directory"):
        MetricWriter(tmp_path)
    (tmp_path / "metrics.jsonl").rmdir()
    with open(tmp_path / "metrics.jsonl", "wb") as file:
        file.truncate(2**40)  # takes no room
    with pytest.raises(UsageError, match="metrics.jsonl: it holds 1,048,576 MiB, more than 256; move it away"):
        MetricWriter(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    monkeypatch.setattr(storage, "read_bytes", fails(errno.EIO)(None))
    with pytest.raises(storage.StorageError, match="Input/output error"):  # not taken for an empty file
        MetricWriter(tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n'


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6) | st.just("step"), inner, max_size=4)
    ),
    max_leaves=8,
)
LINE = st.binary(max_size=40) | JSON.map(lambda value: json.dumps(value).encode()) | st.just(b'{"step": 3, "a": 1.5}')


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(LINE, max_size=6), st.sampled_from([b"\n", b"\r\n", b"\n\n"]), st.booleans())
def test_any_bytes_are_read_as_metrics_and_commands(tmp_path_factory, lines, end, complete):
    folder = tmp_path_factory.mktemp("fuzz")
    content = end.join(lines) + (end if complete else b"")
    for name in ("metrics.jsonl", provenance.COMMANDS):
        (folder / name).write_bytes(content)
    with watched.confined(folder):
        rows, commands = read_metrics(folder / "metrics.jsonl"), provenance.read_commands(folder)
    assert all(is_row(row) for row in rows)
    whole = sum(line == b'{"step": 3, "a": 1.5}' for line in content.replace(b"\r", b"").split(b"\n"))
    assert len(rows) >= whole
    assert all(isinstance(row["command"], str) for row in commands)
    writer = MetricWriter(folder)
    writer.truncate(2**62)
    last = max((row["step"] for row in rows if row["step"] <= 2**62), default=0)
    writer.write(last + 1, {"loss": 1.0})
    assert read_metrics(folder / "metrics.jsonl")[-1] == {"step": last + 1, "loss": 1.0}
