import dataclasses
import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_close, trunk_operations
from program import run_program

from transfusion.api import load_run
from transfusion.config import from_json, to_json
from transfusion.data.sources import open_source
from transfusion.errors import UsageError
from transfusion.evaluate import Options, evaluate
from transfusion.evaluation import losses, scores
from transfusion.evaluation.examples import Examples, class_captions, read_examples
from transfusion.evaluation.score_table import named_scores, score_table
from transfusion.sequence import Segment, text
from transfusion.sequence.rows import assemble, expand

FIXED = ("generation_accuracy", "caption_accuracy", "judge_accuracy", "text_bits_per_byte")


@pytest.fixture(scope="module")
def run(tiny_run):
    return load_run(tiny_run)


@pytest.fixture(scope="module")
def result(evaluated_run):
    return json.loads((evaluated_run / "evaluation.json").read_text())


@pytest.fixture(scope="module")
def records(run):
    source = run.experiment.eval.sources["digits"]
    opened = open_source(source, run.experiment.data.data_dir)
    return [opened[i] for i in range(len(opened))]


def test_the_fixed_scores_have_intervals_and_counts(result):
    assert [result[name]["count"] for name in FIXED] == [20, 15, 297, 297]
    for name in FIXED:
        assert 0 <= result[name]["low"] <= result[name]["value"] <= result[name]["high"]
    assert result["generation_accuracy"]["value"] * 20 == pytest.approx(
        sum(s["value"] * s["count"] for s in result["generation_accuracy_by_prompt"].values())
    )
    assert len(result["generation_accuracy_by_prompt"]) == 10
    assert result["feature_distance"]["distance"]["count"] == result["feature_distance"]["floor"]["count"] == 20
    assert result["absent"] == {}


def test_the_file_says_how_it_was_made(result, run):
    assert result["step"] == run.step == 20 and result["seed"] == 0
    assert result["sampler"]["steps"] == 3 and result["sampler"]["guidance"] == 2.0
    assert result["versions"]["jax"] == jax.__version__ and result["machine"]["cpu_cores"] >= 1
    assert result["config"]["model"]["width"] == 32
    assert {"judge", "generation", "captions", "text", "velocity"} <= result["seconds"].keys()


def test_pictures_and_captions_are_kept(evaluated_run, records):
    written = [json.loads(line) for line in (evaluated_run / "samples" / "captions.jsonl").read_text().splitlines()]
    assert [row["reference"] for row in written] == [record["caption"] for record in records[:15]]
    assert (evaluated_run / "samples" / "generated.png").stat().st_size > 1000


def test_the_table_names_every_fixed_score(result):
    lines = score_table(result).splitlines()
    assert all(any(line.startswith(name.replace("_", " ")) for line in lines) for name in FIXED)
    assert "n = 297" in lines[1]  # the judge beside what rests on it
    assert dict(named_scores(result))["velocity loss / image / mean"] == result["velocity_loss"]["image"]["mean"]


# --- bits per byte ----------------------------------------------------------------------------------------------------


def test_bits_count_every_caption_once(run, result, records):
    assert result["text_bits_per_byte"]["bytes"] == sum(len(record["caption"].encode()) for record in records)
    parts = [result[f"text_bits_per_byte_{name}_image"] for name in ("after", "without")]
    assert sum(part["count"] for part in parts) == 297
    whole = sum(part["value"] * part["bytes"] for part in parts) / sum(part["bytes"] for part in parts)
    assert whole == pytest.approx(result["text_bits_per_byte"]["value"])


def test_bits_of_a_packed_document_are_those_of_the_document_alone(run, records):
    image = run.codec.encode(records[0]["image"])
    captions = [Segment("text", text.encode(record["caption"])) for record in records[:2]]
    documents = [(captions[0], Segment("image", image, "target")), (Segment("image", image, "context"), captions[1])]
    batch = assemble([[expand(document, run.spec) for document in documents], []], run.spec)
    found = losses.text_bits(run.task, run.params, [batch])
    assert found.bytes.tolist() == [len(caption.value) for caption in captions]
    assert found.after_image.tolist() == [False, True]
    for i, document in enumerate(documents):
        alone = losses.text_bits(run.task, run.params, [assemble([[expand(document, run.spec)], []], run.spec)])
        assert_close(found.bits[i], alone.bits[0], trunk_operations(run.experiment.model, 256))


