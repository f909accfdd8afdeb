"""Parameters from another run."""

import dataclasses
import logging as standard_logging
import re

import jax
import numpy as np
import pytest
import tiny

from transfusion.config import Experiment
from transfusion.errors import UsageError
from transfusion.initial import InitConfig, from_run
from transfusion.model.names import by_path
from transfusion.optim import OptimConfig
from transfusion.running.checkpoint import CheckpointConfig, Checkpoints
from transfusion.sequence import Run
from transfusion.sharding import make_mesh
from transfusion.tasks import Task, make_task
from transfusion.training import step as step_lib

COPY = (("trunk/blocks/b", "trunk/blocks/a"), ("trunk/final_norm/b", "trunk/final_norm/a"))


def experiment(streams=None, layout=None, **changes) -> Experiment:
    of = tiny.SPECS["experts"]
    return Experiment(
        steps=4, batch_size=2, model=tiny.model(), streams=streams or dict(of.streams),
        layout=dict(of.layout) if layout is None else layout, optim=OptimConfig(warmup=1), **changes,
    )  # fmt: skip


@pytest.fixture(scope="module")
def text_run(tmp_path_factory):
    """(workdir, its averaged parameters by path) of a model of the stream 'text' alone, with the expert 'a'."""
    config = experiment({"text": tiny.text_stream(expert="a")}, {"text": (Run("text"),)}, seed=3)
    state = jax.jit(step_lib.make_init(make_task(config), config))()
    ema = jax.tree.map(lambda x: x + 0.125, state.params)
    workdir = tmp_path_factory.mktemp("text_run")
    with Checkpoints(workdir, CheckpointConfig()) as checkpoints:
        checkpoints.save(7, dataclasses.replace(state, step=np.int32(7), ema=ema), {}, {}, force=True)
    return workdir, by_path(ema)


def wanted(task: Task, config: Experiment):
    shardings = step_lib.state_shardings(task, config, make_mesh(config.mesh, jax.devices()[:1])).params
    return jax.tree.map(
        lambda s, on: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=on), task.template.shapes, shardings
    )


def start(config: Experiment):
    """The fresh state's parameters and average by path, and those of the same seed without `init`."""
    task = make_task(config)
    init = jax.jit(step_lib.make_init(task, config))
    state = init(from_run(config.init, wanted(task, config)))
    return by_path(state.params), by_path(state.ema), by_path(init({}).params)


def test_equal_paths_are_taken_and_others_drawn_afresh(text_run, caplog):
    workdir, theirs = text_run
    with caplog.at_level(standard_logging.INFO, "absl"):
        params, ema, fresh = start(experiment(init=InitConfig(str(workdir))))
    assert theirs.keys() < params.keys()
    for path, leaf in params.items():
        np.testing.assert_array_equal(leaf, theirs.get(path, fresh[path]))
        np.testing.assert_array_equal(leaf, ema[path])
    assert f"at step 7: {len(theirs)} taken, 0 copied, {len(params) - len(theirs)} fresh" in caplog.text


def test_an_expert_starts_as_a_copy_of_another(text_run, caplog):
    workdir, theirs = text_run
    with caplog.at_level(standard_logging.INFO, "absl"):
        params, _, fresh = start(experiment(init=InitConfig(str(workdir), COPY)))
    for path, leaf in params.items():
        source = path.replace("blocks/b/", "blocks/a/").replace("final_norm/b", "final_norm/a")
        np.testing.assert_array_equal(leaf, theirs.get(source, fresh[path]))
    copied = [path for path in params if path.startswith("trunk") and path not in theirs]
    assert len(copied) == 10 and f"{len(theirs)} taken, 10 copied" in caplog.text


