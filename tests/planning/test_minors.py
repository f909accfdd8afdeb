"""The reader of compiled programs understands what each allowed version of jax writes, and says where it does not."""

import pathlib
import re
import tomllib

import pytest
from packaging.requirements import Requirement

from transfusion import plan
from transfusion.planning import compiled
from transfusion.planning.cost import UNKNOWN
from transfusion.planning.hlo import NotUnderstood, read_program
from transfusion.running.chips import parse_topology

FOLDER = pathlib.Path(__file__).parent / "programs"
ROOT = pathlib.Path(__file__).parents[2]
STORED = sorted(path.name for path in FOLDER.glob("*.txt"))
TURNS, FLOAT = 3, 4
# What `programs/make.py` asks for: bytes of the result (of the input for a reduce-scatter), devices of a group, whether
# it spans both slices, and how often it runs.
EXPECTED = {
    ("all-gather", 16 * 128 * FLOAT, 4, False, TURNS),
    ("reduce-scatter", 8 * 16 * FLOAT, 4, False, TURNS),
    ("all-reduce", 8 * 128 * FLOAT, 8, True, 1),
    ("all-to-all", 8 * 128 * FLOAT, 4, False, 1),
    ("collective-permute", 8 * 128 * FLOAT, 2, True, 1),
}
# The compiler for TPUs gathers what a product rounds to bfloat16, and reduces so little whole.
ON_TPU = {
    ("all-gather", 16 * 128 * 2, 4, False, TURNS),
    ("all-reduce", 8 * 16 * FLOAT, 4, False, TURNS),
    *(row for row in EXPECTED if row[0] not in ("all-gather", "reduce-scatter")),
}


def text_of(name: str) -> str:
    return (FOLDER / name).read_text()


@pytest.mark.parametrize("name", STORED)
def test_what_a_version_of_jax_writes_is_read_to_the_byte(name):
    program = read_program(text_of(name), devices=8, per_slice=4)
    found = {(c.kind, c.size, c.group, c.far, c.times) for c in program.collectives}
    assert found == (ON_TPU if name.startswith("tpu") else EXPECTED)
    assert len(program.collectives) == len(EXPECTED) and program.unknown_loops == 0
    assert (FOLDER / name).stat().st_size < 50_000


def test_each_allowed_minor_version_of_jax_has_a_text():
    required = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (allowed,) = (Requirement(one).specifier for one in required if Requirement(one).name == "jax")
    minors = [f"0.{minor}" for minor in range(4, 40) if any(f"0.{minor}.{patch}" in allowed for patch in range(30))]
    assert {f"cpu-{minor}.txt" for minor in minors} <= set(STORED), "see tests/planning/programs/make.py"


@pytest.mark.parametrize("name", STORED)
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("ENTRY ", "START "),
        ("all-gather", "all-scatter"),
        (r" all-reduce(?=\(|-start)", " all-reduce.2"),
        (r" all-reduce(?=\(|-start)", " cross-replica-all-reduce"),
        ("replica_groups=", "replica_groups=new"),
        ("source_target_pairs=", "source_target_pairs=new"),
        (r"\{0,4\},\{4,0\}", "{0,8},{8,0}"),  # a device that the program does not have
        (" body=", " loop_body="),
        (r"body=%", "body=%other_"),
        (r"f32(?=\[8,128\])", "float32"),
        (r"\) -> ", ") returns "),  # so that no computation is found
    ],
)
def test_text_that_is_written_otherwise_is_not_misread(name, old, new):
    changed, times = re.subn(old, new, text_of(name))
    assert times
    with pytest.raises(NotUnderstood):
        read_program(changed, devices=8, per_slice=4)


def test_a_plan_says_that_collectives_are_unknown(caplog):
    class Compiled:
        @staticmethod
        def as_text() -> str:
            return text_of("cpu-0.10.txt").replace("replica_groups=", "replica_groups=new")

    program, how = compiled._collectives(Compiled, 8, parse_topology("v5e:2x4"))
    assert how == UNKNOWN and program.collectives == () and "not understood" in caplog.text
    lines = plan._collective_lines({"collectives": None})
    assert lines == ["  collectives  unknown: the compiler's text of the program is missing, or is not understood"]
