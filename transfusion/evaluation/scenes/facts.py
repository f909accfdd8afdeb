"""Drawing and reading of the same facts, on split after split: a caption asks for a picture, and of the true picture a
question asks what the caption says.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from transfusion.data.scenes import judge, words
from transfusion.data.scenes.draws import Chance
from transfusion.data.scenes.parse import Parsed, parse
from transfusion.data.scenes.questions import FACTS
from transfusion.data.scenes.render import render
from transfusion.data.scenes.tasks import Drawn, draw, fact_of
from transfusion.evaluation.scenes import tasks
from transfusion.evaluation.scenes.normalised import Results

SPLITS = ("test", "pairs", "counts", "positions", "paraphrases")


@dataclasses.dataclass(frozen=True, eq=False)
class Facts:
    """The prompts of a split, skill by skill, and what a run made of them.

    Attributes:
      task: 'captions' or 'plain_captions', whose captions are asked for.
      split: one of `SPLITS`.
      number: prompts of each skill.
      pixels: the side of a picture.
      pictures: what the run drew for the captions, uint8 [K x N, H, W, 3]; None if it does not draw.
      answers: what it says of the true pictures, K x N; None if it does not read.
    """

    task: str
    split: str
    number: int
    pixels: int
    pictures: np.ndarray | None = None
    answers: list[str] | None = None

    @property
    def skills(self) -> tuple[str, ...]:
        return words.skills_of(self.split)

    @functools.cached_property
    def captions(self) -> list[Drawn]:
        """The captions and their true scenes."""
        return [draw(self.task, self.split, i, skill) for skill in self.skills for i in range(self.number)]

    @functools.cached_property
    def questions(self) -> list[Drawn]:
        """The questions to the same facts."""
        return [
            fact_of(one, Chance("facts of captions", self.split, number), self.split)
            for number, one in enumerate(self.captions)
        ]

    @functools.cached_property
    def parsed(self) -> list[Parsed]:
        """What is in the drawn pictures."""
        return [parse(picture) for picture in self.pictures]

    @functools.cached_property
    def drawn(self) -> np.ndarray | None:
        """Which drawings show all that was asked and nothing else, bool [K, N]."""
        atoms = self.atoms
        return None if atoms is None else atoms == 1

    @functools.cached_property
    def atoms(self) -> np.ndarray | None:
        """The share of what each caption says that its drawing shows, [K, N]."""
        if self.pictures is None:
            return None
        shares = [
            np.mean(list(judge.atoms(one.kind, one.says, shown).values()))
            for one, shown in zip(self.captions, self.parsed, strict=True)
        ]
        return np.reshape(shares, (len(self.skills), self.number))

    @functools.cached_property
    def read(self) -> np.ndarray | None:
        """Which answers are true of the true pictures, bool [K, N]."""
        if self.answers is None:
            return None
        true = [
            FACTS[one.kind].true(one.says, answer, one.scenes[0])
            for one, answer in zip(self.questions, self.answers, strict=True)
        ]
        return np.reshape(true, (len(self.skills), self.number))

    @property
    def results(self) -> Results:
        """What was right of one run. The best blind guess is that of the split 'test', whose words and things are as
        in training: a held-out pair is never guessed."""

        def one(right: np.ndarray | None) -> np.ndarray | None:
            return None if right is None else right[None]

        return Results(one(self.drawn), one(self.read), *chances(self.split))


def chances(split: str) -> tuple[np.ndarray, np.ndarray]:
    """How often each skill of a split is right by chance [K]: drawn, and read."""
    skills = words.skills_of(split)
    return np.array([judge.chance(s, split) for s in skills]), np.array([FACTS[s].blind for s in skills])


def ask(run: Any, prompts: Sequence[Facts], reads: bool = True, **sampler: Any) -> list[Facts]:
    """Lets a run draw and read the facts of several splits, if it can, all at once; `reads`: whether it has learned to
    answer."""
    ends = np.cumsum([len(one.captions) for one in prompts])[:-1]
    drawn, said = [None] * len(prompts), [None] * len(prompts)
    if run.draws:
        pictures = tasks.draw(run, [one.texts[0] for facts in prompts for one in facts.captions], **sampler)
        drawn = np.split(pictures, ends)
    if reads and run.spec.reads_media:
        shown = [tasks.asked(one, render(one.scenes[0], f.pixels)) for f in prompts for one in f.questions]
        said = [part.tolist() for part in np.split(np.array(tasks.answers(run, shown)), ends)]
    return [
        dataclasses.replace(facts, pictures=pictures, answers=answers)
        for facts, pictures, answers in zip(prompts, drawn, said, strict=True)
    ]
