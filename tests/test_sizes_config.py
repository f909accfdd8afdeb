"""Images of three sizes, which grow while a model trains: through the programs' own functions."""

import dataclasses

import numpy as np
import pytest
from closeness import assert_close
from test_mixture_configs import experiment

from transfusion.api import load_run
from transfusion.data import builders
from transfusion.data.packaged.digits import SIZES
from transfusion.data.sources import open_source
from transfusion.errors import UsageError
from transfusion.model.names import by_path
from transfusion.running.metrics import read_metrics
from transfusion.train import train


@pytest.fixture(scope="module")
def sized_dir(tmp_path_factory) -> str:
    folder = str(tmp_path_factory.mktemp("sized"))
    assert "train: 4500" in builders.write("sized_digits", folder)
    return folder


def test_digits_lie_on_canvases_of_three_sizes(sized_dir):
    config = experiment("digits.py:sizes", sized_dir)
    source = config.data.sources["digits"]
    kept = dataclasses.replace(source, sizes=type(source.sizes)())
    fitted, stored = (open_source(one, sized_dir) for one in (source, kept))
    for number in range(30):
        image = stored[number]["image"]
        np.testing.assert_array_equal(fitted[number]["image"], image)  # each is one of the sizes as it is
        assert image.shape[:2] in SIZES and stored[number]["label"] >= 0


def test_it_trains_while_images_grow_resumes_exactly_and_draws_what_is_asked_for(sized_dir, tmp_path):
    config = experiment("digits.py:sizes_debug", sized_dir)
    source = config.data.sources["digits"]
    grown = dataclasses.replace(source, sizes=dataclasses.replace(source.sizes, tokens=12, growth=((90, 24),)))
    data = dataclasses.replace(config.data, sources={"digits": grown})
    optim = dataclasses.replace(config.optim, schedule="constant", warmup=0)  # the same for a run of fewer steps
    config = dataclasses.replace(config, data=data, optim=optim)
    whole = train(config, tmp_path / "whole")
    train(dataclasses.replace(config, steps=10), tmp_path / "parts")  # before the first larger image
    parts = train(config, tmp_path / "parts")
    for path, value in by_path(whole.params).items():
        np.testing.assert_array_equal(by_path(parts.params)[path], value)
    rows = read_metrics(tmp_path / "parts" / "metrics.jsonl")
    assert all(np.isfinite(row["loss"]) for row in rows) and rows[-1]["packing_image"] > 0.5
    run = load_run(tmp_path / "whole")
    for size in SIZES:
        (image,) = run.draw(["a handwritten one"], size=size, steps=2)
        assert image.shape == (*size, 1)
    wide = np.zeros((40, 60, 3), np.uint8)
    assert run.fitted(wide).shape == (8, 12, 1)  # as in training
    with pytest.raises(UsageError):
        run.draw("a handwritten one", size=(7, 8))


def test_the_times_of_sampling_follow_the_size(sized_dir):
    sampler = experiment("digits.py:sizes", sized_dir).sampling
    square, wide = (sampler.times("velocity", tokens) for tokens in (16, 24))
    assert_close(square, np.linspace(0, 1, sampler.steps + 1, dtype=np.float32), 8)
    # Equation 23 of arXiv 2403.03206 in noise 1 - t, at the middle: a / (1 + a) with a the root of 24 / 16.
    middle = np.interp(0.5, np.linspace(0, 1, len(wide)), 1 - np.float64(wide))
    assert abs(middle - 1.5**0.5 / (1 + 1.5**0.5)) < 1e-3
