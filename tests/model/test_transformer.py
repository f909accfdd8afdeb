"""The trunk: equal to the plain model, in every way of running it."""

import jax
import jax.numpy as jnp
import naive
import numpy as np
import packed
import pytest
import tiny
from closeness import assert_close, trunk_operations

from transfusion.errors import UsageError
from transfusion.model.config import PRESETS, TransformerConfig
from transfusion.model.unified import model_template, parameter_count
from transfusion.sequence import Stream

ROWS = [[0, 3], [2], [1, 0]]


def random_params(task, seed=0):
    """Initial parameters, with the zeros and ones of biases and norms moved: an unused one would go unnoticed."""
    params = task.template.init(jax.random.key(seed))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape).astype(np.float32), params)


CASES = {
    "transfusion": ("transfusion", {}, {}),
    "experts, grouped, normed": ("experts", {"kv_heads": 2, "qk_norm": "rms"}, {}),
    "one index per image": ("item", {"kv_heads": 1}, {"position": "item"}),
    "grid of three axes": ("grid", {"head_size": 12}, {"position": "grid", "axes": 3}),
    "BAGEL": ("bagel", {"kv_heads": 2}, {"bagel": True}),
}


@pytest.mark.parametrize("name", CASES)
def test_packed_streams_equal_the_plain_model(name):
    spec_name, changes, reading = CASES[name]
    spec = tiny.SPECS[spec_name]
    image = "noised" if spec_name == "bagel" else "image"
    task = tiny.task(spec, **changes)
    params = random_params(task)
    documents = tiny.documents()
    draws = packed.noise_of(documents, (image,))
    batch, drawn = packed.pack(ROWS, documents, draws, spec)
    loss, sums = jax.jit(task.loss)(params, batch, drawn, task.totals(batch))

    wide = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    experts = {stream: s.expert for stream, s in spec.streams.items()}
    text, images = np.zeros(2), np.zeros(2)
    for d in (d for row in ROWS for d in row):
        tokens = naive.tokens(documents[d], **reading)
        hidden = naive.forward(wide, tokens, task.model, experts, *draws[d])
        for total, new in zip((text, images), naive.losses(wide, tokens, hidden, image), strict=True):
            total += new
    operations = trunk_operations(task.model, sum(stream.budget for stream in spec.streams.values()))
    for name, (total, count) in (("text", text), (image, images)):
        assert_close(sums[f"{name}_loss"][0], total, operations, note=name)
        assert sums[f"{name}_loss"][1] == count
    assert_close(loss, text[0] / text[1] + 5 * images[0] / images[1], operations)


@pytest.fixture(scope="module")
def work():
    """Loss and gradients of one batch as a function of how the trunk is run; parameters are the same."""
    documents = tiny.documents()
    spec = tiny.SPECS["experts"]
    batch, drawn = packed.pack(ROWS, documents, packed.noise_of(documents), spec)
    params = random_params(tiny.task(spec))

    def run(**changes):
        task = tiny.task(spec, **changes)
        function = jax.jit(jax.value_and_grad(lambda p: task.loss(p, batch, drawn, task.totals(batch))[0]))
        return function(params)

    return run


@pytest.fixture(scope="module")
def scanned(work):
    return work()


@pytest.mark.parametrize("changes", [{"scan": False}, {"remat": "full"}, {"remat": "dots"}, {"attention": "blockwise"}])
def test_every_way_of_running_gives_the_same_loss_and_gradients(work, scanned, changes):
    spec = tiny.SPECS["experts"]
    length = sum(stream.budget for stream in spec.streams.values())
    assert_close(work(**changes), scanned, 3 * trunk_operations(tiny.task(spec).model, length))


def test_bfloat16_is_close_and_its_gradients_are_float32(work, scanned):
    loss, gradients = work(dtype="bfloat16")
    assert abs(loss - scanned[0]) < 0.02 * abs(scanned[0])
    assert loss != scanned[0]
    for got, want in zip(jax.tree.leaves(gradients), jax.tree.leaves(scanned[1]), strict=True):
        assert got.dtype == jnp.float32
        assert np.linalg.norm(got - want) < 0.1 * np.linalg.norm(want) + 1e-3


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_sizes_of_their_names(name):
    """With a text vocabulary of 32,000 (Llama's) and linear patches of 2 x 2 x 8: within 4 per cent."""
    streams = {
        "text": Stream(vocabulary=32_000, budget=128),
        "image": tiny.image_stream(channels=8, grid=(32, 32), budget=256),
    }
    shapes = model_template(PRESETS[name], tiny.spec(streams)).shapes
    wanted = float(name.removesuffix("B")) * 1e9
    assert abs(parameter_count(shapes) / wanted - 1) < 0.04


def test_experts_double_the_blocks_only():
    dense, experts = (parameter_count(tiny.task(tiny.SPECS[n]).template.shapes) for n in ("transfusion", "experts"))
    block = tiny.task().template.shapes["trunk"]
    assert experts - dense == parameter_count(block)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"width": 30, "heads": 4}, "4 heads do not divide width 30"),
        ({"heads": 4, "kv_heads": 3}, "kv_heads 3 does not divide heads 4"),
        ({"width": 12, "heads": 4}, "head_size 3 must be even"),
        ({"layers": 0}, "must be positive"),
        ({"dtype": "float16"}, "dtype: 'float16' is none of float32, bfloat16 (did you mean 'bfloat16'?)"),
        ({"remat": "fulll"}, "did you mean 'full'?"),
        ({"attention": "blocks"}, "model.attention"),
    ],
)
def test_impossible_shapes_are_refused(changes, message):
    with pytest.raises(UsageError) as error:
        TransformerConfig(**changes)
    assert message in str(error.value)
