"""Going on with a run: what its weights mean stays, what changes is said, and what config.json says is true."""

import dataclasses
import json
import logging
import pathlib
import shutil
import typing

import jax
import numpy as np
import pytest
import tiny

import transfusion
from transfusion import storage, train
from transfusion.config import Experiment, from_json, to_json
from transfusion.data.config import SourceConfig
from transfusion.errors import PassingError, UsageError
from transfusion.model.config import TransformerConfig
from transfusion.objectives import ObjectivesConfig
from transfusion.objectives.paths import ContinuousConfig
from transfusion.optim import OptimConfig
from transfusion.running.checkpoint import CheckpointConfig
from transfusion.running.jax_setup import set_up_jax
from transfusion.running.metrics import read_metrics
from transfusion.running.provenance import read_commands
from transfusion.running.restore import read_config
from transfusion.storage import StorageError
from transfusion.workdir import resume
from transfusion.workdir.changes import Rule, differences, rule_of
from transfusion.workdir.config_file import read_experiment

SMALL = TransformerConfig(width=16, layers=1, heads=2, ffn_multiple=16)


def replaced(experiment, path, value):
    """With the field 'a.b.c' replaced, of dataclasses and tables."""
    name, _, rest = path.partition(".")
    table = isinstance(experiment, dict)
    inner = experiment[name] if table else getattr(experiment, name)
    value = replaced(inner, rest, value) if rest else value
    return experiment | {name: value} if table else dataclasses.replace(experiment, **{name: value})


def files(workdir):
    return {path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in workdir.rglob("*")}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(experiment, workdir) of four steps; tests train on copies."""
    set_up_jax()
    root = tmp_path_factory.mktemp("resume")
    experiment = tiny.experiment(
        tiny.write_folder(root / "images"), steps=4, log_every=2, model=SMALL, checkpoint=CheckpointConfig(every=2),
        optim=OptimConfig(learning_rate=1e-3, final_learning_rate=1e-5, warmup=1),
    )  # fmt: skip
    train.train(experiment, root / "run")
    return experiment, root / "run"


@pytest.fixture
def copy(run, tmp_path):
    shutil.copytree(run[1], tmp_path / "copy")
    return tmp_path / "copy"


# --- what may differ --------------------------------------------------------------------------------------------------


def leaves(kind=Experiment, field=""):
    """Every field of an experiment, with '*' for the names of a table and for the places of a list."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is None and dataclasses.is_dataclass(kind):
        if max(field.count("stages"), field.count("others")) > 1:  # as often as one likes
            return
        hints = typing.get_type_hints(kind)
        for one in dataclasses.fields(kind):
            yield from leaves(hints[one.name], f"{field}.{one.name}" if field else one.name)
        return
    inner = [a for a in arguments if a not in (type(None), Ellipsis, str)]
    if origin is dict or "Mapping" in str(origin):
        yield from leaves(arguments[1], f"{field}.some")
    elif origin is not None and inner and dataclasses.is_dataclass(inner[0]):
        yield from leaves(inner[0], field)
    else:
        yield field


def test_every_field_has_one_rule():
    """A new field must be decided: a row of `changes.RULES`."""
    found = list(leaves())
    assert len(found) > 150 and "streams.some.patch" in found and "layout.some.opener" in found
    assert [field for field in found if rule_of(field) is None] == []


@pytest.mark.parametrize(
    "field, value, rule",
    [
        ("objectives.continuous", {"image": ContinuousConfig(path="cosine", prediction="noise")}, Rule.MEANING),
        ("layout.image.0.boundary", "inside", Rule.MEANING),
        ("streams.image.table", "none", Rule.MEANING),
        ("codec.levels.patch", 2, Rule.MEANING),
        ("data.null_caption", "pad", Rule.MEANING),
        ("data.sources.mine.resolution", 8, Rule.MEANING),
        ("autoencoder.scale", 2.0, Rule.MEANING),
        ("autoencoder.kl_weight", 2.0, Rule.FREE),
        ("model.remat", "full", Rule.FREE),
        ("streams.image.weight", 2.0, Rule.FREE),
        ("streams.text.budget", 128, Rule.FREE),
        ("streams.text.budget", 32, Rule.GROWS),
        ("data.caption_first", 0.1, Rule.FREE),
        ("data.sources", {"other": SourceConfig(name="digits")}, Rule.FREE),
        ("eval.sources", {"other": SourceConfig(name="digits", resolution=8)}, Rule.FREE),
        ("sampling.guidance", 3.0, Rule.FREE),
        ("batch_size", 8, Rule.POSITION),
        ("seed", 5, Rule.POSITION),
    ],
)
def test_what_a_difference_means(field, value, rule):
    before = tiny.experiment("folder")
    tree = json.loads(to_json(before))
    *above, last = field.split(".")
    node = tree
    for name in above:
        node = node[int(name)] if name.isdigit() else node[name]
    node[last] = json.loads(json.dumps(value, default=dataclasses.asdict))
    found = differences(before, from_json(json.dumps(tree)))
    assert found and {change.rule for change in found} == {rule}


