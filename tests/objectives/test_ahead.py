"""Mean velocities: their targets on fields that are known exactly, and what stays as it is without them."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from closeness import assert_close

from transfusion.errors import UsageError
from transfusion.initial import InitConfig
from transfusion.objectives import ObjectivesConfig, ahead, continuous
from transfusion.objectives.paths import AheadConfig, ContinuousConfig
from transfusion.sampling.config import SamplerConfig
from transfusion.sampling.decoder import Prompt, generate
from transfusion.sampling.reference import generate_one
from transfusion.sequence import Stream
from transfusion.sequence.rows import assemble, expand
from transfusion.sequence.times import AHEAD
from transfusion.sequence.wordless import without_words
from transfusion.train import train

RATE = 0.7


def mean_velocity(x, time, far, rate=RATE):
    """Of the field dx/dt = rate x: x at t + ahead is x exp(rate ahead)."""
    far = far[..., None]
    return x * jnp.where(far > 0, jnp.expm1(rate * far) / jnp.maximum(far, 1e-9), rate)


def rows(count: int = 4, **changes):
    documents = [(tiny.words(i), tiny.picture(np.random.default_rng(i), "target")) for i in range(3)]
    documents.append((tiny.picture(np.random.default_rng(9), "context"), tiny.words(4)))
    spec = tiny.spec(**changes)
    return assemble([[expand(document, spec) for document in documents]] * count, spec)


def config(**changes) -> ContinuousConfig:
    return ContinuousConfig(ahead=AheadConfig(**{"share": 1.0, "levels": 4} | changes))


def field_of(part):
    """The exact mean velocities as `Predict`: those of items, spread over their tokens."""

    def predict(x, time, far, words=True):
        at = [continuous.spread(value, part.item)[..., 0] for value in (time, far)]
        return mean_velocity(x, *at)

    return predict


def test_a_shortcut_is_two_half_steps():
    """The exact means are a fixed point, but for the smallest steps: two half steps of Euler's method."""
    part, settings = rows()["image"], config()
    draws = ahead.draw_halved(jax.random.key(0), part, settings)
    x = continuous.noised(part, draws, settings)
    far = continuous.spread(draws["ahead"], part.item)[..., 0]
    exact = mean_velocity(x, None, far)
    found = ahead.halves(field_of(part), part, draws, settings)
    smallest = np.asarray(far == 0.5**3)
    larger = np.asarray(far > 0.5**3)
    assert smallest.any() and larger.any()
    assert_close(found[larger], exact[larger], 50)
    euler = x * ((1 + RATE / 16) ** 2 - 1) * 8
    assert_close(found[smallest], euler[smallest], 50)


def test_mean_flow_is_the_derivative_along_the_way():
    part, settings = rows()["image"], config()
    draws = ahead.draw_any(jax.random.key(0), part, settings)
    far = continuous.spread(draws["ahead"], part.item)[..., 0]
    exact = mean_velocity(continuous.noised(part, draws, settings), None, far)
    found = ahead.derivative(field_of(part), part, draws, settings)
    chosen = np.asarray(far > 0.05)  # a quotient of small numbers is not exact
    assert chosen.sum() > 30
    np.testing.assert_allclose(found[chosen], exact[chosen], atol=2e-4 * np.abs(exact).max())


@pytest.mark.parametrize("draw", [ahead.draw_halved, ahead.draw_any])
def test_times_of_the_chosen_items(draw):
    """Every second row's drawn items look ahead, inside [0, 1]; the others have the times of flow matching."""
    part, settings = rows(200)["image"], config(share=0.5)
    draws = jax.device_get(draw(jax.random.key(0), part, settings))
    plain = jax.device_get(continuous.draw(jax.random.key(0), part, settings))
    far, end = draws["ahead"], draws["time"] + draws["ahead"]
    assert (far[0::2, :3] > 0).all() and not far[1::2].any() and not far[:, 3:].any()
    assert end.max() <= 1 + 1e-6 and draws["time"].min() >= 0
    np.testing.assert_array_equal(draws["time"][far == 0], plain["time"][far == 0])
    np.testing.assert_array_equal(draws["noise"], plain["noise"])
    if draw is ahead.draw_halved:
        assert set(np.unique(far)) == {0, 1, 0.5, 0.25, 0.125}
        assert not (draws["time"][far > 0] % far[far > 0]).any()