def test_a_dense_run_gives_both_experts(tmp_path):
    """One pair for all, with the group of the expression left unused; the first pair that gives something decides."""
    of = tiny.SPECS["transfusion"]
    dense = experiment(dict(of.streams), dict(of.layout))
    state = jax.jit(step_lib.make_init(make_task(dense), dense))()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, dataclasses.replace(state, step=np.int32(1), ema=None), {}, {}, force=True)
    copy = (("trunk/(blocks|final_norm)/(a|b)", r"trunk/\1/trunk"), ("trunk/blocks/a/(q|k)", "trunk/blocks/trunk/v"))
    with pytest.raises(UsageError, match="gives no parameter"):  # the first pair has them all
        start(experiment(init=InitConfig(str(tmp_path), copy)))
    params, _, _ = start(experiment(init=InitConfig(str(tmp_path), copy[:1])))
    theirs = by_path(state.params)
    for path, leaf in params.items():
        source = re.sub(r"^trunk/(blocks|final_norm)/(a|b)\b", r"trunk/\1/trunk", path)
        np.testing.assert_array_equal(leaf, theirs[source])


def test_a_workdir_may_hold_a_part_alone(text_run, tmp_path):
    _, theirs = text_run
    part = {path.removeprefix("trunk/final_norm/"): leaf for path, leaf in theirs.items() if "final_norm" in path}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"params": part}, {}, {}, force=True)
    config = experiment(init=InitConfig(str(tmp_path), (("trunk/final_norm", ""),)))
    given = from_run(config.init, wanted(make_task(config), config))
    assert given.keys() == {"trunk/final_norm/a"}
    np.testing.assert_array_equal(given["trunk/final_norm/a"], theirs["trunk/final_norm/a"])


def test_other_runs_give_what_the_first_lacks(text_run, tmp_path):
    """And not what it has; nor what they are told to leave."""
    workdir, theirs = text_run
    config = experiment(seed=5)
    state = jax.jit(step_lib.make_init(make_task(config), config))()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, dataclasses.replace(state, step=np.int32(1), ema=None), {}, {}, force=True)
    other = InitConfig(str(tmp_path), fresh="trunk/blocks")
    params, _, fresh = start(experiment(init=InitConfig(str(workdir), others={"images": other})))
    second = by_path(state.params)
    for path, leaf in params.items():
        wanted_here = fresh if path.startswith("trunk/blocks") else second
        np.testing.assert_array_equal(leaf, theirs[path] if path in theirs else wanted_here[path])
    assert any("image" in path for path in params if path not in theirs)
    for wrong in (InitConfig(), InitConfig(str(tmp_path), others={"more": other})):
        with pytest.raises(UsageError, match="init.others.images: it needs a path"):
            InitConfig(str(workdir), others={"images": wrong})


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"copy": (("trunk/blocks/c", "trunk/blocks/a"),)}, "gives no parameter of"),
        (
            {"copy": (("trunk/blocks/b", "trunk/block/a"),)},
            r"'trunk/block/a'\) gives no parameter of .* \(did you mean 'trunk/blocks/a'\?\)",
        ),
        ({"path": "nowhere"}, "no checkpoint in .*nowhere"),
    ],
)
def test_what_gives_nothing_is_told(text_run, changes, message):
    config = dataclasses.replace(InitConfig(str(text_run[0])), **changes)
    with pytest.raises(UsageError, match=message):
        start(experiment(init=config))


def test_another_shape_is_told(text_run):
    config = experiment(init=InitConfig(str(text_run[0])))
    config = dataclasses.replace(config, model=tiny.model(ffn=64))
    with pytest.raises(UsageError, match=r"trunk/blocks/a/down is \[2, 96, 32\] there and \[2, 64, 32\] here"):
        start(config)


def test_parts_of_another_shape_may_be_drawn_afresh(text_run):
    config = experiment(init=InitConfig(str(text_run[0]), fresh="trunk/.*/(up|gate|down)"))
    config = dataclasses.replace(config, model=tiny.model(ffn=64))
    params, _, fresh = start(config)
    np.testing.assert_array_equal(params["trunk/blocks/a/q"], text_run[1]["trunk/blocks/a/q"])
    np.testing.assert_array_equal(params["trunk/blocks/a/down"], fresh["trunk/blocks/a/down"])


@pytest.mark.parametrize(
    "path, copy, message",
    [
        ("", (("a", "b"),), "set init.path"),
        ("run", (("a(", "b"),), "no pair of a regular expression"),
        ("run", (("a", r"\1"),), "no pair of a regular expression"),
    ],
)
def test_settings_that_cannot_work_are_refused(path, copy, message):
    with pytest.raises(UsageError, match=message):
        InitConfig(path, copy)
