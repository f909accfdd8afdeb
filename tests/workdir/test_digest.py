"""The digest of a config: one experiment has one, whatever way it was written down, and no two share one."""

import dataclasses
import pathlib

import pytest
import tiny

from transfusion.config import Experiment, from_json, to_json
from transfusion.initial import InitConfig
from transfusion.objectives import ObjectivesConfig
from transfusion.objectives.paths import ContinuousConfig
from transfusion.running.seals import write_seal
from transfusion.sequence import Stream
from transfusion.sweep.members import with_changes
from transfusion.workdir.digest import digest

DIGITS = str(pathlib.Path(__file__).parents[2] / "configs" / "digits.py")


@pytest.fixture(scope="module")
def digits() -> Experiment:
    return with_changes(DIGITS, {})


def test_one_experiment_written_in_several_ways_has_one_digest(digits):
    wanted = digest(digits)
    assert wanted == digest(from_json(to_json(digits))) == digest(with_changes(DIGITS, {"seed": 0, "steps": 850}))
    explicit = ObjectivesConfig(continuous={"image": ContinuousConfig()})
    assert wanted == digest(dataclasses.replace(digits, objectives=explicit))
    same = {"data.data_dir": "/elsewhere", "data.prefetch": 9, "log_every": 7, "checkpoint.every": 3}
    assert wanted == digest(with_changes(DIGITS, same | {"model.remat": "full"}))
    assert wanted == digest(with_changes(f"{DIGITS}:ddpm", {
        "objectives": dataclasses.asdict(digits.objectives), "sampling": dataclasses.asdict(digits.sampling),
        "data.caption_first": digits.data.caption_first,
    }))  # fmt: skip


def test_any_field_that_matters_changes_it(digits):
    changes = [
        {"seed": 1}, {"steps": 851}, {"batch_size": 29}, {"model.width": 64}, {"model.dtype": "bfloat16"},
        {"streams.image.attention": "causal"}, {"streams.image.weight": 4.0}, {"optim.learning_rate": 1e-3},
        {"optim.ema": 0.99}, {"data.caption_first": 0.6}, {"data.sources.digits.split": "test"},
        {"eval.samples": 400}, {"eval.every": 100}, {"sampling.steps": 50}, {"sampling.guidance": 1.0},
        {"data.sources.digits.name": "sized_digits"},
    ]  # fmt: skip
    found = [digest(digits), *(digest(with_changes(DIGITS, change)) for change in changes)]
    assert len(set(found)) == len(found) and all(len(one) == 16 for one in found)
    streams = dict(reversed(digits.streams.items()))  # draws depend on their order
    assert digest(dataclasses.replace(digits, streams=streams)) not in found


def test_a_version_with_more_fields_knows_the_same_runs(digits):
    """What has its default is not counted, so that the digest of a run outlives the fields that come later."""

    @dataclasses.dataclass(frozen=True)
    class Later(Stream):
        later: float = 0.5

    def later(**changes):
        streams = {n: Later(**{f.name: getattr(s, f.name) for f in dataclasses.fields(s)}, **changes)
                   for n, s in digits.streams.items()}  # fmt: skip
        return dataclasses.replace(digits, streams=streams)

    assert digest(later()) == digest(digits) != digest(later(later=0.6))


def test_paths_count_as_what_lies_there(tmp_path, digits):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(b"12")
    one, two = (tiny.experiment(str(tmp_path / name)) for name in ("one", "two"))
    assert digest(one) == digest(two)
    (tmp_path / "two" / "a.png").write_bytes(b"123")
    assert digest(one) != digest(two)

    def begins(path):
        return dataclasses.replace(digits, init=InitConfig(path))

    # A run that is known counts as its digest, wherever it is.
    assert digest(begins("runs/a"), {"runs/a": "1" * 16}) == digest(begins("runs/b"), {"runs/b": "1" * 16})
    assert digest(begins("runs/a"), {"runs/a": "1" * 16}) != digest(begins("runs/a"), {"runs/a": "2" * 16})
    assert digest(begins("runs/a")) != digest(begins("runs/b"))  # nothing is there yet


def test_a_run_that_is_not_known_counts_as_its_weights(tmp_path, digits):
    for name, content in (("one", "x"), ("copy", "x"), ("other", "y")):
        folder = tmp_path / name / "checkpoints"
        (folder / "5").mkdir(parents=True)
        (folder / "5" / "weights").write_text(content)
        write_seal(folder, 5)
    one, copy, other = (
        digest(dataclasses.replace(digits, init=InitConfig(str(tmp_path / name)))) for name in ("one", "copy", "other")
    )
    assert one == copy != other
