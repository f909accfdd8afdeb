"""What the program says to a user who made a mistake, how it reads prompts, and how it counts samples."""

import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
from PIL import Image

from transfusion import sample
from transfusion.api import Trained, load_run
from transfusion.config import Experiment
from transfusion.data.images import encode_png
from transfusion.errors import UsageError
from transfusion.latents import open_codecs


@pytest.fixture
def run():
    """A run that reads grey pictures of 4x4 pixels; nothing is sampled from it."""
    experiment = Experiment()
    return Trained(experiment, tiny.task(), {}, open_codecs(experiment), 0)


def test_images_inside_a_prompt(run, tmp_path):
    pixels = np.arange(16, dtype=np.uint8).reshape(4, 4, 1)
    path = tmp_path / "a.png"
    path.write_bytes(encode_png(pixels))
    first, image, last = sample.read_prompt(run, f"see <image:{path}> there")
    assert (first, last) == ("see ", " there")
    np.testing.assert_array_equal(image, pixels)
    assert len(sample.read_prompt(run, f"<image:{path}>")) == 1


def test_images_of_another_size_are_fitted(run, tmp_path):
    path = tmp_path / "wide.png"
    Image.new("RGB", (6, 3), "white").save(path)
    assert sample.read_medium(run, str(path)).shape == (4, 4, 1)


def test_files_that_cannot_be_read_are_told(run, tmp_path):
    broken, pipe, huge = tmp_path / "broken.png", tmp_path / "pipe.png", tmp_path / "huge.png"
    broken.write_bytes(b"nothing")
    os.mkfifo(pipe)
    with huge.open("wb") as file:
        file.truncate(2**32)  # which takes no room on the disk
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")
    for path in (broken, pipe, huge, tmp_path / "none.png", tmp_path, "/dev/zero", odd):
        with pytest.raises(UsageError, match="^cannot read "):
            sample.read_medium(run, str(path))


@pytest.mark.parametrize("text", ["cut emoji \ud83d", os.fsdecode(b"caf\xe9")])
def test_text_that_is_not_unicode_is_told(run, text):
    with pytest.raises(UsageError, match="not Unicode text: its character"):
        sample.read_prompt(run, text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workdir=nowhere", "--prompt=a"], "nowhere"),
        (["--workdir=nowhere"], "--prompt"),
        (["--workdir=nowhere", "--prompt=a", "--guidence=2"], "guidence"),
        (["--workdir=nowhere", "--prompt=a", "--seed=12345678901234567890"], "--seed"),
        (["--workdir=nowhere", "--prompt=a", "--num=1000000000"], "--num"),
        (["--workdir=nowhere", "--prompt=a", "--temperature=nan"], "sampling.temperature=nan"),
        (["--workdir=nowhere", "--prompt=a", "--max_tokens=100000000"], "sampling.max_tokens=100000000"),
        (["--workdir=nowhere", "--prompt=a", "--output=/"], "--output=/ is a folder"),
        (["--workdir=nowhere", "--prompt=a", "--output=."], "--output=. is a folder"),
        (["--workdir=nowhere", "--prompt=a", "--output=drawings/"], "--output=drawings/ is a folder"),
        (["--workdir=nowhere", "--prompt=a", "--output=gs://bucket/a.png"], "only files of this machine"),
    ],
)
def test_mistakes_end_in_one_line(arguments, message, tmp_path):
    command = [sys.executable, "-m", "transfusion.sample", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 2
    assert message in result.stderr and len(result.stderr.strip().splitlines()) == 1


def test_many_samples_come_in_parts_that_equal_the_whole(tiny_run, tmp_path, monkeypatch, capsys):
    """With two rows at a time, so that five samples are three parts; the files are numbered through."""
    run = load_run(tiny_run)
    monkeypatch.setattr(sample, "FLAGS", SimpleNamespace(num=5, seed=3))
    monkeypatch.setattr(sample, "ROWS", 2)
    sample.draw(run, ["a handwritten seven"], tmp_path / "out.png", {"steps": 2})
    whole = run.draw(["a handwritten seven"] * 5, seed=3, steps=2)
    for number, image in enumerate(whole):
        drawn = np.asarray(Image.open(tmp_path / f"out-{number}.png"))
        np.testing.assert_allclose(drawn, image[..., 0], atol=1)
    assert len(list(tmp_path.iterdir())) == 5
    capsys.readouterr()
    sample.write(run, ["a hand"], tmp_path, {"max_images": 0, "max_tokens": 4})
    texts = ["".join(result) for result in run.generate(["a hand"] * 5, seed=3, max_images=0, max_tokens=4)]
    assert capsys.readouterr().out == "".join(f"{text}\n" for text in texts)
    sample.caption(run, whole[0], {"max_tokens": 4})
    assert capsys.readouterr().out == f"{run.caption(whole[0], max_tokens=4)}\n" * 5  # greedy
