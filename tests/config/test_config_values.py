"""Values of config.json: whatever stands in it is an experiment or one line, at once and in little memory."""

import dataclasses
import json
import os
import re
import time
import tracemalloc
import typing

import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from transfusion.config import Experiment, from_config, from_json, to_json
from transfusion.config.ranges import RANGES
from transfusion.errors import UsageError
from transfusion.workdir.config_file import read_experiment

TEXT = to_json(tiny.experiment("folder"))
TREE = json.loads(TEXT)


def changed(path, value):
    """The example's config.json with one field replaced."""
    tree = json.loads(TEXT)
    *parents, last = path.split(".")
    node = tree
    for name in parents:
        node = node[int(name)] if name.isdigit() else node[name]
    node[last] = value
    return json.dumps(tree)


WRONG = [
    ("seed", -1, "config.seed must be at least 0, not -1"),
    ("seed", 2**32, "config.seed must be at most 4294967295, not 4294967296"),
    ("steps", 10**4000, "config.steps must be at most 2147483646, not a number of more than 15 digits"),
    ("log_every", -5, "config.log_every must be at least 1, not -5"),
    ("optim.epsilon", float("nan"), "config.optim.epsilon must be a finite number, not nan"),
    ("optim.clip", float("inf"), "config.optim.clip must be a finite number, not inf"),
    ("optim.weight_decay", -0.1, "config.optim.weight_decay must be at least 0, not -0.1"),
    ("optim.learning_rate", 10**400, "config.optim.learning_rate must be at most 1000, not a number of more"),
    ("eval.guidances", [1.0, float("nan")], "config.eval.guidances[1] must be a finite number, not nan"),
    ("data.drop_conditions", {"text": float("-inf")}, "config.data.drop_conditions.text must be a finite number"),
    ("data.prefetch", -1, "config.data.prefetch must be at least 0, not -1"),
    ("data.read_threads", -1, "config.data.read_threads must be at least 0, not -1"),
    ("model.rope_theta", -1e4, "config.model.rope_theta must be at least 0, not -10000"),
    ("model.layers", 99_999_999, "config.model.layers must be at most 4096, not 99999999"),
    ("model.ffn_multiple", 0, "config.model.ffn_multiple must be at least 1, not 0"),
    ("model.released.rope_scaling.low", -1, "config.model.released.rope_scaling.low must be at least 0, not -1"),
    ("streams.image.patch", 0, "config.streams.image.patch must be at least 1, not 0"),
    ("streams.image.weight", -1, "config.streams.image.weight must be at least 0, not -1"),
    ("layout.text", [{}], "config.layout.text[0]: the field 'stream' is missing"),
    ("tokenizer.path", "a\0b", "config.tokenizer.path holds a zero byte"),
    ("init.path", "\ud800", "config.init.path is not Unicode text"),
    ("streams", {"\ud800": TREE["streams"]["text"]}, "is not Unicode text"),
    ("model.stages", [[[1]]], "config.model.stages must be a table of names, not [[[1]]]"),
    ("steps", "x" * 10_000, "config.steps must be of type int, not 'xxx"),
]


@pytest.mark.parametrize("path, value, message", WRONG, ids=lambda x: str(x)[:30])
def test_a_value_out_of_range_is_named(path, value, message):
    with pytest.raises(UsageError) as error:
        from_json(changed(path, value))
    assert message in str(error.value)
    assert len(str(error.value)) < 300 and str(error.value).isprintable()


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 - 1])
def test_a_seed_that_every_generator_takes(seed):
    assert from_json(changed("seed", seed)).seed == seed