def test_what_is_not_said_is_the_default():
    before = tiny.experiment("folder")
    said = dataclasses.replace(before, objectives=ObjectivesConfig(continuous={"image": ContinuousConfig()}))
    assert differences(before, said) == []


# --- going on ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("streams.image.table", "none", 'streams.image.table: "sincos" -> "none" (the checkpoint of step 4 -> now)'),
        ("data.null_caption", "pad", "--allow_change=data.null_caption"),
        ("batch_size", 2, "batch_size: 4 -> 2 (the checkpoint of step 4 -> now): the position in the data"),
        ("steps", 3, "has made 4 steps, and --config.steps=3 are fewer"),
    ],
)
def test_nothing_is_written_before_the_config_is_compared(run, field, value, message):
    experiment, workdir = run
    before = files(workdir)
    with pytest.raises(UsageError) as error:
        train.train(replaced(experiment, field, value), workdir)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert files(workdir) == before


def test_a_name_that_is_no_field_is_refused(run):
    experiment, workdir = run
    with pytest.raises(UsageError, match=r"--allow_change: there is no field 'objectivs' \(did you mean 'objectives'"):
        train.train(experiment, workdir, ["objectivs"])


def test_allowing_a_field_that_counts_the_data_is_said_to_be_useless(run):
    experiment, workdir = run
    with pytest.raises(UsageError, match=r"^seed: .* this run needs the old value.*; --allow_change never helps"):
        train.train(replaced(experiment, "seed", 7), workdir, ["seed"])


def test_what_changes_is_said_and_logged(run, copy, caplog):
    experiment = replaced(run[0], "optim.learning_rate", 5e-4)
    experiment = replaced(replaced(experiment, "autoencoder.scale", 2.0), "steps", 6)
    with caplog.at_level(logging.INFO, "absl"):
        train.train(experiment, copy, ["autoencoder"])
    assert "optim.learning_rate: 0.001 -> 0.0005 from step 4" in caplog.text
    assert "steps: 4 -> 6 from step 4" in caplog.text
    assert (
        "learning rate goes from 1.00e-05 (step 4, cosine over 4 steps) to 1.79e-04 (cosine over 6 steps)"
        in caplog.text
    )
    row = read_commands(copy)[-1]
    assert row["step"] == 4 and {"field": "steps", "old": 4, "new": 6, "step": 4} in row["changes"]
    assert {change["field"] for change in row["changes"]} == {"steps", "optim.learning_rate", "autoencoder.scale"}
    for found in (read_experiment(copy), resume.trained_with(read_config(copy))):
        assert (found.steps, found.optim.learning_rate, found.autoencoder.scale) == (6, 5e-4, 2.0)
    assert [row["step"] for row in read_metrics(copy / "metrics.jsonl")] == [2, 4, 6]


def test_the_checkpoint_is_believed_and_not_config_json(run, copy):
    """As older versions left it, or a hand: config.json speaks of another objective and another width."""
    experiment = read_experiment(copy)
    wrong = dataclasses.replace(
        experiment, model=dataclasses.replace(SMALL, width=32),
        objectives=ObjectivesConfig(continuous={"image": ContinuousConfig(path="cosine", prediction="noise")}),
    )  # fmt: skip
    images = transfusion.load_run(copy).draw(["a dark square"], steps=2)
    (copy / "config.json").write_text(to_json(wrong))
    found = transfusion.load_run(copy)
    assert found.experiment.model == SMALL and not found.experiment.objectives.continuous
    np.testing.assert_array_equal(found.draw(["a dark square"], steps=2), images)
    # What is no matter of the weights is config.json's.
    (copy / "config.json").write_text(to_json(replaced(experiment, "sampling.steps", 3)))
    assert transfusion.load_run(copy).experiment.sampling.steps == 3


