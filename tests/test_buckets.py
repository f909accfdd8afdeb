"""A workdir in a bucket: all but orbax's own arrays, on a file system in memory that takes gs:// as Google's does."""

import json

import fsspec
import pytest
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem

from transfusion.errors import UsageError
from transfusion.running import provenance, seals
from transfusion.running.metrics import MetricWriter, read_metrics
from transfusion.running.own_files import sole_use
from transfusion.workdir.place import check_workdir


class Bucket(MemoryFileSystem):
    """Names as gcsfs has them: without the scheme and without a slash before them."""

    protocol = ("gs", "gcs")
    root_marker = ""
    store, pseudo_dirs = {}, [""]

    @classmethod
    def _strip_protocol(cls, path):
        return str(path).removeprefix("gs://").removeprefix("gcs://").strip("/")


@pytest.fixture
def bucket():
    fsspec.register_implementation("gcs", Bucket, clobber=True)
    Bucket.store.clear()
    Bucket.clear_instance_cache()
    return epath.Path("gs://bucket/run")


def test_metrics_and_commands_grow_in_a_bucket(bucket):
    writer = MetricWriter(bucket)
    for step in (1, 2, 3):
        writer.write(step, {"loss": 1 / step})
    writer.truncate(2)
    writer.write(3, {"loss": 0.25})
    rows = read_metrics(bucket / "metrics.jsonl")
    assert [(row["step"], row["loss"]) for row in rows] == [(1, 1), (2, 0.5), (3, 0.25)]
    for _ in range(2):
        provenance.record_command(bucket)
    assert len(provenance.read_commands(bucket)) == 2


def test_checkpoints_in_a_bucket_are_sealed_and_checked(bucket):
    root = bucket / "checkpoints"
    for step in (1, 2):
        for name in ("state/d/0", "_METADATA"):
            path = root / str(step) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{step} {name}")
        seals.write_seal(root, step)
    assert set(json.loads(seals.seal_path(root, 2).read_text())["files"]) == {"state/d/0", "_METADATA"}
    assert seals.steps_on_disk(root) == [1, 2]
    assert seals.damage(root, 2) is None
    (root / "2" / "state" / "d" / "0").write_text("2 state/d/1")
    assert "state/d/0: checksum differs" in seals.damage(root, 2)
    seals.move_aside(root, [2])
    assert seals.steps_on_disk(root) == [1] and (root / "damaged-2" / "_METADATA").exists()
    (root / "2.orbax-checkpoint-tmp").mkdir()
    (root / "2.orbax-checkpoint-tmp" / "part").write_text("x")
    seals.remove_leftovers(root)
    assert sorted(path.name for path in root.iterdir()) == [".seal-1.json", "1", "damaged-2"]


def test_what_cannot_be_written_is_one_clear_line(tmp_path):
    with sole_use(epath.Path("gs://bucket/run")):
        pass
    for workdir, message in (
        ("", "--workdir is missing"),
        ("az://bucket/run", "az:// is not supported for workdirs; gs://BUCKET/FOLDER or s3://BUCKET/FOLDER is"),
        ("hf://owner/name", "hf:// is not supported for workdirs"),
    ):
        with pytest.raises(UsageError, match=message):
            check_workdir(workdir)
    check_workdir(str(tmp_path))