def test_a_model_without_preference_needs_the_entropy_of_the_vocabulary(run, records):
    params = jax.tree.map(jnp.zeros_like, run.params)
    document = (Segment("text", text.encode("seven")),)
    found = losses.text_bits(run.task, params, [assemble([[expand(document, run.spec)]], run.spec)])
    # Five bytes and the end of the document.
    assert_close(found.bits[0], 6 * math.log2(text.VOCABULARY), text.VOCABULARY)
    assert_close(found.score()["value"], 6 / 5 * math.log2(text.VOCABULARY), text.VOCABULARY)


# --- velocity ---------------------------------------------------------------------------------------------------------


def test_a_model_that_predicts_nothing_has_the_same_velocity_loss_at_all_times(run, records, result):
    params = jax.tree.map(jnp.zeros_like, run.params)
    source = run.experiment.eval.sources["digits"]
    found = losses.velocity_loss(
        run.task, params, losses.held_out_batches(run.task, run.experiment, source), "image", seed=0
    )
    # E |data - noise|^2 = E data^2 + 1, and the noise is the same at each time.
    expected = np.mean([np.square(run.codec.encode(record["image"])).mean() for record in records]) + 1
    assert found["0.1"]["value"] == pytest.approx(expected, rel=0.03)  # the noise is a sample
    # Sums over up to 297 images of 64 numbers.
    assert_close([found[f"{t:g}"]["value"] for t in losses.LOSS_TIMES], found["0.1"]["value"], 297 + 64)
    # Images that precede their caption are left out: as many as the captions that follow an image.
    assert found["mean"]["count"] == 297 - result["text_bits_per_byte_after_image"]["count"]


# --- scores -----------------------------------------------------------------------------------------------------------


class Seen:
    """A judge that takes the brightness of an image for its class."""

    def predict(self, images):
        return np.round((images.mean((1, 2, 3)) + 1) * 127.5).astype(int)


def test_generation_counts_what_the_judge_recognises_per_prompt():
    images = np.stack([np.full((4, 4, 1), label, np.uint8) for label in (0, 1, 1, 3)])
    drawn = scores.Generated(images, ("zero", "one", "zero", "three"), np.array([0, 1, 0, 3]))
    found = scores.generation(Seen(), drawn)
    assert found.right.tolist() == [True, True, False, True]
    assert found.all["value"] == 0.75 and found.all["count"] == 4
    assert {name: s["value"] for name, s in found.by_prompt.items()} == {"zero": 0.5, "one": 1.0, "three": 1.0}


def test_captions_are_compared_but_for_case_and_spaces(run, records):
    class Writer:
        def caption(self, images, seed):
            return [" A handwritten  Zero\n", "a handwritten two", "a handwritten"]

    images = np.stack([record["image"] for record in records[:3]])
    references = ("a handwritten zero", "a handwritten two", "a handwritten eight")
    found = scores.captioning(Writer(), Examples(images, references, np.zeros(3, int)), 500, seed=0)
    assert [row["right"] for row in found.rows] == [True, True, False]
    assert found.score["count"] == 3


def test_prompts_are_the_captions_of_the_classes_in_turn(run):
    class Artist:
        shows = "image"

        def draw(self, prompts, kind, seed, guidance):
            assert kind == self.shows
            return np.zeros((len(prompts), 8, 8, 1), np.uint8)

    real = read_examples(run.experiment.data.sources, run.experiment.data, 60)
    assert list(class_captions(real)) == list(range(10))
    drawn = scores.draw_classes(Artist(), real, 12, seed=0, guidance=2.0)
    assert drawn.asked.tolist() == [*range(10), 0, 1]
    assert drawn.prompts[7] == "a handwritten seven" and drawn.images.shape == (12, 8, 8, 1)


