"""Runs of earlier versions: the fields of their config.json are read where they are now."""

import dataclasses
import json

import pytest
import tiny

from transfusion.config import Experiment, from_config, from_json, to_json
from transfusion.errors import UsageError
from transfusion.model.config import ReleasedTrunk, Stage, TransformerConfig
from transfusion.model.rope import RopeScaling
from transfusion.sequence import Released, TimeConfig


def flat(**fields) -> str:
    """The config.json of a run whose image stream has these fields of before."""
    streams = {"text": tiny.text_stream(), "image": tiny.image_stream()}
    config = json.loads(to_json(Experiment(streams=streams, layout=dict(tiny.spec().layout))))
    for stream in config["streams"].values():
        stream.pop("released")
    config["streams"]["image"] |= fields
    return json.dumps(config)


TIME = {"features": 64, "scale": 1.0, "reversed": True, "ends": True, "per_layer": False}
MOVED = {
    "nothing": ({}, Released(), "sincos"),
    "time": ({"time_embedding": TIME}, Released(time=TimeConfig(64, 1.0, True, True)), "sincos"),
    "several": (
        {"condition": "text", "pooled": 8, "out_channels": 2, "tied": False},
        Released(condition="text", pooled=8, out_channels=2),
        "sincos",
    ),
    "a middle": ({"table": "centred", "table_grid": [8, 8]}, Released(table_grid=(8, 8), centred=True), "learned"),
    "x first": ({"table": "sincos_xy"}, Released(x_first=True), "sincos"),
    "a table": ({"table": "learned", "table_grid": [4, 4]}, Released(table_grid=(4, 4)), "learned"),
}


@pytest.mark.parametrize("name", MOVED)
def test_fields_that_moved_are_read_where_they_are_now(name):
    fields, released, table = MOVED[name]
    experiment = from_json(flat(**fields))
    wanted = dataclasses.replace(tiny.image_stream(), released=released, table=table)
    assert experiment.streams == {"text": tiny.text_stream(), "image": wanted}
    assert from_json(to_json(experiment)) == experiment


def test_what_is_wrong_in_an_earlier_config_is_still_named():
    with pytest.raises(UsageError, match="config.streams.image.released.pooled must be of type int"):
        from_json(flat(pooled="many"))
    with pytest.raises(UsageError, match="config.streams.image.released must be a table of fields, not 3"):
        from_json(flat(pooled=8, released=3))
    with pytest.raises(UsageError, match="config.streams must be a table"):
        from_json('{"streams": 3}')


def test_config_files_and_flags_have_the_names_of_today():
    with pytest.raises(UsageError, match="config.streams.image: unknown field 'tied'"):
        from_config(json.loads(flat(tied=False)))


def test_fields_of_a_trunk_that_moved_are_read_where_they_are_now():
    released = ReleasedTrunk(1e-6, (), (2, 1, 1), RopeScaling("linear", factor=2.0), (0, 1), "image")
    trunk = TransformerConfig(width=16, layers=2, heads=2, released=released)
    stages = {"flow": Stage(dataclasses.replace(trunk, streams=("image",)))}
    streams = {"text": tiny.text_stream(), "image": tiny.image_stream()}
    model = dataclasses.replace(trunk, stages=stages)
    experiment = Experiment(model=model, streams=streams, layout=dict(tiny.spec().layout))
    config = json.loads(to_json(experiment))
    for table in (config["model"], config["model"]["stages"]["flow"]["trunk"]):
        table |= table.pop("released")
    assert from_json(json.dumps(config)) == experiment
