import base64
import errno
import html.parser
import io
import json
import math
import os
import shutil

import numpy as np
import pytest
from PIL import Image
from program import run_program

from transfusion import storage
from transfusion.errors import UsageError
from transfusion.evaluation import page
from transfusion.evaluation.charts import Line, line_chart
from transfusion.evaluation.sections import images, numbers, origin
from transfusion.evaluation.sections.material import read_material
from transfusion.report import write_report

SECTIONS = ("scores", "curves", "samples", "trajectory", "captions", "mask", "origin")
VOID = {"meta", "link", "img", "br", "line", "polyline", "polygon", "circle"}


class Parsed(html.parser.HTMLParser):
    """Tags, attributes and text of a page; fails on tags that are not closed in order."""

    def __init__(self, content: str):
        super().__init__()
        self.tags, self.text, self._open = [], [], []
        self.feed(content)
        assert not self._open, f"not closed: {self._open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open and self._open.pop() == tag, f"</{tag}> does not close the last open tag"

    def handle_data(self, data):
        if self._open and self._open[-1] not in ("style", "script"):
            self.text.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


@pytest.fixture(scope="module")
def content(evaluated_run) -> str:
    return (evaluated_run / "report.html").read_text()


@pytest.fixture(scope="module")
def parsed(content) -> Parsed:
    return Parsed(content)


def test_every_section_is_there_and_linked(parsed):
    assert tuple(section["id"] for section in parsed.all("section")) == SECTIONS
    links = [a["href"] for a in parsed.all("a")]
    assert links == [f"#{name}" for name in SECTIONS]


def test_the_page_needs_no_other_file(parsed, content):
    assert "script" not in {tag for tag, _ in parsed.tags}
    references = [a.get(name, "") for _, a in parsed.tags for name in ("src", "href")]
    assert all(not reference or reference.startswith(("data:", "#")) for reference in references)
    assert "http://" not in content and "https://" not in content and "@import" not in content


def test_every_picture_decodes_and_says_what_it_shows(parsed):
    images = parsed.all("img")
    for attributes in images:
        kind, _, data = attributes["src"].partition(",")
        assert kind == "data:image/png;base64" and attributes["alt"]
        Image.open(io.BytesIO(base64.b64decode(data, validate=True))).load()
    alt = [attributes["alt"] for attributes in images]
    # Per class one real image and five at each of two guidance scales; three solver steps and the end, twice.
    assert sum(a.startswith("real:") for a in alt) == 10
    assert alt.count("a handwritten seven, guidance 1") == alt.count("a handwritten seven, guidance 2") == 5
    assert sum(a.startswith("The image on its way") for a in alt) == 4
    assert sum(a.startswith("held-out image:") for a in alt) == 15
    assert "attention mask of a packed training row" in alt


def test_scores_stand_with_their_intervals(parsed, evaluated_run):
    result = json.loads((evaluated_run / "evaluation.json").read_text())
    judge = result["judge_accuracy"]
    assert f"{judge['value']:.1%} {judge['low']:.1%} to {judge['high']:.1%} 297" in parsed.words
    for name in ("generation accuracy", "caption accuracy", "text bits per byte", "feature distance / floor"):
        assert name in parsed.words


def test_curves_have_training_and_held_out_losses_noise_levels_and_gradients(parsed):
    for title in ("Loss of the text stream", "Loss of the image stream by noise level", "Gradient norm", "held out"):
        assert title in parsed.words
    lines = parsed.all("polyline")
    assert sum("dashed" in line["class"] for line in lines) == 2 and len(lines) >= 10


def test_the_origin_has_commands_versions_and_config(parsed):
    words = parsed.words
    assert "Share of slots that hold a token" in words and "Versions and machine" in words
    assert "not recorded" not in words, "commands.jsonl is there"
    assert '"learning_rate": 0.002' in words


def test_wrong_captions_are_marked(parsed, evaluated_run):
    written = [json.loads(line) for line in (evaluated_run / "samples" / "captions.jsonl").read_text().splitlines()]
    wrong = sum(not row["right"] for row in written)
    classes = [figure.get("class", "") for figure in parsed.all("figure")]
    assert classes.count("tile wrong") == wrong and classes.count("tile right") == 15 - wrong


def test_names_and_captions_are_escaped(content, evaluated_run):
    assert "tiny <run>" in str(evaluated_run) and "tiny <run>" not in content and "tiny &lt;run&gt;" in content


def test_what_is_missing_is_said(tmp_path, tiny_run):
    workdir = shutil.copytree(tiny_run, tmp_path / "run")
    (workdir / "metrics.jsonl").unlink()
    (workdir / "commands.jsonl").unlink()
    material = read_material(workdir)
    assert "Not evaluated yet" in numbers.scores(material) and "transfusion.evaluate" in numbers.scores(material)
    assert "no rows" in numbers.curves(material)
    assert "was not recorded" in origin.origin(material)
    assert "hold a token, over the whole training: not logged" in origin.packed_row(material)
    assert "not logged" in numbers.header(material) and "Drawn as asked" not in numbers.header(material)


def test_an_evaluation_of_another_step_or_with_hostile_text_is_shown_safely(tmp_path, tiny_run):
    workdir = shutil.copytree(tiny_run, tmp_path / "run")
    evaluation = {
        "step": 10,
        "absent": {"caption_accuracy": "<script>alert(1)</script>"},
        "judge_accuracy": {"value": 0.5, "low": 0.25, "high": 0.75, "count": 8},
        "<b>": {"value": 1, "low": 1, "high": 1, "count": 1},
    }
    (workdir / "evaluation.json").write_text(json.dumps(evaluation))
    scores = numbers.scores(read_material(workdir))
    assert "of step 10, the checkpoint of step 20" in scores and "50.0%" in scores
    assert "<script" not in scores and "<b>" not in scores and "&lt;script&gt;" in scores


