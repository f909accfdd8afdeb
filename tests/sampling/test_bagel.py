"""Models that hold an image up to three times (BAGEL, Mogao): two guiding conditions, thoughts, images in prompts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_same, drawing_operations

from transfusion import layouts
from transfusion.errors import UsageError
from transfusion.model.config import TransformerConfig
from transfusion.model.vit import ViTConfig
from transfusion.objectives import ObjectivesConfig
from transfusion.sampling.config import SamplerConfig
from transfusion.sampling.decoder import Prompt, generate
from transfusion.sampling.drawable import drawables_of
from transfusion.sampling.parts import painted_parts
from transfusion.sampling.prompts import conditions_of, prefill_of
from transfusion.sampling.reference import _forward, generate_one
from transfusion.sampling.request import Prefix, predict
from transfusion.sequence import TEXT, Segment, SequenceSpec, Stream, text
from transfusion.sequence.rows import assemble, expand
from transfusion.tasks import SequenceTask

SIDES = (4, 8)


def make_task(mogao: bool, pixels: tuple[int, int] = SIDES) -> SequenceTask:
    """Images of 4 x 8 in patches of 2 for the latents and of 4 for the tower."""
    drawn = Stream(
        embed="linear", head="linear", objective="continuous", attention="block", expert="generation",
        time="adaln" if mogao else "added", table="none" if mogao else "sincos", channels=1, patch=2, grid=SIDES,
        budget=32,
    )  # fmt: skip
    seen = Stream(
        embed="vit", head="none", objective="none", attention="block", expert="understanding", source="pixels",
        channels=1, patch=4, grid=pixels, budget=pixels[0] * pixels[1] // 4,
    )  # fmt: skip
    sees_clean = ("noised", "clean") if mogao else ()
    streams = {
        "text": Stream(vocabulary=text.VOCABULARY, budget=64, expert="understanding"),
        "noised": drawn,
        "clean": dataclasses.replace(drawn, parts="noised", objective="none", visible_to=sees_clean),
        "semantic": seen,
    }
    axes = 3 if mogao else 1
    layout = layouts.mogao() if mogao else layouts.bagel()
    tower = ViTConfig(width=8, ffn=16, layers=1, heads=2, patch=4, channels=1, grid=(4, 4), pool=False)
    model = TransformerConfig(
        width=32, layers=2, heads=2, ffn_multiple=16, qk_norm="rms", rope_axes=axes, rope_interleaved=mogao,
        towers={"semantic": tower},
    )  # fmt: skip
    return SequenceTask(model, SequenceSpec(streams, layout, text.BOS, text.EOS, axes), ObjectivesConfig())


def make_params(task):
    """Random weights, also where training starts from zero, under which BOI is likely."""
    params = task.template.init(jax.random.key(1))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    leaves = [x if x.any() else jax.random.normal(k, x.shape) / 6 for k, x in zip(keys, leaves, strict=True)]
    params = jax.tree.unflatten(tree, leaves)
    head = params["parts"]["text"]["head"]
    head["kernel"] = head["kernel"] * jnp.ones(text.VOCABULARY).at[text.BOI].set(5.0).at[text.EOS].set(2.0)[None]
    velocity = params["parts"]["noised"]["head"]
    velocity["kernel"] = jax.random.normal(jax.random.key(3), velocity["kernel"].shape) / 6
    return params


def ids(*values):
    return Segment("text", np.array(values, np.int32))


def picture(seed, sides=SIDES, role="context", **fields):
    value = np.random.default_rng(seed).standard_normal((*sides, 1)).astype(np.float32)
    return Segment("image", value, role, **fields)


PROMPTS = [
    Prompt((ids(5, 6, 7),), draw=True),
    Prompt((picture(0), ids(70, 71)), draw=True),
    Prompt((ids(1, 2, 3), picture(1), ids(4), picture(2), ids(9, 8, 7, 6, 5)), draw=True),
    Prompt((ids(9),)),
    Prompt((picture(3),)),
]
CONFIG = SamplerConfig(
    steps=2, think=3, max_tokens=4, max_images=2, guidance=2.0, image_guidance=1.7, guidance_low=0.3, renorm="channel"
)


@pytest.fixture(scope="module", params=[False, pytest.param(True, marks=pytest.mark.soak)], ids=["bagel", "mogao"])
def trained(request):
    task = make_task(request.param)
    return task, make_params(task)


@pytest.fixture(scope="module")
def bagel():
    task = make_task(False)
    return task, make_params(task)


def kinds(result):
    return [segment.kind for segment in result]


@pytest.mark.slow
def test_equals_the_plain_decoder_in_any_batch(trained):
    results, operations = generate(*trained, PROMPTS, 3, CONFIG), drawing_operations(trained[0], CONFIG)
    assert all("image" in kinds(result) for result in results[:3])
    assert any(kinds(result)[-2:] == ["image", "text"] for result in results)  # what follows a drawing is compared too
    for number, (prompt, result) in enumerate(zip(PROMPTS, results, strict=True)):
        assert_same(result, generate_one(*trained, prompt, 3, CONFIG, number), operations)
    for result, alone in zip(results, generate(*trained, PROMPTS, 3, CONFIG, batch=1), strict=True):
        assert_same(result, alone, operations)
    # Without images in any prompt no third prediction is computed; that changes nothing for this one.
    assert_same(results[0], generate(*trained, PROMPTS[:1], 3, CONFIG)[0], operations)


def test_what_guidance_compares_with(bagel):
    task, _ = bagel
    how = (task.spec, drawables_of(task.spec))
    (conditions,) = conditions_of(PROMPTS[:1], *how, CONFIG)
    assert conditions.without == ()
    assert conditions_of(PROMPTS[:1], *how, dataclasses.replace(CONFIG, guidance=1.0)) == (None,)
    (conditions,) = conditions_of(PROMPTS[:3], *how, CONFIG)
    (without_images,), (scales,) = conditions.without, conditions.scales
    assert scales.tolist() == [1, np.float32(1.7), np.float32(1.7)]
    images, texts = conditions.without_text.inputs, without_images.inputs
    assert set(images) == {TEXT, "clean", "semantic"} and set(texts) == {TEXT}
    real = np.asarray(texts[TEXT].metadata.document[2]) > 0
    # BOS, three ids, two indices for the first image, one id, two for the second, five ids.
    assert np.asarray(texts[TEXT].position[2, real, 0]).tolist() == [0, 1, 2, 3, 6, 9, 10, 11, 12, 13]
    assert without_images.place.counter.tolist() == [4, 5, 14]
    assert conditions.without_text.place.counter.tolist() == [1, 3, 5]


def test_the_images_guide(bagel):
    plain = dataclasses.replace(CONFIG, guidance=1.0, image_guidance=1.0, renorm="none", think=0, max_tokens=0)
    whole, by_images, by_both = (
        [result[0].value for result in generate(*bagel, PROMPTS[:3], 3, dataclasses.replace(plain, **scales))]
        for scales in ({}, {"image_guidance": 3.0}, {"image_guidance": 3.0, "guidance": 2.0})
    )
    difference = [np.abs(a - b).max() for a, b in zip(whole, by_images, strict=True)]
    assert difference[0] < 1e-5 < 1e-3 < min(difference[1:])  # the first prompt has no images
    assert all(np.abs(a - b).max() > 1e-3 for a, b in zip(by_both, by_images, strict=True))


def test_a_prompt_s_image_is_seen_through_both_its_streams(trained):
    task, params = trained
    model, drawables = task.template.bind(params), drawables_of(task.spec)
    parts = painted_parts(task.spec, *drawables, (0, 0), False)
    prefill, x = prefill_of([PROMPTS[4]], task.spec, drawables), jnp.ones((1, 8, 4))

    @jax.jit
    def outputs(inputs):
        encoded, cache = model.read(inputs)
        velocity = predict(model, parts, Prefix(cache, prefill.place, jnp.array([True])), x, jnp.float32(0.3))
        return model.head(TEXT, encoded[TEXT])[0, prefill.last[0]], velocity

    def changed(name):
        part = prefill.inputs[name]
        inputs = prefill.inputs | {name: dataclasses.replace(part, content=part.content + 0.5)}
        return [float(np.abs(a - b).max()) for a, b in zip(outputs(inputs), outputs(prefill.inputs), strict=True)]

    assert min(changed("semantic")) > 1e-4
    logits, velocity = changed("clean")
    assert velocity > 1e-4
    if task.spec.visibility is None:
        assert logits > 1e-4
    else:
        assert logits == 0  # Mogao: text sees the tower only


def test_text_first_then_the_image_that_was_asked_for(bagel):
    task, params = bagel

    def think(logit_of, sign, prompts=PROMPTS[:2], **fields):
        # The head has one logit that is not 0, with a sign that makes it the largest, or the smallest.
        kernel = jnp.zeros_like(params["parts"]["text"]["head"]["kernel"])
        hidden = params["parts"] | {"text": params["parts"]["text"] | {"head": {"kernel": kernel}}}
        hidden["text"]["head"]["kernel"] = kernel.at[:, logit_of].set(sign)
        config = SamplerConfig(**{"steps": 1, "think": 4, "max_tokens": 0, "temperature": 0.0} | fields)
        return generate(task, params | {"parts": hidden}, prompts, 0, config)

    longest = think(7, 0.0)
    assert all(kinds(result) == ["text", "image"] and len(result[0].value) == 4 for result in longest)
    # The logit's sign at each prompt's end decides whether it is ended (or opened) at once.
    for end in (text.EOS, text.BOI):
        both = [len(r[0].value) if r[0].kind == "text" else 0 for sign in (1.0, -1.0) for r in think(end, sign)]
        assert sorted(both)[:2] == [0, 0] and max(both) > 0
    asked = think(7, 0.0, max_tokens=3)
    assert [[len(s.value) for s in result if s.kind == "text"] for result in asked] == [[4, 3], [4, 3]]
    # Only prompts that ask for an image think.
    asked, other = think(7, 0.0, [PROMPTS[0], Prompt(PROMPTS[1].segments)])
    assert kinds(asked) == ["text", "image"] and other == ()


def test_what_was_drawn_is_the_next_turn_s_prompt(trained):
    config = SamplerConfig(steps=2, max_tokens=4, temperature=0.0)
    (whole,) = generate(*trained, PROMPTS[1:2], 3, config)
    assert kinds(whole)[:2] == ["image", "text"]
    (drawn,) = generate(*trained, PROMPTS[1:2], 3, dataclasses.replace(config, max_tokens=0))
    (written,) = generate(
        *trained, [Prompt((*PROMPTS[1].segments, *drawn))], 3, dataclasses.replace(config, max_images=0)
    )
    assert kinds(drawn) == ["image"] and drawn[0].role == "context"
    same = min(len(written[0].value), len(whole[1].value))
    assert same and written[0].value[:same].tolist() == whole[1].value[:same].tolist()


def test_latents_of_another_codec_cannot_be_looked_at(bagel):
    task = make_task(False, pixels=(8, 16))
    params = make_params(task)
    prompt = Prompt((picture(0, pixels=picture(1, (8, 16)).value), ids(5)), draw=True)
    with pytest.raises(UsageError, match="'semantic' reads pixels.*max_tokens=0"):
        generate(task, params, [prompt], 0, SamplerConfig(steps=1, max_tokens=2))
    (drawn,) = generate(task, params, [prompt], 0, SamplerConfig(steps=1, think=2, max_tokens=0))
    assert kinds(drawn)[-1] == "image"


def test_the_noised_copy_changes_nothing_but_itself(trained):
    task, params = trained
    document = (ids(1, 2), picture(0, role="both"), ids(3, 4), picture(1, role="both"), ids(5))
    part = expand(document, task.spec)
    batch = assemble([[part]], task.spec)
    noised = batch["noised"]
    other = batch | {"noised": dataclasses.replace(noised, values=noised.values + 1)}
    times = {name: np.full(s.time_low.shape, 0.4, np.float32) for name, s in batch.items() if s.time_low is not None}
    times["clean"] = np.ones_like(times["clean"])
    one, two = (_forward(task, params, rows, times) for rows in (batch, other))
    two_late = _forward(task, params, other, times | {"noised": times["noised"] + 0.3})
    assert np.abs(one["noised"] - two["noised"]).max() > 1e-3
    for name in ("text", "clean", "semantic"):
        rest = (np.asarray(batch[name].document) > 0) & (np.asarray(batch[name].private) == 0)
        for out in (two, two_late):
            np.testing.assert_array_equal(np.asarray(one[name])[rest], np.asarray(out[name])[rest])
