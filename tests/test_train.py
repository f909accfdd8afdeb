"""The step and the loop."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
import tiny
from closeness import assert_close, trunk_operations
from program import run_program

from transfusion import train
from transfusion.config import EvalConfig
from transfusion.data.config import SourceConfig
from transfusion.errors import UsageError
from transfusion.optim import OptimConfig
from transfusion.running.checkpoint import CheckpointConfig
from transfusion.running.jax_setup import set_up_jax
from transfusion.running.metrics import FLOPS_PER_STEP, read_metrics, training_flops
from transfusion.running.restore import restore_params
from transfusion.tasks import flops_of_data, make_task
from transfusion.training import step as step_lib
from transfusion.workdir import json_file, portable
from transfusion.workdir.config_file import read_experiment


def test_accumulation_changes_neither_loss_nor_gradients():
    results = {}
    for accumulate in (1, 2, 4):
        experiment = tiny.experiment("", batch_size=4, optim=OptimConfig(accumulate=accumulate, clip=0.0, warmup=1))
        task = make_task(experiment)
        batch = task.fake_batch(4)
        batch["image"].loss_weight[0] = 0  # rows of different weight
        if accumulate == 1:
            state = jax.jit(step_lib.make_init(task, experiment))()
        results[accumulate] = jax.jit(step_lib.make_step(task, experiment))(state, batch)
    one, operations = results.pop(1), 3 * trunk_operations(experiment.model, 64 + 16)
    for many in results.values():
        assert_close(many.log, one.log, operations)
        gradients = [state.opt_state[1][0].mu for state in (many, one)]  # (1 - b1) x the gradient
        assert_close(*gradients, operations)
        assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradients[1])) > 1e-3


def test_draws_change_with_the_step_and_the_seed_only():
    experiment = tiny.experiment("")
    task = make_task(experiment)
    batch = task.fake_batch(2)
    draw = jax.jit(lambda seed, step: task.draw(batch, jax.random.fold_in(jax.random.key(seed), step))["image"])
    same, again, later, other = draw(0, 3), draw(0, 3), draw(0, 4), draw(1, 3)
    jax.tree.map(np.testing.assert_array_equal, same, again)
    for different in (later, other):
        assert all((a != b).any() for a, b in zip(jax.tree.leaves(same), jax.tree.leaves(different), strict=True))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(experiment, workdir) of a run of ten steps that evaluates in between."""
    set_up_jax()
    root = tmp_path_factory.mktemp("train")
    folder = tiny.write_folder(root / "images")
    held_out = tiny.write_folder(root / "held_out", 8, seed=1)
    experiment = tiny.experiment(
        folder,
        steps=10,
        log_every=3,
        checkpoint=CheckpointConfig(every=4),
        eval=EvalConfig(every=5, batches=2, sources={"mine": SourceConfig(kind="folder", path=held_out)}),
    )
    train.train(experiment, root / "run")
    return experiment, root / "run"


def test_a_workdir_holds_what_others_rely_on(run):
    experiment, workdir = run
    assert read_experiment(workdir) == portable.as_recorded(experiment)
    rows = read_metrics(workdir / "metrics.jsonl")
    assert [row["step"] for row in rows] == [3, 5, 6, 9, 10]  # evaluations and the end are logged, too
    for row in rows:
        for name in ("loss", "text_loss", "image_loss", "grad_norm", "learning_rate"):
            assert np.isfinite(row[name])
        assert row["skipped_updates"] == row["bad_records"] == 0
        assert 0 < row["packing_all"] <= 1
    assert rows[-1]["tokens_per_second"] > 0
    assert "model_flops_utilisation" not in rows[-1]  # nobody knows the peak of a CPU
    assert {row["step"]: row.get("held_out_loss") is not None for row in rows} == {
        3: False, 5: True, 6: False, 9: False, 10: True,
    }  # fmt: skip
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir() if p.is_dir()) == ["10", "4", "8"]
    step, ema, config = restore_params(workdir, "ema")
    assert step == 10
    assert json.loads(config["experiment"])["seed"] == experiment.seed
    assert jax.tree.map(np.shape, ema) == jax.tree.map(lambda s: s.shape, make_task(experiment).template.shapes)


def test_the_mean_loss_of_a_row_is_over_its_steps(run):
    """The loss is the text's plus five times the images', so the rows must add up in the same way."""
    for row in read_metrics(run[1] / "metrics.jsonl"):
        # Roughly, as each mean is over what its steps hold.
        assert row["loss"] == pytest.approx(row["text_loss"] + 5 * row["image_loss"], rel=0.2)


def test_the_flops_of_a_row_are_those_of_its_batches(run):
    experiment, workdir = run
    task, rows = make_task(experiment), read_metrics(workdir / "metrics.jsonl")
    with task.open_data(experiment) as data:
        steps = [task.flops(next(data)).sum() for _ in range(10)]
    first, second = (row[FLOPS_PER_STEP] for row in rows[:2])
    assert first == pytest.approx(np.mean(steps[:3]), rel=1e-12) and second == pytest.approx(np.mean(steps[3:5]))
    assert training_flops(rows) == pytest.approx(sum(steps), rel=1e-12)
    assert len(set(steps)) > 1  # or the mean would prove nothing
    # What a plan says before is the mean over the first rows of the same data.
    assert flops_of_data(task, experiment, rows=8) * 4 == pytest.approx(np.mean(steps[:2]), rel=1e-12)
    assert training_flops([{"step": 3, "loss": 1.0}]) is None  # of a version that did not count


def test_a_finished_run_does_nothing_more(run):
    experiment, workdir = run
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    for changed in (experiment, dataclasses.replace(experiment, log_every=2, optim=OptimConfig(learning_rate=0.5))):
        state = train.train(changed, workdir)
        assert int(state.step) == 10
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == before


def test_more_steps_continue_it(run):
    experiment, workdir = run
    state = train.train(dataclasses.replace(experiment, steps=12), workdir)
    assert int(state.step) == 12
    assert [row["step"] for row in read_metrics(workdir / "metrics.jsonl")] == [3, 5, 6, 9, 10, 12]


def test_a_resolution_that_no_stream_holds_is_refused_before_any_record_is_read(tmp_path):
    experiment = tiny.experiment(tiny.write_folder(tmp_path / "images"))
    sources = {"mine": dataclasses.replace(experiment.data.sources["mine"], resolution=12)}
    wrong = dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, sources=sources))
    with pytest.raises(UsageError, match=r"data\.sources\.mine\.resolution: 12 does not fit .* 8x8"):
        make_task(wrong).open_data(wrong)


def test_a_finished_run_is_not_supervised_and_nothing_is_written(tiny_run, tmp_path):
    workdir = shutil.copytree(tiny_run, tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    config = f"--config={json_file.__file__}:{workdir / 'config.json'}"
    done = run_program(tmp_path / "said", "transfusion.train", config, f"--workdir={workdir}", "--supervise")
    assert done.code == 0 and "nothing to do" in done.err and "supervisor" not in done.err
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == before
    changed = (config, f"--workdir={workdir}", "--supervise", "--config.model.heads=1")
    done = run_program(tmp_path / "said", "transfusion.train", *changed)
    assert done.code == 2 and "error: model.heads: 2 -> 1 (the checkpoint of step 20 -> now)" in done.err
