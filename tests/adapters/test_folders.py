"""Folders of drawings have the layouts and names that the public scorers read. What a scorer does with a folder is
written here as its own program does it, without its networks."""

import json
import os
import re

import numpy as np
import pytest
from PIL import Image

from transfusion.adapters import folders
from transfusion.api import load_run
from transfusion.errors import UsageError

SETTINGS = {"steps": 2, "max_tokens": 4, "top_k": 3}  # as in test_batches, so that programs are compiled once


@pytest.fixture(scope="module")
def run(tiny_run):
    return load_run(tiny_run)


def drawn(run, name, prompts, folder, **more):
    made = folders.open_folder(run, name, prompts, folder, SETTINGS, rows=2, **more)
    counts = made.work(lambda result: None)
    return made, counts


def test_geneval_finds_each_prompt_with_its_metadata_and_four_samples(run, tmp_path):
    rows = [
        {"tag": "colors", "include": [{"class": "cat", "count": 1}], "prompt": f"a photo of a cat {i}"}
        for i in range(2)
    ]
    prompts = tmp_path / "evaluation_metadata.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made, counts = drawn(run, "geneval", prompts, tmp_path / "out")
    assert counts == (8, 0)
    # evaluation/evaluate_images.py, main
    imagedir, found = str(tmp_path / "out" / "images"), []
    for subfolder in os.listdir(imagedir):
        assert subfolder.isdigit() and os.path.isdir(os.path.join(imagedir, subfolder))
        with open(os.path.join(imagedir, subfolder, "metadata.jsonl")) as file:
            metadata = json.load(file)
        assert metadata == rows[int(subfolder)]
        for name in os.listdir(os.path.join(imagedir, subfolder, "samples")):
            assert re.match(r"\d+\.png", name)
            found.append(np.asarray(Image.open(os.path.join(imagedir, subfolder, "samples", name))))
    assert len(found) == 8 and {image.shape for image in found} == {(8, 8, 3)}
    assert f"evaluate_images.py {imagedir} " in made.command()
    assert drawn(run, "geneval", prompts, tmp_path / "out")[1] == (0, 8)


def test_dpg_finds_one_grid_for_each_item(run, tmp_path):
    (tmp_path / "prompts").mkdir()
    for name in ("partiprompts7", "COCOval2014000000580698"):
        (tmp_path / "prompts" / f"{name}.txt").write_text(f"a picture of {name}"[:20])
    made, _ = drawn(run, "dpg", tmp_path / "prompts", tmp_path / "out")
    table = tmp_path / "dpg_bench.csv"
    table.write_text("item_id,text,proposition_id\npartiprompts7,a picture of partipr,1\npartiprompts7,again,2\n")
    assert folders.dpg_prompts(table)[0] == made.asked[1] and len(folders.dpg_prompts(table)) == 1
    # dpg_bench/compute_dpg_bench.py, main and compute_dpg_one_sample
    found = re.search(r"--image-root-path (\S+) --resolution (\d+) --pic-num (\d+)", made.command())
    root, side, number = found[1], int(found[2]), int(found[3])
    assert (side, number) == (8, 4)
    assert {name.split(".")[0] for name in os.listdir(root)} == {asked.name for asked in made.asked}
    crops = [(0, 0, side, side), (side, 0, 2 * side, side), (0, side, side, 2 * side), (side, side, 2 * side, 2 * side)]
    for line in made.batches.lines:
        grid = Image.open(os.path.join(root, f"{line.id}.png"))
        assert grid.size == (16, 16)
        for sample, crop in enumerate(crops[:number]):
            alone = Image.open(tmp_path / "out" / f"{made.batches.place(line, sample)}.png")
            np.testing.assert_array_equal(np.asarray(grid.crop(crop)), np.asarray(alone))


def test_wise_and_clean_fid_find_their_pictures(run, tmp_path):
    rows = [
        {"prompt_id": n, "Prompt": "a photo of a cat", "Explanation": "e", "Category": "c", "Subcategory": "s"}
        for n in (1, 12)
    ]
    (tmp_path / "cultural_common_sense.json").write_text(json.dumps(rows))
    drawn(run, "wise", tmp_path / "cultural_common_sense.json", tmp_path / "wise")
    for prompt_id in {row["prompt_id"]: row for row in rows}:  # gpt_eval.py, main
        assert (tmp_path / "wise" / "images" / f"{prompt_id}.png").exists()
    captions = {"annotations": [{"image_id": 9, "caption": "a cat"}, {"image_id": 9, "caption": "b"}]}
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    (tmp_path / "captions.txt").write_text("a photo of a cat\n\na photo of a dog\n")
    assert [(a.name, a.text) for a in folders.any_prompts(tmp_path / "captions.json")] == [("000000000009", "a cat")]
    drawn(run, "cleanfid", tmp_path / "captions.txt", tmp_path / "fid")
    assert len(list((tmp_path / "fid" / "images").rglob("*.png"))) == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("geneval", '{"prompt": "a"}\n', "line 1: no field 'tag'"),
        ("geneval", "{\n", "line 1 is no JSON"),
        ("geneval", "\n", "holds no prompts"),
        ("wise", '[{"prompt_id": 1}]', "no field 'Prompt'"),
        ("wise", '[{"prompt_id": "../1", "Prompt": "a"}]', "'../1' is no name of a file"),
        ("dpg", "item,text\n1,a\n", "line 2: no field 'item_id'"),
        ("cleanfid", "", "holds no prompts"),
    ],
)
def test_other_files_are_refused_in_one_line(run, tmp_path, name, content, message):
    path = tmp_path / "prompts.file"
    path.write_text(content)
    with pytest.raises(UsageError, match=message):
        folders.open_folder(run, name, path, tmp_path / "out", {})