def test_weights_let_items_count_alike():
    """With the power 1 an item whose error is large counts as much as one whose error is small."""
    part = rows(1)["image"]
    draws = ahead.draw_any(jax.random.key(0), part, config())
    target = continuous.noised(part, draws, config())
    scale = 10.0 ** np.asarray(part.item)[..., None]
    draws |= {"target": target, "ahead": jnp.ones_like(draws["ahead"])}
    predicted = target + scale * jax.random.normal(jax.random.key(1), target.shape)
    plain, weighed = (np.asarray(ahead.loss(predicted, part, draws, config(power=p))) for p in (0.0, 1.0))
    for item in range(4):
        mine = np.asarray(part.item[0]) == item
        mean = plain[0, mine].mean()
        assert_close(weighed[0, mine], plain[0, mine] / (mean + 1e-3), 50)
        assert abs(weighed[0, mine].mean() - 1) < 0.01


def streams(objective: str, **changes) -> dict[str, Stream]:
    return {"text": tiny.text_stream(), "image": tiny.image_stream(objective=objective, **changes)}


def task(objective: str, settings: ContinuousConfig | None = None, **changes):
    objectives = ObjectivesConfig(continuous={"image": settings or config()})
    return tiny.task(tiny.spec(streams(objective, **changes)), objectives)


def filled(params, ours):
    """Our parameters with those of another run wherever it has them, as `init.path` takes them."""
    if not isinstance(ours, dict):
        return params
    return {name: filled(params[name], child) if name in params else child for name, child in ours.items()}


@pytest.mark.parametrize("objective", AHEAD)
@pytest.mark.parametrize("stream", [{}, {"time": "adaln", "head": "adaln"}])
def test_without_items_that_look_ahead_it_is_flow_matching(objective, stream):
    """To the bit, from the parameters of a run of flow matching."""
    plain, ours = task("continuous", **stream), task(objective, config(share=0.0), **stream)
    params, batch = plain.template.init(jax.random.key(1)), rows()
    mine = filled(params, ours.template.init(jax.random.key(2)))
    losses = []
    for one, weights in ((plain, params), (ours, mine)):
        draws = one.draw(batch, jax.random.key(3))
        if one is ours:
            draws["image"]["target"] = jnp.full(batch["image"].values.shape, jnp.nan)  # nothing reads it
        losses.append(one.loss(weights, batch, draws, one.totals(batch))[0])
    assert losses[0] == losses[1]


@pytest.mark.parametrize("objective", AHEAD)
def test_an_image_does_not_see_what_shares_its_row(objective):
    """The targets and losses of documents are the same packed together and alone."""
    spec, learner = tiny.spec(streams(objective)), task(objective, config(guidance=2.0))
    documents = [(tiny.words(1, 2, i), tiny.picture(np.random.default_rng(i), "target")) for i in range(3)]
    parts = [expand(document, spec) for document in documents]
    together, alone = assemble([parts], spec), assemble([[part] for part in parts], spec)
    params = disturbed(learner.template.init(jax.random.key(1)))
    draws = learner.draw(together, jax.random.key(2))
    per = spec.streams["image"].tokens_per_item
    apart = {"text": {}, "image": {name: jnp.zeros((3, *x.shape[1:]), x.dtype) for name, x in draws["image"].items()}}
    for i in range(3):
        for name in ("time", "ahead"):
            apart["image"][name] = apart["image"][name].at[i, 0].set(draws["image"][name][0, i])
        noise = draws["image"]["noise"][0, i * per : (i + 1) * per]
        apart["image"]["noise"] = apart["image"]["noise"].at[i, :per].set(noise)
    targets = jax.jit(learner.with_targets)
    found = [targets(params, b, d)["image"]["target"] for b, d in ((together, draws), (alone, apart))]
    for i in range(3):
        assert_close(found[0][0, i * per : (i + 1) * per], found[1][i, :per], 500)


