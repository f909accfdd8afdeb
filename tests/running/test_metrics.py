"""Metrics: means of sums and weights; rows stay unique, in order and valid JSON."""

import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transfusion.running.metrics import MetricWriter, Progress, human, means, progress_text, read_metrics


def test_means_divide_sums_by_weights_and_no_weight_is_none():
    vector = (jnp.array([1.0, 0.0, 6.0]), jnp.array([2.0, 0.0, 3.0]))
    row = means({"text": (6.0, 2.0), "image": (0.0, 0.0), "by_time": vector})
    assert row == {"text": 3.0, "image": None, "by_time_0": 0.5, "by_time_1": None, "by_time_2": 2.0}


def test_rows_keep_full_precision_and_are_on_disk_at_once(tmp_path):
    value = 0.1 + 0.2
    writer = MetricWriter(tmp_path)
    writer.write(10, {"loss": value, "image_loss": None, "text_loss": jnp.float32(1 / 3), "tokens": 7})
    (row,) = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert row == {"step": 10, "loss": value, "image_loss": None, "text_loss": float(np.float32(1 / 3)), "tokens": 7}
    assert "nonfinite" not in row


def test_numbers_that_are_not_finite_are_null_and_named(tmp_path):
    writer = MetricWriter(tmp_path)
    writer.write(1, {"loss": jnp.nan, "norm": float("-inf"), "fine": 1.0})

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    row = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    wild = {"loss": "nan", "norm": "-inf"}
    assert row == {"step": 1, "loss": None, "norm": None, "fine": 1.0, "nonfinite": wild}


def test_resuming_drops_later_rows_and_a_line_cut_short(tmp_path):
    writer = MetricWriter(tmp_path)
    for step in (10, 20, 30):
        writer.write(step, {"loss": step / 7})
    first = (tmp_path / "metrics.jsonl").read_text().splitlines()[0]
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 40, "lo')
    writer = MetricWriter(tmp_path)
    with pytest.raises(ValueError, match="step 20 after those of step 30"):
        writer.write(20, {"loss": 0.0})
    writer.truncate(15)
    writer.write(20, {"loss": 5.0})
    writer.truncate(20)  # a rollback in the middle of a run
    writer.write(25, {"loss": 6.0})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert lines[0] == first
    assert [(row["step"], row["loss"]) for row in map(json.loads, lines)] == [(10, 10 / 7), (20, 5.0), (25, 6.0)]
    assert read_metrics(tmp_path / "metrics.jsonl")[-1]["step"] == 25
    assert read_metrics(tmp_path / "none.jsonl") == []


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    writer = MetricWriter(tmp_path / "run")
    writer.truncate(0)
    writer.write(1, {"loss": 1.0})
    progress = Progress(10, stream := io.StringIO())
    progress.show(1, {"loss": 1.0})
    assert not (tmp_path / "run").exists() and stream.getvalue() == ""


ROW = {
    "loss": 1.23456,
    "text_loss": 0.9,
    "image_loss": None,
    "steps_per_second": 5.0,
    "tokens_per_second": 45600.0,
    "model_flops_utilisation": 0.312,
}


def test_progress_text():
    assert progress_text(350, 1000, ROW) == "loss 1.235  text 0.9  5 steps/s  45.6k tokens/s  MFU 31%  ETA 0:02:10"
    assert progress_text(1, 10, {"loss": 2.0, "steps_per_second": None}) == "loss 2"
    assert [human(x) for x in (0.5, 1234, 1.5e6, 2e9, 9.18e14)] == ["0.5", "1.23k", "1.5M", "2G", "918T"]


def test_progress_is_one_plain_line_per_log_row_in_a_log_file():
    progress = Progress(1000, stream := io.StringIO())
    for step in range(1, 351):
        progress.step(step)
    progress.show(350, ROW)
    progress.close()
    assert stream.getvalue() == f"step 350/1000  {progress_text(350, 1000, ROW)}\n"


def test_progress_moves_a_line_on_a_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "140")

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    progress = Progress(1000, stream := Terminal())
    progress.step(350)
    progress.show(350, ROW)
    progress.close()
    progress.show(351, ROW)  # after the end: nothing more
    assert "350/1000" in stream.getvalue() and "ETA 0:02:10" in stream.getvalue()
    assert "\x1b[" in stream.getvalue() and "351" not in stream.getvalue()
