"""Storage that fails for a while costs time; storage that goes on failing is one line, and what is intact stays."""

import errno
import os
import shutil
import sys
import time

import pytest
from test_checkpoint import CONFIG, abstract, assert_same, largest_file, make_state, messages, save_steps  # noqa: F401

from transfusion import seals, storage
from transfusion.checkpoint import CheckpointConfig, CheckpointError, Checkpoints, restore_params
from transfusion.errors import UsageError

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


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    path = tmp_path_factory.mktemp("three")
    save_steps(path, 100, 200, 300)
    return path


@pytest.fixture
def workdir(three, tmp_path):
    shutil.copytree(three, tmp_path / "run")
    return tmp_path / "run"


def test_a_save_that_failed_in_the_background_is_made_anew_at_a_later_step(tmp_path, failing, messages):  # noqa: F811
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
def test_what_cannot_be_read_for_a_while_is_not_damaged(part, workdir, failing, messages):  # noqa: F811
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


def test_one_file_that_can_never_be_read_is_damage(workdir, failing, messages):  # noqa: F811
    failing[str(largest_file(workdir / "checkpoints" / "300"))] = 10**6
    assert restore_params(workdir)[0] == 200
    assert any("300 is damaged (" in text and "Input/output error" in text for text in messages)
