"""Frozen parameters in training: no state, no change to the last bit, and what they compute stays the same."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest
import tiny
from closeness import assert_close, trunk_operations

from transfusion import train
from transfusion.config import Experiment
from transfusion.errors import UsageError
from transfusion.model.names import by_path
from transfusion.optim import LearningRateGroup, OptimConfig
from transfusion.running.checkpoint import CheckpointConfig
from transfusion.running.seals import seal_path
from transfusion.tasks import SequenceTask
from transfusion.training import step as step_lib

TEXT = (LearningRateGroup("trunk/(blocks|final_norm)/a|parts/text", 0.0), LearningRateGroup("trunk/blocks/b", 0.5))
ROWS = 4


def is_frozen(path: str) -> bool:
    return "/a/" in path or path.endswith("/a") or path.startswith("parts/text/")


def experiment(**optim) -> Experiment:
    """A model with an expert per stream; 'a' is the text's."""
    of = tiny.SPECS["experts"]
    return Experiment(
        steps=6, batch_size=ROWS, model=tiny.model(), streams=dict(of.streams), layout=dict(of.layout),
        optim=OptimConfig(learning_rate=1e-2, warmup=1, **{"groups": TEXT} | optim),
    )  # fmt: skip


def task_of(config: Experiment) -> SequenceTask:
    return SequenceTask(config.model, tiny.SPECS["experts"], config.objectives)


@pytest.fixture(scope="module", params=[1, 2], ids=["whole batches", "microbatches"])
def states(request):
    """(task, state before, state after three steps)."""
    config = experiment(accumulate=request.param)
    task = task_of(config)
    before = after = jax.jit(step_lib.make_init(task, config))()
    step = jax.jit(step_lib.make_step(task, config))
    for i in range(3):
        after = step(after, task.fake_batch(ROWS, i))
    return task, before, after


def test_frozen_parameters_keep_every_bit_and_the_others_move(states):
    _, before, after = states
    for tree in ("params", "ema"):
        old, new = by_path(getattr(before, tree)), by_path(getattr(after, tree))
        assert sum(map(is_frozen, old)) == 12
        for path, leaf in old.items():
            assert (np.asarray(leaf) == np.asarray(new[path])).all() == is_frozen(path), path


def test_frozen_parameters_have_no_optimizer_state(states):
    _, _, after = states
    for moment in (after.opt_state[1][0].mu, after.opt_state[1][0].nu):
        assert by_path(moment).keys() == {path for path in by_path(after.params) if not is_frozen(path)}


def test_text_is_written_as_before_to_the_last_bit(states):
    task, before, after = states
    batch = task.fake_batch(ROWS)

    @jax.jit
    def logits(params):
        model = task.template.bind(params)
        encoded = model.encode({"text": task.inputs("text", {"text": batch["text"]}, {"text": {}})})
        return model.head("text", encoded["text"])

    np.testing.assert_array_equal(logits(before.params), logits(after.params))
    np.testing.assert_array_equal(logits(before.ema), logits(after.ema))
    assert np.ptp(logits(before.params)) > 0.1


def test_gradients_are_those_of_training_everything_and_clipped_without_the_frozen():
    frozen, free = experiment(clip=1e-3), experiment(clip=1e-3, groups=())
    states = {}
    for name, config in (("frozen", frozen), ("free", free)):
        task = task_of(config)
        state = jax.jit(step_lib.make_init(task, config))()
        states[name] = jax.jit(step_lib.make_step(task, config))(state, task.fake_batch(ROWS))
    moments = {name: by_path(state.opt_state[1][0].mu) for name, state in states.items()}
    norm = np.sqrt(sum((leaf**2).sum() for leaf in map(np.asarray, moments["frozen"].values())))
    operations = 3 * trunk_operations(frozen.model, 128)
    assert_close(norm, 0.1 * 1e-3, operations)  # (1 - b1) x the clipped gradient
    ratio = [np.vdot(leaf, moments["free"][path]) / np.vdot(leaf, leaf) for path, leaf in moments["frozen"].items()]
    assert_close(ratio, ratio[0], operations)
    assert ratio[0] < 0.99  # the frozen parameters' gradients are a part of the free norm
    assert float(states["frozen"].log["grad_norm"][0]) < float(states["free"].log["grad_norm"][0])


def test_a_run_with_groups_goes_on_bit_by_bit(tmp_path):
    folder = tiny.write_folder(tmp_path / "images")
    groups = (LearningRateGroup("parts/text", 0.0), LearningRateGroup("trunk/blocks", 0.1))
    config = tiny.experiment(
        folder, steps=6, checkpoint=CheckpointConfig(every=3), optim=OptimConfig(warmup=1, groups=groups)
    )
    whole = train.train(config, tmp_path / "run")
    root = tmp_path / "run" / "checkpoints"
    seal_path(root, 6).unlink()
    shutil.rmtree(root / "6")
    again = train.train(config, tmp_path / "run")
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)
    changed = dataclasses.replace(config, steps=7, optim=dataclasses.replace(config.optim, groups=()))
    with pytest.raises(UsageError, match="opt_state/.*parts/text/.* is not in the checkpoint"):
        train.train(changed, tmp_path / "run")
