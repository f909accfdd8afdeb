"""The measure of codecs of moving shapes: one that changes nothing is always right, and noise spoils it."""

import dataclasses
import importlib.util
import pathlib

import numpy as np

from transfusion.latents import PIXELS

PATH = pathlib.Path(__file__).parents[2] / "experiments" / "moving" / "codec.py"


def test_a_codec_is_measured_by_what_is_left_of_a_clip():
    spec = importlib.util.spec_from_file_location("moving_codec", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = module.measure(PIXELS, 12)
    assert all(found[name]["right"] == 12 for name in ("clips right", "clips exact", "single frames exact"))
    assert found["values of its latents"] == found["values of a clip"] == 8 * 16 * 16 * 3
    assert found["clips right with noise"]["0.5"]["right"] < 12
    blind = dataclasses.replace(PIXELS, decode=lambda latents: np.zeros(latents.shape, np.uint8))
    assert module.measure(blind, 12)["clips right"]["right"] == 0
