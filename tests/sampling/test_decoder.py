"""The compiled decoder against the plain one, and against the packed forward pass."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_close, assert_same, drawing_operations

from transfusion.errors import UsageError
from transfusion.model.config import Stage, TransformerConfig
from transfusion.objectives import ObjectivesConfig
from transfusion.objectives.paths import ContinuousConfig
from transfusion.sampling.config import SamplerConfig
from transfusion.sampling.decoder import Prompt, generate
from transfusion.sampling.drawable import drawables_of
from transfusion.sampling.parts import painted_parts, token_of_text
from transfusion.sampling.place import lay
from transfusion.sampling.prompts import prefill_of
from transfusion.sampling.reference import _forward, generate_one
from transfusion.sampling.request import Prefix, predict
from transfusion.sampling.state import Line, append
from transfusion.sampling.trajectory import trajectory
from transfusion.sequence import TEXT, Run, Segment, SequenceSpec, Stream, text
from transfusion.sequence.patches import patchify
from transfusion.sequence.rows import assemble, expand
from transfusion.tasks import SequenceTask


def make_task(position="advance", path="linear", prediction="velocity", **image):
    fields = {"embed": "linear", "head": "linear", "time": "added", "budget": 16} | image
    streams = {
        "text": Stream(budget=48, vocabulary=text.VOCABULARY),
        "image": Stream(objective="continuous", attention="block", channels=2, patch=2, grid=(4, 4), **fields),
    }
    run = Run("image", opener=text.BOI, closer=text.EOI, position=position)
    layout = {"text": (Run("text"),), "image": (run,), "image/context": (dataclasses.replace(run, time_low=0.5),)}
    axes = 2 if position == "grid" else 1
    spec = SequenceSpec(streams, layout, text.BOS, text.EOS, axes)
    model = TransformerConfig(width=32, layers=2, heads=2, kv_heads=1, head_size=16, rope_axes=axes)
    return SequenceTask(model, spec, ObjectivesConfig(continuous={"image": ContinuousConfig(path, prediction)}))


def make_params(task):
    """Random weights under which BOI is likely, EOS unlikely and the velocity not zero."""
    params = task.template.init(jax.random.key(1))
    head = params["parts"]["text"]["head"]
    scale = jnp.ones(text.VOCABULARY).at[text.BOI].set(7.0).at[text.EOS].set(3.0)
    head["kernel"] = head["kernel"] * scale[None]
    image = params["parts"]["image"]["head"]
    if "kernel" in image:
        image["kernel"] = jax.random.normal(jax.random.key(2), image["kernel"].shape) / 6
    return params


def ids(*values):
    return Segment("text", np.array(values, np.int32))


def picture(seed):
    return Segment("image", np.random.default_rng(seed).standard_normal((4, 4, 2)).astype(np.float32), "context")


PROMPTS = [
    Prompt((ids(5, 6, 7),), draw=True),
    Prompt((ids(1, 2, 3, 4, 5, 6, 7, 8, 9),)),
    Prompt((picture(0), ids(70))),
    Prompt((ids(9), picture(1))),
]
CONFIG = SamplerConfig(steps=3, max_tokens=9, max_images=2, guidance=2.0, guidance_low=0.3, guidance_high=0.9)


@pytest.fixture(scope="session", params=["advance", "item", "grid"])
def trained(request):
    task = make_task(request.param)
    return task, make_params(task)


@pytest.fixture(scope="session")
def model_one():
    task = make_task("item")
    return task, make_params(task)


@pytest.fixture(scope="session")
def batch_of_four(model_one):
    return generate(*model_one, PROMPTS, 3, CONFIG)


def test_equals_the_plain_decoder(trained):
    task, params = trained
    results = generate(task, params, PROMPTS, 3, CONFIG)
    kinds = [segment.kind for result in results for segment in result]
    assert kinds.count("image") >= 3 and kinds.count("text") >= 4  # the comparison sees both, and what follows an image
    for number, (prompt, result) in enumerate(zip(PROMPTS, results, strict=True)):
        assert_same(result, generate_one(task, params, prompt, 3, CONFIG, number), drawing_operations(task, CONFIG))


def test_rows_do_not_depend_on_their_batch(model_one, batch_of_four):
    operations = drawing_operations(model_one[0], CONFIG)
    in_parts = generate(*model_one, PROMPTS, 3, CONFIG, batch=3)
    again = generate(*model_one, PROMPTS, 3, CONFIG)
    for whole, part, same in zip(batch_of_four, in_parts, again, strict=True):
        assert_same(whole, part, operations)
        assert_same(whole, same, 0)
    other = generate(*model_one, [PROMPTS[0], *PROMPTS[2:], PROMPTS[1]], 3, CONFIG)
    assert_same(other[0], batch_of_four[0], operations)


def test_seed_decides(model_one, batch_of_four):
    other = generate(*model_one, PROMPTS, 4, CONFIG)
    assert np.abs(other[0][0].value - batch_of_four[0][0].value).max() > 0.1


def test_limits(model_one, batch_of_four):
    for result in batch_of_four:
        texts = [s.value for s in result if s.kind == "text"]
        assert sum(map(len, texts)) <= CONFIG.max_tokens
        assert sum(s.kind == "image" for s in result) <= CONFIG.max_images
        assert all((t < 256).all() for t in texts)
    drawn = generate(*model_one, [PROMPTS[0]] * 2, 0, SamplerConfig(steps=2, max_tokens=0))
    assert [[s.kind for s in result] for result in drawn] == [["image"], ["image"]]
    written = generate(*model_one, PROMPTS[1:], 0, SamplerConfig(temperature=0.0, max_tokens=5, max_images=0))
    assert all(s.kind == "text" and len(s.value) <= 5 for result in written for s in result)


def test_ends_at_eos(model_one):
    task, params = model_one
    # Only EOS has a logit other than 0, and of the two signs one makes it positive.
    results = []
    for sign in (1.0, -1.0):
        kernel = jnp.zeros_like(params["parts"]["text"]["head"]["kernel"]).at[:, text.EOS].set(sign)
        parts = params["parts"] | {"text": params["parts"]["text"] | {"head": {"kernel": kernel}}}
        config = SamplerConfig(temperature=0.0, max_tokens=5, max_images=0)
        results += generate(task, params | {"parts": parts}, [Prompt((ids(1),))], 0, config)
    assert () in results


def test_wrong_prompts_are_told(model_one):
    with pytest.raises(UsageError, match="euler"):
        generate(*model_one, PROMPTS, 0, SamplerConfig(solver="eulr"))
    with pytest.raises(UsageError, match="max_images"):
        generate(*model_one, PROMPTS, 0, SamplerConfig(max_images=0))
    with pytest.raises(UsageError, match="grid"):
        generate(*model_one, [Prompt((Segment("image", np.zeros((2, 2, 2), np.float32)),))], 0, CONFIG)


# --- one forward pass at a time --------------------------------------------------------------------------------------


def packed(task, params, document, last_time=1.0):
    """Outputs of the packed forward pass for a document without its end, images clean but the last."""
    part = expand(document, task.spec, end=False)
    batch = assemble([[part]], task.spec)
    time = np.ones_like(batch["image"].time_low)
    if "image" in part.items:
        time[0, part.items["image"] - 1] = last_time
    out = _forward(task, params, batch, {"image": time})
    return {name: value[0, : part.cost.get(name, 0)] for name, value in out.items()}


def prefix_line(task, model, prompt, room):
    drawables = drawables_of(task.spec)
    prefill = prefill_of([prompt], task.spec, drawables)
    _, kept = model.read(prefill.inputs)
    return painted_parts(task.spec, *drawables, (0, 0), True), Line.behind(kept, prefill.place, room)


def test_cached_steps_equal_the_packed_forward(trained):
    """Text after an image in the middle, teacher forced: the logits of every position."""
    task, params = trained
    model = task.template.bind(params)
    after = [11, 12, 13, 14]
    _, line = prefix_line(task, model, Prompt((ids(1, 2), picture(0), ids(3))), len(after))
    want = packed(task, params, (ids(1, 2), picture(0), ids(3, *after)))[TEXT]
    rows, part = jnp.array([True]), token_of_text(task.spec)

    @jax.jit
    def step(line, token):
        inputs = lay(part, task.spec, line.place, rows, {TEXT: token[None, None]}, jnp.ones(1))
        line, encoded = append(model, line, part, inputs, rows)
        return line, model.head(TEXT, encoded[TEXT])[0, 0]

    for i, token in enumerate(after):
        line, logits = step(line, jnp.int32(token))
        assert_close(logits, want[len(want) - len(after) + i], drawing_operations(task))


def test_drawing_and_the_finished_image_equal_the_packed_forward(trained):
    task, params = trained
    model = task.template.bind(params)
    parts, line = prefix_line(task, model, Prompt((ids(1, 2, 3),), draw=True), 8)
    rows, image = jnp.array([True]), picture(5).value
    x = jnp.asarray(patchify(image, (2, 2)))[None]
    got = jax.jit(lambda x: predict(model, parts, Prefix(line.cache, line.place, rows), x, jnp.float32(0.3)))(x)
    document = (ids(1, 2, 3), Segment("image", image, "target"))
    want = packed(task, params, document, 0.3)["image"]
    assert_close(got[0], want, drawing_operations(task))

    # The clean image's keys and values, and EOI's, are those of a prompt that holds the image.
    inputs = lay(parts.finished, task.spec, line.place, rows, {"image": x}, jnp.ones(1))
    line, _ = jax.jit(lambda line: append(model, line, parts.finished, inputs, rows))(line)
    _, fresh = prefix_line(task, model, Prompt(document), 0)
    for field in ("order", "counter", "spans"):
        assert getattr(line.place, field) == getattr(fresh.place, field)
    for got, want in (
        (line.cache.k["trunk"][0], fresh.cache.k["trunk"][0]),
        (line.cache.v["trunk"][0], fresh.cache.v["trunk"][0]),
    ):
        got, want = _in_order(line, got), _in_order(fresh, want)
        assert_close(got, want, drawing_operations(task))


def _in_order(line, array):
    """Keys or values [layers, G, L, K] of the one row's tokens in reading order."""
    meta = line.cache.metadata
    real = np.flatnonzero(np.asarray(meta.document[0]))
    return np.asarray(array)[:, :, real[np.argsort(np.asarray(meta.order[0])[real])]]


