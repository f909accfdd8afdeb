"""Laws of losses that were planted, tables that cannot work, and a grid whose runs are finished."""

import csv
import dataclasses
import json
import pathlib

import numpy as np
import pytest
import tiny
from program import run_program

from transfusion.config import EvalConfig
from transfusion.data.config import SourceConfig
from transfusion.errors import UsageError
from transfusion.running.metrics import MetricWriter
from transfusion.scaling import Grid, Run, grid
from transfusion.scaling.figure import figure
from transfusion.scaling.fits import fit_system
from transfusion.scaling.isoflop import exponent, profiles
from transfusion.scaling.law import Law, Problem, fit
from transfusion.scaling.points import Points, check_enough, read_csv
from transfusion.scaling.study import as_json, study
from transfusion.scaling.table import study_table

# Of text, the published law (arXiv 2203.15556, equation 10). The transfer is large enough to be seen.
PLANTED = {
    "text": Law(1.69, (406.4, 410.7), 0.34, 0.28, 0.2),
    "image": Law(0.15, (30.0, 25.0), 0.42, 0.24, 0.05),
}
# The noise of real held-out losses has a part of the run, which all its measurements share, and a part of each
# measurement: the deviations of three seeds of dense_32 of experiments/scaling from their mean, at steps 206 to 412.
OF_RUNS = {"text": 0.011, "image": 0.0145}
SINGLE = {"text": 0.0035, "image": 0.0115}


def planted(sizes: int, repeats: int, measurements: int, mixtures=(0.5,), noise: float = 1.0, seed: int = 0) -> Points:
    """Runs of sizes over six decades, each measured at tokens over six decades, with so much of the real noise."""
    rng = np.random.default_rng(seed)
    tokens = np.geomspace(1e4, 1e10, measurements)
    runs = [(n, m, r) for n in np.geomspace(1e3, 1e9, sizes) for m in mixtures for r in range(repeats)]
    rows = [(f"{n:.3g} {m} {r}", n, d, m) for n, m, r in runs for d in tokens]
    run, size, data, share = (np.array(column) for column in zip(*rows, strict=True))
    own, losses = {"text": data * (1 - share), "image": data * share}, {}
    for name, law in PLANTED.items():
        true = law(size, own[name], (data - own[name]) * (len(mixtures) > 1))
        of_run = np.repeat(rng.normal(0, OF_RUNS[name], len(runs)), measurements)
        losses[name] = true * np.exp(noise * (of_run + rng.normal(0, SINGLE[name], len(true))))
    system = np.full(len(run), "dense", dtype=object)
    return Points(system, run.astype(object), size, data, 6 * size * data, losses, own)


def test_planted_exponents_come_back_within_one_percent():
    points = planted(20, 30, 10)
    for name, law in PLANTED.items():
        found = fit(Problem(points.parameters, points.own[name]), points.losses[name])
        assert found.size_exponent == pytest.approx(law.size_exponent, rel=0.01)
        assert found.data_exponent == pytest.approx(law.data_exponent, rel=0.01)
        assert found.floor == pytest.approx(law.floor, rel=0.05)


def test_without_noise_every_number_comes_back():
    points = planted(6, 1, 6, (0.25, 0.75), noise=0.0)
    for name, law in PLANTED.items():
        others = points.tokens - points.own[name]
        found = fit(Problem(points.parameters, points.own[name], others), points.losses[name])
        np.testing.assert_allclose(
            np.hstack(dataclasses.astuple(found)), np.hstack(dataclasses.astuple(law)), rtol=1e-3
        )


