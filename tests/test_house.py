"""The library keeps to its plan: three wings and a hall, imports that run one way, few questions of kind, short files.

The words are those of `tests/house.py` and `tests/kinds.py`. What a test lists literally is the plan; change it when
the plan changes.
"""

import collections
import pathlib
import subprocess
import sys

import pytest
from house import House, circles

ROOT = pathlib.Path(__file__).parents[1]
PROGRAMS = ("train", "sample", "evaluate", "report", "plan", "prepare", "cache_latents")
HALL = ("programs", "tasks", "latents", "learner", "initial", "optim")
GROUND = ("errors", "storage", "sharding")
# From the ground up. A room imports rooms of lower floors alone; those of one floor do not know each other.
FLOORS = (
    ("__init__", "errors"),
    ("storage", "sharding"),
    ("remote",),
    ("sequence", "running"),
    ("kernels", "trackers"),
    ("model", "objectives"),
    ("codecs", "optim", "initial"),
    ("learner", "data"),
    ("sampling",),
    ("config",),
    ("workdir", "programs"),
    ("latents",),
    ("tasks",),
    ("training",),
    ("api", "interop", "planning"),
    ("evaluation",),
    ("hub", "adapters"),
    ("train", "sample", "evaluate", "plan", "sweep", "prepare", "cache_latents"),
    ("report", "claims", "commands", "demo", "new", "notebook", "scaling"),
)
FOLDERS = (
    "adapters api claims codecs commands config data demo evaluation hub interop kernels model new notebook "
    "objectives planning remote running sampling scaling sequence sweep trackers training workdir"
)
# The wings that compute, read, and keep a run alive do not know each other, whatever floors they are on.
NEVER = {
    "data": {"model", "objectives", "learner", "sampling", "running", "config", "tasks"},
    "running": {"sequence", "model", "objectives", "codecs", "learner", "sampling", "data", "config", "tasks"},
    "model": {"running", "data"},
    "kernels": {"running", "data"},
    "sampling": {"running", "data"},
}
MOST_CONDITIONS = 40
# Where the code asks of what kind a stream or a run is: module, how often to act upon it and how often only to raise,
# and why the question stays.
CONDITIONS: dict[str, tuple[int, int, str]] = {
    "transfusion.sequence.stream": (3, 12, "chooses the content of a stream, the one place that does; legal fields"),
    "transfusion.sequence.spec": (4, 4, "chooses the content of a spelled run; who sees whom; legal layouts"),
    "transfusion.sequence.rows": (
        4,
        1,
        "where an opener stands; what is dropped; whose item modulates; legal rows",
    ),
    "transfusion.sequence.pairs": (1, 0, "which streams nobody else sees"),
    "transfusion.model.unified": (4, 0, "which streams have parts of their own, are modulated, and leave early"),
    "transfusion.model.vectors": (3, 0, "which vectors an item has; a table cut for released weights"),
    "transfusion.model.embeds": (0, 5, "legal embeds"),
    "transfusion.learner": (
        2,
        3,
        "streams that learn nothing; a table that is a head; legal causal and compared streams",
    ),
    "transfusion.model.resample": (0, 3, "legal embeds of few tokens"),
    "transfusion.sampling.decoder": (0, 1, "streams that cannot stay cached"),
    "transfusion.sampling.drawing": (0, 1, "which solvers need mean velocities"),
    "transfusion.sampling.drawable": (1, 2, "which run is drawn; legal layouts"),
    "transfusion.sampling.parts": (2, 2, "which tokens of a drawing are computed anew; legal layouts"),
    "transfusion.sampling.prompts": (1, 0, "which classes can be asked for"),
    "transfusion.sampling.reference": (1, 0, "where a spelled drawing ends"),
    "transfusion.sampling.speller": (1, 0, "codes with an expert of their own"),
    "transfusion.config.experiment": (1, 0, "which streams have the tokenizer's ids"),
    "transfusion.latents": (2, 0, "which media a model reads"),
    "transfusion.planning.shapes": (1, 0, "streams without logits"),
    "transfusion.evaluation.measures": (3, 0, "which scores there are"),
    "transfusion.evaluation.losses": (2, 0, "which codes are spelled, and which are hidden"),
    "transfusion.api.run": (2, 1, "which media a model reads and draws; models that only compare"),
}

LONG_MODULE, LONG_FUNCTION = 300, 60
# Longer modules that are one subject: what each is, in five words at most.
LONG: dict[str, str] = {
    "transfusion.model.embeds": "ways into the trunk",
    "transfusion.api.run": "what a person calls",
    "transfusion.evaluation.pictures": "pictures drawn for people",
    "transfusion.running.checkpoint": "checkpoints",
    "transfusion.storage": "storage that fails",
}


