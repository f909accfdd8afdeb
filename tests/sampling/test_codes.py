"""Drawing codes: the compiled decoder against the plain one."""

import jax
import numpy as np
import pytest

from transfusion import layouts
from transfusion.errors import UsageError
from transfusion.model.config import TransformerConfig
from transfusion.objectives import ObjectivesConfig
from transfusion.sampling.config import SamplerConfig
from transfusion.sampling.decoder import Prompt, generate
from transfusion.sampling.reference import generate_one
from transfusion.sequence import Segment, SequenceSpec, Stream, text
from transfusion.tasks import SequenceTask

CODES = 12


def make_task() -> SequenceTask:
    image = Stream(vocabulary=CODES, grid=(2, 3), budget=18, objective="masked", attention="block", table="sincos")
    streams = {"text": Stream(vocabulary=text.VOCABULARY, budget=48), "image": image}
    model = TransformerConfig(width=32, layers=2, heads=2, ffn_multiple=16)
    return SequenceTask(model, SequenceSpec(streams, layouts.showo(), text.BOS, text.EOS), ObjectivesConfig())


def make_params(task):
    """Random weights under which BOI is likely, EOS is not, and codes differ in what they are likely to be."""
    params = task.template.init(jax.random.key(1))
    params["parts"]["text"]["head"]["kernel"] = params["parts"]["text"]["head"]["kernel"].at[:, text.BOI].multiply(12)
    image = params["parts"]["image"]
    image["head"]["kernel"] = 3 * image["head"]["kernel"]
    return params


def ids(*values):
    return Segment("text", np.array(values, np.int32))


def picture(seed):
    """An image to be read."""
    return Segment("image", np.random.default_rng(seed).integers(0, CODES, (2, 3), np.int32), "context")


@pytest.mark.parametrize("steps, blocks", [(3, 1), (4, 2)])
def test_equals_the_plain_decoder(steps, blocks):
    """Text and images in turns; what other systems draw is compared in tests/test_code_configs.py."""
    task = make_task()
    params = make_params(task)
    config = SamplerConfig(steps=steps, max_tokens=4, max_images=2, guidance=2.5, unmask_blocks=blocks)
    prompts = [Prompt((ids(5, 6, 7),), draw=True), Prompt((ids(9, 8), picture(1)))]
    results = generate(task, params, prompts, 2, config)
    kinds = [segment.kind for result in results for segment in result]
    assert kinds.count("image") >= 2 and "text" in kinds
    for number, (prompt, result) in enumerate(zip(prompts, results, strict=True)):
        plain = generate_one(task, params, prompt, 2, config, number)
        assert [s.kind for s in result] == [s.kind for s in plain]
        for ours, other in zip(result, plain, strict=True):
            assert ours.value.dtype == other.value.dtype == np.int32
            np.testing.assert_array_equal(ours.value, other.value)


def test_blocks_that_do_not_divide_are_told():
    task = make_task()
    with pytest.raises(UsageError, match="unmask_blocks=4 must divide an item's 6 codes"):
        generate(task, {}, [Prompt((ids(5),), draw=True)], 0, SamplerConfig(steps=4, unmask_blocks=4))
