"""Cosines of pictures and texts equal those of transformers, from the raw picture and text on."""

import json
import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image

from transfusion.adapters.batches import RESULTS
from transfusion.adapters.drawings import score_drawings
from transfusion.adapters.lines import read_lines
from transfusion.errors import UsageError
from transfusion.evaluation.similarity import Similarity

FOLDER = pathlib.Path(__file__).parents[1] / "data" / "similarity"
TEXTS = json.loads((FOLDER / "clip" / "expected.json").read_text())["texts"]
pytest.importorskip("tokenizers")


def pictures() -> list[np.ndarray]:
    """Those of `data/similarity/make.py`."""
    rng = np.random.default_rng(0)
    sizes = ((4, 4, 4), (2, 2, 8), (3, 5, 6))
    blocks = [(rng.integers(0, 256, (height, width, 3)), np.ones((side, side, 1))) for height, width, side in sizes]
    return [np.kron(*block).astype(np.uint8) for block in blocks]


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_cosines_are_those_of_transformers(kind):
    expected, model = json.loads((FOLDER / kind / "expected.json").read_text()), Similarity(FOLDER / kind)
    cosines = model.of_pictures(pictures()) @ model.of_texts(expected["texts"]).T
    np.testing.assert_allclose(cosines[:2], expected["cosines"][:2], atol=2e-5)
    # Versions of Pillow resize by a few grey levels differently.
    np.testing.assert_allclose(cosines[2], expected["cosines"][2], atol=5e-3)
    pairs = [(picture, text) for picture in pictures() for text in expected["texts"]]
    scores = model.scores(*zip(*pairs, strict=True))
    wanted = 100 * np.maximum(np.ravel(expected["cosines"]), 0).mean()
    assert scores[f"{kind}_score"]["value"] == pytest.approx(wanted, abs=0.2) and scores[f"{kind}_score"]["count"] == 12
    assert ("siglip_probability" in scores) == (kind == "siglip")
    if kind == "siglip":
        assert scores["siglip_probability"]["value"] == pytest.approx(np.mean(expected["probability"]), abs=1e-2)


def test_other_folders_are_refused_in_one_line(tmp_path):
    copied = tmp_path / "clip"
    shutil.copytree(FOLDER / "clip", copied)
    (copied / "tokenizer.json").write_text("{}")
    with pytest.raises(UsageError, match="is no tokenizer"):
        Similarity(copied).of_texts(["a"])
    (copied / "config.json").write_text('{"model_type": "qwen2"}')
    with pytest.raises(UsageError, match="'qwen2' compares no texts with pictures"):
        Similarity(copied)


def test_a_folder_of_drawings_is_scored_against_its_prompts(tmp_path):
    expected = json.loads((FOLDER / "clip" / "expected.json").read_text())
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"id": f"p{i}", "prompt": text}) + "\n" for i, text in enumerate(TEXTS)))
    rows = []
    for i, picture in enumerate(pictures()[:2]):
        Image.fromarray(picture).save(tmp_path / f"p{i}.png")
        rows.append({"id": f"p{i}", "sample": 0, "digest": "", "files": [f"p{i}.png"]})
    (tmp_path / RESULTS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    scores, missing = score_drawings(Similarity(FOLDER / "clip"), read_lines(prompts), tmp_path)
    wanted = np.mean([100 * max(expected["cosines"][i][i], 0) for i in range(2)])
    assert scores["clip_score"]["value"] == pytest.approx(wanted, abs=1e-2) and missing == len(TEXTS) - 2
    assert json.loads((tmp_path / "similarity.json").read_text())["scores"] == scores
    with pytest.raises(UsageError, match="holds no pictures of these prompts"):
        score_drawings(Similarity(FOLDER / "clip"), read_lines(prompts), tmp_path / "none")
