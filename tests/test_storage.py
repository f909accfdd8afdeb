"""Storage that fails for a while costs time; storage that goes on failing is one line, and what is intact stays."""
# ruff: noqa: F811 - fixtures of test_checkpoint

import errno
import os
import shutil
import subprocess
import sys
import time

import pytest
from test_checkpoint import (  # noqa: F401 - some are fixtures
    CONFIG,
    abstract,
    assert_same,
    counted,
    largest_file,
    make_state,
    messages,
    three,
    workdir,
)

from transfusion import storage
from transfusion.errors import UsageError
from transfusion.running import checkpoint as checkpoint_lib
from transfusion.running import seals
from transfusion.running.checkpoint import CheckpointConfig, CheckpointError, Checkpoints
from transfusion.running.restore import restore_params

OPERATIONS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.scandir", "os.listdir"}
_failing: dict[str, int] = {}  # part of a path -> how many operations there are still to fail


def _hook(event: str, arguments: tuple) -> None:
    if not _failing or event not in OPERATIONS or not isinstance(arguments[0], str | os.PathLike):
        return
    for part, left in _failing.items():
        if left and part in os.fspath(arguments[0]):
            _failing[part] -= 1
            raise OSError(errno.EIO, os.strerror(errno.EIO), os.fspath(arguments[0]))


sys.addaudithook(_hook)  # Python's own operations; it cannot be removed


@pytest.fixture
def failing(monkeypatch):
    """{part of a path: number of operations that fail there}; pauses are short."""
    monkeypatch.setattr(storage, "PAUSES", (0.01, 0.02, 0.04, 0.08))
    yield _failing
    _failing.clear()


def test_a_save_that_failed_in_the_background_is_made_anew_at_a_later_step(tmp_path, failing, messages):
    with Checkpoints(tmp_path, CheckpointConfig(every=10)) as checkpoints:
        assert checkpoints.save(10, make_state(10), {"next": 10}, CONFIG)
        checkpoints.wait()
        failing["20.orbax-checkpoint-tmp"] = 3
        checkpoints.save(20, make_state(20), {"next": 20}, CONFIG)
        for step in range(21, 10_000):
            checkpoints.check()
            if checkpoints.due(step):
                break
            time.sleep(0.001)
        assert step % 10 or failing["20.orbax-checkpoint-tmp"] < 3
        assert checkpoints.save(step, make_state(step), {"next": step}, CONFIG)
    assert any("20 not saved: " in text and "trying again in" in text for text in messages)
    with Checkpoints(tmp_path) as checkpoints:
        at, state, data, _ = checkpoints.restore(abstract(make_state(0)))
    assert (at, data) == (step, {"next": step})
    assert_same(state, make_state(step))


@pytest.mark.parametrize("part", ["orbax-checkpoint-tmp", ".seal-400"])
def test_the_last_save_is_tried_until_it_is_sealed(part, workdir, failing):
    with Checkpoints(workdir) as checkpoints:
        failing[part] = 3
        assert checkpoints.save(400, make_state(4), {}, CONFIG, force=True, wait=True)
        assert not failing[part]
        assert seals.damage(workdir / "checkpoints", 400) is None


@pytest.mark.parametrize("part", ["orbax-checkpoint-tmp", ".seal-400"])
def test_storage_that_goes_on_failing_is_one_line_and_what_is_intact_stays(part, workdir, failing):
    failing[part] = 10**6
    said = "checkpoint 400 not .*(saved|written): .*[Ii]nput/output error"
    with pytest.raises(CheckpointError, match=said) as error, Checkpoints(workdir) as checkpoints:
        checkpoints.save(400, make_state(4), {}, CONFIG, force=True, wait=True)
    assert error.value.code == 1  # the same command may work later
    assert "\n" not in str(error.value)
    failing.clear()
    with Checkpoints(workdir) as checkpoints:
        assert checkpoints.restore(abstract(make_state(0)))[0] == 300


