"""Records stand for runs whose weights nobody needs."""

import pathlib
import zipfile

import pytest
from test_claims import CLAIM, finish, folder  # noqa: F401 - a fixture

from transfusion.claims import __main__ as program
from transfusion.claims import ledger
from transfusion.sweep.pins import Slot
from transfusion.sweep.process import is_finished
from transfusion.sweep.records import FILES, keep, restore

PARTS = '[parts.text]\nconfig = "configs/digits.py:debug"\n'
NEEDS = CLAIM.replace("[systems.causal]", f'{PARTS}[systems.causal]\nruns = {{"init.path" = "text"}}')


@pytest.fixture
def ran(folder, monkeypatch):  # noqa: F811
    """A book of claims by the name of a store, and the names of the members that were run since."""
    order = []

    def run(member, launch):
        if is_finished(member):
            return {"name": member.name, "error": None, "seconds": 1.0}
        order.append(member.name)
        finish([member], [1.0 + ("causal.causal" in member.name) + 0.01 * member.experiment.seed])
        (member.workdir / "checkpoints" / "10").mkdir(parents=True)
        return {"name": member.name, "error": None, "seconds": 1.0}

    monkeypatch.setattr("transfusion.sweep.queue.run_member", run)
    monkeypatch.setattr(program, "check_equal", lambda claimed: [])
    (folder / "causal" / "claim.toml").write_text(NEEDS)

    def work(store: str) -> list[str]:
        order.clear()
        book = program.Book(folder, folder.parent / store)
        assert program.run(book, book.chosen((), "cpu"), [Slot()])
        return order

    return work


def members(claims: pathlib.Path, store: str):
    book = program.Book(claims, claims.parent / store)
    return book, ledger.shared(book.chosen((), "cpu"))


def test_another_machine_decides_by_records_alone(folder, ran):  # noqa: F811
    assert len(ran("one")) == 7
    result = folder / "causal" / "results.json"
    before = result.read_text()
    result.unlink()
    assert ran("two") == [] and result.is_file() and '"holds"' in before and '"holds"' in result.read_text()
    assert len(list((folder / "records").iterdir())) == 7


def test_a_run_is_trained_again_if_another_begins_with_its_weights(folder, ran):  # noqa: F811
    ran("one")
    book, all_of_them = members(folder, "two")
    (book.records / f"{all_of_them[-1].digest}.zip").unlink()
    assert ran("two") == ["causal.text", all_of_them[-1].name]
    assert all_of_them[-1].needs == ("causal.text",)


def test_a_run_that_another_program_has_begun_is_left_alone(folder, ran):  # noqa: F811
    ran("one")
    book, all_of_them = members(folder, "two")
    part, last = all_of_them[0], all_of_them[-1]
    (book.records / f"{last.digest}.zip").unlink()  # it begins with the part's weights
    part.workdir.mkdir(parents=True)
    for name in ("config.json", "metrics.jsonl"):
        (part.workdir / name).write_text("begun")
    restore(all_of_them, book.records)
    assert {file.name: file.read_text() for file in part.workdir.iterdir()} == {
        "config.json": "begun", "metrics.jsonl": "begun"
    }  # fmt: skip


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 and no more"])
def test_a_damaged_record_is_trained_again_and_mended(folder, ran, damage):  # noqa: F811
    ran("one")
    book, all_of_them = members(folder, "two")
    path = book.records / f"{all_of_them[1].digest}.zip"
    whole = path.read_bytes()
    path.write_bytes(damage)
    assert ran("two") == [all_of_them[1].name] and path.read_bytes() == whole


def test_a_record_tells_no_place_and_writes_only_its_own_files(folder, ran):  # noqa: F811
    ran("one")
    book, all_of_them = members(folder, "one")
    one = all_of_them[1]
    (one.workdir / "config.json").write_text(f'{{"path": "{folder.parent}/data", "other": "/elsewhere/name"}}')
    keep(one, book.records)
    path = book.records / f"{one.digest}.zip"
    with zipfile.ZipFile(path) as record:
        assert str(folder.parent) not in record.read("config.json").decode()
        assert "/elsewhere" not in record.read("config.json").decode()
    with zipfile.ZipFile(path, "a") as record:
        record.writestr("../outside", "no")
    _, again = members(folder, "three")
    restore(again, book.records)
    assert {file.name for file in again[1].workdir.iterdir()} <= set(FILES)
    assert not (folder.parent / "three" / "outside").exists()
