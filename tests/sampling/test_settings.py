"""Settings of the decoder: what is out of range or of another type is refused by name."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfusion.errors import UsageError
from transfusion.sampling.config import SamplerConfig

FIELDS = {field.name: field for field in dataclasses.fields(SamplerConfig)}
NUMBERS = [name for name, field in FIELDS.items() if field.type in (int, float)]


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30, 10**30, "2", None, True, [1], 1 + 1j])
def test_no_number_takes_what_is_none(name, value):
    with pytest.raises(UsageError, match=rf"^sampling\.{name}="):
        SamplerConfig(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0), ("steps", 10.0), ("shift", 0.0), ("temperature", -1e-9), ("top_k", -1), ("top_p", 0.0),
        ("top_p", 1.01), ("code_temperature", -1.0), ("code_top_p", 0), ("unmask_noise", -1.0), ("think", -1),
        ("max_tokens", 10**8), ("max_images", -1), ("min_images", 10**9), ("terminal", 1.0), ("negative", 3),
        ("solver", None),
    ],
)  # fmt: skip
def test_values_out_of_range_are_named(name, value):
    with pytest.raises(UsageError, match=rf"^sampling\.{name}="):
        SamplerConfig(**{name: value})


def test_numbers_of_numpy_are_numbers():
    config = SamplerConfig(steps=np.int64(3), guidance=np.float32(2), top_p=np.float64(0.5))
    assert (config.steps, config.guidance, config.top_p) == (3, 2.0, 0.5)
    assert type(config.steps) is int and type(config.guidance) is float
    assert SamplerConfig(guidance=2, temperature=0).guidance == 2


ANYTHING = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=9), st.lists(st.integers()))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.dictionaries(st.sampled_from(sorted(FIELDS)), ANYTHING, max_size=4))
def test_any_settings_work_or_are_refused_in_one_line(changes):
    try:
        config = SamplerConfig(**changes)
    except UsageError as error:
        assert "\n" not in str(error)
        return
    for name in NUMBERS:
        assert math.isfinite(getattr(config, name))
    assert config.steps > config.times("velocity", 16).shape[0] - 2
