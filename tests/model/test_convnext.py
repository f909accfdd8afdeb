"""The ConvNeXt coder, alone and in a stream whose items begin with a time token."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from closeness import assert_close
from flax import nnx

from transfusion.errors import UsageError
from transfusion.model.convnext import SMALL, ConvNeXtConfig, ConvNeXtDown, ConvNeXtUp, depthwise, response_norm
from transfusion.model.parameters import Template
from transfusion.model.transformer import TrunkInputs
from transfusion.model.unified import model_template
from transfusion.sequence.rows import assemble, expand

EMBED, CONDITION, CHANNELS, PATCH = 12, 6, 3, 2


class Coder(nnx.Module):
    def __init__(self, rngs):
        config = ConvNeXtConfig(width=4, blocks=1)
        self.down = ConvNeXtDown(CHANNELS, PATCH, EMBED, rngs, condition=CONDITION, config=config)
        self.up = ConvNeXtUp(CHANNELS, PATCH, EMBED, rngs, condition=CONDITION, config=config)

    def __call__(self, latents, condition):
        tokens, skips = self.down(latents, condition)
        return tokens, self.up(tokens, skips, condition)


TEMPLATE = Template(Coder)


@functools.cache
def parameters():
    """Every parameter random: the last layer starts at zero and would hide all others."""
    rng = np.random.default_rng(0)

    def draw(leaf):
        return rng.standard_normal(leaf.shape).astype(np.float32) * max(np.prod(leaf.shape[:-1]), 4) ** -0.5

    return jax.tree.map(draw, TEMPLATE.shapes)


RUN = jax.jit(lambda params, latents, condition: TEMPLATE.bind(params)(latents, condition))


def inputs(m=2):
    rng = np.random.default_rng(1)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)  # noqa: E731
    return draw(m, 4, 6, CHANNELS), draw(m, CONDITION)


@pytest.mark.parametrize("sides", [(2, 3), (4, 9), (11, 14)])
def test_a_depthwise_convolution_is_a_sum_over_a_square_of_each_channel(sides):
    rng = np.random.default_rng(0)
    x, kernel = rng.standard_normal((2, *sides, 3)), rng.standard_normal((7, 7, 3))
    padded = np.pad(x, ((0, 0), (3, 3), (3, 3), (0, 0)))
    want = sum(
        padded[:, i : i + sides[0], j : j + sides[1]] * kernel[i, j] for i in range(7) for j in range(7)
    )  # fmt: skip
    assert_close(depthwise(jnp.float32(x), jnp.float32(kernel)), want, 7 * 7 + 2)
    assert 4 * 9 <= SMALL < 11 * 14  # both ways of computing it are seen


def test_the_response_norm_is_that_of_its_paper_and_has_a_gradient_at_zero():
    rng = np.random.default_rng(0)
    x, scale, bias = rng.standard_normal((2, 3, 2, 5)), rng.standard_normal(5), rng.standard_normal(5)
    energy = np.linalg.norm(x, axis=(1, 2), keepdims=True)
    want = scale * x * energy / energy.mean(-1, keepdims=True) + bias + x
    norm = jax.jit(response_norm)
    assert_close(norm(*map(jnp.float32, (x, scale, bias))), want, 2 * 3 + 5 + 8)
    gradient = jax.jit(jax.grad(lambda x: norm(x, jnp.float32(scale), jnp.float32(bias)).sum()))(jnp.zeros(x.shape))
    assert jnp.isfinite(gradient).all()


def test_images_do_not_see_each_other():
    latents, condition = inputs()
    tokens, out = RUN(parameters(), latents, condition)
    other = RUN(parameters(), latents.at[1].add(1.0), condition.at[1].add(1.0))
    np.testing.assert_array_equal(other[0][0], tokens[0])
    np.testing.assert_array_equal(other[1][0], out[0])
    assert jnp.abs(other[0][1] - tokens[1]).max() > 1e-3


def test_what_comes_out_depends_on_the_skip_the_trunk_and_the_noise_level():
    latents, condition = inputs()
    down = jax.jit(lambda *x: TEMPLATE.bind(parameters()).down(*x))
    up = jax.jit(lambda *x: TEMPLATE.bind(parameters()).up(*x))
    tokens, (skip,) = down(latents, condition)
    assert tokens.shape == (2, 6, EMBED) and skip.shape == (2, 2, 3, 4)
    out = up(tokens, (skip,), condition)
    assert out.shape == latents.shape
    for variant in ((tokens * 1.5 + 1, (skip,), condition), (tokens, (2 * skip,), condition)):
        assert jnp.abs(up(*variant) - out).max() > 1e-3
    assert jnp.abs(up(tokens, (skip,), condition + 1) - out).max() > 1e-3
    assert jnp.abs(down(latents, condition + 1)[0] - tokens).max() > 1e-3
    with pytest.raises(UsageError, match="5x6"):
        down(jnp.zeros((2, 5, 6, CHANNELS)), condition)


def test_every_parameter_gets_a_gradient_and_the_head_starts_at_zero():
    latents, condition = inputs()
    gradient = jax.jit(jax.grad(lambda params: jnp.square(RUN(params, latents, condition)[1] - latents).mean()))
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient(parameters())):
        assert float(jnp.abs(leaf).max()) > 0, path
    assert not np.any(RUN(TEMPLATE.init(jax.random.key(0)), latents, condition)[1])


# --- in a stream ------------------------------------------------------------------------------------------------------


def coder_stream(**changes):
    """Items of 4 patches after a time token."""
    fields = dict(embed="convnext", head="convnext", time="token_coder", attention="causal", budget=15, coder_width=4)
    return tiny.image_stream(**fields | changes)


@functools.cache
def trained():
    """A task and random parameters, zero ones too, and one row's inputs: three images, the last one padding."""
    task = tiny.task(tiny.spec({"text": tiny.text_stream(), "image": coder_stream()}))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32) / 4, task.template.shapes)
    document = (tiny.words(6), tiny.picture(rng), tiny.words(7), tiny.picture(rng))
    batch = assemble([[expand(document, task.spec)]], task.spec)
    return task, params, batch, task.draw(batch, jax.random.key(0))


