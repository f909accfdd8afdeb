"""All scores of a run on scenes, as the field `scenes` of evaluation.json has them.

What is measured follows from the tasks that the run's data has: 'captions' and 'facts' give generation, understanding
and rank, every other task its own shares.
"""

import itertools
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from transfusion import storage
from transfusion.data.scenes import tasks as records
from transfusion.data.scenes import words
from transfusion.evaluation import pictures
from transfusion.evaluation.intervals import bootstrap, wilson
from transfusion.evaluation.scenes import both, facts, tasks
from transfusion.evaluation.scenes.facts import SPLITS, Facts
from transfusion.evaluation.scenes.normalised import STATISTICS, Results, interval, packed, unpacked

MEANINGS = {
    "generation": "mean over the six skills of the share of drawings that show all that the caption says and nothing "
    "else, by an exact parser, less chance: 0 is chance, 1 is always right; split 'test'",
    "understanding": "the same of answers to questions about true pictures of those facts, less the best blind guess",
    "rank": "geometric mean of generation and understanding; 95 % bootstrap over prompts",
    "right": "a bit for each prompt, skill by skill, as hexadecimal digits, so that systems can be compared in pairs",
}


# The tasks whose captions are drawn, and those whose questions ask for the same facts.
PAIRS = {"captions": "facts", "plain_captions": "plain_facts"}
_SHOWN = 4  # drawings of each skill in the saved picture