@pytest.fixture(scope="module")
def house() -> House:
    return House(ROOT / "transfusion")


def test_the_top_level_is_the_programs_the_hall_and_the_ground(house):
    assert house.files == sorted(("__init__", *PROGRAMS, *HALL, *GROUND)) and len(house.files) == 17
    assert house.folders == FOLDERS.split()


def test_every_room_is_on_a_floor(house):
    assert sorted(room for floor in FLOORS for room in floor) == sorted(house.arrows)


def test_imports_run_down(house):
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    up = {
        (name, other)
        for name, others in house.imports.items()
        for other in others
        if house.room(name) != house.room(other) and floor[house.room(name)] <= floor[house.room(other)]
    }
    assert not up


def test_wings_do_not_know_each_other(house):
    found = {(room, other) for room, never in NEVER.items() for other in never & house.arrows[room]}
    assert not found


def test_no_imports_run_in_a_circle(house):
    assert not circles(house.imports) and not circles(house.arrows)


def test_the_sampler_loads_no_data_no_files_and_no_programs(house):
    loads = "import transfusion.sampling.decoder, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", loads], capture_output=True, text=True, check=True, cwd=ROOT)
    modules = set(done.stdout.split())
    assert not {"grain", "tensorflow_datasets", "orbax"} & {name.split(".")[0] for name in modules}
    rooms = {house.room(name) for name in modules if name.startswith("transfusion.")}
    assert not {"data", "running", "config", "workdir", "tasks", "training", "sweep", "claims", *PROGRAMS} & rooms
    assert {name for name in modules if name.split(".")[0] == "transfusion"} == house.closure(
        "transfusion.sampling.decoder"
    )


def test_questions_of_kind_are_few_and_each_has_its_reason(house):
    found = collections.defaultdict(lambda: ([], []))
    for c in house.conditions:
        found[c.module][c.raises].append(f"{c.module}:{c.line} {c.function}: {c.text}")
    listed = {module: counts for module, (*counts, _) in CONDITIONS.items()}
    differ = {
        module: found[module]
        for module in {*found, *listed}
        if [*map(len, found[module])] != listed.get(module, [0, 0])
    }
    assert not differ
    assert sum(acts for acts, _ in listed.values()) <= MOST_CONDITIONS


def test_a_long_module_is_one_subject(house):
    assert {name for name, module in house.modules.items() if module.lines > LONG_MODULE} == LONG.keys()
    assert all(len(name.split()) <= 5 for name in LONG.values())


def test_functions_are_short(house):
    assert not [function for function in house.functions if function.lines > LONG_FUNCTION]


def test_every_parameter_is_found_by_a_search_for_its_name(house):
    assert not house.formatted_names()


def test_the_docstring_of_a_folder_is_its_map(house):
    assert not house.unmapped()


def test_conditions_are_found_where_they_are_hidden(tmp_path):
    """The count itself: what counts, and what does not."""
    (tmp_path / "transfusion" / "sequence").mkdir(parents=True)
    source = tmp_path / "transfusion" / "sequence" / "spec.py"
    source.write_text(
        "class Stream:\n    media: bool\n    codes: int\n"
        "    def check(self):\n        if self.codes < 0:\n            raise ValueError\n"  # raises
        "class Run:\n    stream: str\n"
        "class Facts:\n    @property\n    def drawn(self) -> bool:\n        return self.stream.media\n"
        "def f(spec, s: Stream, other, limits, facts):\n"
        "    a = 1 if s.media else 2\n"  # acts
        "    b = [x for x in spec.streams.values() if x.codes]\n"  # acts
        "    while spec.streams['image'].media:\n        pass\n"  # acts
        "    if facts.drawn:\n        return a\n"  # acts
        "    if other.media or limits.drawn:\n        return b\n"  # neither a stream nor a setting
    )
    made = House(tmp_path / "transfusion")
    assert [(c.function, c.raises) for c in made.conditions] == [("Stream.check", True), *[("f", False)] * 4]


def test_circles_floors_and_arrows_up():
    from house import floors, order, upward

    graph = {"a": set(), "b": {"a"}, "c": {"b"}, "d": {"c", "a"}}
    assert floors(graph) == 4 and not circles(graph) and not upward(graph, order(graph))
    graph["a"] = {"d"}
    assert circles(graph) == [{"a", "b", "c", "d"}]
    assert len(upward(graph, order(graph))) == 1
