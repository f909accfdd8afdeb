"""A program's own files are never opened through what somebody else has put in their place; workdirs that cannot be."""

import os
import pathlib
import threading

import pytest
from etils import epath

from transfusion.errors import UsageError
from transfusion.running import heartbeat, supervise
from transfusion.running.own_files import open_own, sole_use
from transfusion.workdir.place import check_workdir


def use(workdir) -> None:
    with sole_use(epath.Path(workdir)):
        pass


def test_the_lock_is_not_opened_through_a_link_and_keeps_what_it_holds(tmp_path):
    precious, lock = tmp_path / "precious", tmp_path / "w" / ".lock"
    precious.write_text("data")
    lock.parent.mkdir()
    for target in (precious, "nowhere", tmp_path, "/dev/zero"):
        lock.symlink_to(target)
        with pytest.raises(UsageError, match=r"\.lock is a link"):
            use(lock.parent)
        lock.unlink()
    assert precious.read_text() == "data" and not (lock.parent / "nowhere").exists()
    lock.write_text("kept")
    with sole_use(epath.Path(lock.parent)):
        assert lock.read_text() == "kept"
        with pytest.raises(UsageError, match="another program is at work"):
            use(lock.parent)
    use(lock.parent)


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_what_is_no_file_is_refused_and_never_waited_for(tmp_path, make):
    make(tmp_path / ".lock")
    for flags in (os.O_RDWR, os.O_WRONLY, os.O_WRONLY | os.O_APPEND):
        with pytest.raises(UsageError, match=r"\.lock is no regular file"):
            open_own(tmp_path / ".lock", flags)


def test_logs_and_heartbeats_are_not_opened_through_a_link(tmp_path, monkeypatch):
    precious = tmp_path / "precious"
    precious.write_text("data")
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "rank_0.log").symlink_to(precious)
    with pytest.raises(UsageError, match=r"rank_0\.log is a link"):
        supervise.Supervisor(lambda *_: ["true"], tmp_path, patience=supervise.Patience(max_failures=1)).run()
    (tmp_path / "beat").symlink_to(precious)
    monkeypatch.setenv(heartbeat.HEARTBEAT, str(tmp_path / "beat"))
    with pytest.raises(UsageError, match="beat is a link"):
        heartbeat.Pulse()
    assert precious.read_text() == "data"


@pytest.mark.parametrize(
    ("workdir", "says"),
    [
        ("file", "is there already, and is no folder"),
        ("file/below", "Not a directory"),
        ("/proc/xyz", "No such file or directory"),
        ("/dev/null", "is no folder"),
        ("n" * 300, "File name too long"),
        ("link", "is there already, and is no folder"),
        ("loop", "symbolic links|is there already"),
    ],
)
def test_a_workdir_that_cannot_be_is_one_line(tmp_path, monkeypatch, workdir, says):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("file").write_text("")
    pathlib.Path("link").symlink_to("nowhere")
    pathlib.Path("loop").symlink_to("loop")
    with pytest.raises(UsageError, match=says) as caught:
        use(workdir)
    assert "\n" not in str(caught.value) and caught.value.code == 2 and str(caught.value).startswith("--workdir")


@pytest.mark.parametrize(
    ("workdir", "says"),
    [
        ("az://bucket/run", "az:// is not supported for workdirs; gs://BUCKET/FOLDER or s3://BUCKET/FOLDER is"),
        ("S3://bucket/run", "S3:// is not supported for workdirs"),
        ("file:///tmp/run", "file:// is not supported for workdirs"),
        ("hf://owner/name", "hf:// is not supported for workdirs"),
        ("s3:/bucket/run", "is not of the form s3://BUCKET/FOLDER"),
        ("gs:/bucket/run", "is not of the form gs://BUCKET/FOLDER"),
        ("gs://", "is not of the form gs://BUCKET/FOLDER"),
        ("gs:///run", "is not of the form gs://BUCKET/FOLDER"),
        ("~/run", "~ is not expanded"),
        ("a\nb", "control character"),
        ("\udcff", "not UTF-8"),
    ],
)
def test_names_of_workdirs(workdir, says):
    with pytest.raises(UsageError, match=says):
        check_workdir(workdir)


@pytest.mark.parametrize("workdir", ["runs/digits", "/a b/ü", "C:run", "runs/a:b", "runs/gs:/x"])
def test_ordinary_names_of_workdirs(workdir):
    check_workdir(workdir)


def test_a_full_disk_may_have_room_later(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "open", full)
    with pytest.raises(UsageError, match="No space left") as caught:
        open_own(tmp_path / "file", os.O_RDWR)
    assert caught.value.code == 1


def test_a_lock_is_free_after_its_holder(tmp_path):
    held, done = threading.Event(), threading.Event()

    def hold():
        with sole_use(epath.Path(tmp_path)):
            held.set()
            done.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(10)
    with pytest.raises(UsageError, match="another program"):
        use(tmp_path)
    done.set()
    thread.join()
    use(tmp_path)