def test_the_slot_of_the_time_token_is_no_patch():
    task, params, batch, draws = trained()
    model, inputs = task.template.bind(params), task.inputs("image", batch, draws)
    slots = np.arange(0, 15, 5)
    assert (np.asarray(batch["image"].place)[0, slots[:2]] == -1).all()

    def run(content):
        tokens, skips = model.embed("image", dataclasses.replace(inputs, content=content))
        return tokens, model.parts["image"].head(tokens, skips)

    tokens, out = jax.jit(run)(inputs.content)
    other = jax.jit(run)(inputs.content.at[:, slots].set(9.0))
    np.testing.assert_array_equal(other[0], tokens)
    np.testing.assert_array_equal(other[1], out)
    assert not out[:, slots].any() and out[:, slots + 1].any()
    # The token says the noise level of its own image, by the embedding that also modulates the blocks.
    # 256 features of angles up to 1000 enter a perceptron.
    assert_close(tokens[0, slots[:2]], model.parts["image"].time(inputs.time)[0, :2], 1000 + 256)


def test_later_patches_reach_earlier_ones_through_the_coder_alone():
    """The trunk is causal; the coder, as in the original, is not."""
    task, params, batch, draws = trained()
    model, inputs = task.template.bind(params), {n: task.inputs(n, batch, draws) for n in ("text", "image")}
    tokens = {name: model.embed(name, part)[0] for name, part in inputs.items()}
    tables = [{n: getattr(p, f) for n, p in inputs.items()} for f in ("position", "metadata")]
    trunk = jax.jit(lambda image: model.trunk(TrunkInputs(tokens | {"image": image}, *tables))["image"])
    last = 4  # the first image's last patch
    change = np.abs(trunk(tokens["image"].at[0, last].add(1.0)) - trunk(tokens["image"])).max(-1)[0]
    assert not change[:last].any() and (change[last:10] > 0).all()
    moved = dataclasses.replace(inputs["image"], content=inputs["image"].content.at[0, last].add(1.0))
    change = np.abs(model.embed("image", moved)[0] - tokens["image"]).max(-1)[0]
    assert (change[1 : last + 1] > 0).all() and not change[5:].any() and not change[0]


WRONG = [{"head": "unet"}, {"time": "token"}, {"embed": "linear"}, {"grid": (0, 0), "items": 2}]


@pytest.mark.parametrize("changes", WRONG)
def test_what_belongs_together(changes):
    with pytest.raises(UsageError, match="go together"):
        model_template(tiny.model(), tiny.spec({"text": tiny.text_stream(), "image": coder_stream(**changes)}))


def test_a_unet_may_have_a_time_token_too():
    stream = coder_stream(embed="unet", head="unet")
    task = tiny.task(tiny.spec({"text": tiny.text_stream(), "image": stream}))
    batch = task.fake_batch(2)

    def loss(params, key):
        return task.loss(params, batch, task.draw(batch, key), task.totals(batch))[0]

    assert jax.eval_shape(loss, task.template.shapes, jax.random.key(0)).shape == ()
