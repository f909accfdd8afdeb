"""The table of all systems on scenes at equal FLOPs, from the runs of `sweep.py`.

  python experiments/scenes_table/table.py --workdir runs/scenes_table

Prints a table in Markdown, and writes table.json and a small picture of each system's drawings beside this file. A
system's numbers are those of all its seeds that are finished; the intervals (95 %) are bootstraps over seeds and
prompts. 'beside transfusion' is the difference in rank on the same seeds and prompts. Wrong drawings have a red frame;
none are selected.

- U, G: understanding and generation on split 'test', less chance (`transfusion.evaluation.scenes`).
- C: the share of its own drawings in which a system reads what it was asked to draw.
- evaluations: passes of the trunk for one drawing.
"""

import dataclasses
import functools
import json
import pathlib
from typing import Any

import numpy as np
from absl import app, flags
from PIL import Image
from sweep import SEEDS, SYSTEMS

from transfusion.config import Experiment, from_config
from transfusion.evaluation.intervals import Score
from transfusion.evaluation.results import read_evaluation
from transfusion.evaluation.scenes.facts import SPLITS
from transfusion.evaluation.scenes.measure import results_of
from transfusion.evaluation.scenes.normalised import STATISTICS, Results, difference, interval, unpacked
from transfusion.model.unified import parameter_count
from transfusion.running.metrics import human, read_metrics, training_flops
from transfusion.sampling.drawable import drawables_of
from transfusion.sequence import TEXT
from transfusion.tasks import make_task

HERE = pathlib.Path(__file__).resolve().parent
WORKDIR = flags.DEFINE_string("workdir", "runs/scenes_table", "Folder of the sweep.")
FIRST = SYSTEMS[0]
# How many evaluations draw a picture, by the objective of its stream: from its tokens, its scales and the steps.
EVALUATIONS = {
    "continuous": lambda tokens, scales, steps: steps,
    "masked": lambda tokens, scales, steps: steps,
    "next_scale": lambda tokens, scales, steps: scales,
    "next_token": lambda tokens, scales, steps: tokens,
    "token_flow": lambda tokens, scales, steps: tokens,
}


@dataclasses.dataclass(frozen=True)
class System:
    """A system and the evaluations of its finished runs, by seed."""

    name: str
    runs: dict[int, dict[str, Any]]
    flops: dict[int, float]

    def results(self, split: str = "test", seeds: tuple[int, ...] = ()) -> Results:
        chosen = [results_of(self.runs[seed]["scenes"], split) for seed in seeds or sorted(self.runs)]
        return functools.reduce(Results.joined, chosen)

    def consistent(self) -> Results | None:
        """In which of its drawings it reads what was asked for, as the reading of results."""
        found = []
        for run in self.runs.values():
            there = run["scenes"]["right"]["test"]
            if "consistent" not in there:
                return None
            skills = len(results_of(run["scenes"]).drawn_chance)
            found.append(unpacked(there["consistent"], skills, there["number"]))
        return Results(None, np.stack(found), np.zeros(found[0].shape[0]), np.zeros(found[0].shape[0]))

    @property
    def experiment(self) -> Experiment:
        return from_config(next(iter(self.runs.values()))["config"])


def open_system(name: str, workdir: pathlib.Path) -> System:
    runs, flops = {}, {}
    for seed in SEEDS:
        found, _ = read_evaluation(workdir / f"{name}_{seed}" / "evaluation.json")
        if found and "scenes" in found:
            runs[seed] = found
            flops[seed] = training_flops(read_metrics(workdir / f"{name}_{seed}" / "metrics.jsonl"))
    return System(name, runs, flops)


