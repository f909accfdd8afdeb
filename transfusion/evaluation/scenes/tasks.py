"""Which records of each task of scenes a run gets right, by the exact judge.

`TASKS` has a function for each task: it gets the run, the records and the side of the pictures in pixels, and gives for
each thing that is counted whether each record is right.

- captions, plain_captions: drawings that show all that the caption says and nothing else ('drawn').
- plain_told: the same of runs that only draw. plain_planned: the same of runs that first write what they will draw; and
  whether what they write is what they draw then ('kept').
- listed, plain_listed, depicted: the same for all things of a picture; the first two also captions of pictures that
  name all things ('described').
- facts, plain_facts, questions: answers that are right ('answered').
- edits: pictures where the change was made and all else is unchanged ('edited'), and where the changed thing alone is
  right ('changed').
- subjects, edges, masks, layouts: pictures that show the very scene ('drawn').
- planned_edits, planned_stories, planned_subjects: the same of runs that write what a picture will show before they
  draw it. A story is judged by its sentences, not by its plans.
- stories: the run gets the first sentence and goes on by itself. A panel is right if it shows what its sentence makes
  of the panel before (the first: what the sentence lists), read back from the pixels and from the words: 'told' is
  whole stories, and 'panels' the share of right ones.
- clips: clips that show the asked thing and motion ('drawn'), things alone ('object') and motions alone ('motion'),
  and captions of clips ('described'); or, of a world model, that the next frame ('next_state') and all further ones
  ('all_states') show the very state.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from transfusion.data.scenes import changes, judge, maps, words
from transfusion.data.scenes.parse import parse
from transfusion.data.scenes.questions import FACTS
from transfusion.data.scenes.render import render
from transfusion.data.scenes.tasks import PANELS, PLAN, Drawn
from transfusion.evaluation.scenes.clips import clips

Right = dict[str, list]
"""By what is counted: for each record whether it is right, or the share of it that is."""


def draw(run: Any, prompts: Sequence, **sampler: Any) -> np.ndarray:
    """Draws for each prompt what the run shows, also if it draws answers in words, too."""
    return run.draw(prompts, kind=run.shows, **sampler)


def captions(run: Any, drawn: Sequence[Drawn], pixels: int) -> Right:
    made = draw(run, [one.texts[0] for one in drawn])
    return {"drawn": [judge.shows(one.kind, one.says, picture) for one, picture in zip(drawn, made, strict=True)]}


def planned(run: Any, prompts: Sequence[list]) -> tuple[list[str], list[np.ndarray]]:
    """The plans that a run writes behind what prompts ask for, and what it then draws."""
    asked = [[*given, told + PLAN] for *given, told in prompts]
    made = run.generate(asked, draw=True, think=64, max_images=1, max_tokens=0)
    plans = ["".join(part for part in parts if isinstance(part, str)) for parts in made]
    return plans, [next(part for part in parts if not isinstance(part, str)) for parts in made]


def draw_planned(run: Any, prompts: Sequence[list]) -> list[np.ndarray]:
    """The same as `draw`, of runs that first write what they will draw."""
    return planned(run, prompts)[1]


def planned_captions(run: Any, drawn: Sequence[Drawn], pixels: int) -> Right:
    """A plan is written, and read by the drawing that follows."""
    plans, pictures = planned(run, [[one.texts[0]] for one in drawn])
    shown = [judge.shows(one.kind, one.says, picture) for one, picture in zip(drawn, pictures, strict=True)]
    read = [words.understood_list(plan.strip()) for plan in plans]
    kept = [p is not None and p.things == parse(made).scene.things for p, made in zip(read, pictures, strict=True)]
    return {"drawn": shown, "kept": kept}


def depicted(run: Any, drawn: Sequence[Drawn], pixels: int) -> Right:
    made = [parse(picture) for picture in draw(run, [one.texts[0] for one in drawn])]
    return {"drawn": [p.scene.things == o.scenes[0].things and not p.faults for p, o in zip(made, drawn, strict=True)]}


def listed(run: Any, drawn: Sequence[Drawn], pixels: int) -> Right:
    written = [words.understood_list(text) for text in run.caption([render(one.scenes[0], pixels) for one in drawn])]
    read = [s is not None and s.things == one.scenes[0].things for s, one in zip(written, drawn, strict=True)]
    return depicted(run, drawn, pixels) | {"described": read}


def asked(one: Drawn, picture: np.ndarray) -> list:
    """The prompt that asks a record's question about a picture, with the space before the answer as in training."""
    return [picture, f"{one.texts[0]} "]


