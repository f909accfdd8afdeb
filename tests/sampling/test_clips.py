"""Clips and frames of a world model through the decoder, which must equal the plain one."""

import dataclasses

import jax
import numpy as np
import pytest
from closeness import assert_same, drawing_operations

from transfusion import layouts
from transfusion.api import Trained
from transfusion.config import Experiment
from transfusion.latents import Codec, Codecs
from transfusion.model.config import TransformerConfig
from transfusion.objectives import ObjectivesConfig
from transfusion.sampling.config import SamplerConfig
from transfusion.sampling.decoder import Prompt, generate
from transfusion.sampling.reference import generate_one
from transfusion.sequence import Segment, SequenceSpec, Stream, text
from transfusion.tasks import SequenceTask

VIDEO = Stream(
    embed="linear", head="linear", objective="continuous", attention="frame", time="added", channels=1, patch=2,
    patch_frames=2, grid=(4, 2, 4), budget=16,
)  # fmt: skip
FRAME = dataclasses.replace(VIDEO, attention="block", grid=(2, 4), patch_frames=1, budget=16)
TEXT = Stream(budget=48, vocabulary=text.VOCABULARY)


def make_task(streams, layout):
    spec = SequenceSpec({"text": TEXT} | streams, layout, text.BOS, text.EOS, 3)
    model = TransformerConfig(width=32, layers=2, heads=2, head_size=16, rope_axes=3)
    return SequenceTask(model, spec, ObjectivesConfig())


def make_params(task):
    params = task.template.init(jax.random.key(1))
    for name, part in params["parts"].items():
        if name != "text":
            part["head"]["kernel"] = jax.random.normal(jax.random.key(2), part["head"]["kernel"].shape) / 6
    return params


def latents(kind, *shape, seed=0):
    return Segment(kind, np.random.default_rng(seed).standard_normal((*shape, 1)).astype(np.float32), "context")


def word(*ids):
    return Segment("text", np.array(ids, np.int32))


@pytest.fixture(scope="module")
def world():
    streams = {"noised": FRAME, "clean": dataclasses.replace(FRAME, parts="noised", objective="none")}
    task = make_task(streams, layouts.world())
    return task, make_params(task)


def equals_the_plain_decoder(task, params, prompts, config):
    results = generate(task, params, prompts, 3, config)
    for number, (prompt, result) in enumerate(zip(prompts, results, strict=True)):
        other = generate_one(task, params, prompt, 3, config, number)
        assert_same(result, other, drawing_operations(task, config))
    return results


def test_a_clip_is_drawn_and_read():
    task = make_task({"video": VIDEO}, layouts.transfusion(position="grid", kind="video"))
    params = make_params(task)
    prompts = [Prompt((word(5, 6),), draw=True), Prompt((latents("video", 4, 2, 4), word(7)))]
    config = SamplerConfig(steps=2, max_tokens=3, guidance=2.0)
    drawn, _ = equals_the_plain_decoder(task, params, prompts, config)
    assert drawn[0].kind == "video" and drawn[0].value.shape == (4, 2, 4, 1)


def test_a_world_model_draws_frame_after_frame(world):
    task, params = world
    prompts = [Prompt((word(5, 6),), draw=True), Prompt((word(9), latents("image", 2, 4)), draw=True)]
    config = SamplerConfig(steps=2, max_tokens=0, max_images=3, min_images=3)
    results = equals_the_plain_decoder(task, params, prompts, config)
    assert [[s.value.shape for s in result] for result in results] == [[(2, 4, 1)] * 3] * 2
    # Each is drawn from those before it: another first frame, other frames after it.
    prompts[1] = Prompt((word(9), latents("image", 2, 4, seed=1)), draw=True)
    other = generate(task, params, prompts, 3, config)
    assert_same(other[0], results[0], drawing_operations(task, config))
    assert np.abs(other[1][2].value - results[1][2].value).max() > 1e-3


def test_a_clip_in_a_prompt_is_its_frames_to_a_world_model(world):
    task, params = world
    codec = Codec(lambda x: np.asarray(x, np.float32), np.asarray)
    run = Trained(Experiment(), task, params, Codecs(codec), 0)
    kinds = [segment.kind for segment in run.segments(np.zeros((3, 2, 4, 1), np.uint8))]
    assert kinds == ["image"] * 3
