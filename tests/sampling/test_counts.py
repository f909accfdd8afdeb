"""Numbers of prompts and rows: one compilation serves many, and what a prompt gives depends on neither."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny
from closeness import assert_same, drawing_operations

from transfusion.errors import UsageError
from transfusion.sampling import decoder, memory
from transfusion.sampling.config import SamplerConfig
from transfusion.sampling.decoder import decoder_of, generate
from transfusion.sampling.prompts import Prompt
from transfusion.sampling.settings import MACHINES

CONFIG = SamplerConfig(steps=2, max_tokens=3, guidance=2.0)


@pytest.fixture(scope="module")
def model():
    task, rng = tiny.task(), np.random.default_rng(0)
    params = task.template.init(jax.random.key(0))
    return task, jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape).astype(np.float32), params)


def drawn(model, count, **more):
    prompts = [Prompt((tiny.words(1 + i % 5),), draw=True) for i in range(count)]
    return generate(*model, prompts, 3, CONFIG, **more)


def assert_equal(some, others):
    for one, other in zip(some, others, strict=True):
        assert [segment.kind for segment in one] == [segment.kind for segment in other]
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a.value, b.value)


def test_counts_up_to_a_power_of_two_share_one_compilation(model):
    compiled = decoder_of(model[0], CONFIG, (0, 0))[0].run
    before = compiled._cache_size()
    four, three = drawn(model, 4), drawn(model, 3)
    assert compiled._cache_size() == before + 1
    assert_equal(three, four[:3])
    drawn(model, 5)
    assert compiled._cache_size() == before + 2
    drawn(model, 7)
    drawn(model, 8)
    assert compiled._cache_size() == before + 2


PROMPTS = [
    Prompt(
        (tiny.words(1 + i), *[tiny.picture(np.random.default_rng(i), "context")] * (i % 3 == 1), tiny.words(i)), i == 3
    )
    for i in range(7)
]
LONG = SamplerConfig(steps=2, max_tokens=9, guidance=2.0)


@pytest.fixture(scope="module")
def one_by_one(model):
    """What each prompt gives alone, under the number that it has in the list."""
    return [generate(*model, [prompt], 3, LONG, first=i)[0] for i, prompt in enumerate(PROMPTS)]


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_prompts_that_stream_through_few_rows_give_what_each_gives_alone(model, one_by_one, rows):
    """Rows take the next prompt when they have finished; texts end early and late here, and some prompts draw."""
    lengths = {sum(len(s.value) for s in result if s.kind == "text") for result in one_by_one}
    assert len(lengths) > 2 and {s.kind for result in one_by_one for s in result} == {"text", "image"}
    operations = drawing_operations(model[0], LONG)
    for alone, streamed in zip(one_by_one, generate(*model, PROMPTS, 3, LONG, batch=rows), strict=True):
        assert_same(streamed, alone, operations)


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_the_loops_of_an_accelerator_give_the_same(model, one_by_one, monkeypatch, platform):
    """Unrolled layers or a scan, several tokens between two looks at the end, guidance's prompts as rows."""
    monkeypatch.setattr(decoder, "machine_of", lambda _: MACHINES[platform])
    task = tiny.task()  # another one, because decoders are kept for a task
    for alone, other in zip(one_by_one[:4], generate(task, model[1], PROMPTS[:4], 3, LONG), strict=True):
        assert_same(other, alone, drawing_operations(task, LONG))


def test_what_does_not_fit_the_memory_is_refused_before_it_is_taken(model, monkeypatch):
    """A long prompt, a long answer and many rows: a thousand bytes are too few for any of them."""
    monkeypatch.setattr(memory, "memory_bytes", lambda: 10_000_000)
    drawn(model, 2)
    long = Prompt((tiny.words(*[5] * 5000),))
    for prompts, config, message in (
        ([long], CONFIG, "prompt of 5,001 tokens"),
        ([Prompt((tiny.words(5),))], SamplerConfig(max_tokens=100_000), "131,0.. more"),
        ([Prompt((tiny.words(5),))] * 64, SamplerConfig(max_tokens=4_000), "64 samples at a time"),
    ):
        with pytest.raises(UsageError, match=f"{message}.* this machine has 0 GB"):
            generate(*model, prompts, 0, config)


def test_the_memory_of_this_machine_is_known():
    assert 2**28 < memory.memory_bytes() < 2**60


def test_without_an_end_of_documents_every_text_has_the_length_that_is_asked_for():
    """A benchmark times texts of one length; with the end among 16 ids, none of these would be that long."""
    spec = dataclasses.replace(tiny.SPECS["transfusion"], eos=-1)
    task = tiny.task(spec)
    params = task.template.init(jax.random.key(0))
    prompts = [Prompt((tiny.words(1, 2),), draw=False)] * 3
    results = generate(task, params, prompts, 0, SamplerConfig(max_tokens=20, max_images=0))
    assert [segment.value.size for (segment,) in results] == [20, 20, 20]
