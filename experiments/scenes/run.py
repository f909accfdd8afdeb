"""How often is a run of scenes right, by the exact judge, on many records?

  python experiments/scenes/run.py --workdir runs/scenes --number 200

Measures each task of the run's data (`transfusion.evaluation.scenes.tasks` says what is counted) on split `--split`
(default 'test'), whose pictures are not in training. Prints the numbers with their intervals of 95 % and writes them to
RUN.json beside this file. `transfusion.evaluate` measures the same on fewer records, and what lies between the tasks.
"""

import argparse
import datetime
import json
import pathlib

import transfusion
from transfusion.evaluation.scenes.measure import of_task, pixels_of

HERE = pathlib.Path(__file__).resolve().parent


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="folder of the run")
    parser.add_argument("--number", type=int, default=200, help="records of each task")
    parser.add_argument("--split", default="test", help="the split")
    given = parser.parse_args()
    run = transfusion.load_run(given.workdir)
    result: dict = {"date": datetime.date.today().isoformat(), "steps": run.step, "split": given.split}
    for source in run.experiment.data.sources.values():
        result[source.name] = of_task(run, source.name, given.number, pixels_of(source), given.split)
        print(source.name, json.dumps(result[source.name], indent=1), flush=True)
    (HERE / f"{given.workdir.name}.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