@pytest.mark.parametrize("part", ["/run/checkpoints", "/300/"])
def test_what_cannot_be_read_for_a_while_is_not_damaged(part, workdir, failing, messages):
    failing[part] = 3
    with Checkpoints(workdir) as checkpoints:
        assert checkpoints.restore(abstract(make_state(0)))[0] == 300
    assert not failing[part]
    assert not any("damaged" in text for text in messages)


def test_storage_that_cannot_be_read_is_one_line_and_nothing_is_moved(workdir, failing):
    before = sorted(path.name for path in (workdir / "checkpoints").iterdir())
    with Checkpoints(workdir) as checkpoints:
        failing["/run/checkpoints"] = 10**6
        for read in (lambda: checkpoints.restore(abstract(make_state(0))), lambda: restore_params(workdir)):
            with pytest.raises(UsageError, match="cannot be read and stay as they are: .*Input/output error") as error:
                read()
            assert error.value.code == 1
        failing.clear()
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == before


def test_one_file_that_can_never_be_read_is_damage(workdir, failing, messages):
    failing[str(largest_file(workdir / "checkpoints" / "300"))] = 10**6
    assert restore_params(workdir)[0] == 200
    assert any("300 is damaged (" in text and "Input/output error" in text for text in messages)


def test_too_little_space_is_one_line_before_the_save(three, tmp_path, monkeypatch):
    shutil.copytree(three, tmp_path / "run")
    monkeypatch.setattr(checkpoint_lib.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    with Checkpoints(tmp_path / "run") as checkpoints:
        with pytest.raises(CheckpointError, match=r"checkpoint 500 not saved: it takes up to 0.3 MiB .* 0.0 MiB free"):
            checkpoints.save(500, make_state(5), {}, {})
        assert checkpoints.restore(abstract(make_state(0)))[0] == 300


@pytest.fixture
def small_disk(tmp_path):
    """An 8 MB file system."""
    path = tmp_path / "disk"
    path.mkdir()
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("needs root to mount a small tmpfs")
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(path)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount a tmpfs: {done.stderr.strip()}")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)  # a failed writer may still hold it


def test_a_disk_that_fills_up_during_the_save_is_one_line(small_disk, monkeypatch, capfd, messages):
    monkeypatch.setattr(checkpoint_lib, "_check_space", lambda *_: None)  # another program takes the space meanwhile
    small, large = make_state(1, 256), make_state(2, 900)
    with Checkpoints(small_disk, CheckpointConfig(every=1)) as checkpoints:
        checkpoints.save(1, small, {}, CONFIG)
        checkpoints.wait()
        for _ in range(2):  # the second failure is like the first
            checkpoints.save(2, large, {}, CONFIG)
            with pytest.raises(CheckpointError, match="^checkpoint 2 not saved: no space left on the disk; .*: .1.$"):
                for _ in range(200):
                    checkpoints.check()
                    time.sleep(0.05)
        assert not list((small_disk / "checkpoints").glob("*tmp*"))
        assert checkpoints.save(3, counted(small, 3), {}, CONFIG)  # the run may go on
    with Checkpoints(small_disk) as checkpoints:
        assert checkpoints.restore(abstract(small))[0] == 3
    assert messages == []
    assert len(capfd.readouterr().err.splitlines()) <= 2


def test_a_failed_save_does_not_hide_the_error_that_ended_the_run(small_disk, monkeypatch, messages):
    monkeypatch.setattr(checkpoint_lib, "_check_space", lambda *_: None)
    with pytest.raises(ZeroDivisionError), Checkpoints(small_disk) as checkpoints:
        checkpoints.save(0, make_state(0, 1500), {}, CONFIG)
        raise ZeroDivisionError
    assert ["not saved: no space left" in text for text in messages] == [True]
    with pytest.raises(CheckpointError, match="no space left"), Checkpoints(small_disk) as checkpoints:
        checkpoints.save(0, make_state(0, 1500), {}, CONFIG)
