"""The script for a GPU gets one chance of ten minutes: here its parts run on a CPU, and its clock is tried."""

import dataclasses
import pathlib
import sys
import time

import numpy as np
import pytest

from transfusion.programs import load_experiment

ROOT = pathlib.Path(__file__).parents[2]
sys.path.append(str(ROOT / "experiments" / "speed"))

import gpu  # noqa: E402
import gpu_parts  # noqa: E402
import record  # noqa: E402
import settings as sampled_settings  # noqa: E402
import subjects  # noqa: E402
from gpu_parts import Case, Log  # noqa: E402


def test_the_script_ends_in_time_whatever_its_parts_do(tmp_path, monkeypatch):
    """The first part hangs, the second one fails at once, and the third one has written a part of its last line."""
    out = tmp_path / "results.jsonl"
    program = "import time, sys; {}"
    code = {
        "hangs": f'open({str(out)!r}, \'a\').write(\'{{"name": "first", "seconds": 2.0}}\\n\'); time.sleep(60)',
        "fails": "sys.exit(3)",
        "breaks": f'open({str(out)!r}, \'a\').write(\'{{"name": "last", "seco\')',
    }
    monkeypatch.setattr(gpu, "PARTS", dict.fromkeys(code, 10.0))
    monkeypatch.setattr(gpu, "SECONDS", 30.0)
    monkeypatch.setattr(gpu, "LEAST", 0.5)
    monkeypatch.setattr(gpu, "GRACE", 0.5)
    monkeypatch.setattr(gpu, "MARGIN", 0.5)
    monkeypatch.setattr(gpu, "command", lambda part, *_: [sys.executable, "-c", program.format(code[part])])
    start = time.monotonic()
    gpu.run(out, tmp_path, 7.5)
    assert time.monotonic() - start < 7.5
    results = record.read(out)
    assert results["first"] == {"seconds": 2.0} and "last" not in results
    assert results["part/hangs"]["ended"].startswith("killed") and results["part/fails"]["ended"] == 3
    assert results["part/hangs"]["took"] < 3
    gpu.show(out)


def test_every_part_has_its_share_of_the_time():
    assert sum(gpu.PARTS.values()) + gpu.MARGIN <= gpu.SECONDS <= 560
    for part in gpu.PARTS:
        assert pathlib.Path(gpu.command(part, pathlib.Path("out"), 5, pathlib.Path("tree"))[1]).exists()


def test_targets_are_ratios_of_one_run(capsys, tmp_path):
    out = tmp_path / "results.jsonl"
    for size in (64, 128):
        for name, seconds in (("kernel", 1.0), ("flex", 1.5), ("cudnn", 5.0)):
            record.write(out, f"attention/4096/{size}/gradients/{name}", seconds=seconds)
    record.write(out, "gemm", seconds=1.0, flops_per_second=8e14)
    record.write(out, "step/1.4B/8/kernel", seconds=0.5, flops=2e14)
    record.write(out, "sampler/now/text/1", seconds=1.0)
    capsys.readouterr()
    gpu.show(out)
    table = capsys.readouterr().out
    assert "| flex_attention / kernel, 4k, head size 64 | 1.50 | 1 | reached |" in table
    assert "| cuDNN, masked / kernel, 4k, head size 128 | 5.00 | 6 | MISSED |" in table
    assert "share of the measured bf16 rate | 0.50 | 0.5 | reached |" in table
    assert "| text at batch 1: before / now | not measured | 3 | - |" in table


@pytest.fixture
def log(tmp_path, monkeypatch) -> Log:
    """Small work, and time for it."""
    monkeypatch.setattr(subjects, "KERNEL", "dense")
    monkeypatch.setattr(subjects, "HEADS", 1)
    monkeypatch.setattr(gpu_parts, "seconds_per_call", lambda calls: [call() for call in calls] and 1.0)
    return Log(tmp_path / "out.jsonl", time.monotonic() + 600, tmp_path / "rows.npz")


def test_the_parts_on_the_card_and_on_attention_measure(log, monkeypatch):
    monkeypatch.setattr(gpu_parts, "SIDE", 32)
    monkeypatch.setattr(gpu_parts, "COPIED", 256)
    monkeypatch.setattr(subjects, "ROWS", {1024: 2})
    monkeypatch.setattr(gpu_parts, "cases", lambda: [Case("dense", 1024, 16, d, 2) for d in ("gradients", "forward")])
    gpu_parts.card(log)
    gpu_parts.attention(log)
    results = record.read(log.path)
    assert not [values for values in results.values() if "error" in values], results
    assert results["gemm"]["flops_per_second"] == 2 * 32**3 and results["copy"]["bytes_per_second"] == 512
    for size in (64, 128):
        assert results[f"correct/{size}"]["as_good_as_dense"] and 0 < results[f"correct/{size}"]["kernel"]["q"] < 0.02
    assert set(np.load(log.rows)) == {f"1024/{name}" for name in ("document", "order", "span", "private", "stream")}


def test_a_measurement_that_fails_ends_no_other_one(log):
    def too_large():
        raise MemoryError("no room")

    log.measure("one", too_large)
    log.measure("two", lambda: {"seconds": 1.0})
    dataclasses.replace(log, end=0.0).measure("three", lambda: {"seconds": 1.0})
    results = record.read(log.path)
    assert results == {
        "one": {"error": "no room"},
        "two": {"seconds": 1.0},
        "three": {"skipped": "no time was left"},
    }


def test_the_part_on_steps_times_the_step_of_training(log, monkeypatch):
    monkeypatch.setattr(gpu_parts, "TIMED", 1)
    experiment = load_experiment(f"{ROOT / 'configs' / 'digits.py'}:debug")
    result = gpu_parts.timed_step(dataclasses.replace(experiment, batch_size=2))
    assert result["seconds"] > 0 and result["flops"] > 1e6


def test_the_part_on_sampling_times_text_and_images(tmp_path, monkeypatch):
    import sampler

    configs = tmp_path / "configs"
    configs.mkdir()
    (configs / "transfusion_paper.py").write_text((ROOT / "configs" / "digits.py").read_text())
    monkeypatch.setattr(sampled_settings, "SIZE", "debug")
    monkeypatch.setattr(sampled_settings, "TOKENS", 16)
    monkeypatch.setattr(sampled_settings, "STEPS", 2)
    monkeypatch.setattr(sampled_settings, "PROMPT", 4)
    monkeypatch.setattr(sampler, "CALLS", 1)
    for work, parts in (("text", 16), ("guided", 1)):
        result = sampler.measure(tmp_path, work, 1)
        assert result["seconds"] == pytest.approx(parts * result["each"])


def test_rows_are_packed_as_those_of_training():
    tokens = subjects.tokens(4096, 1)
    assert tokens.order.shape == (1, 4096) and (tokens.document > 0).mean() > 0.8
    assert tokens.document.max() > 4 and tokens.span.max() == 8  # images of 256 tokens fill half of the row
