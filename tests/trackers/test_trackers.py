"""Trackers: each shows numbers, pictures and the config offline, continues a run, and never stops one."""

import errno
import json
import os
import pathlib
import sqlite3
import threading
import time

import jax
import numpy as np
import pytest
from absl import logging

from transfusion.errors import UsageError
from transfusion.remote.secrets import check_no_secrets
from transfusion.running.metrics import read_metrics
from transfusion.trackers import apart, config, table, tensorboard
from transfusion.trackers.config import TrackersConfig
from transfusion.trackers.tags import tag
from transfusion.trackers.together import Trackers, flat
from transfusion.trackers.tracker import Picture

PICTURES = [Picture("drawn/0", np.full((6, 5, 3), 200, np.uint8), "a seven <b>"), Picture(
    "captioned/0", np.zeros((6, 5, 3), np.uint8), "a nine")]  # fmt: skip
CONFIG = {"steps": 20, "optim": {"learning_rate": 0.5}, "layout": {"image/context": [1, 2]}, "name": "x", "none": None}


@pytest.fixture
def messages(monkeypatch):
    found = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: found.append(text % values))
    return found


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No key and no server of this machine, and a home of its own."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "MLFLOW_TRACKING_URI", "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "offline")


def run_twice(folder: pathlib.Path, name: str) -> None:
    """A run of 20 steps with pictures that is interrupted after 10, goes back to 5 and is continued."""
    for at, steps in ((0, (5, 10)), (5, (10, 20))):
        trackers = Trackers(folder, TrackersConfig((name,), project="tests"), CONFIG)
        trackers.start(at)
        for step in steps:
            trackers.scalars(step, {"loss": 1 / step, "held_out_loss": None, "steps_per_second": 2.0})
        trackers.media(steps[-1], PICTURES)
        trackers.finish()
    assert [row["step"] for row in read_metrics(folder / "metrics.jsonl")] == [5, 10, 20]


def test_the_table_has_the_names_of_the_config():
    assert tuple(table.TRACKERS) == config.NAMES
    with pytest.raises(UsageError, match="'wandbb' is none of tensorboard, wandb, .* .did you mean 'wandb'"):
        TrackersConfig(("wandbb",))


def test_names_are_grouped():
    names = ("loss", "image_loss", "held_out_image_loss", "grad_norm_trunk", "steps_per_second", "image_by_time_3",
             "device_memory_peak_bytes", "packing_all", "data_wait_share", "text_nll",
             "telemetry_output_text_trunk_0")  # fmt: skip
    assert [tag(name) for name in names] == [
        "loss/all", "loss/image", "held_out/image_loss", "optimizer/grad_norm_trunk",
        "speed/steps_per_second", "noise_levels/image_by_time_3", "memory/peak_bytes", "rows/packing_all",
        "speed/data_wait_share", "train/text_nll", "telemetry/output_text_trunk_0",
    ]  # fmt: skip
    assert flat(CONFIG) == {"steps": 20, "optim.learning_rate": 0.5, "layout.image.context": "[1, 2]", "name": "x"}


def test_pictures_lie_in_the_workdir_whatever_the_trackers(tmp_path):
    trackers = Trackers(tmp_path, TrackersConfig(()), CONFIG)
    trackers.start(0)
    trackers.media(20, PICTURES)
    folder = tmp_path / "samples" / "training"
    rows = json.loads((folder / "step-00000020.json").read_text())
    assert [(row["name"], row["caption"]) for row in rows] == [("drawn/0", "a seven <b>"), ("captioned/0", "a nine")]
    assert all((folder / row["file"]).read_bytes().startswith(b"\x89PNG") for row in rows)


