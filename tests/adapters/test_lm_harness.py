"""A run answers the tasks of lm-eval: on files of this machine, with results that equal those computed by hand."""

import functools
import json
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from transfusion.adapters import lm_harness
from transfusion.adapters.likelihood import Likelihood, Wanted, bits_per_byte, windows
from transfusion.api import Trained
from transfusion.config import Experiment
from transfusion.data.config import DataConfig
from transfusion.errors import UsageError
from transfusion.latents import open_codecs
from transfusion.sampling.prompts import Prompt, prefill_of
from transfusion.sequence import Segment, SequenceSpec, Stream
from transfusion.sequence.layouts import Run
from transfusion.tasks import SequenceTask

BYTES = 256


def run_of(scale: float) -> Trained:
    """A model of bytes alone, whose logits are `scale` times those of a new one: 0 makes all ids equally likely.

    The byte 0 begins and ends documents, so that no id stands for anything but a byte.
    """
    spec = SequenceSpec({"text": Stream(vocabulary=BYTES, budget=64)}, {"text": (Run("text"),)}, 0, 0, 1)
    task = SequenceTask(tiny.model(width=16, layers=1, heads=2), spec, Experiment().objectives)
    params = task.template.init(jax.random.key(0))
    params = jax.tree.map(lambda array: array * scale, params) if scale != 1 else params
    return Trained(Experiment(data=DataConfig()), task, params, open_codecs(Experiment()), 0)


@pytest.fixture(scope="module")
def run():
    return run_of(1)


@functools.cache
def forward(run: Trained):
    """One forward pass: the logits of all tokens."""

    @jax.jit
    def logits(params, inputs):
        model = run.task.template.bind(params)
        return model.head("text", model.encode(inputs)["text"])

    return logits


def logits_behind(run: Trained, ids: list[int]) -> np.ndarray:
    """The logits of what follows, by one forward pass of these ids alone."""
    laid = prefill_of([Prompt((Segment("text", np.array(ids, np.int32)),) if ids else ())], run.spec, ())
    return np.asarray(forward(run)(run.params, laid.inputs)[0, len(ids)], np.float64)


def by_hand(run: Trained, context: list[int], ids: list[int]) -> tuple[float, bool]:
    """The same by the definition: a forward pass for each id, without batches and buckets."""
    total, greedy = 0.0, True
    for place, wanted in enumerate(ids):
        logits = logits_behind(run, [*context, *ids[:place]])
        total += logits[wanted] - np.log(np.exp(logits).sum())
        greedy &= int(logits.argmax()) == wanted
    return total, greedy


def test_log_probabilities_are_those_of_the_definition(run):
    rng, likelihood = np.random.default_rng(0), Likelihood(run, rows=2)
    pairs = [(rng.integers(1, 256, c).tolist(), rng.integers(1, 256, n).tolist()) for c, n in ((3, 2), (0, 3), (18, 1))]
    pairs.append(([5], [int(logits_behind(run, [5]).argmax())]))
    found = likelihood.score([(likelihood.text(np.array(c, np.int32)), np.array(ids)) for c, ids in pairs])
    for (log, greedy), (context, ids) in zip(found, pairs, strict=True):
        wanted = by_hand(run, context, ids)
        assert log == pytest.approx(wanted[0], rel=1e-5) and greedy == wanted[1]
    assert found[3][1] and not found[0][1]


def test_windows_predict_each_id_once_with_as_much_before_it_as_fits():
    for count in range(1, 40):
        for most in (2, 5, 8):
            ids = np.arange(count)
            parts = list(windows(ids, most))
            assert np.concatenate([part for _, part in parts]).tolist() == ids.tolist()
            for before, part in parts:
                assert (
                    len(before) + len(part) <= most
                    and [*before, *part] == list(range(part[-1] + 1))[-len([*before, *part]) :]
                )
            assert len(parts) == 1 or len(parts[-1][0]) + len(parts[-1][1]) == most


