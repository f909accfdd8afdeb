"""Mixture-of-Transformers: an expert per stream computes what a dense model does, at the same cost."""

import jax
import pytest
import tiny
from closeness import assert_close, trunk_operations

from transfusion.model.block import GROUPS

SETTINGS = {
    "before": {},
    "after, queries normed": {"norm_place": "post", "qk_norm": "rms"},
    "some groups": {"untied": ("ffn", "norms"), "qk_norm": "layer"},
}


def tied(dense: dict, experts: dict) -> dict:
    """The experts' parameters, both the dense model's."""
    trunk = {
        part: {
            expert: {name: dense["trunk"][part]["trunk"][name] for name in weights} for expert, weights in own.items()
        }
        if part == "blocks"
        else {expert: dense["trunk"][part]["trunk"] for expert in own}
        for part, own in experts["trunk"].items()
    }
    return dense | {"trunk": trunk}


def scores(task, params, batch):
    """Loss, logits and velocities."""
    draws = task.draw(batch, jax.random.key(1))
    model = task.template.bind(params)
    encoded = model.encode({name: task.inputs(name, batch, draws) for name in task.spec.streams})
    heads = {name: model.head(name, encoded[name]) for name in task.spec.streams}
    return task.loss(params, batch, draws, task.totals(batch))[0], heads


@pytest.mark.parametrize("name", SETTINGS)
def test_tied_experts_are_the_dense_model(name):
    dense, mixture = (tiny.task(tiny.SPECS[spec], **SETTINGS[name]) for spec in ("transfusion", "experts"))
    params = jax.jit(dense.template.init)(jax.random.key(0))
    params = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(jax.random.key(p.size), p.shape), params)
    batch = dense.fake_batch(3)
    want = jax.jit(lambda p: scores(dense, p, batch))(params)
    got = jax.jit(lambda p: scores(mixture, p, batch))(tied(params, mixture.template.shapes))
    assert_close(got, want, trunk_operations(dense.model, batch["text"].document.shape[1]))


def test_untied_groups_are_what_an_expert_owns():
    assert tiny.model().untied == GROUPS
    shapes = tiny.task(tiny.SPECS["experts"], **SETTINGS["some groups"]).template.shapes["trunk"]["blocks"]
    assert sorted(shapes["b"]) == ["attention_norm", "down", "ffn_norm", "gate", "up"]
    assert {"q", "k", "v", "o", "q_norm", "k_norm", "q_norm_bias"} < set(shapes["a"])


def test_experts_cost_what_a_dense_model_does():
    """As the task counts, and as the compiler does, for the whole training step."""
    tasks = [tiny.task(tiny.SPECS[spec], scan=False) for spec in ("transfusion", "experts")]
    dense, mixture = (task.flops(task.fake_batch(4)) for task in tasks)
    assert (dense == mixture).all() and dense.min() > 0

    def compiled(task):
        def loss(params, batch):
            return task.loss(params, batch, task.draw(batch, jax.random.key(0)), task.totals(batch))[0]

        lowered = jax.jit(jax.grad(loss)).lower(task.template.shapes, task.batch_spec(4))
        return lowered.cost_analysis()["flops"]

    assert compiled(tasks[1]) == pytest.approx(compiled(tasks[0]), rel=0.01)  # counts of the compiler, no rounding
