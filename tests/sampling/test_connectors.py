"""A language model that tells another trunk what to draw: the compiled decoder against the plain one."""

import dataclasses
import pathlib

import jax
import numpy as np
import pytest

from transfusion.errors import UsageError
from transfusion.programs import load_experiment
from transfusion.sampling.config import SamplerConfig
from transfusion.sampling.decoder import Prompt, generate
from transfusion.sampling.layout import Layout
from transfusion.sampling.reference import generate_one
from transfusion.sequence import Run, Segment
from transfusion.tasks import make_task

CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "connector.py"


def ids(*values):
    return Segment("text", np.array(values, np.int32))


PROMPTS = [Prompt((ids(5, 6, 7),), draw=True), Prompt((ids(1, 2, 3, 4, 5, 6, 7, 8, 9),), draw=True), Prompt((ids(3),))]


def make(form, scan=False):
    """A task of the config, and weights that are zero nowhere."""
    experiment = load_experiment(f"{CONFIG}:{form}")
    model = dataclasses.replace(experiment.model, scan=scan)
    task = make_task(dataclasses.replace(experiment, model=model))
    params = task.template.init(jax.random.key(1))
    return task, jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), params)


@pytest.mark.parametrize("form", ["debug", "cross_debug", "qwen_debug"])
def test_equals_the_plain_decoder_in_any_batch(form):
    task, params = make(form)
    config = SamplerConfig(steps=2, guidance=2.0, max_tokens=3, temperature=0.0)
    results = generate(task, params, PROMPTS, 3, config)
    assert [[s.kind for s in result] for result in results] == [["image"], ["image"], ["text"]]
    for number, (prompt, result) in enumerate(zip(PROMPTS, results, strict=True)):
        (plain,) = generate_one(task, params, prompt, 3, config, number)
        np.testing.assert_allclose(result[0].value, plain.value, atol=1e-4)
    # What is drawn depends on the text, through the queries or straight.
    other = generate_one(task, params, Prompt((ids(5, 6, 8),), draw=True), 3, config)
    assert np.abs(other[0].value - results[0][0].value).max() > 1e-3


def test_a_model_that_reads_no_images_says_so():
    task, params = make("debug")
    picture = Segment("image", np.zeros((8, 8, 1), np.float32), "context")
    with pytest.raises(UsageError, match="reads no images"):
        generate(task, params, [Prompt((picture,))], 0, SamplerConfig())


def test_a_second_opener_is_refused():
    spec = make("debug")[0].spec
    queries, image = spec.layout["image"]
    layout = dict(spec.layout) | {"image": (queries, dataclasses.replace(image, opener=queries.opener))}
    with pytest.raises(UsageError, match="the noised run has no opener"):
        _ = Layout(dataclasses.replace(spec, layout=layout)).before
    assert Layout(dataclasses.replace(spec, layout={"text": (Run("text"),), "image": ()})).kind == ""
