"""The ledger: a claim's file, its runs by digest, and a verdict by a threshold that was there before."""

import dataclasses
import json
import math
import pathlib
import shutil

import numpy as np
import pytest
from program import run_program

from transfusion.claims import __main__ as program
from transfusion.claims import equal, ledger
from transfusion.claims.claim import read_claim, read_claims
from transfusion.claims.paired import Difference, bootstrap, difference, reached, verdict_of
from transfusion.claims.table import BEGIN, END, lines
from transfusion.claims.verdict import verdict
from transfusion.errors import UsageError
from transfusion.evaluation.scenes import facts
from transfusion.evaluation.scenes.normalised import packed
from transfusion.running.metrics import FLOPS_PER_STEP
from transfusion.sweep.members import with_changes
from transfusion.sweep.pins import Slot

ROOT = pathlib.Path(__file__).parents[2]
CLAIM = """
source = "Nobody (2026), section 1"
hypothesis = "Causal images are worse."
seeds = 3
equal = "flops"

[systems.both]
config = "configs/digits.py:debug"
[systems.causal]
config = "configs/digits.py:debug"
changes = {"streams.image.attention" = "causal"}

[[tests]]
first = "both"
second = "causal"
measure = "velocity_loss.image.mean"
better = "lower"
threshold = 0.02
relative = true
curve = "held_out_loss"

[sizes.cpu]
steps = 10
[sizes.gpu]
"model.width" = 512
"""


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    (tmp_path / "claims" / "causal").mkdir(parents=True)
    (tmp_path / "claims" / "causal" / "claim.toml").write_text(CLAIM)
    shutil.copy(ROOT / "configs" / "digits.py", tmp_path)
    (tmp_path / "configs").mkdir()
    shutil.copy(ROOT / "configs" / "digits.py", tmp_path / "configs")
    (tmp_path / "claims" / "README.md").write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    return tmp_path / "claims"