def evaluations(experiment: Experiment) -> int | None:
    """Passes of the trunk for one drawing; with guidance each is one of two prompts. None: it draws nothing."""
    spec = experiment.spec
    drawn = next((one for one in drawables_of(spec) if one.kind != TEXT), None)
    if drawn is None:
        return None
    stream, twice = drawn.stream, 2 if experiment.sampling.guidance != 1 else 1
    if stream.objective == "next_token" and drawn.run.spelling:
        return twice * len(drawn.run.spelling.template(drawn.run.spelling.grids[0]))
    tokens, scales = stream.tokens_per_item, len(stream.scales)
    return twice * EVALUATIONS[stream.objective](tokens, scales, experiment.sampling.steps)


def row(system: System, first: System) -> dict[str, Any]:
    experiment, results = system.experiment, system.results()
    found: dict[str, Any] = {
        "seeds": sorted(system.runs),
        "parameters": parameter_count(make_task(experiment).template.shapes),
        "steps": experiment.steps,
        "training_flops": float(np.mean(list(system.flops.values()))),
        "evaluations": evaluations(experiment),
    }
    missing = {"generation": results.drawn is None, "understanding": results.read is None}
    for name, statistic in STATISTICS.items():
        found[name] = None if missing.get(name, any(missing.values())) else interval(results, statistic)
    own = system.consistent()
    found["consistent"] = own and interval(own, STATISTICS["understanding"])
    common = tuple(sorted(system.runs.keys() & first.runs.keys()))
    if common and not any(missing.values()) and system.name != first.name:
        pair = (system.results(seeds=common), first.results(seeds=common))
        found["beside"] = difference(*pair, STATISTICS["rank"])
    found["splits"] = {
        split: {name: interval(system.results(split), STATISTICS[name]) for name, gone in missing.items() if not gone}
        for split in SPLITS[1:]
    }
    return found


def cell(score: Score | None, sign: str = "") -> str:
    if score is None:
        return "—"
    return f"{score['value']:{sign}.3f} ({score['low']:{sign}.3f} to {score['high']:{sign}.3f})"


def print_table(rows: dict[str, dict[str, Any]]) -> None:
    head = ("system", "seeds", "parameters", "FLOPs", "evaluations", "U", "G", "C", "rank", f"beside {FIRST}")
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    order = sorted(rows, key=lambda name: -(rows[name]["rank"] or {"value": -1})["value"])
    for name in order:
        one = rows[name]
        cells = [
            name, str(len(one["seeds"])), human(one["parameters"]), human(one["training_flops"]),
            str(one["evaluations"] or "—"), *(cell(one[key]) for key in ("understanding", "generation", "consistent")),
            cell(one["rank"]), cell(one.get("beside"), "+"),
        ]  # fmt: skip
        print("| " + " | ".join(cells) + " |")
    print("\n| system | " + " | ".join(f"{s}: U, G" for s in SPLITS[1:]) + " |\n" + "|---" * len(SPLITS) + "|")
    for name in order:
        parts = [rows[name]["splits"][split] for split in SPLITS[1:]]
        shown = [
            ", ".join(f"{p[key]['value']:.3f}" if key in p else "—" for key in ("understanding", "generation"))
            for p in parts
        ]
        print(f"| {name} | " + " | ".join(shown) + " |")


def main(argv) -> None:
    del argv
    workdir = pathlib.Path(WORKDIR.value)
    systems = [open_system(name, workdir) for name in SYSTEMS]
    done = {one.name: one for one in systems if one.runs}
    rows = {name: row(one, done.get(FIRST, one)) for name, one in done.items()}
    print_table(rows)
    (HERE / "table.json").write_text(json.dumps(rows, indent=1) + "\n")
    for name, one in done.items():
        path = workdir / f"{name}_{min(one.runs)}" / "samples" / "scenes.png"
        if path.is_file():
            Image.open(path).quantize(64, method=Image.Quantize.FASTOCTREE).save(HERE / f"{name}.png", optimize=True)
    if missing := [one.name for one in systems if not one.runs]:
        print(f"\nnot run: {', '.join(missing)}")


if __name__ == "__main__":
    app.run(main)