def answers(run: Any, prompts: list) -> list[str]:
    """Short answers in words, without the spaces around them."""
    return [answer.strip() for answer in run.answer(prompts, max_tokens=16)]


def questions(run: Any, drawn: Sequence[Drawn], pixels: int) -> Right:
    said = answers(run, [asked(one, render(one.scenes[0], pixels)) for one in drawn])
    return {"answered": [answer == one.texts[1] for answer, one in zip(said, drawn, strict=True)]}


def facts(run: Any, drawn: Sequence[Drawn], pixels: int) -> Right:
    said = answers(run, [asked(one, render(one.scenes[0], pixels)) for one in drawn])
    true = [FACTS[o.kind].true(o.says, answer, o.scenes[0]) for answer, o in zip(said, drawn, strict=True)]
    return {"answered": true}


def edits(run: Any, drawn: Sequence[Drawn], pixels: int, draw: Callable = draw) -> Right:
    made = draw(run, [[render(one.scenes[0], pixels), one.texts[0]] for one in drawn])
    right = [judge.same(one.scenes[1], picture) for one, picture in zip(drawn, made, strict=True)]
    return {"edited": right, "changed": [changed(one, picture) for one, picture in zip(drawn, made, strict=True)]}


def changed(one: Drawn, picture: np.ndarray) -> bool:
    """Whether the thing (or the background) that an edit is about is as it should be."""
    read, (before, after) = parse(picture), one.scenes
    shown = read.scene
    new, gone = set(after.things) - set(before.things), set(before.things) - set(after.things)
    there = new <= set(shown.things) and not gone & set(shown.things)
    return there and not read.faults and (one.kind != "background" or shown.background == after.background)


def subjects(run: Any, drawn: Sequence[Drawn], pixels: int, draw: Callable = draw) -> Right:
    made = draw(run, [[*(render(scene, pixels) for scene in one.scenes[:2]), one.texts[0]] for one in drawn])
    return {"drawn": [judge.same(one.scenes[2], picture) for one, picture in zip(drawn, made, strict=True)]}


def mapped(run: Any, drawn: Sequence[Drawn], pixels: int) -> Right:
    made = draw(run, [[maps.MAPS[one.kind][0](one.scenes[0], pixels), one.texts[0]] for one in drawn])
    return {"drawn": [judge.same(one.scenes[0], picture) for one, picture in zip(drawn, made, strict=True)]}


def stories(run: Any, drawn: Sequence[Drawn], pixels: int) -> Right:
    # The first panel at once: a sentence that lists some things could go on with further ones.
    made = run.generate([one.texts[0] for one in drawn], draw=True, max_images=PANELS, max_tokens=4 * 64)
    panels = [story(one, parts) for one, parts in zip(drawn, made, strict=True)]
    return {"told": [all(good) for good in panels], "panels": [sum(good) / PANELS for good in panels]}


def sentence(said: str) -> str:
    """What a story tells before a panel, without the plan that may follow."""
    return said.split(PLAN)[0]


def story(one: Drawn, parts: list) -> list[bool]:
    """Which panels of a story are right; `parts` are what the run wrote and drew behind the first sentence."""
    wanted, good, said = one.scenes[0], [], ""
    for part in parts:
        if isinstance(part, str):
            said += part
            continue
        if said.strip():
            wanted = changes.changed(wanted, sentence(said)) if wanted else None
        shown, said = parse(part), ""
        good.append(wanted is not None and shown.scene == wanted and not shown.faults)
        wanted = shown.scene  # what follows goes on from what was drawn
    return (good + [False] * PANELS)[:PANELS]


TASKS: dict[str, Callable[[Any, Sequence[Drawn], int], Right]] = {
    "captions": captions, "plain_captions": captions, "listed": listed, "plain_listed": listed, "depicted": depicted,
    "plain_told": captions, "plain_planned": planned_captions, "facts": facts, "plain_facts": facts,
    "questions": questions, "edits": edits, "plain_edits": edits,
    "planned_edits": functools.partial(edits, draw=draw_planned), "stories": stories, "plain_stories": stories,
    "planned_stories": stories, "subjects": subjects, "plain_subjects": subjects,
    "planned_subjects": functools.partial(subjects, draw=draw_planned), "clips": clips,
    **dict.fromkeys(maps.MAPS, mapped),
}  # fmt: skip
