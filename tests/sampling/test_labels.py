"""A drawing's class and pooled vector: the decoder has them as the packed forward pass has, and guidance leaves them
out."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from transfusion.errors import UsageError
from transfusion.sampling.config import SamplerConfig
from transfusion.sampling.decoder import decoder_of, generate
from transfusion.sampling.drawable import drawables_of
from transfusion.sampling.prompts import Prompt, prefill_of
from transfusion.sampling.reference import generate_one
from transfusion.sampling.request import Prefix, predict
from transfusion.sequence import Released, Segment, TimeConfig
from transfusion.sequence.patches import patchify
from transfusion.sequence.rows import assemble, expand

CLASSES, SIZE = 3, 5


def bagel():
    """Both copies of an image are modulated, the clean one by its class alone."""
    spec = tiny.bagel()
    streams = dict(spec.streams)
    for name, fields in {
        "noised": {"labels": CLASSES, "released": Released(pooled=SIZE)},
        "clean": {"labels": CLASSES},
    }.items():
        streams[name] = dataclasses.replace(streams[name], time="adaln", **fields)
    return dataclasses.replace(spec, streams=streams)


def plain(**image):
    fields = {"time": "adaln", "head": "adaln"} | image
    return tiny.spec({"text": tiny.text_stream(), "image": tiny.image_stream(**fields)})


FORMS = {
    "labels": plain(labels=CLASSES),
    "pooled": plain(released=Released(pooled=SIZE)),
    "both, a vector for each layer": plain(
        labels=CLASSES, released=Released(pooled=SIZE, time=TimeConfig(per_layer=True))
    ),
    "labels in a token": plain(labels=CLASSES, time="token_adaln", head="linear", budget=20),
    "two copies": bagel(),
}
WORDS, X = tiny.words(9), tiny.picture(np.random.default_rng(0), "target").value


@pytest.fixture(scope="module", params=FORMS)
def model(request):
    """A task, and parameters under which a class changes much."""
    task, rng = tiny.task(FORMS[request.param]), np.random.default_rng(0)
    params = task.template.init(jax.random.key(0))
    return task, jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape).astype(np.float32), params)


def pooled(seed=1):
    return np.random.default_rng(seed).standard_normal(SIZE).astype(np.float32)


def asked(task, label, seed=1):
    """A prompt for a drawing, with what the model has of a class and a pooled vector."""
    streams = task.spec.streams.values()
    classes, vectors = any(s.labels for s in streams), any(s.released.pooled for s in streams)
    return Prompt((WORDS,), True, (), label if classes else -1, pooled(seed) if vectors and label >= 0 else None)


def packed_velocity(task, params, prompt, t=0.4):
    """What the packed forward pass of training says of X at the time t."""
    image = Segment("image", X, "target", prompt.label, pooled=prompt.pooled)
    batch = assemble([[expand((WORDS, image), task.spec)]], task.spec)
    draws, name = {}, drawables_of(task.spec)[0].run.stream
    for stream, part in batch.items():
        if part.values is not None:
            time = jnp.full_like(part.time_low, t) if stream == name else jnp.ones_like(part.time_low)
            draws[stream] = {"time": time, "noise": jnp.zeros_like(part.values)}
        else:
            draws[stream] = {}
    inputs = {stream: task.inputs(stream, batch, draws) for stream in task.spec.streams}
    inputs[name] = dataclasses.replace(inputs[name], content=jnp.asarray(batch[name].values))
    model = task.template.bind(params)
    encoded = model.encode(inputs)
    stream = task.spec.streams[name]
    return np.asarray(model.head(name, encoded[name]))[0, stream.content.lead : stream.tokens_per_item]


def decoded_velocity(task, params, prompt, t=0.4):
    """The same from the decoder's pieces."""
    made, _ = decoder_of(task, SamplerConfig(), (0, 0))
    prefill = prefill_of([prompt], task.spec, made.drawables)
    cache, _ = made._prefill(made.once.bind(params), prefill)
    model = task.template.bind(params)
    prefix = made.ways[0].about_to_draw(model, Prefix(cache, prefill.place, prefill.draw))
    extra = made.drawables[0].stream.content.lead
    x = jnp.pad(jnp.asarray(patchify(X, (2, 2))), ((extra, 0), (0, 0)))[None]
    return np.asarray(predict(model, made.ways[0].parts, prefix, x, jnp.float32(t)))[0, extra:]


