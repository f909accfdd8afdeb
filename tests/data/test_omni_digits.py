"""Digits in four media: what is written, that nothing held out is in training, and that the config reads it."""

import collections
import dataclasses
import itertools
import json
import pathlib

import jax
import numpy as np
import pytest

from transfusion.data import builders
from transfusion.data.packaged import omni_digits
from transfusion.errors import UsageError
from transfusion.programs import load_experiment
from transfusion.tasks import make_task

CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "omni_digits.py"
WORD = np.sin(np.arange(4000) * 2 * np.pi * 400 / omni_digits.RATE).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """A small form of the data, whose words are tones."""
    pytest.importorskip("sklearn")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(omni_digits, "read_recordings", lambda: [WORD] * 10)
        patch.setattr(omni_digits, "SPOKEN", {"train": 2, "heldout": 2})
        patch.setattr(omni_digits, "TURNED", {"train": 0, "heldout": 1})
        patch.setattr(omni_digits, "PAIRS", {"train": 320, "heldout": 32})
        return builders.write_folder("omni_digits", str(tmp_path_factory.mktemp("data")))


def test_a_record_has_one_digit_twice_in_two_media_of_sixteen_pairs(folder):
    records = [json.loads(line)["segments"] for line in (folder / "train.jsonl").read_text().splitlines()]
    texts = {text: digit for digit in range(10) for text in omni_digits.texts(digit)}

    def read(segment: dict) -> tuple[str, int, str]:
        (medium,) = set(omni_digits.MEDIA) & set(segment)
        value = segment[medium].removesuffix(":")
        return medium, texts[value] if medium == "text" else int(value.split("/")[-1][0]), value

    pairs = collections.Counter()
    for first, second in records:
        (one, digit, given), (two, same, made) = read(first), read(second)
        assert digit == same and given != made and first["loss"] is False and "loss" not in second
        assert (one == "text") == first.get("text", "").endswith(":") and two in second
        pairs[one, two] += 1
    assert pairs == dict.fromkeys(itertools.product(omni_digits.MEDIA, repeat=2), 20)


def test_nothing_that_is_held_out_is_in_training_and_what_is_drawn_is_as_it_was(folder):
    def numbers(split: str) -> set[str]:
        return {path.name.split("-")[1] for path in (folder / "image" / split).iterdir()}

    assert len(numbers("train")) == 1500 and len(numbers("heldout")) == 297
    assert not numbers("train") & numbers("heldout")
    made = [json.loads(line)["segments"][1] for line in (folder / "heldout.jsonl").read_text().splitlines()]
    assert all("-1." not in value for segment in made for value in segment.values())
    held_out = {cell for cell in itertools.product(range(omni_digits.CELLS), repeat=2)
                if omni_digits.cell_is_held_out(*cell)}  # fmt: skip
    assert {pitch for pitch, _ in held_out} == {tempo for _, tempo in held_out} == set(range(omni_digits.CELLS))
    assert len(held_out) == omni_digits.CELLS


@pytest.mark.parametrize("pitch, tempo", [(0.8, 0.9), (1.25, 0.9), (0.8, 1.3), (1.0, 1.0)])
def test_a_sound_is_made_higher_and_faster_on_its_own(pitch, tempo):
    sound = omni_digits.varied(WORD, pitch, tempo)
    assert len(sound) == pytest.approx(len(WORD) / tempo, rel=0.05)
    loudest = np.abs(np.fft.rfft(sound * np.hanning(len(sound)))).argmax() * omni_digits.RATE / len(sound)
    assert loudest == pytest.approx(400 * pitch, rel=0.02)


def test_a_clip_draws_its_digit_along_the_strokes():
    image = np.zeros((8, 8), np.uint8)
    image[1:7, 2] = image[6, 2:6] = 200  # an L
    clip = omni_digits.drawn(image)
    np.testing.assert_array_equal(clip[-1, ..., 0], image)
    ink = (clip > 0).sum((1, 2, 3))
    assert (np.diff(ink) >= 1).all() and (clip[0, 1, 2] > 0).all() and not clip[3, 6, 3:].any()


def test_the_config_reads_all_kinds_and_each_with_its_codec(folder):
    experiment = load_experiment(f"{CONFIG}:debug")
    source = dataclasses.replace(experiment.data.sources["pairs"], path=str(folder / "train.jsonl"))
    held_out = dataclasses.replace(source, path=str(folder / "heldout.jsonl"))
    experiment = dataclasses.replace(
        experiment,
        data=dataclasses.replace(experiment.data, sources={"pairs": source}),
        eval=dataclasses.replace(experiment.eval, sources={"pairs": held_out}),
    )
    task = make_task(experiment)
    with task.open_data(experiment) as data:
        batch = next(data)
        assert data.stats()["bad"] == 0
    assert all(batch[name].loss_weight.any() for name in ("text", "image", "sound", "video"))
    draws = task.draw(batch, jax.random.key(0))
    params = task.template.init(jax.random.key(0))
    loss, sums = jax.jit(task.loss)(params, batch, draws, task.totals(batch))
    assert np.isfinite(loss) and {f"{name}_loss" for name in experiment.streams} <= set(sums)


def test_recordings_that_are_missing_say_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(omni_digits, "RECORDINGS", str(tmp_path / "none"))
    with pytest.raises(UsageError, match="apt-get install asterisk-core-sounds-en-wav"):
        builders.write("omni_digits", str(tmp_path))
    assert not list(tmp_path.iterdir())
