"""Systems that draw codes, in their debug forms, through the programs' own functions."""

import dataclasses

import numpy as np
import pytest
from test_mixture_configs import CONFIGS, experiment

from transfusion.api import Trained, load_run
from transfusion.codecs.levels import LevelsConfig
from transfusion.codecs.pixels import to_float
from transfusion.data.sources import open_source
from transfusion.errors import UsageError
from transfusion.evaluation.losses import SHARES, code_bits
from transfusion.model.names import by_path
from transfusion.programs import load_experiment
from transfusion.running.metrics import read_metrics
from transfusion.sampling.reference import generate_one
from transfusion.sampling.trajectory import Prompt, trajectory
from transfusion.sequence import Segment
from transfusion.sequence.rows import expand
from transfusion.train import train

PROMPTS = (["a handwritten one"], [np.random.default_rng(0).integers(0, 256, (8, 8, 1), np.uint8), "two"])


def sharpened(run: Trained) -> Trained:
    """With a head by which codes differ much in their likelihood, so that samples tell of what the model says."""
    parts = run.params["parts"]
    head = parts["image"]["head"] | {"kernel": 8 * parts["image"]["head"]["kernel"]}
    return dataclasses.replace(run, params=run.params | {"parts": parts | {"image": parts["image"] | {"head": head}}})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["showo", "var", "janus", "llamagen"])
def test_codes_train_and_sample_as_the_plain_decoder(data_dir, tmp_path, name):
    config = experiment(f"{name}.py:debug", data_dir)
    state = train(config, tmp_path)
    assert int(state.step) == 20 and 0 < read_metrics(tmp_path / "metrics.jsonl")[-1]["image_nll"] < 4
    if name == "var":  # the codec's quantizer is kept as it is
        assert not any("quantizer" in path for path in by_path(state.opt_state[1][0].mu))
    run = sharpened(load_run(tmp_path))
    settings = {"steps": 3} | ({"guidance": 5.0} if name == "janus" else {})  # enough that codes differ
    prompts = ["a handwritten one", "two"] if name == "llamagen" else PROMPTS  # it reads no images
    images = run.draw(prompts, **settings)
    assert images.shape == (2, 8, 8, 1) and images.std() > 0
    sampler = run.sampler(**settings, max_tokens=0)
    for number, parts in enumerate([p] if isinstance(p, str) else p for p in prompts):
        prompt = Prompt(tuple(segment for part in parts for segment in run.segments(part)), draw=True)
        (plain,) = generate_one(run.task, run.params, prompt, 0, sampler, number)
        np.testing.assert_array_equal(images[number], run.codec.decode(plain.value))
    if name == "llamagen":
        with pytest.raises(UsageError, match="reads no images"):
            run.caption(images)
    else:
        assert all(isinstance(caption, str) for caption in run.caption(images, max_tokens=4))
    if name == "showo":
        batches = run.task.held_out(dataclasses.replace(config, batch_size=2))
        bits = code_bits(run.task, state.params, [next(iter(batches))], "image")
        assert list(bits) == [*map("{:g}".format, SHARES), "mean"]
        assert 2 < bits["mean"]["value"] < 5  # of 16 codes, after 20 steps
    with pytest.raises(UsageError, match="no trajectory"):
        trajectory(run.task, run.params, Prompt(), 0, sampler)


def test_llamagen_has_a_codes_row_and_column_as_its_position():
    """LlamaGen, section 3.2: rotary axes y and x; a caption has no loss, and what follows an image is not predicted."""
    spec = load_experiment(CONFIGS / "llamagen.py:debug").spec
    words, codes = Segment("text", np.array([97, 98], np.int32)), np.arange(16, dtype=np.int32).reshape(4, 4)
    pieces = expand((words, Segment("image", codes, "target")), spec).pieces
    start, *placed = pieces["image"]["position"]
    rows, columns = np.indices((4, 4)).reshape(2, -1)
    np.testing.assert_array_equal(placed, 3 + np.stack([rows, columns], 1))  # behind begin and two letters
    np.testing.assert_array_equal(start, [2, 2])
    np.testing.assert_array_equal(pieces["image"]["tokens"][1:], codes.ravel())
    np.testing.assert_array_equal(pieces["image"]["targets"][:-1], codes.ravel())
    np.testing.assert_array_equal(pieces["image"]["loss_weight"], [*[1] * 16, 0])
    np.testing.assert_array_equal(pieces["text"]["loss_weight"], [0, 0, 1, 0])  # BOI alone


def test_levels_come_back_as_they_were(data_dir):
    """Digits have 17 levels of grey; a scale's codes are of what those before it have left over."""
    config = load_experiment(CONFIGS / "digits.py").data.sources["digits"]
    images = [record["image"] for record in (open_source(config, data_dir)[i] for i in range(20))]
    for levels in (LevelsConfig(levels=17), LevelsConfig(levels=33, low=-2.0, high=2.0, scales=(1, 2, 4, 8))):
        for image in map(to_float, images):
            codes = levels.encode(image)
            assert codes.dtype == np.int32 and codes.shape == ((85,) if levels.scales else (8, 8))
            assert np.abs(levels.decode(codes, 2, 1) - image).max() < 1 / 16 + 1e-6
    with pytest.raises(UsageError, match="multiple of the one before"):
        LevelsConfig(scales=(2, 3))
