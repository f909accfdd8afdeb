"""The configs of BAGEL and Mogao, in their debug forms, through the programs' own functions."""

import dataclasses
import pathlib
import shutil

import jax
import numpy as np
import pytest

import transfusion
from transfusion.errors import UsageError
from transfusion.programs import load_experiment
from transfusion.seals import seal_path
from transfusion.train import train

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bagel", "mogao"])
def test_trains_resumes_draws_captions_edits_and_goes_on(name, data_dir, tmp_path):
    config = load_experiment(CONFIGS / f"{name}.py:debug")
    data = dataclasses.replace(config.data, data_dir=data_dir)
    config = dataclasses.replace(config, data=data, eval=dataclasses.replace(config.eval, every=20, batches=1))
    state = train(config, tmp_path)
    assert int(state.step) == 20
    seal_path(tmp_path / "checkpoints", 20).unlink()  # as if the process had died before this checkpoint
    shutil.rmtree(tmp_path / "checkpoints" / "20")
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(train(config, tmp_path)), strict=True):
        np.testing.assert_array_equal(a, b)

    run = transfusion.load_run(tmp_path)
    images = run.draw(["a handwritten one", "a handwritten two"], steps=2)
    assert images.shape == (2, 8, 8, 1) and images.std() > 0
    assert all(isinstance(caption, str) for caption in run.caption(images, max_tokens=4))
    edited = run.draw([[images[0], "negative"], [images[0], images[1], "mirrored"]], steps=2)
    assert edited.shape == images.shape
    chat = ["a handwritten one"]
    for words in ("negative", "mirrored"):
        chat += run.generate([chat], draw=True, think=2, steps=2, max_tokens=2)[0]
        chat.append(words)
    assert sum(not isinstance(part, str) for part in chat) == 2


def test_what_differs_between_them():
    bagel, mogao = (load_experiment(CONFIGS / f"{name}.py") for name in ("bagel", "mogao"))
    assert {name: stream.expert for name, stream in bagel.streams.items()} == {
        "text": "understanding", "noised": "generation", "clean": "generation", "semantic": "understanding",
    }  # fmt: skip
    assert bagel.data.drop_conditions == {"semantic": 0.5, "clean": 0.1} and bagel.data.drop_caption == 0.1
    assert (bagel.streams["noised"].time, mogao.streams["noised"].time) == ("added", "adaln")
    names = list(mogao.streams)
    may = mogao.spec.visibility
    assert {q for q, sees in zip(names, may[:, names.index("clean")], strict=True) if sees} == {"noised", "clean"}
    assert all(may[:, names.index(k)].all() for k in names if k != "clean")
    assert bagel.spec.visibility is None
    assert mogao.model.rope_interleaved and mogao.spec.axes == 3
    for name in ("bagel", "mogao"):
        assert load_experiment(CONFIGS / f"{name}.py:edit").data.edit > 0
        with pytest.raises(UsageError, match=r"no form 'debgu': .*debug"):
            load_experiment(CONFIGS / f"{name}.py:debgu")
