"""Embeds: what is computed per image stays per image."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from closeness import assert_close

from transfusion.errors import UsageError
from transfusion.model.block import per_token
from transfusion.model.embeds import EMBEDS
from transfusion.model.unified import model_template
from transfusion.model.vectors import sincos_table
from transfusion.sequence import Released


def shapes_in(jaxpr):
    """The shapes of all values that a program computes, inner programs included."""
    for equation in jaxpr.eqns:
        for value in equation.outvars:
            yield tuple(value.aval.shape)
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from shapes_in(inner)


@pytest.mark.parametrize("name", ["transfusion", "mixed"])
def test_the_condition_is_computed_once_per_image(name):
    rows, width = 3, 32
    task = tiny.task(tiny.SPECS[name])
    stream = task.spec.streams["image"]
    batch = task.fake_batch(rows)

    def embed(params, batch, draws):
        return task.template.bind(params).embed("image", task.inputs("image", batch, draws))[0]

    draws = task.draw(batch, jax.random.key(0))
    params = task.template.init(jax.random.key(0))
    shapes = list(shapes_in(jax.make_jaxpr(embed)(params, batch, draws).jaxpr))
    items = rows * stream.max_items
    # The perceptron's 256 features exist for each image, and nothing of their width exists for each token.
    assert any(shape[-1:] == (256,) and np.prod(shape[:-1]) == items for shape in shapes)
    assert not any(shape[-1:] == (256,) and np.prod(shape[:-1]) > items for shape in shapes)
    assert any(shape == (rows, stream.budget, width) for shape in shapes)


def test_the_noise_level_of_an_image_moves_its_tokens_only():
    task = tiny.task()
    batch = task.fake_batch(1)
    params = task.template.init(jax.random.key(0))
    draws = task.draw(batch, jax.random.key(0))

    @jax.jit
    def embed(time):
        inputs = task.inputs("image", batch, draws)
        inputs = type(inputs)(inputs.content, time, inputs.position, inputs.item, inputs.place, inputs.metadata)
        return task.template.bind(params).embed("image", inputs)[0]

    time = jnp.full((1, 4), 0.3)
    moved = jnp.abs(embed(time.at[0, 1].set(0.9)) - embed(time)).max(-1)[0] > 0
    np.testing.assert_array_equal(moved, np.arange(16) // 4 == 1)


def test_a_narrow_patch_is_a_linear_one_of_few_directions():
    """Its tokens are those of a linear embed whose matrix is the product of its two, which has their low rank."""
    spec = tiny.SPECS["transfusion"]
    image = dataclasses.replace(spec.streams["image"], embed="narrow", coder_width=2)
    narrow, linear = tiny.task(dataclasses.replace(spec, streams={**spec.streams, "image": image})), tiny.task(spec)
    batch = linear.fake_batch(1)
    inputs = linear.inputs("image", batch, linear.draw(batch, jax.random.key(0)))
    model = narrow.template.bind(narrow.template.init(jax.random.key(1)))
    other = linear.template.bind(linear.template.init(jax.random.key(2)))
    ours, theirs = model.parts["image"].embed, other.parts["image"].embed
    theirs.kernel[...], theirs.bias[...] = ours.narrow[...] @ ours.kernel[...], ours.bias[...]
    assert ours.narrow[...].shape[1] == 2
    assert_close(ours(inputs, None)[0], theirs(inputs, None)[0], 64)


def test_spreading_over_tokens_agrees_in_both_layouts():
    condition = jnp.arange(12.0).reshape(2, 3, 2)
    item = jnp.array([[0, 0, 1, 1, 2, 2]] * 2)
    np.testing.assert_array_equal(per_token(condition, item, True), per_token(condition, item, False))
    assert per_token(condition, item[:, ::-1], False)[0, 0].tolist() == [4.0, 5.0]


@pytest.mark.parametrize("sides", [(64,), (8, 8), (4, 4, 4)])
def test_every_place_has_its_own_position(sides):
    places = np.stack(np.meshgrid(*map(np.arange, sides), indexing="ij"), -1).reshape(1, 64, len(sides))
    table = np.asarray(sincos_table(jnp.asarray(places), 32, range(len(sides))))[0]
    distance = np.linalg.norm(table[:, None] - table[None], axis=-1) + 10 * np.eye(64)
    assert table.shape == (64, 32)
    assert distance.min() > 0.3
    used = 32 // (2 * len(sides)) * len(sides)  # pairs of a sine and a cosine
    assert_close(np.linalg.norm(table, axis=-1), used**0.5, 32 + 8)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"embed": "linaer"}, f"embed: 'linaer' is none of {', '.join(EMBEDS)} (did you mean 'linear'?)"),
        ({"head": "unet"}, "go together"),
        ({"time": "add"}, "did you mean 'added'?"),
        ({"table": "learned", "grid": (0, 0), "items": 3}, "table 'learned' needs a fixed `grid`"),
    ],
)
def test_parts_that_do_not_exist_or_fit(changes, message):
    with pytest.raises(UsageError) as error:
        model_template(tiny.model(), tiny.spec({"text": tiny.text_stream(), "image": tiny.image_stream(**changes)}))
    assert message in str(error.value)


@pytest.mark.parametrize("released, grid", [(Released(), (2, 2)), (Released(table_grid=(8, 6)), (8, 6))])
def test_a_learned_table_has_the_grid_of_the_items_unless_a_release_has_another(released, grid):
    image = tiny.image_stream(table="learned", released=released)
    template = model_template(tiny.model(), tiny.spec({"text": tiny.text_stream(), "image": image}))
    assert template.shapes["parts"]["image"]["table"]["table"].shape == (*grid, 32)