def test_intervals_hold_the_planted_numbers_and_the_held_out_run_is_predicted():
    points = planted(6, 2, 6, (0.3, 0.7), noise=0.2)
    found = study(points, "planted", resamples=20)
    (system,) = found.values()
    for name, law in PLANTED.items():
        numbers = system.numbers(name)
        for key, true in (("data_exponent", law.data_exponent), ("transfer", law.transfer), ("floor", law.floor)):
            half = numbers[key]["high"] - numbers[key]["low"]
            assert numbers[key]["low"] - half < true < numbers[key]["high"] + half and half < true
    (difference,) = system.differences().values()
    assert difference["data_exponent"]["low"] < 0.04 < difference["data_exponent"]["high"]
    assert system.held_out.flops.max() == points.flops.max() and len(system.points) == len(points) - 6
    for one in system.predictions:
        assert abs(one.off) < 0.02 and one.predicted["low"] < one.measured < one.predicted["high"]
    # Twice the same, and in all three forms.
    again = as_json(study(points, "planted", resamples=20))
    assert json.dumps(again) == json.dumps(as_json(found))
    page, table = figure(found, "Planted"), study_table(found)
    assert "held-out" in table and page.count("<svg") > 5 and "NaN" not in page and "nan" not in page


def test_isoflop_profiles_find_the_best_size():
    """Between measurements the loss is interpolated; of a law with equal exponents the best N grows with C^0.5."""
    law, sizes = Law(1.0, (100.0, 100.0), 0.4, 0.4), np.geomspace(4e5, 4e6, 7)
    rows = [(f"{n:.3g}", n, c / 6 / n, c) for n in sizes for c in np.geomspace(1e12, 1e14, 12)]
    run, size, data, flops = (np.array(column) for column in zip(*rows, strict=True))
    losses = law(size, data)
    points = Points(
        np.full(len(run), "s", dtype=object), run.astype(object), size, data, flops, {"a": losses}, {"a": data}
    )
    for one in profiles(points, losses):
        assert one.best == pytest.approx((one.flops / 6) ** 0.5, rel=0.1)  # see the module's remark on their bias
    assert exponent(profiles(points, losses)) == pytest.approx(0.5, abs=0.03)
    single = points.where(np.arange(len(points)) % 12 == 5)  # one measurement of each run, all at one budget
    (one,) = profiles(single, single.losses["a"])
    assert one.flops == pytest.approx(single.flops[0]) and len(one.sizes) == 7
    edge = single.where(single.parameters > 1.2e6)
    assert profiles(edge, edge.losses["a"])[0].best is None  # the lowest point is not within the sizes


GOOD = {"parameters": "1e6", "tokens": "2e8", "flops": "1e15", "text_loss": "2.5", "image_loss": "0.3"}


def write(path: pathlib.Path, rows: list[dict]) -> str:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


# What is wrong in the second line of a table, and what is said about it.
WRONG_VALUES = [
    ({"text_loss": "nan"}, "line 3: text_loss must be a positive number, not nan"),
    ({"tokens": "-5"}, "line 3: tokens must be a positive number, not -5"),
    ({"flops": "inf"}, "line 3: flops must be a positive number"),
    ({"parameters": ""}, "line 3: parameters is '', which is no number"),
    ({"image_loss": "low"}, "line 3: image_loss is 'low', which is no number"),
    ({"mixture": "1.5"}, "line 3: mixture must be above 0 and at most 1"),
]
# Columns that are taken from a table, those that it gets, and what is said.
WRONG_COLUMNS = [
    ({"parameters"}, {}, "has no column 'parameters'"),
    ({"flops"}, {"flop": "1"}, "has no column 'flops' .did you mean 'flop'"),
    ({"text_loss", "image_loss"}, {}, "no column with losses"),
    (set(), {"text_tokens": "1e8"}, "no column 'image_tokens'"),
]


def test_a_table_that_cannot_work_is_refused_with_its_line(tmp_path):
    path = tmp_path / "losses.csv"
    for changes, said in WRONG_VALUES:
        good = GOOD | {"mixture": "0.5"}
        with pytest.raises(UsageError, match=said):
            read_csv(write(path, [good, good | changes, good]))
    for without, more, said in WRONG_COLUMNS:
        row = {name: value for name, value in (GOOD | more).items() if name not in without}
        with pytest.raises(UsageError, match=said):
            read_csv(write(path, [row] * 3))
    files = {b"": "no column", b"\xff\xfe\x00\x01": "no text", ",".join(GOOD).encode(): "no rows"}
    for content, said in files.items():
        path.write_bytes(content)
        with pytest.raises(UsageError, match=said):
            read_csv(path)
    with pytest.raises(UsageError, match="does not exist"):
        read_csv(tmp_path / "none.csv")


