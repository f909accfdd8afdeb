"""What telemetry says of a model, and that it changes no number of the training."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from closeness import assert_close, trunk_operations

from transfusion import sharding, train
from transfusion.config.experiment import TelemetryConfig
from transfusion.errors import UsageError
from transfusion.evaluation.sections.telemetry import telemetry
from transfusion.model.experts import FeedForwardConfig
from transfusion.model.unified import model_template
from transfusion.optim import LearningRateGroup, OptimConfig
from transfusion.running.metrics import read_metrics
from transfusion.running.restore import restore_params
from transfusion.tasks import SequenceTask, make_task
from transfusion.training.step import make_init
from transfusion.training.telemetry import PREFIX, compare, make_look, numbers

ROWS = 4
OPERATIONS = 3 * trunk_operations(tiny.model(), 64)


def test_equal_gradients_have_a_cosine_of_one_and_opposite_ones_of_minus_one():
    rng = np.random.default_rng(0)
    one = {"trunk": {"w": rng.standard_normal((3, 4, 5))}, "parts": {"head": rng.standard_normal(7)}}
    one = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), one)
    axes = {"trunk": {"w": ("layers", "embed", "mlp")}, "parts": {"head": ("embed",)}}
    found = compare({"a": one, "b": jax.tree.map(lambda x: 2 * x, one), "c": jax.tree.map(jnp.negative, one)}, axes)
    for pair, cosine in (("a_b", 1), ("a_c", -1), ("b_c", -1)):
        np.testing.assert_allclose(found[f"gradient_cosine_{pair}_trunk"], [cosine] * 3, rtol=1e-6)
        np.testing.assert_allclose(found[f"gradient_cosine_{pair}_parts"], cosine, rtol=1e-6)
    norms = np.sqrt(np.square(np.asarray(one["trunk"]["w"], np.float64)).sum((1, 2)))
    np.testing.assert_allclose(found["gradient_norm_b_trunk"], 2 * norms, rtol=1e-6)
    # Gradients that meet nowhere, as of experts of their own, have a cosine of 0 and no NaN.
    apart = [{"trunk": {"w": jnp.asarray(x)}} for x in (np.eye(2)[:, :1], np.zeros((2, 1)))]
    assert not np.any(compare({"a": apart[0], "b": apart[1]}, axes)["gradient_cosine_a_b_trunk"])


@functools.cache
def looked_at(accumulate: int = 1):
    """A model with experts of both kinds, its state and batch, and what telemetry says of them."""
    layers = {"all": FeedForwardConfig(experts=4, top=2, ffn=16)}
    experiment = tiny.experiment(
        "", batch_size=ROWS, telemetry=TelemetryConfig(every=1),
        model=dataclasses.replace(tiny.model(), feed_forwards=layers),
        optim=OptimConfig(accumulate=accumulate, groups=(LearningRateGroup("trunk/blocks/trunk/q", 0.0),)),
    )  # fmt: skip
    task = make_task(experiment)
    state = jax.jit(make_init(task, experiment))()
    batch = task.fake_batch(ROWS)
    return task, experiment, state, batch, jax.jit(functools.partial(numbers, task, experiment))(state, batch)


def test_norms_are_those_of_the_gradient_of_each_loss():
    task, experiment, state, batch, found = looked_at()
    draws = task.draw(batch, jax.random.fold_in(jax.random.key(experiment.seed), 0))
    gradients = {}
    for name in ("text", "image"):
        streams = {n: dataclasses.replace(s, weight=s.weight * (n == name)) for n, s in task.spec.streams.items()}
        alone = SequenceTask(task.model, dataclasses.replace(task.spec, streams=streams), task.objectives)
        gradient = jax.jit(jax.grad(lambda params, of=alone: of.loss(params, batch, draws, of.totals(batch))[0]))
        gradients[name] = gradient(state.params)
        gradients[name]["trunk"]["blocks"]["trunk"].pop("q")  # it is frozen
    flat = {
        name: np.concatenate([np.asarray(x, np.float64).reshape(2, -1) for x in jax.tree.leaves(
            {key: tree["trunk"][key] for key in ("blocks", "feed_forwards")})], 1)
        for name, tree in gradients.items()
    }  # fmt: skip
    norms = {name: np.linalg.norm(rows, axis=1) for name, rows in flat.items()}
    for name, norm in norms.items():
        assert_close(found[f"gradient_norm_{name}_trunk"], norm, OPERATIONS)
        assert norm.min() > 1e-4
    cosine = (flat["text"] * flat["image"]).sum(1) / norms["text"] / norms["image"]
    assert_close(found["gradient_cosine_text_image_trunk"], cosine, OPERATIONS, largest=1.0)
    rest = [gradients["text"]["parts"], gradients["text"]["trunk"]["final_norm"]]
    squares = sum(np.square(np.asarray(x, np.float64)).sum() for x in jax.tree.leaves(rest))
    assert_close(found["gradient_norm_text_parts"], np.sqrt(squares), OPERATIONS)


@pytest.mark.soak
def test_microbatches_change_no_gradient():
    for name, value in looked_at()[-1].items():
        if name.startswith("gradient"):
            assert_close(looked_at(2)[-1][name], value, OPERATIONS, largest=max(1.0, float(np.max(value))))


def test_outputs_keys_and_loads_are_those_of_the_trunk():
    task, experiment, state, batch, found = looked_at()
    draws = task.draw(batch, jax.random.fold_in(jax.random.key(experiment.seed), 0))
    inputs = {name: task.inputs(name, batch, draws) for name in task.spec.streams}
    model = task.template.bind(state.params)
    _, kept = model.read(inputs)
    keys = np.asarray(kept.k["trunk"][0], np.float64)  # [layers, B G, S, K], of the streams one after the other
    real = np.concatenate([np.asarray(batch[name].document) > 0 for name in inputs], 1)
    squares = np.square(keys).sum(-1).reshape(2, ROWS, -1, keys.shape[2]).mean(2)
    texts = batch["text"].document.shape[1]
    for name, part in (("text", np.s_[:texts]), ("image", np.s_[texts:])):
        mean = (squares[:, :, part] * real[:, part]).sum((1, 2)) / real[:, part].sum()
        assert_close(found[f"key_{name}_trunk"], np.sqrt(mean), OPERATIONS)
    # Without a final norm the trunk's outputs are those of its last layer.
    plain = model_template(dataclasses.replace(task.model, final_norm=False), task.spec)
    params = state.params | {"trunk": {k: v for k, v in state.params["trunk"].items() if k != "final_norm"}}
    encoded = plain.bind(params).encode(inputs)
    for name in inputs:
        tokens = np.asarray(encoded[name].hidden, np.float64)[np.asarray(batch[name].document) > 0]
        assert_close(found[f"output_{name}_trunk"][-1], np.sqrt(np.square(tokens).mean()), OPERATIONS)
    _, loads = model.encode_counted(inputs)
    counts = np.asarray(loads["trunk"]["all"]["text"])
    assert_close(found["load_all_text_trunk"], counts.max(1) / counts.sum(1) * 4, 4)


def test_a_run_with_telemetry_is_the_run_without(tmp_path):
    folder, weights = tiny.write_folder(tmp_path / "images"), {}
    for every in (0, 2):
        experiment = tiny.experiment(folder, steps=5, telemetry=TelemetryConfig(every))
        train.train(experiment, tmp_path / str(every))
        weights[every] = restore_params(tmp_path / str(every), "params")[1]
    jax.tree.map(np.testing.assert_array_equal, weights[0], weights[2])
    rows = read_metrics(tmp_path / "2" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [2, 4, 5]
    for row in rows:
        seen = {name for name in row if name.startswith(PREFIX)}
        assert bool(seen) == (row["step"] % 2 == 0)
        for name in ("gradient_norm_text", "gradient_cosine_text_image", "output_image", "query_text", "key_text"):
            assert not seen or np.isfinite(row[f"{PREFIX}{name}_trunk_1"])
    plain = read_metrics(tmp_path / "0" / "metrics.jsonl")
    assert not any(name.startswith(PREFIX) for row in plain for name in row)
    page = telemetry(types.SimpleNamespace(metrics=rows, experiment=experiment))
    titles = "Cosine of the gradients of text and image", "Size of the outputs of image", "Length of the keys of text"
    for title in titles:
        assert f"<figcaption>{title}</figcaption>" in page
    assert page.count("step 2") == page.count("step 4") > 6
    assert telemetry(types.SimpleNamespace(metrics=plain, experiment=experiment)) == ""


def test_codecs_have_no_modalities():
    experiment = dataclasses.replace(tiny.experiment(""), telemetry=TelemetryConfig(1))
    with pytest.raises(UsageError, match="telemetry.every must be 0"):
        make_look(object(), experiment, None, None)
    assert make_look(object(), dataclasses.replace(experiment, telemetry=TelemetryConfig()), None, sharding) is None