def disturbed(params):
    """Parameters none of which is zero, so that both times count."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(5), len(leaves))
    return tree.unflatten([x + 0.05 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)])


def test_text_learns_nothing_from_targets():
    """The text's loss and what it adds to the gradient are those of flow matching with the same draws."""
    learner, batch = task("shortcut", config(guidance=2.0)), rows()
    params = disturbed(learner.template.init(jax.random.key(1)))
    draws = learner.with_targets(params, batch, learner.draw(batch, jax.random.key(2)))
    other = draws | {"image": draws["image"] | {"target": draws["image"]["target"] + 1}}
    sums = [learner.loss(params, batch, d, learner.totals(batch))[1] for d in (draws, other)]
    assert sums[0]["text_loss"] == sums[1]["text_loss"] and sums[0]["image_loss"] != sums[1]["image_loss"]


def test_rows_without_words_are_documents_without_words():
    """A captioned image without its words has the same outputs as one whose caption was left out."""
    spec, learner = tiny.spec(streams("shortcut")), task("shortcut")
    images = [tiny.picture(np.random.default_rng(i), "target") for i in range(3)]
    full = [(tiny.words(1, 2, 3), images[0]), (tiny.words(4), images[1], tiny.words(5), images[2])]
    bare = [(images[0],), (images[1], images[2])]
    batches = [assemble([[expand(document, spec) for document in documents]], spec) for documents in (full, bare)]
    batches[0] = without_words(batches[0], spec)
    params = disturbed(learner.template.init(jax.random.key(1)))
    x = batches[1]["image"].values
    time, far = jnp.full((1, 4), 0.3), jnp.full((1, 4), 0.5)
    draws = {"text": {}, "image": {}}
    out = [learner._prediction("image", params, batch, draws)(x, time, far) for batch in batches]
    assert_close(out[0][:, :12], out[1][:, :12], 500)


@pytest.mark.parametrize("objective", AHEAD)
def test_the_decoder_draws_like_the_plain_one(objective):
    learner = task(objective)
    params = disturbed(learner.template.init(jax.random.key(1)))
    sampler = SamplerConfig(solver="shortcut", steps=2, max_tokens=0)
    prompt = Prompt((tiny.words(1, 2, 3),), draw=True)
    (found,) = generate(learner, params, [prompt], 0, sampler)
    (wanted,) = generate_one(learner, params, prompt, 0, sampler)
    assert_close(found[0].value, wanted.value, 500)
    euler = generate(learner, params, [prompt], 0, dataclasses.replace(sampler, solver="euler"))[0][0].value
    assert np.abs(euler - found[0].value).max() > 1e-3


def test_a_trained_run_goes_on(tmp_path):
    """The parameters of a run of flow matching are taken, and mean velocities are trained and logged."""
    before = tiny.experiment(tiny.write_folder(tmp_path / "images"), steps=2)
    train(before, tmp_path / "before")
    settings = config(share=0.5, guidance=2.0)
    after = dataclasses.replace(
        before,
        streams=before.streams | {"image": dataclasses.replace(before.streams["image"], objective="shortcut")},
        objectives=ObjectivesConfig(continuous={"image": settings}),
        init=InitConfig(path=str(tmp_path / "before")),
        log_every=1,
    )
    train(after, tmp_path / "after")
    rows = [json.loads(line) for line in (tmp_path / "after" / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(row["image_ahead"]) and row["image_ahead"] > 0 for row in rows)


def test_a_run_of_flow_matching_has_no_mean_velocities():
    learner = task("continuous")
    params, prompt = learner.template.init(jax.random.key(1)), Prompt((tiny.words(1),), draw=True)
    with pytest.raises(UsageError, match="shortcut, mean_flow.*'continuous'.*'euler'"):
        generate(learner, params, [prompt], 0, SamplerConfig(solver="shortcut", steps=2, max_tokens=0))