def test_rows_that_do_not_draw_keep_their_cache(model_one):
    task, params = model_one
    drawables = drawables_of(task.spec)
    prefill, finished = (
        prefill_of(PROMPTS[:2], task.spec, drawables),
        painted_parts(task.spec, *drawables, (0, 0), True).finished,
    )
    model = task.template.bind(params)
    _, kept = model.read(prefill.inputs)
    before = Line.behind(kept, jax.tree.map(jnp.asarray, prefill.place), 8)
    rows = jnp.array([True, False])
    inputs = lay(finished, task.spec, before.place, rows, {"image": jnp.ones((2, 4, 8))}, jnp.ones(2))
    after, _ = append(model, before, finished, inputs, rows)
    groups = task.model.groups

    def row(line, i):  # all but the slot that is no one's
        metadata = jax.tree.map(lambda a: a[i, :-1], line.cache.metadata)
        place, used = jax.tree.map(lambda a: a[i], (line.place, line.used))
        return metadata, place, used, line.cache.k["trunk"][0][:, i * groups : (i + 1) * groups, :-1]

    jax.tree.map(np.testing.assert_array_equal, row(before, 1), row(after, 1))
    assert int((after.cache.metadata.document[0] != before.cache.metadata.document[0]).sum()) == finished.length


def test_guidance_one_is_none_and_a_closed_interval_is_none(model_one):
    def draw(**fields):
        return generate(*model_one, PROMPTS[:1], 0, SamplerConfig(steps=3, max_tokens=0, **fields))[0][0].value

    plain, guided = draw(), draw(guidance=3.0)
    operations = drawing_operations(model_one[0], SamplerConfig(steps=3))
    # Another program than the plain one: equal up to the order in which the compiler adds.
    assert_close(draw(guidance=3.0, guidance_low=0.8, guidance_high=0.7), plain, operations)
    assert_close(draw(guidance=1.0 + 1e-6), plain, operations)
    assert np.abs(guided - plain).max() > 1e-2


