"""A seal is believed only for its own step and folder; checkpoints that are links, moved or stuck stop no run."""
# ruff: noqa: F811 - fixtures of test_checkpoint

import errno
import json
import os
import shutil

import jax.numpy as jnp
import pytest
import watched
from hypothesis import given, settings
from hypothesis import strategies as st
from test_checkpoint import (  # noqa: F401 - some are fixtures
    CONFIG,
    abstract,
    assert_same,
    counted,
    make_state,
    messages,
    restored,
    three,
    workdir,
)

from transfusion import storage
from transfusion.errors import UsageError
from transfusion.running import seals
from transfusion.running.checkpoint import CheckpointConfig, Checkpoints
from transfusion.running.restore import read_config, restore_params


@pytest.fixture
def opened():
    """The real paths of the files that were opened."""
    with watched.opened() as paths:
        yield paths


def reseal(root, name: int, **changes) -> None:
    path = root / f".seal-{name}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# --- its own step -----------------------------------------------------------------------------------------------------


def test_a_checkpoint_under_the_name_of_another_step_is_damaged(workdir, messages):
    root = workdir / "checkpoints"
    for one, other in (("200", "x"), ("300", "200"), ("x", "300")):
        (root / one).rename(root / other)
    for one, other in ((".seal-200.json", "x"), (".seal-300.json", ".seal-200.json"), ("x", ".seal-300.json")):
        (root / one).rename(root / other)
    assert restore_params(workdir)[0] == 100
    messages.clear()
    step, state, _, _ = restored(workdir)
    assert step == 100
    assert_same(state, make_state(100))
    assert messages == [
        "checkpoint 300 is damaged (.seal-300.json is of step 200): falling back to 100",
        "checkpoint 200 is damaged (.seal-200.json is of step 300): falling back to 100",
    ]


def test_the_count_of_the_state_itself_must_be_the_step(workdir, messages):
    root = workdir / "checkpoints"
    shutil.rmtree(root / "300")
    shutil.copytree(root / "200", root / "300")
    shutil.copy(root / ".seal-200.json", root / ".seal-300.json")
    reseal(root, 300, step=300)
    assert seals.damage(root, 300) is None
    for read in (lambda: restore_params(workdir)[0], lambda: restored(workdir)[0]):
        assert read() == 200
    assert all(text == "checkpoint 300 is damaged (its state is of step 200): falling back to 200" for text in messages)
    assert (root / "damaged-300").is_dir() and seals.steps_on_disk(root) == [100, 200]


def test_a_state_that_counts_no_steps_is_taken_as_it_is(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, {"params": jnp.ones(3)}, {}, CONFIG, force=True)
    assert restore_params(tmp_path, "params")[0] == 3 and read_config(tmp_path) == CONFIG


# --- its own folder ---------------------------------------------------------------------------------------------------

EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
BROKEN = {
    "not UTF-8": b"\xff\xfe{}",
    "deep": b"[" * 200_000,
    "a list": b"[]",
    "another type": b'{"step": 300, "files": [1]}',
    "no step": b'{"files": {"a": [0, "x"]}}',
    "a step that is true": b'{"step": true, "files": {"a": [0, "x"]}}',
    "a size that is no number": b'{"step": 300, "files": {"a": [1e999, "x"]}}',
    "a digest that is none": b'{"step": 300, "files": {"a": [0, null]}}',
    "no pair": b'{"step": 300, "files": {"a": 3}}',
    "a device": json.dumps({"step": 300, "files": {"/dev/zero": [0, EMPTY]}}).encode(),
    "a folder above": json.dumps({"step": 300, "files": {"../../secret": [6, EMPTY]}}).encode(),
    "a folder above, hidden": json.dumps({"step": 300, "files": {"state/../../../secret": [6, EMPTY]}}).encode(),
    "no name": json.dumps({"step": 300, "files": {"": [0, EMPTY]}}).encode(),
    "a name that is no text": b'{"step": 300, "files": {"\\ud800\\u0000\\n": [0, "x"]}}',
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_seal_that_is_none_is_damage_and_nothing_else_is_read(name, workdir, opened):
    root = workdir / "checkpoints"
    (workdir / "secret").write_text("secret")
    (root / ".seal-300.json").write_bytes(BROKEN[name])
    opened.clear()
    reason = seals.damage(root, 300)
    assert reason and "\n" not in reason and len(reason) < 300
    assert all(path.startswith(os.path.realpath(root)) for path in opened)
    assert restore_params(workdir)[0] == 200


def links(root):
    """Of one sealed file, what may be put in its place."""
    file = max((p for p in (root / "300").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = file.read_bytes()
    return file, content


@pytest.mark.parametrize("what", ["link", "linked folder", "pipe", "device", "folder"])
def test_only_regular_files_of_the_folder_are_read(what, workdir, opened):
    root = workdir / "checkpoints"
    file, content = links(root)
    outside = workdir / "outside"
    if what == "linked folder":
        shutil.move(file.parent, outside)
        file.parent.symlink_to(outside)
    else:
        file.unlink()
        outside.write_bytes(content)
        make = {"link": lambda: file.symlink_to(outside), "pipe": lambda: os.mkfifo(file), "folder": file.mkdir}
        make.get(what, lambda: file.symlink_to("/dev/zero"))()
    opened.clear()
    assert ": missing" in seals.damage(root, 300)
    assert all(path.startswith(os.path.realpath(root)) for path in opened)


def test_a_large_seal_and_a_pipe_are_not_read(workdir):
    root = workdir / "checkpoints"
    with open(root / ".seal-300.json", "wb") as file:
        file.truncate(2**40)
    assert "it holds 1,048,576 MiB" in seals.damage(root, 300)
    (root / ".seal-200.json").unlink()
    os.mkfifo(root / ".seal-200.json")
    assert "it is no file" in seals.damage(root, 200)
    assert restored(workdir)[0] == 100


def test_files_that_systems_put_into_folders_do_no_harm(workdir):
    (workdir / "checkpoints" / "300" / ".DS_Store").write_bytes(b"x")
    assert restored(workdir)[0] == 300


NAMES = st.sampled_from(
    ["/etc/hostname", "..", "../.seal-7.json", "a/../../x", "a", "d/b", "", ".", "\0", "link/x"]
) | (st.text(max_size=8))
VALUES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.lists(st.integers(), max_size=3)
)
ENTRY = st.tuples(st.integers(-1, 2**70), st.text(max_size=4)).map(list) | st.just([1, "x"]) | VALUES
SEALS = st.one_of(
    st.binary(max_size=60),
    VALUES.map(lambda value: json.dumps(value).encode()),
    st.fixed_dictionaries(
        {"step": st.just(7) | VALUES, "files": st.dictionaries(NAMES, ENTRY, max_size=4) | VALUES}
    ).map(lambda value: json.dumps(value).encode()),
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(content=SEALS, at=st.integers(0, 400), flip=st.integers(0, 255), real=st.booleans())
def test_any_seal_is_a_reason_or_none(tmp_path_factory, content, at, flip, real):
    root = tmp_path_factory.mktemp("fuzz") / "checkpoints"
    (root / "7" / "d").mkdir(parents=True)
    (root / "7" / "a").write_text("a")
    (root / "7" / "d" / "b").write_text("b")
    (root / "7" / "link").symlink_to("/etc")
    seals.write_seal(root, 7)
    path = root / ".seal-7.json"
    if real:  # one byte of a true one is another
        content = bytearray(path.read_bytes())
        content[at % len(content)] ^= flip
    path.write_bytes(content)
    with watched.confined(root):
        reason = seals.damage(root, 7)
    assert reason is None or (isinstance(reason, str) and "\n" not in reason)
    assert not (real and not flip) or reason is None


# --- links, moved and stuck checkpoints -------------------------------------------------------------------------------


def test_a_linked_checkpoint_is_read_and_only_its_link_is_deleted(workdir, tmp_path):
    root, disk = workdir / "checkpoints", tmp_path / "other disk"
    disk.mkdir()
    for step in (100, 300):
        shutil.move(root / str(step), disk / str(step))
        (root / str(step)).symlink_to(disk / str(step))
    with Checkpoints(workdir, CheckpointConfig(every=100, keep=1)) as checkpoints:
        assert checkpoints.restore(abstract(make_state(0)))[0] == 300
        checkpoints.save(400, make_state(400), {}, CONFIG, wait=True)
        assert checkpoints.steps() == [400]
    assert sorted(path.name for path in root.iterdir()) == [".seal-400.json", "400"]
    assert sorted(path.name for path in disk.iterdir()) == ["100", "300"]
    assert any((disk / "300" / "state").iterdir())


def test_a_linked_folder_of_checkpoints_works_and_a_link_to_nowhere_is_one_line(workdir, tmp_path):
    (workdir / "checkpoints").rename(tmp_path / "disk")
    (workdir / "checkpoints").symlink_to(tmp_path / "disk")
    with Checkpoints(workdir, CheckpointConfig(every=100)) as checkpoints:
        assert checkpoints.restore(abstract(make_state(0)))[0] == 300
        checkpoints.save(400, make_state(400), {}, CONFIG)
    assert restore_params(workdir)[0] == 400
    (tmp_path / "disk").rename(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="cannot write to .*checkpoints: File exists") as error:
        Checkpoints(workdir)
    assert error.value.code == 2


def test_checkpoints_that_are_moved_away_stop_nothing_and_are_whole_when_they_come_back(workdir, tmp_path, messages):
    root = workdir / "checkpoints"
    with Checkpoints(workdir, CheckpointConfig(every=100, keep=2)) as checkpoints:
        assert checkpoints.restore(abstract(make_state(0)))[0] == 300
        (root / "300").rename(tmp_path / "300")
        checkpoints.save(400, make_state(400), {}, CONFIG, wait=True)
        assert seals.steps_on_disk(root) == [200, 400]  # what is away does not count among those to keep
    assert restored(workdir)[0] == 400
    shutil.rmtree(root / "400")
    (tmp_path / "300").rename(root / "300")
    assert restored(workdir)[0] == 300
    assert messages == []


def test_the_whole_folder_may_be_moved_away_while_training(workdir, tmp_path):
    with Checkpoints(workdir, CheckpointConfig(every=100)) as checkpoints:
        checkpoints.restore(abstract(make_state(0)))
        (workdir / "checkpoints").rename(tmp_path / "away")
        checkpoints.save(400, make_state(400), {}, CONFIG, wait=True)
    assert restored(workdir)[0] == 400
    assert seals.damage(tmp_path / "away", 300) is None


@pytest.fixture
def stuck(monkeypatch):
    """Names of folders of checkpoints that cannot be renamed."""
    names, rename = set(), os.rename

    def guarded(source, target, **named):
        if os.path.basename(source) in names:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(source))
        return rename(source, target, **named)

    monkeypatch.setattr(os, "rename", guarded)
    monkeypatch.setattr(os, "replace", guarded)
    return names


def test_a_checkpoint_that_cannot_be_deleted_stays_whole_with_one_warning(workdir, stuck, messages):
    stuck.add("100")
    with Checkpoints(workdir, CheckpointConfig(every=100, keep=1)) as checkpoints:
        for step in (400, 500):
            checkpoints.save(step, make_state(step), {}, CONFIG, wait=True)
        assert checkpoints.steps() == [100, 500]
    assert ["checkpoint 100 cannot be deleted, and stays" in text for text in messages] == [True]
    assert seals.damage(workdir / "checkpoints", 100) is None


def test_a_damaged_checkpoint_that_cannot_be_moved_aside_stops_nothing(workdir, stuck, messages):
    stuck.add("300")
    (workdir / "checkpoints" / ".seal-300.json").unlink()
    with Checkpoints(workdir, CheckpointConfig(every=50, keep=2)) as checkpoints:
        assert checkpoints.restore(abstract(make_state(0)))[0] == 200
        assert checkpoints.steps() == [100, 200]
        assert checkpoints.save(250, make_state(250), {}, CONFIG, wait=True)
        assert not checkpoints.save(300, make_state(300), {}, CONFIG, wait=True)
        assert checkpoints.save(350, make_state(350), {}, CONFIG, wait=True)
        assert checkpoints.steps() == [250, 350]
    assert [text for text in messages if "cannot be moved aside" in text]
    assert [text for text in messages if "checkpoint 300 is not saved" in text]
    assert restored(workdir)[0] == 350


def test_a_folder_of_checkpoints_that_is_a_file_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "PAUSES", (0.01,))
    (tmp_path / "checkpoints").write_text("x")
    with pytest.raises(UsageError, match="cannot read the checkpoints in .*: Not a directory") as error:
        restore_params(tmp_path)
    assert error.value.code == 2
    with pytest.raises(UsageError, match="cannot write to .*: File exists"):
        Checkpoints(tmp_path)
    assert (tmp_path / "checkpoints").read_text() == "x"