@pytest.mark.parametrize(
    "damaged",
    [
        b'{"step": ',
        b"\xff\xfe",
        b"[" * 200_000,
        b"[]",
        b'{"step": 20, "absent": 3}',
        b'{"step": 20, "psnr": {"value": 1e999, "low": 0, "high": 0, "count": 1}}',
        b'{"step": 20, "generation_accuracy": {"value": "x", "low": 0, "high": 0, "count": 1}}',
        b'{"step": 20, "retrieval": {"training_names": {"pixels": 5}}}',
        b'{"step": 20, "velocity_loss": {"image": {"soon": {"value": 1, "low": 0, "high": 2, "count": 1}}}}',
    ],
)
def test_a_damaged_evaluation_counts_as_none_and_the_page_says_so(damaged, tmp_path, tiny_run):
    workdir = shutil.copytree(tiny_run, tmp_path / "run")
    (workdir / "evaluation.json").write_bytes(damaged)
    material = read_material(workdir)
    assert "is damaged" in numbers.scores(material) and "transfusion.evaluate again" in numbers.scores(material)
    assert "Drawn as asked" not in numbers.header(material)
    assert list(numbers._velocity(material)) == []


def test_damaged_lines_of_metrics_commands_and_captions_are_left_out(tmp_path, tiny_run):
    workdir = shutil.copytree(tiny_run, tmp_path / "run")
    whole = read_material(workdir)
    for name in ("metrics.jsonl", "commands.jsonl"):
        with open(workdir / name, "ab") as file:
            file.write(b'\xff\n{"step": 1e999}\n' + b"[" * 200_000 + b'\n{"step": 19, "loss": "x", "command": 3}\n')
    (workdir / "samples").mkdir(exist_ok=True)
    (workdir / "samples" / "captions.jsonl").write_text('{"index": -1, "caption": "x", "reference": "y"}\n')
    material = read_material(workdir)
    assert material.metrics == whole.metrics and numbers.curves(material) == numbers.curves(whole)
    assert origin.origin(material).count("# 20") == origin.origin(whole).count("# 20")
    assert images.read_captions(workdir, material.held_out) == []


def test_a_report_that_cannot_be_written_is_told_before_the_work(tmp_path, tiny_run, monkeypatch):
    workdir = shutil.copytree(tiny_run, tmp_path / "run")
    monkeypatch.setattr("transfusion.report.read_material", None)  # the work
    (workdir / "report.html").mkdir()
    with pytest.raises(UsageError, match="cannot write .*report.html: Is a directory"):
        write_report(workdir)
    (workdir / "report.html").rmdir()
    monkeypatch.setattr(storage, "_write_new", raises(errno.ENOSPC))
    with pytest.raises(UsageError, match="cannot write .*report.html: No space left on device") as error:
        write_report(workdir)
    assert error.value.code == 1  # there may be room later


def raises(number: int):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    return fail


def test_a_wrong_workdir_is_one_line_and_exit_code_2(tmp_path):
    result = run_program(tmp_path, "transfusion.report", f"--workdir={tmp_path / 'nothing'}")
    assert result.code == 2 and "is not the workdir" in result.err and "Traceback" not in result.err


# --- pieces -----------------------------------------------------------------------------------------------------------


def test_a_thumbnail_escapes_its_text():
    image = page.thumbnail(np.zeros((8, 8, 1), np.uint8), '"><script>')
    (attributes,) = Parsed(image).all("img")
    assert attributes["alt"] == '"><script>' and attributes["height"] == "48"


def test_a_chart_breaks_curves_at_missing_values_and_leaves_out_what_is_not_finite():
    y = [1.0, 2.0, None, 3.0, math.inf, 5.0, 4.0, math.nan]
    chart = Parsed(line_chart("losses", [Line("a < b", range(8), y)], "step"))
    assert len(chart.all("polyline")) == 2 and len(chart.all("circle")) == 5
    assert "a < b" in chart.words


def test_a_chart_without_values_says_so_and_one_value_is_a_dot():
    assert "no values" in line_chart("t", [Line("a", [1, 2], [None, math.nan])], "x")
    assert len(Parsed(line_chart("t", [Line("a", [5], [0.0])], "x", log=True)).all("circle")) == 1


@pytest.mark.parametrize("scale", [1e-7, 1.0, 3e9])
@pytest.mark.parametrize("log", [True, False])
def test_curves_and_labels_stay_inside_the_chart(scale, log):
    values = [scale * v for v in (1, 2.5, 80, 3, 7)]
    chart = Parsed(line_chart("t", [Line("a", [0, 10, 20, 30, 40], values)], "x", log=log))
    (curve,) = [line["points"] for line in chart.all("polyline")]
    points = [tuple(map(float, point.split(","))) for point in curve.split()]
    assert all(0 <= x <= 520 and 0 <= y <= 300 for x, y in points)
    heights = [y for _, y in points]
    assert min(heights) == heights[2] and max(heights) == heights[0]
    assert 3 <= sum(line.get("class") == "rule" for line in chart.all("line")) <= 12


def test_time_in_steps_counts_steps_without_a_rate_at_the_mean_speed():
    rows = [{"step": 10, "steps_per_second": None}, {"step": 30, "steps_per_second": 2.0}]
    assert numbers.training_seconds(rows) == pytest.approx(15.0)
    assert numbers.training_seconds([{"step": 5}]) is None