def test_a_workdir_that_can_be_none_is_one_line_at_once(run, tmp_path):
    (tmp_path / "file").write_text("")
    for workdir, message in (
        (tmp_path / "file", "is no folder"),
        (tmp_path / "file" / "below", "Not a directory"),
        (tmp_path / ("x" * 300), "too long"),
    ):
        with pytest.raises(UsageError, match=message):
            train.train(run[0], workdir)


# --- what fails on the way --------------------------------------------------------------------------------------------


class Failing:
    """An open pipeline that raises `error` in place of batch number `at`."""

    def __init__(self, data, at, error):
        self._data, self._left, self._error = data, at, error

    def __enter__(self):
        self._data.__enter__()
        return self

    def __exit__(self, *error):
        self._data.__exit__(*error)

    def __next__(self):
        if not self._left:
            raise self._error
        self._left -= 1
        return next(self._data)

    def __getattr__(self, name):
        return getattr(self._data, name)


@pytest.mark.parametrize("where", ["data", "metrics"])
def test_what_is_trained_is_saved_when_storage_fails(run, tmp_path, monkeypatch, where):
    experiment = dataclasses.replace(run[0], steps=8, log_every=1, checkpoint=CheckpointConfig(every=100))
    whole = train.train(experiment, tmp_path / "whole")
    with monkeypatch.context() as patch:
        if where == "data":
            real = train.make_task

            def failing(config):
                task = real(config)
                opened = task.open_data
                object.__setattr__(
                    task, "open_data", lambda *given: Failing(opened(*given), 3, StorageError("the data is away"))
                )
                return task

            patch.setattr(train, "make_task", failing)
        else:
            write = train.RunLog.write

            def full(self, at, *given):
                if at == 3:
                    raise StorageError("the disk is full")
                return write(self, at, *given)

            patch.setattr(train.RunLog, "write", full)
        with pytest.raises(PassingError, match="away|full"):
            train.train(experiment, tmp_path / "run")
    assert (tmp_path / "run" / "checkpoints" / ".seal-3.json").exists()
    again = train.train(experiment, tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, again.params, whole.params)


def test_what_is_trained_is_saved_when_a_folder_is_moved_away(tmp_path, monkeypatch):
    folder = pathlib.Path(tiny.write_folder(tmp_path / "images"))
    experiment = tiny.experiment(str(folder), steps=30, log_every=1, checkpoint=CheckpointConfig(every=100))
    experiment = replaced(replaced(experiment, "data.cache", False), "data.prefetch", 0)
    monkeypatch.setattr(storage, "PAUSES", (0.01, 0.01))
    write = train.RunLog.write

    def moving(self, at, *given):
        if at == 3:
            folder.rename(tmp_path / "moved")
        return write(self, at, *given)

    with monkeypatch.context() as patch, pytest.raises(PassingError, match="images is not there any more"):
        patch.setattr(train.RunLog, "write", moving)
        train.train(experiment, tmp_path / "run")
    steps = [int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.isdecimal()]
    assert len(steps) == 1 and steps[0] >= 3
    (tmp_path / "moved").rename(folder)
    again = train.train(experiment, tmp_path / "run")
    whole = train.train(experiment, tmp_path / "whole")
    jax.tree.map(np.testing.assert_array_equal, again.params, whole.params)


def test_a_config_json_that_cannot_be_written_is_one_line(run, copy):
    (copy / "config.json").unlink()
    (copy / "config.json").mkdir()
    with pytest.raises(UsageError, match=r"cannot write .*config\.json"):
        train.train(dataclasses.replace(run[0], steps=6), copy)


def test_an_experiment_in_python_is_checked(run, tmp_path):
    with pytest.raises(UsageError, match=r"config\.optim\.epsilon must be a finite number, not nan"):
        train.train(replaced(run[0], "optim.epsilon", float("nan")), tmp_path / "run")
    assert not (tmp_path / "run").exists()