def measure(run: Any, samples: int, seed: int, folder: pathlib.Path, **sampler: Any) -> dict[str, Any]:
    """The scores of a run.

    Args:
      run: a trained run of which a source of data is of kind 'scenes'.
      samples: how many pictures are drawn for captions, half of them of the split 'test'.
      seed: of the drawings.
      folder: gets scenes.jsonl, the prompts of split 'test' with what was right, and scenes.png, the first drawings of
        each skill; those that are wrong are framed in red.
      sampler: settings of the sampler, for drawings.
    """
    sources = {s.name.partition("/")[0]: s for s in run.experiment.data.sources.values() if s.kind == "scenes"}
    found: dict[str, Any] = {"how": MEANINGS, "absent": {}}
    pairs = {told: asked for told, asked in PAIRS.items() if told in sources}
    for told, asked in itertools.islice(pairs.items(), 1):
        pixels, asks = pixels_of(sources[told]), asked in sources
        found |= on_captions(run, told, samples, pixels, asks, folder, seed=seed, **sampler)
    others = sorted(sources.keys() - pairs.keys() - {*pairs.values()})
    return found | {"tasks": {name: of_task(run, name, samples // 5, pixels_of(sources[name])) for name in others}}


def pixels_of(source: Any) -> int:
    """The side of a source's pictures."""
    return source.resolution or records.TASKS[source.name.partition("/")[0]].pixels


def of_task(run: Any, name: str, number: int, pixels: int, split: str = "test") -> dict[str, Any]:
    """The shares of records of a task, or of one kind of it, that are right, all together and by kind."""
    task, _, kind = name.partition("/")
    drawn = [records.draw(task, split, i, kind) for i in range(max(number, 1))]
    found: dict[str, Any] = {}
    for counted, right in tasks.TASKS[task](run, drawn, pixels).items():
        kinds = sorted({one.kind for one in drawn})
        parts = {kind: [good for one, good in zip(drawn, right, strict=True) if one.kind == kind] for kind in kinds}
        found[counted] = share(right)
        if len(kinds) > 1:
            found[f"{counted}_by_kind"] = {kind: share(good) for kind, good in parts.items()}
    return found


def share(right: list) -> dict[str, float]:
    """The share of what is right, or the mean of such shares, with its interval."""
    if {*map(float, right)} <= {0.0, 1.0}:
        return wilson(int(sum(right)), len(right))
    return bootstrap(np.array(right, float))


def on_captions(
    run: Any, task: str, samples: int, pixels: int, asks: bool, folder: pathlib.Path, **sampler: Any
) -> dict[str, Any]:
    """Generation, understanding and rank on every split, and how both go together."""
    number = max(samples // 12, 1)
    few = max(number // 4, 1)
    every = {split: few * len(words.SKILLS) // len(words.skills_of(split)) for split in SPLITS} | {"test": number}
    prompts = [Facts(task, split, each, pixels) for split, each in every.items()]
    asked = dict(zip(SPLITS, facts.ask(run, prompts, asks, **sampler), strict=True))
    test = asked["test"]
    found = scores(test.results) | by_skill(test)
    found["splits"] = {split: scores(one.results) for split, one in asked.items() if split != "test"}
    found["right"] = {split: kept(one) for split, one in asked.items()}
    lines = "".join(json.dumps(row) + "\n" for row in rows_of(test))
    storage.write_whole(folder / "scenes.jsonl", lines)
    if test.drawn is not None:
        found["atoms"] = bootstrap(test.atoms.ravel())
        save(test, folder / "scenes.png")
    if test.drawn is not None and test.read is not None:
        found["both"], consistent = both.measure(run, test, **sampler)
        found["right"]["test"]["consistent"] = packed(consistent)
    return found


def rows_of(asked: Facts) -> Iterator[dict[str, Any]]:
    """The prompts of a split in words, with 0 or 1 for what the run does: whether it was right."""
    drawn, read = (None if right is None else right.ravel() for right in (asked.drawn, asked.read))
    for i, (told, question) in enumerate(zip(asked.captions, asked.questions, strict=True)):
        row: dict[str, Any] = {"skill": told.kind, "caption": told.texts[0], "question": question.texts[0]}
        row |= {} if drawn is None else {"drawn": int(drawn[i])}
        yield row if read is None else row | {"answer": asked.answers[i], "read": int(read[i])}


def save(asked: Facts, path: pathlib.Path) -> None:
    """Writes the first drawings of each skill as a picture."""
    shown = [k * asked.number + i for k in range(len(asked.skills)) for i in range(min(_SHOWN, asked.number))]
    captions, wrong = [asked.captions[i].texts[0] for i in shown], [not asked.drawn.ravel()[i] for i in shown]
    pictures.grid([asked.pictures[i] for i in shown], 2 * _SHOWN, captions, marks=wrong, path=path)


def scores(results: Results) -> dict[str, Any]:
    """The scores of results; None for what the model does not do."""
    if results.drawn is None and results.read is None:
        return dict.fromkeys(STATISTICS)
    found = {name: interval(results, statistic) for name, statistic in STATISTICS.items()}
    for name, right in (("generation", results.drawn), ("understanding", results.read)):
        if right is None:
            found |= {name: None, "rank": None}
    return found


def by_skill(asked: Facts) -> dict[str, Any]:
    """The plain shares of each skill, chance included."""
    found = {}
    for name, right in (("generation_by_skill", asked.drawn), ("understanding_by_skill", asked.read)):
        if right is not None:
            rows = zip(asked.skills, right, strict=True)
            found[name] = {skill: wilson(int(row.sum()), len(row)) for skill, row in rows}
    return found


def kept(asked: Facts) -> dict[str, Any]:
    """What was right, prompt by prompt; `results_of` reads it back."""
    rows = {"drawn": asked.drawn, "read": asked.read}
    return {"number": asked.number} | {name: None if right is None else packed(right) for name, right in rows.items()}


def results_of(evaluation: dict[str, Any], split: str = "test") -> Results:
    """What a run got right in a split, from the field `scenes` of its evaluation.

    Raises:
      KeyError, ValueError: if the evaluation has none, or it is damaged.
    """
    there = evaluation["right"][split]
    drawn_chance, read_chance = facts.chances(split)

    def rows(digits: str | None) -> np.ndarray | None:
        return None if digits is None else unpacked(digits, len(drawn_chance), there["number"])[None]

    return Results(rows(there["drawn"]), rows(there["read"]), drawn_chance, read_chance)