@pytest.fixture
def tasks(tmp_path):
    """Three tasks on local files: multiple choice, perplexity, and writing."""
    rows = {
        "choices": [
            {"question": "ab", "choices": ["c", "dd"], "answer": 0},
            {"question": "x", "choices": ["yy", "z"], "answer": 1},
            {"question": "pq", "choices": ["r", "s"], "answer": 1},
        ],
        "texts": [{"text": "The quick brown fox jumps over the lazy dog. " * 4}, {"text": "na\u00efve caf\u00e9"}],
    }
    for name, of_name in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in of_name))
    head = 'dataset_path: json\ndataset_kwargs:\n  data_files:\n    test: "{}/{}.jsonl"\ntest_split: test\n'
    (tmp_path / "mine_choices.yaml").write_text(
        "task: mine_choices\noutput_type: multiple_choice\n" + head.format(tmp_path, "choices")
        + 'doc_to_text: "{{question}}"\ndoc_to_target: answer\ndoc_to_choice: "{{choices}}"\ntarget_delimiter: ""\n'
        + "metric_list:\n  - metric: acc\n  - metric: acc_norm\n"
    )  # fmt: skip
    (tmp_path / "mine_texts.yaml").write_text(
        "task: mine_texts\noutput_type: loglikelihood_rolling\n" + head.format(tmp_path, "texts")
        + 'doc_to_text: ""\ndoc_to_target: "{{text}}"\nmetric_list:\n'
        + "  - metric: bits_per_byte\n  - metric: byte_perplexity\n"
    )  # fmt: skip
    (tmp_path / "mine_writing.yaml").write_text(
        "task: mine_writing\noutput_type: generate_until\n" + head.format(tmp_path, "choices")
        + 'doc_to_text: "{{question}}"\ndoc_to_target: "{{choices[answer]}}"\n'
        + 'generation_kwargs:\n  until: ["\\n"]\n  max_gen_toks: 3\nmetric_list:\n  - metric: exact_match\n'
    )  # fmt: skip
    return tmp_path, rows


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


def test_a_uniform_model_needs_eight_bits_for_each_byte(tasks):
    folder, rows = tasks
    results = lm_harness.evaluate(lm_harness.open_lm(run_of(0), rows=4), ["mine_texts"], str(folder))["results"]
    assert round(results["mine_texts"]["bits_per_byte,none"], 6) == 8.0
    assert results["mine_texts"]["byte_perplexity,none"] == pytest.approx(256, rel=1e-5)


def test_tasks_on_local_files_give_what_is_computed_by_hand(run, tasks):
    folder, rows = tasks
    lm = lm_harness.open_lm(run, rows=2)
    results = lm_harness.evaluate(lm, ["mine_choices", "mine_texts", "mine_writing"], str(folder))["results"]
    right = normed = 0
    for row in rows["choices"]:
        logs = [by_hand(run, list(row["question"].encode()), list(choice.encode()))[0] for choice in row["choices"]]
        right += int(np.argmax(logs)) == row["answer"]
        normed += int(np.argmax([log / len(c) for log, c in zip(logs, row["choices"], strict=True)])) == row["answer"]
    assert results["mine_choices"]["acc,none"] == pytest.approx(right / 3)
    assert results["mine_choices"]["acc_norm,none"] == pytest.approx(normed / 3)
    short = rows["texts"][1]["text"]
    log = lm.loglikelihood_rolling([_Request(short)])[0]
    assert log == pytest.approx(by_hand(run, [], list(short.encode()))[0], rel=1e-5)
    logs = lm.loglikelihood_rolling([_Request(row["text"]) for row in rows["texts"]])
    total = sum(len(row["text"].encode()) for row in rows["texts"])
    assert results["mine_texts"]["bits_per_byte,none"] == pytest.approx(-sum(logs) / math.log(2) / total)
    assert bits_per_byte(log, short) == pytest.approx(-log / math.log(2) / len(short.encode()))
    assert not {"torch", "transformers"} & sys.modules.keys()


class _Request:
    def __init__(self, *args):
        self.args = args


def test_what_is_written_is_what_the_run_writes_up_to_the_first_stop(run):
    lm = lm_harness.open_lm(run, rows=2)
    (whole,) = run.generate(["pq"], temperature=0.0, max_tokens=6, max_images=0)
    text = "".join(whole)
    asked = [_Request("pq", {"max_gen_toks": 6}), _Request("pq", {"max_gen_toks": 6, "until": [text[2:3], "\0"]})]
    written = lm.generate_until(asked)
    assert written == [text, text[: text.index(text[2])]]
    assert Wanted.of({"do_sample": True, "top_p": 0.5}, 7).settings == (
        ("max_tokens", 7),
        ("temperature", 1.0),
        ("top_p", 0.5),
    )


@pytest.mark.soak  # all that the harness knows is read
def test_an_unknown_task_is_one_line(run, tasks):
    with pytest.raises(UsageError, match="lm-eval knows no task 'mine_chioces'"):
        lm_harness.evaluate(lm_harness.open_lm(run), ["mine_chioces"], str(tasks[0]))


def test_contexts_that_are_too_long_lose_their_beginning(run):
    lm = lm_harness.open_lm(run, rows=2, max_length=8)
    long, short = lm.loglikelihood([_Request("abcdefghijkl", "mn"), _Request("ghijkl", "mn")])
    assert long == pytest.approx(short)
    with pytest.raises(UsageError, match="continuation of 9 ids: at most 8"):
        lm.loglikelihood([_Request("", "a" * 9)])
    assert jnp.isfinite(lm.loglikelihood_rolling([_Request("a" * 30)])[0])
