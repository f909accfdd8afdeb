"""Configs: what goes in comes out, and what does not fit is named."""

import dataclasses
import importlib.util
import pathlib

import pytest
import tiny

from transfusion.config import Experiment, from_config, from_json, to_config_dict, to_json
from transfusion.errors import UsageError
from transfusion.tasks import make_task

CONFIGS = sorted((pathlib.Path(__file__).parents[2] / "configs").glob("*.py"))


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_file_is_a_lab_note_that_makes_a_task(path):
    module = load(path)
    assert "Command:" in module.__doc__ and "Hardware:" in module.__doc__
    experiment = from_config(module.get_config())
    assert from_json(to_json(experiment)) == experiment
    make_task(experiment)


@pytest.mark.parametrize("path", [path for path in CONFIGS if "debug" in path.read_text()], ids=lambda path: path.stem)
def test_a_debug_form_is_short(path):
    module = load(path)
    debug = from_config(module.get_config("debug"))
    assert debug.steps <= 50 < from_config(module.get_config()).steps
    make_task(debug)


def test_there_and_back():
    experiment = tiny.experiment("folder")
    assert from_config(to_config_dict(experiment)) == experiment
    assert from_json(to_json(experiment)) == experiment
    assert isinstance(from_json(to_json(experiment)).layout["image"][0], type(experiment.layout["image"][0]))


def changed(path, value):
    """The example's config with one field replaced."""
    tree = dataclasses.asdict(tiny.experiment("folder"))
    *parents, last = path.split(".")
    node = tree
    for name in parents:
        node = node[int(name)] if name.isdigit() else node[name]
    node[last] = value
    return tree


WRONG = [
    ("stepz", 3, "config: unknown field 'stepz' (did you mean 'steps'?)"),
    ("model.hedas", 3, "config.model: unknown field 'hedas' (did you mean 'heads'?)"),
    ("streams.image.pach", 3, "config.streams.image: unknown field 'pach' (did you mean 'patch'?)"),
    ("layout.image.0.opner", 3, "config.layout.image[0]: unknown field 'opner' (did you mean 'opener'?)"),
    ("steps", "many", "config.steps must be of type int, not 'many'"),
    ("steps", 1.5, "config.steps must be of type int, not 1.5"),
    ("steps", True, "config.steps must be of type int, not True"),
    ("model.scan", 1, "config.model.scan must be of type bool, not 1"),
    ("model", 3, "config.model must be a table of fields, not 3"),
    ("streams", [], "config.streams must be a table of names, not []"),
    (
        "streams.image.released.table_grid",
        (4, 4, 4),
        "config.streams.image.released.table_grid must have 2 values, not 3",
    ),
    ("streams.image.visible_to", "text", "config.streams.image.visible_to must be a list of values, not 'text'"),
    ("steps", 0, "config.steps must be at least 1, not 0"),
    ("task", "sequences", "task: 'sequences' is none of sequence, autoencoder (did you mean 'sequence'?)"),
    (
        "layout.image.0.boundary",
        "insid",
        "layout: boundary: 'insid' is none of outside, inside (did you mean 'inside'?)",
    ),
    ("eval.prompts", "label", "eval.prompts: 'label' is none of labels, held_out (did you mean 'labels'?)"),
    (
        "sampling.solver",
        "euler2",
        "sampling.solver: 'euler2' is none of euler, heun, ddim, ddpm, shortcut (did you mean 'euler'?)",
    ),
    ("optim.accumulate", 3, "optim.accumulate 3 does not divide batch_size 4"),
]


@pytest.mark.parametrize("path, value, message", WRONG, ids=lambda x: str(x)[:20])
def test_what_does_not_fit_is_named(path, value, message):
    with pytest.raises(UsageError) as error:
        from_config(changed(path, value))
    assert message in str(error.value)


def test_whole_numbers_are_fine_for_real_ones():
    experiment = from_config(changed("optim.learning_rate", 1))
    assert isinstance(experiment.optim.learning_rate, float)


@pytest.mark.parametrize(
    "experiment, message",
    [
        (Experiment(), "a sequence needs at least the stream 'text'"),
        (Experiment(task="autoencoder"), "an autoencoder needs one resolution"),
        (
            dataclasses.replace(
                tiny.experiment("x"), streams={"text": tiny.text_stream(objective="next_tokn")}, layout={}
            ),
            "streams.text.objective: 'next_tokn' is none of none, next_token, next_scale, masked, continuous, "
            "token_flow, masked_flow, shortcut, mean_flow, clip, siglip (did you mean 'next_token'?)",
        ),
    ],
)
def test_parts_that_do_not_make_a_task(experiment, message):
    with pytest.raises(UsageError) as error:
        make_task(experiment)
    assert message in str(error.value)
