"""Configs of systems whose codes are ids of the text's vocabulary, in their debug forms, through the programs."""

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
from transfusion.data import sounds
from transfusion.data.config import SourceConfig
from transfusion.errors import UsageError
from transfusion.evaluate import Options, evaluate
from transfusion.evaluation.score_table import score_table
from transfusion.evaluation.sections import images, material
from transfusion.programs import load_experiment
from transfusion.running.seals import seal_path
from transfusion.train import train

UNGUIDED = {"guidance": 1.0, "image_guidance": 1.0}  # one prompt to compile instead of three
CONFIGS = pathlib.Path(__file__).parents[1] / "configs"


def experiment(name: str, data_dir: str, **data):
    config = load_experiment(CONFIGS / name)
    data = dataclasses.replace(config.data, data_dir=data_dir, **data)
    return dataclasses.replace(config, data=data, eval=dataclasses.replace(config.eval, every=0, guidances=(1.0,)))


@pytest.mark.slow
def test_emu3_trains_resumes_samples_and_is_evaluated(data_dir, tmp_path, monkeypatch, capsys):
    config = experiment("emu3.py:debug", data_dir)
    state = train(config, tmp_path)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert int(state.step) == 20 and losses[-1] < 0.9 * losses[0]
    seal_path(tmp_path / "checkpoints", 20).unlink()  # as if the process had died before this checkpoint
    shutil.rmtree(tmp_path / "checkpoints" / "20")
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(train(config, tmp_path)), strict=True):
        np.testing.assert_array_equal(a, b)

    run = transfusion.load_run(tmp_path)
    monkeypatch.setattr(sample, "FLAGS", SimpleNamespace(num=1, seed=0))
    path = tmp_path / "seven.png"
    sample.draw(run, ["a handwritten seven"], path, {})
    drawn = sample.read_medium(run, str(path))
    assert drawn.shape == (8, 8, 1) and len(np.unique(drawn)) > 1 and f"saved {path}" in capsys.readouterr().out
    np.testing.assert_array_equal(run.codec.decode(run.codec.encode(drawn)), drawn)  # codes, and nothing else
    assert isinstance(run.caption([drawn])[0], str)

    result = evaluate(tmp_path, Options(samples=1, captions=1, judge_steps=1))
    assert result["caption_accuracy"]["count"] == result["generation_accuracy"]["count"] == 1
    codes = result["code_bits"]["text"]["mean"]
    assert codes["count"] > 100 and 1 < codes["value"] < 8
    # Codes, sizes and ends are no text: the bytes are those of the captions.
    assert result["text_bits_per_byte"]["count"] == 297 and result["text_bits_per_byte"]["bytes"] < 297 * 20
    assert result["velocity_loss"] is None and "code bits" in score_table(result)
    assert "draws no images by a solver" in images.from_noise(material.read_material(tmp_path))


@pytest.mark.soak
def test_unitoken_reads_codes_and_a_tower(data_dir, tmp_path):
    state = train(experiment("unitoken.py:debug", data_dir), tmp_path)
    assert int(state.step) == 20
    run, image = transfusion.load_run(tmp_path), np.full((8, 8, 1), 100, np.uint8)
    assert run.draw([[image, "negative"]], **UNGUIDED).shape == (1, 8, 8, 1)
    assert isinstance(run.caption([image])[0], str)


@pytest.mark.soak
def test_speech_as_codes_with_an_expert_of_their_own(tmp_path):
    rows = []
    for i in range(6):
        wave = np.sin(np.arange(6000) * 0.1 * (i + 1))
        (tmp_path / f"{i}.wav").write_bytes(sounds.encode_wav(wave, 8000))
        rows.append(json.dumps({"file_name": f"{i}.wav", "caption": f"number {i}"}))
    (tmp_path / "wav.jsonl").write_text("\n".join(rows))
    source = SourceConfig(
        kind="folder", path=str(tmp_path), medium="sound", captions="wav.jsonl", rate=8000, length=10240
    )
    config = experiment("chameleon.py:speech_debug", "", sources={"mine": source})
    assert {stream.expert for stream in config.streams.values()} == {"text", "sound"}
    train(config, tmp_path / "run")
    run = transfusion.load_run(tmp_path / "run")
    (drawn,) = run.draw(["number 1"], **UNGUIDED)
    assert drawn.shape == (10240,) and drawn.std() > 0 and run.sides == 1


def test_forms_differ_in_the_experts_alone():
    dense, mixed = (load_experiment(CONFIGS / f"chameleon.py{form}") for form in ("", ":mot"))
    assert dense.spec.spelling == mixed.spec.spelling and dense.model == mixed.model
    assert {name: stream.expert for name, stream in mixed.streams.items()} == {"text": "text", "codes": "image"}
    assert sum(s.budget for s in dense.streams.values()) == sum(s.budget for s in mixed.streams.values())
    for name in ("chameleon", "emu3", "unitoken"):
        with pytest.raises(UsageError, match=r"no form 'debgu': .*debug"):
            load_experiment(CONFIGS / f"{name}.py:debgu")
