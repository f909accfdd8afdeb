"""A language model that tells another trunk what to draw: the compiled decoder against the plain one."""

import dataclasses
import pathlib

import jax
import numpy as np
import pytest
from closeness import assert_same, drawing_operations

from transfusion.errors import UsageError
from transfusion.programs import load_experiment
from transfusion.sampling.config import SamplerConfig
from transfusion.sampling.decoder import Prompt, generate
from transfusion.sampling.drawable import drawables_of
from transfusion.sampling.reference import generate_one
from transfusion.sequence import Run, Segment
from transfusion.tasks import make_task

CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "connector.py"


def ids(*values):
    return Segment("text", np.array(values, np.int32))


PROMPTS = [Prompt((ids(5, 6, 7),), draw=True), Prompt((ids(1, 2, 3, 4, 5, 6, 7, 8, 9),), draw=True), Prompt((ids(3),))]


def make(form):
    """A task of the config with one layer in each trunk, and weights that are zero nowhere."""
    experiment = load_experiment(f"{CONFIG}:{form}")

    def small(model):
        return dataclasses.replace(model, layers=1, scan=False)

    stages = {name: dataclasses.replace(s, trunk=small(s.trunk)) for name, s in experiment.model.stages.items()}
    model = dataclasses.replace(small(experiment.model), stages=stages)
    task, rng = make_task(dataclasses.replace(experiment, model=model)), np.random.default_rng(1)
    params = jax.tree.map(lambda s: np.asarray(rng.standard_normal(s.shape) / 5, s.dtype), task.template.shapes)
    return task, params


@pytest.mark.parametrize("form", ["debug", "cross_debug", "qwen_debug"])
def test_equals_the_plain_decoder_in_any_batch(form):
    task, params = make(form)
    config = SamplerConfig(steps=2, guidance=2.0, max_tokens=3, temperature=0.0)
    results = generate(task, params, PROMPTS, 3, config)
    assert [[s.kind for s in result] for result in results] == [["image"], ["image"], ["text"]]
    for number, (prompt, result) in enumerate(zip(PROMPTS, results, strict=True)):
        plain = generate_one(task, params, prompt, 3, config, number)
        assert_same(result, plain, drawing_operations(task, config))
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
        drawables_of(dataclasses.replace(spec, layout=layout))
    assert not drawables_of(dataclasses.replace(spec, layout={"text": (Run("text"),), "image": ()}))
