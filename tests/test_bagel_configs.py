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
from transfusion.running.seals import seal_path
from transfusion.train import train

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bagel", pytest.param("mogao", marks=pytest.mark.soak)])
def test_trains_resumes_draws_edits_and_goes_on(name, data_dir, tmp_path):
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
    image = np.full((8, 8, 1), 200, np.uint8)
    drawn = run.draw(["a handwritten one", [image, "negative"], [image, image, "mirrored"]], steps=2)
    assert drawn.shape == (3, 8, 8, 1) and drawn.std() > 0
    if name == "bagel":  # what differs besides is tested in tests/sampling/test_bagel.py
        assert isinstance(run.caption([image], max_tokens=4)[0], str)
        (turn,) = run.generate([["one", image, "negative"]], draw=True, think=2, steps=2, max_tokens=2)
        assert sum(not isinstance(part, str) for part in turn) == 1


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
