"""A run answers what lmms-eval asks. Its package is not installed: a module of the same name stands in for it, with
the one class that is used, and the instances are those that its tasks make."""

import sys
import types
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from test_lm_harness import by_hand, run_of

from transfusion.adapters import lmms_harness
from transfusion.api import load_run
from transfusion.errors import UsageError


class _Base:
    """What `lmms_eval.api.model.lmms` gives its classes."""

    def __init__(self):
        self.task_dict, self._rank, self._world_size = {}, 0, 1


@pytest.fixture
def harness(monkeypatch):
    api = types.ModuleType("lmms_eval.api.model")
    api.lmms = _Base
    for name, module in (("lmms_eval", None), ("lmms_eval.api", None), ("lmms_eval.api.model", api)):
        monkeypatch.setitem(sys.modules, name, module or types.ModuleType(name))
    yield lmms_harness
    lmms_harness.model_class.cache_clear()


def asked(*args) -> SimpleNamespace:
    return SimpleNamespace(args=args)


def test_texts_alone_are_scored_and_written(harness):
    run = run_of(1)
    lmm = harness.open_lmm(run, rows=2)
    lmm.task_dict = {"t": {"test": [{"answer": "cd"}, {"answer": "e"}]}}
    nothing = lambda document: []  # noqa: E731
    scored = lmm.loglikelihood([
        asked("ab", lambda document: document["answer"], nothing, 0, "t", "test"),
        asked("ab", "e", nothing, 1, "t", "test"),
    ])  # fmt: skip
    for (log, greedy), target in zip(scored, ("cd", "e"), strict=True):
        wanted = by_hand(run, list(b"ab"), list(target.encode()))
        assert log == pytest.approx(wanted[0], rel=1e-5) and greedy == wanted[1]
    (text,) = lmm.generate_until([asked("ab", {"max_new_tokens": 3}, nothing, 0, "t", "test")])
    assert text == "".join(run.generate(["ab"], temperature=0.0, max_tokens=3, max_images=0)[0])


def test_rounds_go_on_until_the_task_says_so(harness):
    lmm = harness.open_lmm(run_of(1), rows=2)
    lmm.task_dict = {"t": {"test": [1, 2]}}  # the last round of each document
    seen = []

    def next_round(document, previous_output, round_idx, previous_round_info):
        seen.append((document, round_idx, tuple(previous_output), previous_round_info))
        return [], f"{round_idx}?", round_idx > document, previous_output, round_idx

    requests = [asked("ab", {"max_new_tokens": 2}, lambda document: None, next_round, n, "t", "test") for n in (0, 1)]
    first, second = lmm.generate_until_multi_round(requests)
    assert (len(first), len(second)) == (2, 3) and first[0] == second[0]
    assert seen[0] == (1, 1, first[:1], None) and seen[-1] == (2, 3, second, 2)


def test_pictures_stand_where_the_text_says(harness, tiny_run):
    lmm = harness.open_lmm(load_run(tiny_run), rows=2)
    pixels = np.random.default_rng(0).integers(0, 255, (8, 8), np.uint8)
    picture = Image.fromarray(pixels)
    kinds = lambda document: [segment.kind for segment in document]  # noqa: E731
    assert kinds(lmm.read("what is it?", [picture])) == ["image", "text"]
    assert kinds(lmm.read("from <image> to <image>", [picture, picture])) == ["text", "image"] * 2
    assert kinds(lmm.read("<image> and more", [picture, picture])) == ["image", "image", "text"]
    with pytest.raises(UsageError, match="cannot read"):
        lmm.read("", ["none.png"])
    lmm.task_dict = {"t": {"test": [picture]}}
    (caption,) = lmm.generate_until([asked("", {"max_new_tokens": 4}, lambda document: [document], 0, "t", "test")])
    assert caption == lmm.run.caption(pixels, max_tokens=4)


def test_without_the_package_the_line_says_what_to_install():
    with pytest.raises(UsageError, match="pip install lmms-eval"):
        lmms_harness.open_lmm("nowhere")
