"""The config of Fuyu, a causal language model that raw patches enter, in its debug form through the programs."""

import dataclasses

import jax
import numpy as np
import pytest
from test_mixture_configs import CONFIGS, experiment, forget

import transfusion
from transfusion.data.sources import open_source
from transfusion.errors import UsageError
from transfusion.model.names import by_path
from transfusion.programs import load_experiment
from transfusion.sampling.prompts import Prompt
from transfusion.sampling.reference import generate_one
from transfusion.sequence import Segment
from transfusion.sequence.rows import expand
from transfusion.tasks import make_task
from transfusion.train import train


@pytest.mark.slow
def test_fuyu_trains_resumes_and_captions_as_the_plain_decoder(data_dir, tmp_path):
    config = experiment("fuyu.py:debug", data_dir)
    state = train(config, tmp_path)
    assert int(state.step) == 20
    forget(tmp_path, 20)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(train(config, tmp_path)), strict=True):
        np.testing.assert_array_equal(a, b)

    run = transfusion.load_run(tmp_path)
    # So large that what is read decides what is written.
    embed = {name: 100 * leaf for name, leaf in run.params["parts"]["image"]["embed"].items()}
    parts = run.params["parts"] | {"image": {"embed": embed}}
    run = dataclasses.replace(run, params=run.params | {"parts": parts})
    records = open_source(config.data.sources["digits"], data_dir)
    images = [records[i]["image"] for i in range(4)]
    captions = run.caption(images, max_tokens=8)
    assert len(set(captions)) > 1
    sampler = run.sampler(max_tokens=8, max_images=0)
    for number, (image, caption) in enumerate(zip(images, captions, strict=True)):
        (plain,) = generate_one(run.task, run.params, Prompt(run.segments([image])), 0, sampler, number)
        assert run.task.tokenizer.decode(plain.value) == caption
    with pytest.raises(UsageError, match="draws no images"):
        run.draw("a handwritten one")


def test_fuyu_is_one_matrix_and_a_causal_language_model():
    config = load_experiment(CONFIGS / "fuyu.py")
    image, width = config.streams["image"], config.model.width
    assert {stream.attention for stream in config.streams.values()} == {"causal"}
    shapes = by_path(make_task(config).template.shapes)
    of_images = {path: leaf.shape for path, leaf in shapes.items() if path.startswith("parts/image")}
    assert of_images == {
        "parts/image/embed/kernel": (image.patch**2 * image.channels, width),
        "parts/image/embed/bias": (width,),
    }

    pixels = np.zeros((8, 8, 1), np.float32)
    document = (Segment("image", pixels, "context"), Segment("text", np.array([97, 98], np.int32)))
    pieces = expand(document, config.spec).pieces
    order = np.argsort(np.concatenate([pieces["text"]["order"], pieces["image"]["order"]]))
    position = np.concatenate([pieces["text"]["position"], pieces["image"]["position"]])[order]
    np.testing.assert_array_equal(position[:, 0], np.arange(len(position)))  # patches are counted like letters
    np.testing.assert_array_equal(pieces["text"]["loss_weight"], [0, 1, 1, 1, 0])  # begin, EOI, two letters, end