def test_a_step_of_the_decoder_sees_what_the_packed_pass_sees(model):
    velocities = {}
    for label in (-1, 0, CLASSES - 1):
        prompt = asked(model[0], label, seed=label + 2)
        velocities[label] = packed_velocity(*model, prompt)
        scale = np.abs(velocities[label]).max()
        # Float32 through two layers; a class that is ignored moves a velocity by a hundred times as much.
        np.testing.assert_allclose(decoded_velocity(*model, prompt), velocities[label], rtol=0, atol=1e-4 * scale)
    for other in (0, CLASSES - 1):  # the comparison would see a class that is ignored
        assert np.abs(velocities[-1] - velocities[other]).max() > 1e-2 * np.abs(velocities[-1]).max()


def test_equals_the_plain_decoder(model):
    """Guided, and with what follows the drawing: it is read as an image of its class."""
    task, params = model
    config = SamplerConfig(steps=2, max_tokens=4, guidance=2.0, temperature=0.0)
    prompts = [asked(task, label) for label in (1, -1, 2)]
    results = generate(task, params, prompts, 3, config)
    images = [result[0].value for result in results]
    assert np.abs(images[0] - images[1]).max() > 0.01
    for number, (prompt, result) in enumerate(zip(prompts, results, strict=True)):
        assert result[0].label == prompt.label
        plain = generate_one(task, params, prompt, 3, config, number)
        assert [s.kind for s in result] == [s.kind for s in plain]
        for a, b in zip(result, plain, strict=True):
            np.testing.assert_allclose(a.value, b.value, atol=1e-3 * max(np.abs(b.value).max(), 1))


def test_without_a_class_nothing_is_asked():
    """A prompt that names none is the null class, by whichever way it comes."""
    task = tiny.task(FORMS["labels"])
    params = task.template.init(jax.random.key(0))
    config = SamplerConfig(steps=2, max_tokens=0)
    (one,), (other,) = (generate(task, params, [p], 0, config) for p in (Prompt((WORDS,), True), asked(task, -1)))
    np.testing.assert_array_equal(one[0].value, other[0].value)


@pytest.mark.parametrize(
    ("form", "prompt", "message"),
    [
        ("labels", Prompt((WORDS,), True, label=CLASSES), "class 3.*0 to 2"),
        ("labels", Prompt((WORDS,), True, pooled=np.zeros(SIZE)), "pooled.*has 0 numbers"),
        ("pooled", Prompt((WORDS,), True, label=0), "no classes"),
        ("pooled", Prompt((WORDS,), True, pooled=np.zeros(SIZE - 1)), r"\[4\].*5 numbers"),
    ],
)
def test_what_the_model_does_not_have_is_told(form, prompt, message):
    task = tiny.task(FORMS[form])
    with pytest.raises(UsageError, match=message):
        generate(task, task.template.init(jax.random.key(0)), [prompt], 0, SamplerConfig(steps=1, max_tokens=0))


def test_text_that_a_drawing_modulates_is_not_sampled():
    streams = {
        "text": tiny.text_stream(released=Released(condition="image")),
        "image": tiny.image_stream(time="adaln", head="adaln"),
    }
    with pytest.raises(UsageError, match="streams.text.released.condition"):
        decoder_of(tiny.task(tiny.spec(streams)), SamplerConfig(), (0, 0))


def test_an_item_of_a_document_has_the_streams_classes_and_vector():
    spec = FORMS["both, a vector for each layer"]
    good = Segment("image", X, "target", 2, pooled=pooled())
    part = assemble([[expand((WORDS, good), spec)]], spec)["image"]
    assert part.label[0].tolist() == [2, 3, 3, 3]  # what is padding has no class
    np.testing.assert_array_equal(part.pooled[0, 0], pooled())
    for wrong in ({"label": 3}, {"pooled": np.zeros(SIZE + 1)}):
        with pytest.raises(UsageError, match="class 3 of a stream of 3|pooled vector has shape"):
            expand((WORDS, dataclasses.replace(good, **wrong)), spec)
