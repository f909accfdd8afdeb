"""Runs from Python: train on a list, interrupt, go on, look at it."""

import os
import signal

import IPython.display
import numpy as np
import pytest
from PIL import Image

import transfusion
from transfusion.errors import UsageError
from transfusion.notebook import figures, live
from transfusion.notebook.lists import write_list

SHORT = {"steps": 6, "log_every": 2, "checkpoint.every": 100, "eval.every": 0, "batch_size": 2}


def images(count: int) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (count, 8, 8, 1), np.uint8))


def pairs(count: int = 24) -> list[tuple[np.ndarray, str]]:
    return [(image, f"picture {i % 3}") for i, image in enumerate(images(count))]


@pytest.fixture(scope="module")
def run(tiny_run) -> transfusion.Run:
    return transfusion.load_run(tiny_run)


def test_a_list_is_trained_on_interrupted_and_continued_by_the_same_call(tmp_path):
    experiment = transfusion.experiment("digits:debug", **SHORT)
    steps = []

    def watch(moment):
        steps.append(moment.step)
        assert np.isfinite(moment.row["loss"]) and moment.run.step == moment.step
        if moment.step == 2:
            os.kill(os.getpid(), signal.SIGINT)  # as the stop of a notebook
        if moment.step == 4:
            moment.stop()
        if moment.step == 6:
            raise ZeroDivisionError

    def call(**options):
        return transfusion.train(experiment, tmp_path / "run", data=pairs(), **options)

    assert [call(callbacks=[watch]).step for _ in range(2)] == [2, 4]
    with pytest.raises(ZeroDivisionError):  # a callback that fails loses no step
        call(callbacks=[watch])
    run = call()  # nothing to do
    assert run.step == 6 and steps == [2, 4, 6] == [row["step"] for row in run.metrics()]
    (written,) = (tmp_path / "run").glob("data-*")
    assert len(list(written.glob("*.png"))) == 24


def test_records_of_a_list_are_those_of_files(tmp_path, run):
    (image,) = images(1)
    Image.new("RGB", (30, 20), "red").save(tmp_path / "red.png")
    listed = [
        (image, "a caption"),
        "a text",
        ["seen", image, {"text": "said", "loss": False}],
        {"segments": [{"image": tmp_path / "red.png", "role": "context"}, {"text": "red"}]},
    ]
    path = write_list(listed, tmp_path, run.experiment)
    assert write_list(listed, tmp_path, run.experiment) == path  # the same list is the same data
    lines = path.read_text().splitlines()
    assert lines[1] == '{"text": "a text"}' and '"caption": "a caption"' in lines[0]
    assert '{"text": "said", "loss": false}' in lines[2] and '"role": "context"' in lines[3]
    stored = [Image.open(file) for file in path.parent.glob("*.png")]
    assert {(picture.size, picture.mode) for picture in stored} == {((8, 8), "L")}  # as the model reads them
    losses = run.loss(listed)
    assert losses == run.loss(listed) and losses["text_loss"] > 0 and losses["image_loss"] > 0
    for wrong, said in (([], "not empty"), ([3], "data\\[0\\]: a record is"), ([(image, "a"), []], "data\\[1\\]")):
        with pytest.raises(UsageError, match=said):
            write_list(wrong, tmp_path, run.experiment)


def test_a_trajectory_ends_with_what_is_drawn(run):
    path = run.trajectory("a handwritten seven", seed=3)
    np.testing.assert_array_equal(path.noisy[-1], run.draw("a handwritten seven", seed=3))
    assert len(path.times) == len(path.guesses) == 4 and path.times[-1] == 1
    assert path._repr_png_().startswith(b"\x89PNG") and len(repr(path)) < 100
    with pytest.raises(UsageError, match="one prompt"):
        run.trajectory(["a", "b"])


def test_what_a_notebook_shows_is_short_and_has_a_picture(run, tiny_run):
    assert len(repr(run).splitlines()) < 12 and "<svg" in run._repr_html_()
    drawn = run.draw(["a", "b"])
    assert isinstance(drawn, np.ndarray) and drawn._repr_png_().startswith(b"\x89PNG") and len(repr(drawn)) < 60
    assert drawn.astype(float)._repr_png_() is None  # no picture any more
    chart = run.plot()
    assert "<svg" in chart._repr_html_() and len(repr(chart)) < 200
    assert run.plot("learning_rate").curves["learning_rate"][0] == [row["step"] for row in run.metrics()]
    with pytest.raises(UsageError, match="did you mean 'loss'"):
        run.plot("los")
    shown = repr(run.experiment)
    assert len(shown.splitlines()) < 12 and max(map(len, shown.splitlines())) <= 120
    with pytest.raises(UsageError, match="no option 'sample'"):
        run.evaluate(sample=3)
    assert repr(figures.Scores(a={"value": 0.5, "low": 0.4, "high": 0.6, "count": 9}, absent={})).count("\n") < 3


@pytest.mark.soak
def test_a_notebook_sees_curves_and_pictures_while_it_trains(tmp_path, monkeypatch, capfd):
    class Handle:
        shown: list[str] = []

        def update(self, page):
            self.shown.append(page.data)

    monkeypatch.setattr(IPython.display, "display", lambda *_, **__: Handle())
    assert not live.in_notebook()  # a test is a script
    changes = SHORT | {"eval.every": 4, "sampling.steps": 1, "steps": 4}
    transfusion.train("digits:debug", tmp_path / "run", data=pairs(40), show=True, **changes)
    first, last = Handle.shown
    assert "<svg" in first and "<img" not in first
    assert "step 4/4" in last and "<img" in last
    assert "step 2/4" not in capfd.readouterr().err  # the page takes the place of the lines