def test_too_few_measurements_are_refused():
    points = planted(4, 1, 3)
    check_enough(points, "table")
    with pytest.raises(UsageError, match="6 measurements of 'dense' are too few"):
        check_enough(points.where(np.arange(6)), "table")
    same = dataclasses.replace(points, parameters=np.full(len(points), 1e6))
    with pytest.raises(UsageError, match="the parameters of 'dense' are the same"):
        check_enough(same, "table")
    two = dataclasses.replace(points, parameters=np.where(points.parameters > 1e6, 1e6, 1e5))
    with pytest.raises(UsageError, match="of two values only"):
        check_enough(two, "table")
    with pytest.raises(UsageError, match="--held_out: 'small' is none of largest"):
        study(points, "table", held_out="small")


def of_grid(folder: str) -> Grid:
    """Three sizes, whose trainings nobody runs."""
    held_out = {"mine": SourceConfig(kind="folder", path=folder)}
    base = tiny.experiment(folder, eval=EvalConfig(every=5, batches=20, sources=held_out))
    runs = [
        Run(f"w{w}", "dense", dataclasses.replace(base, model=dataclasses.replace(base.model, width=w)), 1e8 * w)
        for w in (16, 32, 48)
    ]
    return Grid(runs, {"text": "text", "image": "image"}, measurements=4, settled=2)


def test_a_grid_knows_its_steps_and_reads_what_its_runs_have_logged(tmp_path):
    found = of_grid(tiny.write_folder(tmp_path / "images"))
    planned = grid.plan(found, tmp_path)
    for one in planned:
        config = one.run.experiment
        assert one.flops == pytest.approx(one.run.flops, rel=0.2) and config.steps == 4 * config.eval.every
        assert one.tokens["text"] > 0 and one.tokens["image"] > 0 and one.done == 0
        writer = MetricWriter(one.workdir)
        for step in range(config.eval.every, config.steps + 1, config.eval.every):
            losses = {"held_out_text_loss": 3 / step**0.1, "held_out_image_loss": 2 / step**0.2}
            writer.write(step, losses | {"model_flops_per_step": one.flops_per_step})
    assert grid.train_all(planned) == {}  # all are finished
    points = grid.measured(found, planned)
    assert len(points) == 12 and points.runs == ("w16", "w32", "w48")
    for one in planned:
        mine = points.where(points.run == one.run.name)
        assert mine.flops[-1] == pytest.approx(one.flops) and mine.parameters[0] == one.parameters
        assert mine.own["text"][-1] == pytest.approx(one.tokens["text"] * one.steps)
    with pytest.raises(UsageError, match="w16: only 0 of .* tokens are of none: the sources are read one after"):
        grid.plan(dataclasses.replace(found, modalities={"none": "none"}), tmp_path)
    assert planned[0].parameters < planned[1].parameters < planned[2].parameters
    assert len(fit_system(points, 1, 0)) == 2


def test_the_program_fits_a_table(tmp_path):
    rows = planted(4, 1, 4).rows()
    path, workdir = write(tmp_path / "losses.csv", rows), tmp_path / "laws"
    done = run_program(tmp_path, "transfusion.scaling", path, f"--workdir={workdir}", "--resamples=20")
    assert done.code == 0, done.err
    assert "dense: 12 measurements of 3 runs" in done.out
    result = json.loads((workdir / "scaling.json").read_text())
    assert result["systems"]["dense"]["held_out"]["run"] == rows[-1]["run"]
    assert "<svg" in (workdir / "scaling.html").read_text()
    broken = write(tmp_path / "broken.csv", [{k: v for k, v in row.items() if k != "flops"} for row in rows])
    done = run_program(tmp_path, "transfusion.scaling", broken, f"--workdir={workdir}")
    assert done.code == 2 and done.err.startswith("error: ") and "no column 'flops'" in done.err