@pytest.mark.parametrize(
    "data, message",
    [
        (b"\xff\xfe{", "it is no JSON"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a":' * 200_000, "nested too deeply"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "it is no JSON"),
        (b"", "it is no JSON"),
        (TEXT[: len(TEXT) // 2].encode(), "it is no JSON"),
        (b"[1]", "config must be a table of fields"),
        (b" " * (17 << 20), "has more than 16 MiB"),
    ],
    ids=lambda x: str(x)[:20],
)
def test_a_file_that_is_no_config_is_named(tmp_path, data, message):
    (tmp_path / "config.json").write_bytes(data)
    with pytest.raises(UsageError) as error:
        read_experiment(tmp_path)
    assert f"{tmp_path}/config.json" in str(error.value) and message in str(error.value)
    assert len(str(error.value)) < 500 and "\n" not in str(error.value)


def test_a_byte_order_mark_is_none_of_the_text(tmp_path):
    (tmp_path / "config.json").write_text(TEXT, encoding="utf-8-sig")
    assert read_experiment(tmp_path) == from_json(TEXT)


def test_a_folder_or_a_pipe_is_no_config(tmp_path):
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(UsageError, match="is no file"):
        read_experiment(tmp_path)
    os.unlink(tmp_path / "config.json")
    (tmp_path / "config.json").mkdir()
    with pytest.raises(UsageError, match="is no file"):
        read_experiment(tmp_path)


def numbers(kind, found, seen):
    """Adds every numeric field of a dataclass, and of those inside, to `found`; `seen` are those that are done."""
    if typing.get_origin(kind) is not None:
        for inner in typing.get_args(kind):
            numbers(inner, found, seen)
    elif dataclasses.is_dataclass(kind) and kind not in seen:
        seen.add(kind)
        for name, hint in typing.get_type_hints(kind).items():
            if re.search(r"\b(int|float)\b", str(hint)):
                found.add(f"{kind.__name__}.{name}")
            numbers(hint, found, seen)


def test_every_number_has_a_range():
    """A new field must be decided: a row of `ranges.RANGES`. Sampler settings check themselves."""
    found: set[str] = set()
    numbers(Experiment, found, set())
    found = {name for name in found if not name.startswith(("SamplerConfig.", "KindConfig."))}
    assert len(found) > 120
    assert sorted(found - RANGES.keys()) == []


# --- fuzz -------------------------------------------------------------------------------------------------------------


def paths(node, above=()):
    yield above
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, child in children:
        yield from paths(child, (*above, name))


PATHS = list(paths(TREE))
NUMBERS = st.one_of(
    st.integers(), st.floats(), st.sampled_from([0, -1, 2**31, 2**32, 2**63, 10**30, -(10**400), 1e308])
)
VALUES = st.one_of(
    NUMBERS, st.none(), st.booleans(), st.text(max_size=8), st.just([]), st.just({}), st.lists(NUMBERS, max_size=4),
    st.dictionaries(st.text(max_size=4), NUMBERS, max_size=3), st.sampled_from([TREE["model"], TREE["streams"]]),
)  # fmt: skip


def put(tree, path, value, delete):
    if not path:
        return value
    node = tree
    for name in path[:-1]:
        node = node[name]
    if delete:
        del node[path[-1]]
    else:
        node[path[-1]] = value
    return tree


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.sampled_from(PATHS), VALUES, st.booleans()), min_size=1, max_size=3))
def test_any_change_gives_an_experiment_or_one_line(changes):
    tree = json.loads(TEXT)
    for path, value, delete in changes:
        try:
            tree = put(tree, path, value, delete)
        except (KeyError, IndexError, TypeError):  # an earlier change took the place away
            continue
    check(json.dumps(tree).encode())


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.data())
def test_any_bytes_give_an_experiment_or_one_line(data):
    whole = TEXT.encode()
    at = data.draw(st.integers(0, len(whole)))
    check(whole[:at] + data.draw(st.binary(max_size=6)) + whole[at + data.draw(st.integers(0, 40)) :])


def check(data):
    tracemalloc.start()
    begin = time.monotonic()
    try:
        experiment = from_json(data)
        assert from_config(dataclasses.asdict(experiment)) == experiment
    except UsageError as error:
        assert len(str(error)) < 600 and "\n" not in str(error)
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert time.monotonic() - begin < 20 and peak < 64 << 20