def test_a_damaged_judge_is_trained_again_and_an_intact_one_is_kept(tmp_path, run):
    real = read_examples(run.experiment.data.sources, run.experiment.data, 60)
    path = tmp_path / "judge.safetensors"
    path.write_bytes(b"no judge")
    first = scores.open_judge(tmp_path, real, steps=2)
    before = path.stat().st_mtime_ns
    again = scores.open_judge(tmp_path, real, steps=2)
    assert path.stat().st_mtime_ns == before
    np.testing.assert_array_equal(
        first.logits(scores.to_float(real.images)), again.logits(scores.to_float(real.images))
    )


def test_runs_share_one_judge_of_the_same_images(tmp_path, run, monkeypatch):
    real, trained = read_examples(run.experiment.data.sources, run.experiment.data, 60), []
    train = scores.judges.train_judge
    monkeypatch.setattr(scores.judges, "train_judge", lambda *given: trained.append(1) or train(*given))
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        scores.open_judge(tmp_path / name, real, 2, tmp_path / "judges")
        assert (tmp_path / name / "judge.safetensors").is_file()
    assert len(trained) == 1
    other = dataclasses.replace(real, images=255 - real.images)
    scores.open_judge(tmp_path / "two", other, 2, tmp_path / "judges")
    assert len(trained) == 2


def test_retrieval_scores_each_group_among_all_real_images():
    gallery = np.stack([np.full((4, 4, 3), 12 * i, np.uint8) for i in range(20)])
    groups = {
        "training_names": scores.Generated(gallery[[3, 5]], ("a", "b"), np.array([3, 5])),
        "held_out_names": scores.Generated(gallery[[9, 0]], ("c", "d"), np.array([8, 19])),
    }
    found = scores.retrieval_by_group(groups, gallery, scores.embeddings(4)[0])
    assert found["training_names"]["pixels"]["top1"]["value"] == 1.0
    assert found["held_out_names"]["pixels"]["top1"]["value"] == 0.0
    assert found["held_out_names"]["pixels"]["top5"]["value"] == 0.5
    assert scores.chance(20) == {"top1": 0.05, "top5": 0.25}


# --- the program ------------------------------------------------------------------------------------------------------


def test_open_captions_are_scored_by_retrieval_and_the_rest_is_said_to_be_absent(tmp_path, tiny_run):
    shutil.copytree(tiny_run, tmp_path / "open")
    experiment = from_json((tmp_path / "open" / "config.json").read_text())
    changed = dataclasses.replace(experiment, eval=dataclasses.replace(experiment.eval, prompts="held_out"))
    (tmp_path / "open" / "config.json").write_text(to_json(changed))
    found = evaluate(tmp_path / "open", Options(samples=40, captions=15))
    assert found["retrieval"]["gallery"] == 1797
    assert found["retrieval"]["held_out_names"]["pixels"]["top5"]["count"] == 20
    assert found["generation_accuracy"] is None and "retrieval" in found["absent"]["generation_accuracy"]
    assert "16 pixels" in found["absent"]["retrieval by VGG features"]
    assert "retrieval by VGG features: none, VGG features need images of 16 pixels or more" in score_table(found)


@pytest.mark.parametrize("options", [{"samples": 0}, {"steps": -1}])
def test_impossible_options_are_refused(options):
    with pytest.raises(UsageError, match="at least 1"):
        Options(**options)


def test_a_wrong_workdir_is_one_line_and_exit_code_2(tmp_path):
    result = run_program(tmp_path, "transfusion.evaluate", f"--workdir={tmp_path / 'nothing'}")
    assert result.code == 2
    assert result.err.strip().splitlines()[-1].startswith("error: ") and "is not the workdir" in result.err
    assert "Traceback" not in result.err


def test_a_run_without_checkpoint_is_one_line_and_exit_code_2(tmp_path, tiny_run):
    (tmp_path / "run").mkdir()
    shutil.copy(tiny_run / "config.json", tmp_path / "run")
    result = run_program(tmp_path, "transfusion.evaluate", f"--workdir={tmp_path / 'run'}")
    assert result.code == 2 and "no checkpoint" in result.err and "Traceback" not in result.err
    assert not (tmp_path / "run" / "evaluation.json").exists()
