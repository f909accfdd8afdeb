"""Counts the FLOPs of a training step of each system, on the rows that it reads.

  python experiments/scenes_table/count.py

Writes counts.json beside this file. Systems that draw codes need a codec to read their data; an untrained one gives
rows of the same sizes, and is made in a temporary folder.
"""

import dataclasses
import json
import os
import pathlib
import tempfile

from absl import app
from sweep import CODECS, CODES, CONFIGS, RUNS, SYSTEMS

from transfusion.config import Experiment
from transfusion.programs import load_experiment
from transfusion.tasks import flops_of_data, make_task
from transfusion.train import train

HERE = pathlib.Path(__file__).resolve().parent
ROWS = 96


def with_codec(system: Experiment, folder: pathlib.Path, name: str) -> Experiment:
    path = CODES[name]["codec.path"]
    return dataclasses.replace(
        system, codec=dataclasses.replace(system.codec, path=str(folder / os.path.basename(path)))
    )


def main(argv) -> None:
    del argv
    counts = {}
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for name, file in CODECS.items():
            assert f"{RUNS}/{name}" in {changes["codec.path"] for changes in CODES.values()}
            train(dataclasses.replace(load_experiment(CONFIGS / file), steps=1, batch_size=8), folder / name)
        for name in SYSTEMS:
            system = load_experiment(f"{CONFIGS / 'scenes_systems.py'}:{name}")
            system = with_codec(system, folder, name) if name in CODES else system
            counts[name] = round(flops_of_data(make_task(system), system, ROWS) * system.batch_size)
            print(f"{name:<20} {counts[name] / 1e9:8.2f} GFLOPs a step", flush=True)
    (HERE / "counts.json").write_text(json.dumps(counts, indent=1) + "\n")


if __name__ == "__main__":
    app.run(main)
