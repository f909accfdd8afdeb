"""The page that shows records: what it says of segments, turns and losses is what training packs."""

import re

import numpy as np
import public_forms
import pytest
from PIL import Image

from transfusion.data.config import SourceConfig
from transfusion.data.sources import open_source
from transfusion.errors import UsageError
from transfusion.evaluation import show


def made(tmp_path, rows, **fields):
    path = public_forms.jsonl(tmp_path, "rows.jsonl", rows)
    experiment = show.plain_experiment()
    return show.show(open_source(show.source_of(path, experiment, **fields)), experiment, 5)


def test_a_page_shows_segments_tokens_losses_and_the_mask(tmp_path):
    Image.fromarray(np.full((9, 12), 7, np.uint8)).save(tmp_path / "a.png")
    said = [{"image": "a.png", "turn": "user"}, {"text": "<What>?", "turn": "user"}]
    said.append({"text": "A cat", "turn": "assistant", "weight": 0.5})
    rows = [{"segments": said}, {"segments": [{"sound": "a.png"}]}, {"text": "plain"}]
    page = made(tmp_path, rows, reader="", files="")
    assert page.count("data:image/png;base64,") == 2 and 'alt="image [32, 32, 3]"' in page  # the picture and the mask
    tokens = {mark: title for title, mark in re.findall(r'<span style="[^"]*" title="([^"]*)">([^<]*)</span>', page)}
    assert tokens["A cat"] == "learned with weight 0.5" and tokens["plain"] == "learned with weight 1"
    assert tokens["image x 16"] == tokens["&lt;What&gt;?\nAssistant: "] == "only read"
    assert "3 of 3 records" in page and "rows.jsonl:2" in page and "WAV" in page
    assert "<script" not in page and "<What>" not in page


def test_a_source_is_a_path_or_a_name_of_the_config(tmp_path):
    experiment = show.plain_experiment()
    (tmp_path / "captions.csv").write_text("file_name,caption\n")
    (tmp_path / "a.txt").write_text("a text")
    assert show.source_of(str(tmp_path), experiment, "", "").kind == "folder"
    assert show.source_of(str(tmp_path / "a.txt"), experiment, "", "").kind == "text"
    assert show.source_of(str(tmp_path), experiment, "llava", "") == SourceConfig(
        kind="records", path=str(tmp_path), reader="llava", resolution=32, channels=3
    )
    with pytest.raises(UsageError, match="no file or folder 'nothing'"):
        show.source_of("nothing", experiment, "", "")