def test_trajectory_ends_in_the_image_that_generate_draws(model_one):
    config = SamplerConfig(steps=3, max_tokens=0, guidance=2.0)
    path = trajectory(*model_one, Prompt((ids(5, 6, 7),)), 3, config, at=[0, 2])
    assert_close(path.times, [0, 2 / 3, 1], 8)
    assert path.x.shape == path.data.shape == (3, 4, 4, 2)
    operations = drawing_operations(model_one[0], config)
    assert_close(path.x[-1], generate(*model_one, PROMPTS[:1], 3, config)[0][0].value, operations)
    # Euler's last step on the linear path goes to the estimate of the data.
    assert_close(path.data[1], path.x[-1], operations)


def test_unet_coder_and_noise_prediction_with_ddpm():
    task = make_task(path="cosine", prediction="noise", embed="unet", head="unet", time="coder")
    params = make_params(task)
    out = params["parts"]["image"]["head"]["up"]["conv_out"]
    out |= {"kernel": jax.random.normal(jax.random.key(0), out["kernel"].shape) / 20}
    config = SamplerConfig(solver="ddpm", steps=2, max_tokens=2, max_images=1, temperature=0.0)
    (result,) = generate(task, params, PROMPTS[:1], 3, config)
    assert_same(result, generate_one(task, params, PROMPTS[0], 3, config), drawing_operations(task, config))


def test_a_flow_head_behind_the_trunk_draws_with_a_cache_of_its_own():
    """Show-o2's shape: a time token inside the image, a second trunk over all tokens that the noise level modulates."""
    task = make_task(time="token_adaln", head="adaln_rms", budget=15)
    streams = dict(task.spec.streams)
    streams["text"] = dataclasses.replace(streams["text"], head_after="trunk")
    flow = dataclasses.replace(task.model, width=16, head_size=8, final_norm=False, streams=("text", "image"))
    model = dataclasses.replace(task.model, stages={"head": Stage(flow, "mlp")})
    task = SequenceTask(model, dataclasses.replace(task.spec, streams=streams), task.objectives)
    params = jax.tree.map(lambda x: x + 0.05 * jax.random.normal(jax.random.key(x.size), x.shape), make_params(task))
    config = dataclasses.replace(CONFIG, guidance=1.5, renorm="global")
    prompts = PROMPTS[:3]
    for i, (ours, prompt) in enumerate(zip(generate(task, params, prompts, 3, config), prompts, strict=True)):
        plain = generate_one(task, params, prompt, 3, config, i)
        assert_same(ours, plain, drawing_operations(task, config))
        assert i or any(s.kind == "image" for s in ours)
