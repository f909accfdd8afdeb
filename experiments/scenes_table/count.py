"""Counts the FLOPs of a training step of each system, on the rows that it reads.

  python experiments/scenes_table/count.py

Writes counts.json beside this file, those of the size that is set (`SIZE=gpu`). Systems that draw codes count the rows
of a codec that needs no training and makes as many codes.
"""

import dataclasses
import json
import pathlib

from absl import app
from sweep import CONFIGS, SIZE, SUFFIX, SYSTEMS

from transfusion.codecs import CodecConfig
from transfusion.codecs.levels import LevelsConfig
from transfusion.config import Experiment
from transfusion.programs import load_experiment
from transfusion.tasks import flops_of_data, make_task

HERE = pathlib.Path(__file__).resolve().parent
ROWS = 96


def without_codec(system: Experiment) -> Experiment:
    """The experiment with 6 levels of each channel of 8 x 8 pixels in place of an autoencoder's 3 x 3 codes."""
    if system.codec.kind != "autoencoder":
        return system
    scales = next((stream.scales for stream in system.streams.values() if stream.scales), ())
    levels = LevelsConfig(levels=6, channels=3, patch=8, low=-2.0, high=2.0, scales=scales)
    return dataclasses.replace(system, codec=CodecConfig("levels", levels=levels))


def main(argv) -> None:
    del argv
    counts = {}
    for name in SYSTEMS:
        system = without_codec(load_experiment(f"{CONFIGS / 'scenes_systems.py'}:{name}{SUFFIX}"))
        counts[name] = round(flops_of_data(make_task(system), system, ROWS) * system.batch_size)
        print(f"{name:<20} {counts[name] / 1e9:8.2f} GFLOPs a step", flush=True)
    path = HERE / "counts.json"
    known = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(known | {SIZE: counts}, indent=1) + "\n")


if __name__ == "__main__":
    app.run(main)