def finish(members, values, flops=100.0) -> None:
    """Writes what finished runs leave behind: a value for each, and a falling curve."""
    for member, value in zip(members, values, strict=True):
        member.workdir.mkdir(parents=True, exist_ok=True)
        last = member.experiment.steps
        rows = [{"step": s, FLOPS_PER_STEP: flops, "held_out_loss": value + last - s} for s in range(1, last + 1)]
        (member.workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        score = {"value": value, "low": value - 0.1, "high": value + 0.1, "count": 9}
        content = {"step": last, "config": {}, "velocity_loss": {"image": {"mean": score}}}
        (member.workdir / "evaluation.json").write_text(json.dumps(content))


def test_a_claim_gets_its_verdict_and_what_could_have_been_seen(folder):
    book = program.Book(folder, folder.parent / "runs" / "store")
    assert sorted(size for _, size in book.runs) == ["cpu", "gpu"]
    claimed = book.runs["causal", "cpu"]
    assert verdict(claimed)["missing"] == {"both": "0 of 3", "causal": "0 of 3"}
    both, causal = claimed.systems.values()
    finish(both, (1.00, 1.02, 0.98))
    finish(causal, (1.10, 1.13, 1.07))
    found = verdict(claimed)
    assert found["verdict"] == "holds" and not found["missing"]
    (test,) = found["tests"]
    mean, scale = 0.1, 1.1
    assert test["advantage"]["value"] == pytest.approx(mean / scale)
    assert test["advantage"]["low"] < (0.09 / scale) < test["advantage"]["high"]
    # The winner ends at 1.0, 1.02, 0.98, and the loser's curves fall by 1 a step to 1.1, 1.13, 1.07.
    assert test["catch_up"]["loser"] == "causal" and test["catch_up"]["needs"] is None
    assert test["catch_up"]["winner_after"] == pytest.approx(0.99)
    finish(causal, (0.9, 1.3, 1.1))
    undecided = verdict(claimed)
    assert undecided["verdict"] == "undecided" and "could have seen" in lines([(claimed.claim, {"cpu": undecided})])
    finish(causal, (1.01, 1.02, 0.98))
    assert verdict(claimed)["verdict"] == "does not hold"
    for same in ((1.0, 1.02, 0.98), (1.0, 1.0, 1.0)):
        finish(both, same)
        finish(causal, same)
        # The systems are alike, unless all is at a floor: then the evaluations' own intervals count, which are wide.
        assert verdict(claimed)["verdict"] == ("undecided" if len({*same}) == 1 else "does not hold")


def test_a_ladder_of_trainings_tells_what_the_loser_needs(folder):
    path = folder / "causal" / "claim.toml"
    twice = '[systems.twice]\nconfig = "configs/digits.py:debug"\nsizes.cpu = {steps = 20}\n\n[[tests]]'
    text = CLAIM.replace('curve = "held_out_loss"', 'ladder = ["causal", "twice"]').replace("[[tests]]", twice)
    path.write_text(text)
    claimed = program.Book(folder, folder.parent / "store").runs["causal", "cpu"]
    finish(claimed.systems["both"], (1.0, 1.1, 0.9))
    finish(claimed.systems["causal"], (1.4, 1.5, 1.3))  # 1000 FLOPs
    finish(claimed.systems["twice"], (0.9, 1.0, 0.8))  # 2000 FLOPs
    caught = verdict(claimed)["tests"][0]["catch_up"]
    assert caught["loser"] == "causal" and caught["needs"] == pytest.approx(1.8)
    finish(claimed.systems["twice"], (1.2, 1.2, 1.2))
    assert verdict(claimed)["tests"][0]["catch_up"]["needs"] is None
    path.write_text(text.replace('["causal", "twice"]', '["twice"]'))
    with pytest.raises(UsageError, match="it begins with 'causal'"):
        read_claim(path)


def test_prompts_of_the_exact_judge_and_two_measures_of_the_same_runs(folder):
    path = folder / "causal" / "claim.toml"
    text = CLAIM.replace("relative = true\n", "").replace('better = "lower"', 'better = "higher"')
    path.write_text(text.replace("velocity_loss.image.mean", "scenes.generation"))
    claimed = program.Book(folder, folder.parent / "store").runs["causal", "cpu"]
    rng = np.random.default_rng(0)
    chances = facts.chances("test")[0]
    for name, share in (("both", 0.8), ("causal", 0.4)):
        for member in claimed.systems[name]:
            finish([member], [1.0])
            right = rng.random((len(chances), 40)) < share
            scores = {"right": {"test": {"number": 40, "drawn": packed(right), "read": None}}}
            content = json.loads((member.workdir / "evaluation.json").read_text())
            (member.workdir / "evaluation.json").write_text(json.dumps(content | {"scenes": scores}))
    (test,) = verdict(claimed)["tests"]
    beyond = ((0.8 - chances) / (1 - chances)).mean()
    assert test["verdict"] == "holds" and test["values"]["both"][0] == pytest.approx(beyond, abs=0.1)
    other = text.replace("curve", 'against = "step"\ncurve')
    path.write_text(other.replace('second = "causal"', 'second = "both"'))
    claimed = program.Book(folder, folder.parent / "store").runs["causal", "cpu"]
    (test,) = verdict(claimed)["tests"]
    assert test["values"] == {"velocity_loss.image.mean": [1.0] * 3, "step": [10.0] * 3}


def test_systems_that_are_not_equal_are_refused_before_and_after_the_runs(folder):
    store = folder.parent / "store"
    text = CLAIM.replace('"streams.image.attention" = "causal"', '"model.ffn" = 200')
    (folder / "causal" / "claim.toml").write_text(text)
    claimed = program.Book(folder, store).runs["causal", "cpu"]
    with pytest.raises(UsageError, match="FLOPs .* are not equal; `python -m transfusion.claims match causal`"):
        equal.check_equal(claimed)
    finish(claimed.systems["both"], (1.0, 1.0, 1.0), flops=100.0)
    finish(claimed.systems["causal"], (2.0, 2.1, 2.0), flops=110.0)
    found = verdict(claimed)
    assert found["verdict"] == "undecided" and "not equal" in found["tests"][0]["problem"]


def test_a_matching_width_is_found():
    dense, wide = (with_changes(str(ROOT / "configs" / f"{name}.py:debug"), {}) for name in ("digits", "mot"))
    found = equal.match(wide, dense, "parameters", "model.ffn")
    assert abs(found.apart) < 0.02
    assert equal.parameters_of(with_changes(dense, {"model.ffn": found.value})) == found.count
    steps = equal.match(dense, with_changes(dense, {"steps": 7, "model.ffn": 200}), "flops", "steps")
    assert steps.value < dense.steps
    with pytest.raises(UsageError, match="nearest"):
        equal.match(dense, dense, "parameters", "model.ffn", multiple=1000)


def test_runs_are_shared_and_the_queue_goes_through_all(folder, monkeypatch):
    """A second claim that names the same systems costs nothing, and one with a part waits for it."""
    (folder / "again").mkdir()
    part = '[parts.text]\nconfig = "configs/digits.py:debug"\n'
    more = CLAIM.replace("[systems.causal]", f'{part}[systems.causal]\nruns = {{"init.path" = "text"}}')
    (folder / "again" / "claim.toml").write_text(more)
    store = folder.parent / "runs" / "store"
    book = program.Book(folder, store)
    one, two = book.runs["again", "cpu"], book.runs["causal", "cpu"]
    assert [m.digest for m in one.systems["both"]] == [m.digest for m in two.systems["both"]]
    assert {m.digest for m in one.systems["causal"]}.isdisjoint(m.digest for m in two.systems["causal"])
    assert one.systems["causal"][0].experiment.init.path == str(store / one.parts[0].digest)
    members = ledger.shared(book.chosen((), "cpu"))
    assert len(members) == 3 + 3 + 1 + 3 and len({m.digest for m in members}) == len(members)
    order = []

    def run(member, launch):
        order.append(member.digest)
        worse = member.experiment.streams["image"].attention == "causal"
        finish([member], [1.0 + worse + 0.01 * member.experiment.seed])
        return {"name": member.name, "error": None, "seconds": 1.0}

    monkeypatch.setattr("transfusion.sweep.queue.run_member", run)
    monkeypatch.setattr(program, "check_equal", lambda claimed: [])
    assert program.run(book, book.chosen((), "cpu"), [Slot(), Slot()])
    assert sorted(order) == sorted(m.digest for m in members) and order[0] == one.parts[0].digest
    readme = (folder / "README.md").read_text()
    assert readme.startswith("before\n") and readme.endswith("after\n") and readme.count("**holds**") == 2
    assert "<script" not in (store.parent / "claims.html").read_text()
    # Another time the claims without a verdict come first.
    assert [one.claim.name for one in book.chosen((), "cpu")] == ["again", "causal"]
    said = (folder / "causal" / "results.json").read_text()
    (folder / "causal" / "results.json").unlink()
    assert [one.claim.name for one in book.chosen((), "cpu")] == ["causal", "again"]
    (folder / "causal" / "results.json").write_text(said)
    # The verdicts are known where the runs are not.
    away = program.Book(folder, folder.parent / "elsewhere" / "store").verdicts(["causal"])
    assert away[0][1]["cpu"]["verdict"] == "holds" and away[0][1]["gpu"]["verdict"] == "not run"
    # Another threshold is another claim.
    (folder / "causal" / "claim.toml").write_text(CLAIM.replace("0.02", "0.9"))
    away = program.Book(folder, folder.parent / "elsewhere" / "store").verdicts(["causal"])
    assert away[0][1]["cpu"]["verdict"] == "not run"
    # And one that comes after the runs says so.
    late = program.Book(folder, store)
    assert late.decide(late.runs["causal", "cpu"])
    assert "changed after its runs began" in lines(late.verdicts(["causal"]))


@pytest.mark.parametrize(
    "wrong, by, message",
    [
        ('hypothesis = "Causal images are worse."', "", "the field 'hypothesis' is missing"),
        ("seeds = 3", 'seeds = "3"', "seeds must be of type int, not '3'"),
        ("seeds = 3", "seed = 3", "unknown field 'seed' (did you mean 'seeds'?)"),
        ('second = "causal"', 'second = "casual"', "tests[0].second: 'casual' is none of both, causal (did you mean"),
        ("threshold = 0.02", "threshold = true", "tests[0]: threshold must be of type float, not True"),
        ('better = "lower"', 'better = "less"', "tests[0].better: 'less' is none of higher, lower"),
        ('measure = "velocity_loss.image.mean"', "", "tests[0]: give either `measure` or `reaches`"),
        ("changes = {", 'runs = {"init.path" = "text"}\nchanges = {', "causal.runs: init.path: 'text' is none of"),
        ("[sizes.cpu]", "[sizes.cpu", "Expected ']'"),
    ],
)
def test_a_wrong_file_is_one_line(folder, wrong, by, message):
    path = folder / "causal" / "claim.toml"
    path.write_text(CLAIM.replace(wrong, by))
    with pytest.raises(UsageError) as error:
        read_claim(path)
    assert message in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_wrong_config_or_field_names_the_claim_and_the_system(folder):
    path = folder / "causal" / "claim.toml"
    for wrong, by, message in (
        ("digits.py:debug", "digit.py", "causal: there is no config configs/digit.py"),
        ('"streams.image.attention"', '"streams.image.atention"', "did you mean 'attention'"),
    ):
        path.write_text(CLAIM.replace(wrong, by))
        with pytest.raises(UsageError, match="claim causal") as error:
            program.Book(folder, folder.parent / "store")
        assert message in str(error.value)


# --- statistics -------------------------------------------------------------------------------------------------------


def test_the_interval_of_three_pairs_holds_the_truth_nineteen_times_of_twenty():
    rng, inside = np.random.default_rng(0), []
    for _ in range(300):
        found = difference(rng.normal(0.3, 1.0, 3))
        inside.append(found.low <= 0.3 <= found.high)
    assert 0.92 <= np.mean(inside) <= 1.0


def test_prompts_widen_the_interval_and_pairing_narrows_it():
    rng = np.random.default_rng(1)
    prompts = rng.normal(0.0, 1.0, (1, 400)) + rng.normal(0.0, 0.01, (3, 400))
    by_seed = prompts.mean(1)
    assert difference(by_seed, prompts).high - difference(by_seed, prompts).low > 3.9 * prompts.std() / 20
    assert difference(by_seed).high - difference(by_seed).low < 0.01
    assert abs(bootstrap(prompts).std() - prompts.std() / 20) < 0.005
    assert difference([0.1]).high == math.inf  # one seed says nothing
    floor = difference([0.0] * 3, np.zeros((3, 20)), own=0.1)  # nothing was right in any run
    assert (floor.low, floor.high) == (-0.1, 0.1) and floor.seen > 0.1


def test_what_was_seen_is_what_eight_of_ten_experiments_see():
    rng, seen = np.random.default_rng(2), []
    for _ in range(300):
        values = rng.normal(0.0, 1.0, 5)
        found = difference(values)
        seen.append(found.seen)
    least = float(np.median(seen))
    hits = [difference(rng.normal(least, 1.0, 5)).low > 0 for _ in range(300)]
    assert 0.6 < np.mean(hits) < 0.95


def test_verdicts_go_by_the_whole_interval():
    def found(low, high):
        return Difference((low + high) / 2, low, high, 3, 0.1)

    assert verdict_of(found(0.3, 0.5), "better", 0.2) == "holds"
    assert verdict_of(found(0.1, 0.5), "better", 0.2) == "undecided"
    assert verdict_of(found(-0.1, 0.1), "better", 0.2) == "does not hold"
    assert verdict_of(found(-0.1, 0.1), "better", -0.2) == "holds"  # not worse by more than 0.2
    assert verdict_of(found(-0.1, 0.1), "same", 0.2) == "holds"
    assert verdict_of(found(0.3, 0.4), "same", 0.2) == "does not hold"
    assert verdict_of(found(0.1, 0.4), "same", 0.2) == "undecided"
    assert verdict_of(found(0.3, 0.5), "less", 0.6) == "holds"
    never = difference([math.inf] * 3)
    assert verdict_of(never, "less", 0.6) == "does not hold"


def test_where_a_curve_reaches_a_value():
    assert reached([10, 20, 30], [3.0, 2.0, 1.0], 1.5) == pytest.approx(25)
    assert reached([10, 20, 30], [3.0, 2.0, 1.0], 3.5) == 10
    assert reached([10, 20, 30], [3.0, 2.0, 1.0], 0.5) == math.inf


# --- the claims of this repository ------------------------------------------------------------------------------------


def test_every_claim_of_the_repository_can_be_run_and_has_a_gpu_size():
    claims = read_claims(ROOT / "experiments" / "claims")
    assert len(claims) >= 3
    for claim in claims:
        assert {"cpu", "gpu"} <= set(claim.sizes) and claim.seeds >= 3, claim.name
        for size in claim.sizes:
            ledger.runs_of(dataclasses.replace(claim, seeds=1), size, "runs/store")


def test_mistakes_on_the_command_line(tmp_path):
    result = run_program(tmp_path, "transfusion.claims", "rum")
    assert (result.code, len(result.err.splitlines())) == (2, 1), result
    assert "give one of list, run, match, not 'rum' (did you mean 'run'?)" in result.err