def test_tensorboard_groups_shows_pictures_and_the_config_and_hides_what_is_done_again(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run_twice(tmp_path / "run", "tensorboard")
    seen = event_accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    losses = [(e.step, round(e.value, 4)) for e in seen.Scalars("loss/all")]
    assert losses == [(5, 0.2), (10, 0.1), (20, 0.05)]
    assert {"loss/all", "speed/steps_per_second"} == set(seen.Tags()["scalars"])
    assert {"samples/drawn/0", "samples/captioned/0"} == set(seen.Tags()["images"])
    (caption,) = seen.Tensors("samples/captions/text_summary")[-1].tensor_proto.string_val
    assert caption == b"- drawn/0: a seven &lt;b&gt;\n- captioned/0: a nine\n"
    assert {"_hparams_/experiment", "_hparams_/session_start_info"} <= seen.summary_metadata.keys()
    hparams = seen.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert b"optim.learning_rate" in hparams and b"layout.image.context" in hparams


def test_weights_and_biases_offline(tmp_path, offline):
    pytest.importorskip("wandb")
    run_twice(tmp_path / "run", "wandb")
    id = json.loads((tmp_path / "run" / "tracked_as.json").read_text())["id"]
    files = sorted((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
    assert [path.name for path in files] == [f"run-{id}.wandb"] * 2  # `wandb sync` puts both into one run
    content = b"".join(path.read_bytes() for path in files)
    assert all(text in content for text in (b"loss/all", b"a seven <b>", b"learning_rate", b"tests"))
    assert len(list((tmp_path / "run" / "wandb").glob("offline-run-*/files/media/images/samples/*.png"))) == 4


def test_trackio(tmp_path, offline, monkeypatch):
    sqlite_storage = pytest.importorskip("trackio.sqlite_storage")
    monkeypatch.setattr(sqlite_storage, "TRACKIO_DIR", tmp_path / "trackio")
    run_twice(tmp_path / "run", "trackio")
    (database,) = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(database) as connection:
        rows = connection.execute("select run_name, step, metrics from metrics order by id").fetchall()
    assert len({name for name, *_ in rows}) == 1  # the second start has continued the run of the first
    losses = [(step, json.loads(m)["loss/all"]) for _, step, m in rows if "loss/all" in json.loads(m)]
    assert losses == [(5, 0.2), (10, 0.1), (10, 0.1), (20, 0.05)]
    assert any(
        b"a nine" in bytes(metrics) if isinstance(metrics, bytes) else "a nine" in metrics for _, _, metrics in rows
    )


def test_mlflow(tmp_path, offline):
    tracking = pytest.importorskip("mlflow.tracking")
    run_twice(tmp_path / "run", "mlflow")
    client = tracking.MlflowClient(f"sqlite:///{tmp_path}/run/mlflow.db")
    experiment = client.get_experiment_by_name("tests").experiment_id
    (run,) = client.search_runs([experiment])
    assert run.info.status == "FINISHED" and run.data.params["optim.learning_rate"] == "0.5"
    losses = [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, "loss/all")]
    assert sorted(set(losses)) == [(5, 0.2), (10, 0.1), (20, 0.05)]
    folder = pathlib.Path(run.info.artifact_uri.removeprefix("file://"))
    assert folder.is_relative_to(tmp_path / "run")
    assert len(list(folder.glob("images/*.png"))) == 4
    captions = json.loads((folder / "samples" / "captions-00000020.json").read_text())
    assert captions == {"drawn/0": "a seven <b>", "captioned/0": "a nine"}


def test_tensorboard_that_cannot_be_written_stops_nothing(tmp_path, messages, monkeypatch):
    (tmp_path / "tensorboard").write_text("a file")
    trackers = Trackers(tmp_path, TrackersConfig(), CONFIG)
    trackers.start(0)
    for step in range(1, 30):
        trackers.scalars(step, {"loss": 1.0})
    trackers.start(10)
    trackers.scalars(11, {"loss": 1.0})
    trackers.finish()
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 11
    assert [text.startswith("tensorboard stopped at scalars: ") for text in messages] == [True]


def test_tensorboard_on_a_disk_that_fills_up_stops_nothing(tmp_path, messages, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tensorboard, "FLUSH_EVERY", 0.0)
    monkeypatch.setattr("tensorboardX.event_file_writer.EventsWriter.flush", full)
    trackers = Trackers(tmp_path, TrackersConfig(), CONFIG)
    trackers.start(0)
    for step in range(2, 30):
        trackers.scalars(step, {"loss": 1.0})
    trackers.finish()
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 28
    (said,) = messages
    assert "tensorboard stopped at scalars: no space left on the disk" in said


class Broken:
    """Fails at the second row, or waits for ever."""

    def __init__(self, hang: bool = False):
        self.rows, self.hang = 0, hang

    def start(self, run, at):
        pass

    def scalars(self, step, numbers):
        self.rows += 1
        if self.hang:
            threading.Event().wait()
        if self.rows == 2:
            raise ConnectionError("no route\nto host")

    media = finish = None


@pytest.mark.parametrize("hang", (False, True))
def test_a_tracker_that_fails_or_hangs_is_named_once_and_stops_nothing(tmp_path, monkeypatch, messages, hang):
    broken = Broken(hang)
    monkeypatch.setitem(table.TRACKERS, "wandb", table.Row(lambda: broken, "json", "wandb"))
    monkeypatch.setattr("transfusion.trackers.together.PATIENCE", 0.2)
    monkeypatch.setattr(apart, "WAITING", 8)
    trackers = Trackers(tmp_path, TrackersConfig(("wandb",)), CONFIG)
    trackers.start(0)
    for step in range(1, 30):
        trackers.scalars(step, {"loss": 1.0})
        time.sleep(0.002)
    trackers.finish()
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 29
    if hang:
        assert [text.split(" ")[:4] for text in messages] == [["wandb", "is", "slower", "than"], [
            "wandb", "does", "not", "answer,"]]  # fmt: skip
    else:
        assert messages == [
            "wandb stopped at scalars: no route to host; the training goes on, and metrics.jsonl has every row"
        ]


def test_what_is_not_installed_is_said_at_the_start(tmp_path, monkeypatch):
    monkeypatch.setitem(table.TRACKERS, "wandb", table.Row(Broken, "no_such_module", "wandb"))
    with pytest.raises(UsageError, match=r"no_such_module is not installed: pip install 'transfusion\[wandb\]'"):
        Trackers(tmp_path, TrackersConfig(("wandb",)), CONFIG)


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    trackers = Trackers(tmp_path / "run", TrackersConfig(("tensorboard", "wandb")), CONFIG)
    trackers.start(0)
    trackers.scalars(1, {"loss": 1.0})
    trackers.media(1, PICTURES)
    trackers.finish()
    assert not (tmp_path / "run").exists()


SECRET = "0123456789abcdefghijklmn"


@pytest.mark.parametrize(
    "argument, name",
    [
        (f"--wandb_api_key={SECRET}", "wandb_api_key"),
        (f"--config.trackers.api_key={SECRET}", "config.trackers.api_key"),
        ("--hf_token", "hf_token"),
        (f"--password={SECRET}", "password"),
        (f"--config.data.data_dir=https://user:{SECRET}@host/x", "config.data.data_dir"),
        (f"hf_{SECRET}", "an argument"),
    ],
)
def test_secrets_on_a_command_line_are_refused_and_not_repeated(argument, name):
    with pytest.raises(UsageError, match=f"^{name}: a secret on a command line") as error:
        check_no_secrets(["train", "--config", "x.py", argument, SECRET])
    assert SECRET not in str(error.value)


def test_other_arguments_are_no_secrets():
    check_no_secrets(["sample", "--max_tokens=3", "--config.tokenizer.path=x", "--config.streams.text.embed=token",
                      "--config.data.data_dir=gs://bucket/a@b", "--prompt", "a password=7 and a token"])  # fmt: skip
