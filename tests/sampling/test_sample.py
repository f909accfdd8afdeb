"""What the program says to a user who made a mistake, and how it reads prompts."""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import tiny

from transfusion import sample
from transfusion.data.images import encode_png
from transfusion.errors import UsageError


@pytest.fixture
def run():
    image = tiny.image_stream()
    streams = {"text": SimpleNamespace(media=False), "image": image}
    experiment = SimpleNamespace(codec=SimpleNamespace(kind="pixels"), data=SimpleNamespace(sources={}))
    spec = SimpleNamespace(streams=streams, spelling=None)
    return SimpleNamespace(spec=spec, experiment=experiment, codec=SimpleNamespace(down=1))


def test_images_inside_a_prompt(run, tmp_path):
    pixels = np.arange(16, dtype=np.uint8).reshape(4, 4, 1)
    path = tmp_path / "a.png"
    path.write_bytes(encode_png(pixels))
    first, image, last = sample.read_prompt(run, f"see <image:{path}> there")
    assert (first, last) == ("see ", " there")
    np.testing.assert_array_equal(image, pixels)
    assert len(sample.read_prompt(run, f"<image:{path}>")) == 1


def test_images_that_do_not_fit_are_told(run, tmp_path):
    wrong, broken = tmp_path / "wrong.png", tmp_path / "broken.png"
    wrong.write_bytes(encode_png(np.zeros((3, 4, 1), np.uint8)))
    broken.write_bytes(b"nothing")
    for path, message in [(wrong, "3x4"), (broken, "cannot read"), (tmp_path / "none.png", "cannot read")]:
        with pytest.raises(UsageError, match=message):
            sample.read_medium(run, str(path))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workdir=nowhere", "--prompt=a"], "nowhere"),
        (["--workdir=nowhere"], "--prompt"),
        (["--workdir=nowhere", "--prompt=a", "--guidence=2"], "guidence"),
    ],
)
def test_mistakes_end_in_one_line(arguments, message, tmp_path):
    command = [sys.executable, "-m", "transfusion.sample", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 2
    assert message in result.stderr and len(result.stderr.strip().splitlines()) == 1
