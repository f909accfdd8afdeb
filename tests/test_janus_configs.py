"""The configs of JanusFlow, in their debug forms, through the programs' own functions."""

import dataclasses
import pathlib
import shutil

import jax
import numpy as np
import pytest
from program import run_program

import transfusion
from transfusion.errors import UsageError
from transfusion.evaluate import Options, evaluate
from transfusion.evaluation.score_table import score_table
from transfusion.programs import load_experiment
from transfusion.running.seals import seal_path
from transfusion.train import train

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"


def experiment(form: str, data_dir: str):
    config = load_experiment(CONFIGS / f"janusflow.py:{form}")
    data = dataclasses.replace(config.data, data_dir=data_dir)
    return dataclasses.replace(config, data=data, eval=dataclasses.replace(config.eval, every=0))


@pytest.mark.slow
def test_trains_resumes_draws_and_goes_on_to_write(data_dir, tmp_path):
    config = experiment("debug", data_dir)
    state = train(config, tmp_path)
    assert int(state.step) == 20
    # Zero at first, and learned since.
    assert np.abs(state.params["parts"]["image"]["head"]["up"]["out"]["kernel"]).max() > 0
    seal_path(tmp_path / "checkpoints", 20).unlink()  # as if the process had died before this checkpoint
    shutil.rmtree(tmp_path / "checkpoints" / "20")
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(train(config, tmp_path)), strict=True):
        np.testing.assert_array_equal(a, b)
    run = transfusion.load_run(tmp_path)
    # The prompt's image is read by the tower, and so is the drawn one, which text may follow.
    prompt = [np.zeros((8, 8, 1), np.uint8), "a handwritten one"]
    drawn, *_ = run.generate([prompt], draw=True, steps=2, max_tokens=2, guidance=1.0)[0]
    assert drawn.shape == (8, 8, 1) and drawn.std() > 0


@pytest.mark.slow
def test_understanding_alone_is_evaluated_by_its_captions(data_dir, tmp_path):
    config = experiment("understanding_debug", data_dir)
    assert int(train(config, tmp_path).step) == 20
    result = evaluate(tmp_path, Options(captions=5))
    assert result["caption_accuracy"]["count"] == 5 and result["text_bits_per_byte"]["count"] == 297
    drawing = ("generation_accuracy", "judge_accuracy", "feature_distance", "retrieval")
    assert {result["absent"][name] for name in drawing} == {"the model draws no images"}
    assert "caption accuracy" in score_table(result)
    asked = ("--workdir", str(tmp_path), "--prompt", "a handwritten one", "--image", str(tmp_path / "one.png"))
    code, out, err = run_program(tmp_path, "transfusion.sample", *asked)
    assert code == 2 and "this model draws no images" in err.splitlines()[-1], (out, err)


def test_a_step_sees_what_the_dense_experiment_sees():
    dense, flow, reads = (
        load_experiment(CONFIGS / name) for name in ("digits.py", "janusflow.py", "janusflow.py:understanding")
    )
    for config in (flow, reads):
        assert (config.steps, config.batch_size, config.optim) == (dense.steps, dense.batch_size, dense.optim)
        images = sum(s.max_items for s in config.streams.values() if not s.vocabulary)
        assert images == dense.streams["image"].max_items
        assert all(stream.attention == "causal" for stream in config.streams.values())
    assert not any(stream.objective == "continuous" for stream in reads.streams.values())
    with pytest.raises(UsageError, match=r"no form 'understandin': .*understanding"):
        load_experiment(CONFIGS / "janusflow.py:understandin")
