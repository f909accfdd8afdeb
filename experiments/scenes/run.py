"""How often is a run of `configs/scenes.py` right, by the exact parser?

  python experiments/scenes/run.py --workdir runs/scenes --number 200

For each task of the run's data, on split `--split` (default 'test'), whose pictures are not in training:

- captions: drawings that show all that the caption says and nothing else, by skill; `listed`: the very things; and
  captions of pictures (`listed`) that name all things.
- questions: answers that are exactly right, and what the best guess without the picture would reach.
- edits: pictures where the change was made and all else is unchanged; and those where the changed thing alone is right.
- subjects, edges, masks, layouts: pictures that show the very scene.
- stories: the run gets the first sentence and goes on by itself. A panel is right if it shows what its sentence makes
  of the panel before (the first: what the sentence lists), read back from the pixels and from the words.

Prints the numbers with Wilson intervals and writes them to RUN.json beside this file.
"""

import argparse
import datetime
import json
import pathlib
from collections.abc import Callable

import numpy as np

import transfusion
from transfusion.data.scenes import changes, judge, maps, tasks, words
from transfusion.data.scenes.parse import parse
from transfusion.data.scenes.questions import QUESTIONS
from transfusion.data.scenes.render import render
from transfusion.evaluation.intervals import wilson

HERE = pathlib.Path(__file__).resolve().parent


def share(right: list[bool]) -> dict:
    found = wilson(sum(right), len(right))
    return {"right": sum(right), "of": len(right)} | {name: round(found[name], 4) for name in ("low", "high")}


def by_kind(drawn: list[tasks.Drawn], right: list[bool]) -> dict:
    kinds = sorted({one.kind for one in drawn})
    found = {kind: [good for one, good in zip(drawn, right, strict=True) if one.kind == kind] for kind in kinds}
    return {"all": share(right)} | {kind: share(good) for kind, good in found.items()}


def captions(run, drawn: list[tasks.Drawn]) -> dict:
    made = run.draw([one.texts[0] for one in drawn])
    right = [judge.shows(one.kind, one.says, picture) for one, picture in zip(drawn, made, strict=True)]
    return by_kind(drawn, right)


def listed(run, drawn: list[tasks.Drawn]) -> dict:
    made = [parse(picture) for picture in run.draw([one.texts[0] for one in drawn])]
    shown = [p.scene.things == one.scenes[0].things and not p.faults for p, one in zip(made, drawn, strict=True)]
    written = [words.understood_list(text) for text in run.caption([render(one.scenes[0]) for one in drawn])]
    read = [s is not None and s.things == one.scenes[0].things for s, one in zip(written, drawn, strict=True)]
    return {"drawn": share(shown), "described": share(read)}


def questions(run, drawn: list[tasks.Drawn]) -> dict:
    prompts = [[render(one.scenes[0]), f"{one.texts[0]} "] for one in drawn]
    answers = run.generate(prompts, max_images=0, max_tokens=16)
    right = ["".join(parts).strip() == one.texts[1] for parts, one in zip(answers, drawn, strict=True)]
    return by_kind(drawn, right) | {
        "best blind guess": round(float(np.mean([QUESTIONS[o.kind].blind for o in drawn])), 4)
    }


def edits(run, drawn: list[tasks.Drawn]) -> dict:
    made = run.draw([[render(one.scenes[0]), one.texts[0]] for one in drawn])
    right = [judge.same(one.scenes[1], picture) for one, picture in zip(drawn, made, strict=True)]
    changed = []
    for one, picture in zip(drawn, made, strict=True):
        read, (before, after) = parse(picture), one.scenes
        shown = read.scene
        new, gone = set(after.things) - set(before.things), set(before.things) - set(after.things)
        there = new <= set(shown.things) and not gone & set(shown.things)
        changed.append(there and not read.faults and (one.kind != "background" or shown.background == after.background))
    return by_kind(drawn, right) | {"the change alone": share(changed)}


def subjects(run, drawn: list[tasks.Drawn]) -> dict:
    made = run.draw([[*map(render, one.scenes[:2]), one.texts[0]] for one in drawn])
    return {"all": share([judge.same(one.scenes[2], picture) for one, picture in zip(drawn, made, strict=True)])}


def mapped(run, drawn: list[tasks.Drawn]) -> dict:
    made = run.draw([[maps.MAPS[one.kind][0](one.scenes[0], 32), one.texts[0]] for one in drawn])
    return {"all": share([judge.same(one.scenes[0], picture) for one, picture in zip(drawn, made, strict=True)])}


def stories(run, drawn: list[tasks.Drawn]) -> dict:
    made = run.generate([one.texts[0] for one in drawn], max_images=tasks.PANELS, max_tokens=4 * 64)
    panels, whole = [], []
    for one, parts in zip(drawn, made, strict=True):
        wanted, good, said = one.scenes[0], [], ""
        for part in parts:
            if isinstance(part, str):
                said += part
                continue
            if said.strip():
                wanted = changes.changed(wanted, said) if wanted else None
            shown, said = parse(part), ""
            good.append(wanted is not None and shown.scene == wanted and not shown.faults)
            wanted = shown.scene  # what follows goes on from what was drawn
        good += [False] * (tasks.PANELS - len(good))
        panels += good[: tasks.PANELS]
        whole.append(all(good[: tasks.PANELS]))
    return {"panels": share(panels), "whole stories": share(whole)}


MEASURES: dict[str, Callable[[object, list[tasks.Drawn]], dict]] = {
    "captions": captions, "listed": listed, "questions": questions, "edits": edits, "stories": stories,
    "subjects": subjects, **dict.fromkeys(maps.MAPS, mapped),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="folder of the run")
    parser.add_argument("--number", type=int, default=200, help="records of each task")
    parser.add_argument("--split", default="test", help="the split")
    given = parser.parse_args()
    run = transfusion.load_run(given.workdir)
    result: dict = {"date": datetime.date.today().isoformat(), "steps": run.step, "split": given.split}
    for source in run.experiment.data.sources.values():
        task, _, kind = source.name.partition("/")
        drawn = [tasks.draw(task, given.split, number, kind) for number in range(given.number)]
        result[source.name] = MEASURES[task](run, drawn)
        print(source.name, json.dumps(result[source.name], indent=1), flush=True)
    (HERE / f"{given.workdir.name}.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
