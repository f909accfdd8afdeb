"""The example of docs/new_modality.md is a program of under 40 lines that needs no change of the library."""

import importlib.util
import pathlib
import re

import numpy as np

import transfusion
from transfusion.config import from_config
from transfusion.train import train

PAGE = pathlib.Path(__file__).parents[1] / "docs/new_modality.md"


def test_the_new_modality_trains_and_samples(tmp_path):
    code = re.search(r"```python\n(# arm\.py.*?)```", PAGE.read_text(), re.DOTALL).group(1)
    assert len(code.splitlines()) < 40
    path = tmp_path / "arm.py"
    path.write_text(code)
    spec = importlib.util.spec_from_file_location("arm", path)
    arm = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(arm)
    train(from_config(arm.get_config()), tmp_path / "run")
    run = transfusion.load_run(tmp_path / "run")
    drawn = run.draw(["wave to the left", "wave to the right"], steps=2)
    assert drawn.shape == (2, 16, 3) and drawn.std() > 1  # degrees
    real = arm.Trajectories(None, "", 0)[0]["arm"]
    assert all(isinstance(caption, str) for caption in run.caption([real], max_tokens=4))
    assert run.codec.decode(run.codec.encode(np.array(real))).max() == real.max()
