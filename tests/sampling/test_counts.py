"""Numbers of prompts: one compilation serves all up to a power of two, and what fills the batch up changes nothing."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny

from transfusion.errors import UsageError
from transfusion.sampling import memory
from transfusion.sampling.config import SamplerConfig
from transfusion.sampling.decoder import decoder_of, generate
from transfusion.sampling.prompts import Prompt

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


def test_a_part_of_a_list_is_what_the_list_has_there(model):
    prompts = [Prompt((tiny.words(1 + i % 5),), draw=True) for i in range(4)]
    whole = generate(*model, prompts, 3, CONFIG)
    parts = [generate(*model, prompts[i : i + 2], 3, CONFIG, first=i) for i in (0, 2)]
    for one, other in zip(whole, (*parts[0], *parts[1]), strict=True):
        np.testing.assert_allclose(one[0].value, other[0].value, atol=1e-4)


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
