"""The configs of video and speech, in their debug forms, through the programs' own functions."""

import dataclasses
import json
import pathlib
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import transfusion
from transfusion import sample
from transfusion.data import clips, sounds
from transfusion.data.config import SourceConfig
from transfusion.errors import UsageError
from transfusion.evaluate import Options, evaluate
from transfusion.programs import load_experiment
from transfusion.report import write_report
from transfusion.running.seals import seal_path
from transfusion.train import train

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six clips and six sounds with one captions file each."""
    root, rng = tmp_path_factory.mktemp("media"), np.random.default_rng(0)
    for suffix in ("webp", "wav"):
        names = [f"{i}.{suffix}" for i in range(6)]
        rows = ({"file_name": name, "caption": f"number {i}"} for i, name in enumerate(names))
        (root / f"{suffix}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        for i, name in enumerate(names):
            clip = np.repeat(rng.integers(0, 255, (10, 4, 4, 3), np.uint8), 4, 1).repeat(4, 2)
            sound = np.sin(np.arange(6000) * 0.1 * (i + 1))
            data = clips.encode_clip(clip, ".webp") if suffix == "webp" else sounds.encode_wav(sound, 8000)
            (root / name).write_bytes(data)
    return root


def experiment(name: str, folder: pathlib.Path):
    """A config with the tests' files as its data."""
    config = load_experiment(CONFIGS / name)
    fields = {"medium": "sound", "captions": "wav.jsonl", "rate": 8000, "length": 10240}
    if name.startswith("video"):
        fields = {"medium": "video", "captions": "webp.jsonl", "resolution": 16, "length": 8}
    sources = {"mine": SourceConfig(kind="folder", path=str(folder), **fields)}
    held_out = dataclasses.replace(config.eval, every=20, batches=1, sources=sources)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, sources=sources), eval=held_out)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, suffix, shape",
    [
        ("speech.py:debug", ".wav", (10240,)),
        pytest.param("video.py:frames_debug", ".webp", (8, 16, 16, 3), marks=pytest.mark.soak),
        pytest.param("video.py:world_debug", ".webp", (8, 16, 16, 3), marks=pytest.mark.soak),
    ],
)
def test_trains_resumes_and_samples_both_ways(name, suffix, shape, folder, tmp_path, monkeypatch, capsys):
    config = experiment(name, folder)
    state = train(config, tmp_path)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.9 * losses[0]
    if name.startswith("speech"):
        seal_path(tmp_path / "checkpoints", 20).unlink()  # as if the process had died before this checkpoint
        shutil.rmtree(tmp_path / "checkpoints" / "20")
        for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(train(config, tmp_path)), strict=True):
            np.testing.assert_array_equal(a, b)

    run, settings = transfusion.load_run(tmp_path), {"steps": 2}
    monkeypatch.setattr(sample, "FLAGS", SimpleNamespace(num=1, seed=0))
    path = tmp_path / f"drawn{suffix}"
    sample.draw(run, sample.read_prompt(run, "number 1"), path, settings)
    medium = sample.read_medium(run, str(path))
    assert medium.shape == shape and medium.std() > 0
    assert all(isinstance(caption, str) for caption in run.caption([medium], max_tokens=4))
    wrong = tmp_path / "wrong"
    wrong.write_bytes(next(folder.glob("*.wav" if suffix == ".webp" else "*.webp")).read_bytes())
    with pytest.raises(UsageError, match=r"cannot read .*wrong"):
        sample.read_medium(run, str(wrong))
    if name.startswith("speech"):
        result = evaluate(tmp_path, Options(captions=2))
        assert result["text_bits_per_byte"]["count"] == 6 and result["velocity_loss"]["sound"]["mean"]["value"] > 0
        assert result["caption_accuracy"]["count"] == 2
        assert "media are 'sound'" in result["absent"]["retrieval"]
        page = write_report(tmp_path).read_text()
        assert "draws no images" in page


def test_forms_differ_in_how_frames_see_each_other():
    whole, frames, world = (load_experiment(CONFIGS / f"video.py{form}") for form in ("", ":frames", ":world"))
    assert (whole.streams["video"].attention, frames.streams["video"].attention) == ("block", "frame")
    assert "video" not in world.layout and world.layout["image"][0].private
    assert world.sampling.min_images == world.sampling.max_images == 8 and world.sampling.guidance == 1
    with pytest.raises(UsageError, match="no form 'wrld': .*world"):
        load_experiment(CONFIGS / "video.py:wrld")
