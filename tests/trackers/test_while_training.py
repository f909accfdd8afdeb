"""While a model trains its trackers show what it draws and writes."""

import dataclasses

import jax
import numpy as np
import pytest

import transfusion
from transfusion import sharding
from transfusion.evaluation.while_training import drawings
from transfusion.trackers.config import TrackersConfig


@pytest.mark.slow
def test_held_out_captions_are_drawn_and_their_images_captioned_with_the_same_noise_each_time(tiny_run, tmp_path):
    run = transfusion.load_run(tiny_run)
    experiment = dataclasses.replace(
        run.experiment,
        trackers=TrackersConfig(pictures=2),
        eval=dataclasses.replace(run.experiment.eval, every=10),
        sampling=dataclasses.replace(run.experiment.sampling, steps=2, max_tokens=4),
    )
    mesh = sharding.make_mesh(experiment.mesh)
    draw = drawings(run.task, experiment, mesh, tmp_path)
    with jax.set_mesh(mesh):
        first, second = draw(run.params, 10), draw(run.params, 20)
    assert [picture.name for picture in first] == ["drawn/0", "drawn/1", "captioned/0", "captioned/1"]
    assert all(picture.caption.startswith("a handwritten") for picture in first[:2])
    assert all(picture.image.dtype == np.uint8 and picture.image.shape[2] == 3 for picture in first)
    assert all(np.array_equal(a.image, b.image) and a.caption == b.caption for a, b in zip(first, second, strict=True))
    nothing = dataclasses.replace(experiment, trackers=TrackersConfig(pictures=0))
    assert drawings(run.task, nothing, mesh, tmp_path) is None
