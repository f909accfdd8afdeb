"""`transfusion new`: whatever form a folder of images has, its config trains with full rows at the first try."""

import json
import pathlib

import numpy as np
import pytest
from PIL import Image
from program import run_program

from transfusion import new
from transfusion.errors import UsageError
from transfusion.new import write
from transfusion.new.folder import _of_names
from transfusion.planning.forecast import forecast
from transfusion.programs import load_experiment

WORDS = (
    "red",
    "blue",
    "small",
    "large",
    "penguin",
    "cat",
    "house",
    "tree",
    "sun",
    "boat",
    "with",
    "under",
    "hat",
    "tiny",
)


def picture(rng, height: int, width: int, channels: int = 3) -> Image.Image:
    return Image.fromarray(rng.integers(0, 255, (height, width, channels), np.uint8).squeeze())


def table(folder: pathlib.Path, rng) -> None:
    """Colour pictures of many sizes with metadata.csv, most captions short and some long."""
    rows = ["file_name,text"]
    for i in range(150):
        picture(rng, *rng.integers(40, 90, 2)).save(folder / f"{i}.png")
        count = int(np.clip(rng.lognormal(2.0, 0.7), 2, 40))
        rows.append(f'{i}.png,"{" ".join(rng.choice(WORDS, count))}"')
    (folder / "metadata.csv").write_text("\n".join(rows) + "\n")


def classes(folder: pathlib.Path, rng) -> None:
    """Grey pictures, stored in colour, in a folder for each class."""
    for name in ("trouser", "ankle boot", "bag"):
        (folder / name).mkdir()
        for i in range(20):
            picture(rng, 28, 28, 1).convert("RGB").save(folder / name / f"{i}.png")


def texts(folder: pathlib.Path, rng) -> None:
    """Photographs with a .txt beside each, and one that is broken."""
    for i in range(60):
        picture(rng, 48, 32).save(folder / f"{i}.jpg")
        (folder / f"{i}.txt").write_text(" ".join(rng.choice(WORDS, rng.integers(3, 12))))
    (folder / "7.jpg").write_bytes(b"no picture")


@pytest.mark.parametrize(
    ("make", "how", "side", "channels", "own"),
    [(table, "metadata.csv", 32, 3, False), (classes, "3 folders", 28, 1, True), (texts, "a .txt beside", 32, 3, True)],
)
def test_a_config_fills_its_rows_at_the_first_try(tmp_path, make, how, side, channels, own):
    folder = tmp_path / "images"
    folder.mkdir()
    make(folder, np.random.default_rng(0))
    before = sorted(folder.rglob("*"))
    found = new.look(folder)
    plan = new.plan(found)
    assert how in found.how and (plan.side, plan.channels) == (side, channels)
    assert bool(found.source.captions) != own
    captions = str(tmp_path / "captions.jsonl") if own else ""
    if own:
        pathlib.Path(captions).write_text(write.captions_text(found))
    (tmp_path / "mine.py").write_text(new.config_text(found, plan, "mine.py", captions))
    made = forecast(load_experiment(tmp_path / "mine.py"))
    assert min(made.filled["all"], plan.filled["all"]) >= 0.9
    assert made.records["images"] + plan.held_out == len(found.captions) and plan.held_out >= 4
    assert not made.bad and len(found.unreadable) == (make is texts)
    assert load_experiment(f"{tmp_path / 'mine.py'}:debug").steps == 20
    assert sorted(folder.rglob("*")) == before


def test_the_program_says_what_it_chose_and_why(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(30):
        picture(rng, 20, 20).save(folder / f"IMG_{i:04}.png")
    output = tmp_path / "photos.py"
    flags = (f"--images={folder}", f"--output={output}", "--resolution=16")
    code, out, err = run_program(tmp_path / "said", "transfusion.new", *flags)
    assert code == 0, err
    assert "30 images; captions: none" in out and "16x16 in patches of 2x2" in out and "filled to 9" in out
    assert f"transfusion train --config {output}" in out
    assert json.loads((tmp_path / "photos_captions.jsonl").read_text().splitlines()[0])["file_name"] == "IMG_0000.png"
    code, _, err = run_program(tmp_path / "again", "transfusion.new", *flags)
    assert code == 2 and "exists: give another --output, or --overwrite" in err


def test_names_become_captions_only_if_a_person_chose_them():
    assert _of_names(["blue_penguin-03.png", "RedCat.png"])[0] == [
        ("blue_penguin-03.png", "blue penguin"), ("RedCat.png", "Red Cat"),
    ]  # fmt: skip
    for names in (["IMG_0001.jpg", "IMG_0002.jpg"], ["0001.png", "0002.png"], ["a3f9c0.png", "bb01fe.png"]):
        assert not _of_names(names)[0]


def test_what_cannot_be_used_is_one_line(tmp_path):
    with pytest.raises(UsageError, match="is no folder"):
        new.look(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="holds no images"):
        new.look(tmp_path)
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(UsageError, match="can be read"):
        new.look(tmp_path)
