"""Hidden patches: what the trunk reads of them, and which have a loss."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from transfusion import layouts
from transfusion.errors import UsageError
from transfusion.model.config import TransformerConfig
from transfusion.objectives import OBJECTIVES, ObjectivesConfig
from transfusion.sequence import SequenceSpec, Stream, text
from transfusion.sequence.fakes import fake_batch
from transfusion.tasks import SequenceTask

OBJECTIVE = OBJECTIVES["masked_flow"]
IMAGE = Stream(
    embed="linear", head="token_flow", objective="masked_flow", attention="block", channels=2, patch=2, grid=(4, 6),
    budget=12, table="sincos", coder_width=8,
)  # fmt: skip


def make_task() -> SequenceTask:
    streams = {"text": tiny.text_stream(), "image": IMAGE}
    model = TransformerConfig(width=16, layers=1, heads=2, ffn_multiple=16)
    return SequenceTask(model, SequenceSpec(streams, layouts.showo(), text.BOS, text.EOS), ObjectivesConfig())


def start():
    """A task, its first parameters, two rows, and the draws of a step."""
    task = make_task()
    batch = fake_batch(task.spec, 2, seed=1)
    return task, task.template.init(jax.random.key(0)), batch, task.draw(batch, jax.random.key(5))


def test_hidden_patches_alone_have_a_loss():
    task, params, batch, draws = start()
    part, drawn, config = batch["image"], draws["image"], task.objectives.of_masked_flow("image")
    hidden = np.asarray(drawn["mask"])
    assert hidden.any() and not hidden.all()
    content = np.asarray(OBJECTIVE.content(part, drawn, config))
    assert np.isnan(content[hidden]).all()
    np.testing.assert_array_equal(content[~hidden], np.asarray(part.values)[~hidden])
    encoded = SimpleNamespace(hidden=jnp.ones((*hidden.shape, 16)))
    per_token, _ = OBJECTIVE.loss(task.template.bind(params).head_of("image"), encoded, part, drawn, config)
    assert (np.asarray(per_token)[~hidden] == 0).all() and (np.asarray(per_token)[hidden] > 0).all()
    assert not OBJECTIVE.clean(part)["mask"].any()


def test_gradients_are_numbers_and_reach_the_vector_of_hidden_patches():
    task, params, batch, draws = start()
    # The last layer of the small network is 0 at first, so that nothing passes back to the trunk.
    head = params["parts"]["image"]["head"]
    head |= {name: jax.random.normal(jax.random.key(1), head[name].shape) for name in ("kernel", "modulation")}
    gradients = jax.grad(lambda p: task.loss(p, batch, draws, task.totals(batch))[0])(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    assert np.abs(gradients["parts"]["image"]["masked"]).max() > 0


def test_the_trunk_does_not_see_what_is_hidden():
    task, params, batch, draws = start()
    part, hidden = batch["image"], draws["image"]["mask"][..., None]

    def outputs(values):
        changed = batch | {"image": dataclasses.replace(part, values=values)}
        inputs = {name: task.inputs(name, changed, draws) for name in task.spec.streams}
        return np.asarray(task.template.bind(params).encode(inputs)["image"].hidden)

    before = outputs(jnp.asarray(part.values))
    np.testing.assert_array_equal(before, outputs(jnp.where(hidden, 7.0, part.values)))
    assert np.abs(before - outputs(jnp.where(hidden, part.values, 7.0))).max() > 1e-3


@pytest.mark.parametrize("changes", [{"time": "added"}, {"grid": (0, 0), "items": 2}])
def test_what_cannot_be_hidden_is_refused(changes):
    with pytest.raises(UsageError, match="masked_flow.* needs a fixed `grid`, and time 'none'"):
        dataclasses.replace(IMAGE, **changes)
