"""The arithmetic of the speed comparison: no process is started and nothing is installed."""

import importlib.util
import json
import pathlib
import sys

import numpy as np
import pytest

FOLDER = pathlib.Path(__file__).parents[2] / "experiments" / "peer_speed"


def load(name: str):
    spec = importlib.util.spec_from_file_location(f"peer_speed_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


aggregate, work = load("aggregate"), load("work")


def measured(program, round_, seconds, dtype="float32", variant="eager", name="train"):
    return {
        "program": program, "size": "small", "dtype": dtype, "work": name, "variant": variant, "round": round_,
        "wall": seconds, "cpu": seconds,
    }  # fmt: skip


def test_a_worker_that_was_stopped_has_told_what_it_had_measured():
    first = {"program": "peer", "size": "small", "dtype": "float32", "parameters": 3, "timings": []}
    second = first | {"timings": [{"work": "text", "variant": "eager", "first": 1.0, "wall": [0.5], "cpu": [0.5]}]}
    output = "a library's greeting\n" + json.dumps(first) + "\n" + json.dumps(second) + "\n\n"
    line, measurements = aggregate.parse(output, 4)
    assert line == {"program": "peer", "size": "small", "dtype": "float32", "parameters": 3}
    assert measurements == [
        {"program": "peer", "size": "small", "dtype": "float32", "round": 4, **second["timings"][0]}
    ]


@pytest.mark.parametrize("output", ["", "Traceback (most recent call last):\nMemoryError\n"])
def test_a_worker_without_a_result_is_an_error(output):
    with pytest.raises(ValueError, match="no result"):
        aggregate.parse(output, 0)


def test_a_round_is_the_median_of_its_calls_and_the_result_the_median_of_the_rounds():
    measurements = [
        measured("ours", 0, [0.1, 0.2, 9.0]),
        measured("ours", 1, [0.4, 0.4]),
        measured("ours", 2, [0.3, 0.3]),
    ]
    cell = aggregate.summary(measurements)["milliseconds"]["small"]["train"]["ours"]
    assert cell == {"setting": "float32/eager", "rounds": 3, "median": 300.0, "low": 200.0, "high": 400.0}


def test_ratios_are_taken_within_rounds_and_more_than_one_means_ours_is_faster():
    # The machine is three times slower in round 1: the ratio must not show it.
    measurements = [
        measured("peer", 0, [0.4]),
        measured("ours", 0, [0.2]),
        measured("peer", 1, [1.2]),
        measured("ours", 1, [0.6]),
        measured("peer", 2, [0.9]),  # ours has no round 2
    ]
    ratios = aggregate.summary(measurements)["ratios"]["small"]["train"]
    assert ratios["peer"]["median"] == pytest.approx(2.0)
    assert ratios["peer"]["low"] == pytest.approx(ratios["peer"]["high"])
    assert ratios["peer"]["rounds"] == 2
    assert "control" not in ratios


def test_each_program_competes_with_its_best_setting_and_with_float32():
    measurements = [
        measured("peer", 0, [0.8]),
        measured("peer", 0, [0.3], dtype="bfloat16"),
        measured("ours", 0, [0.4], variant="scan"),
        measured("ours", 0, [0.2], variant="unrolled"),
    ]
    result = aggregate.summary(measurements)
    cells = result["milliseconds"]["small"]["train"]
    assert cells["peer"]["setting"] == "bfloat16/eager"
    assert cells["peer_float32"]["setting"] == "float32/eager"
    assert cells["ours"]["setting"] == "float32/unrolled"
    ratios = result["ratios"]["small"]["train"]
    assert ratios["peer"]["median"] == pytest.approx(1.5)
    assert ratios["peer_float32"]["median"] == pytest.approx(4.0)


def test_later_rounds_measure_the_near_best_settings_and_the_best_float32():
    found = aggregate.settings(
        [
            measured("peer", 0, [0.50]),
            measured("peer", 0, [0.90], variant="slow"),
            measured("peer", 0, [0.30], dtype="bfloat16"),
            measured("peer", 0, [0.34], dtype="bfloat16", variant="near"),
            measured("peer", 0, [0.40], dtype="bfloat16", variant="far"),
        ],
        "peer", "small", "train",
    )  # fmt: skip
    assert aggregate.near_best(found) == ["bfloat16/eager", "bfloat16/near", "float32/eager"]


def test_one_lucky_round_does_not_win():
    found = {"float32/a": {0: 100.0, 1: 110.0}, "float32/b": {0: 90.0}}
    assert aggregate.best(found) == "float32/a"


def test_the_table_has_a_line_per_size_and_work_and_marks_what_is_missing():
    rows = [measured("peer", 0, [0.4]), measured("ours", 0, [0.2]), measured("ours", 0, [0.1], name="text")]
    lines = aggregate.table(aggregate.summary(rows)).splitlines()
    assert len(lines) == 4
    assert lines[2].startswith("| small | text | - | - | 100 (100-100) float32/eager | - |")
    assert "| 400 (400-400) float32/eager | - | 200 (200-200) float32/eager | 2.00 (2.00-2.00) |" in lines[3]
    assert len({line.count("|") for line in lines}) == 1


def test_slow_work_is_called_twice_and_fast_work_as_often_as_asked():
    calls = []
    result = work.clock(lambda: calls.append(0), repeats=3, seconds=10)
    assert len(calls) == 5 and len(result["wall"]) == len(result["cpu"]) == 3
    calls.clear()
    result = work.clock(lambda: calls.append(0), repeats=3, seconds=-1)
    assert len(calls) == 2 and len(result["wall"]) == 1


def test_the_report_times_only_what_was_asked_for_and_builds_nothing_else(capsys):
    options = work.arguments("").parse_args(["--work", "text,image", "--variant", "a", "--repeats", "2"])
    built = []

    def make(name):
        def build():
            built.append(name)
            return lambda: None

        return build

    plan = {("text", "a"): make("text a"), ("text", "b"): make("text b"), ("train", "a"): make("train a")}
    work.report("ours", options, 7, {"jax": "0"}, plan)
    line, measurements = aggregate.parse(capsys.readouterr().out, 0)
    assert built == ["text a"]
    assert line["parameters"] == 7
    assert [(m["work"], m["variant"]) for m in measurements] == [("text", "a")]


def test_all_programs_get_the_same_rows():
    size = work.SIZES["small"]
    one, two = work.training_rows(size), work.training_rows(size)
    assert one.before.shape == (8, 64) and one.latents.shape == (8, 8, 8, 16) and one.after.shape == (8, 32)
    for a, b in zip(vars(one).values(), vars(two).values(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert (size.ffn, work.SIZES["medium"].ffn) == (704, 1408)
