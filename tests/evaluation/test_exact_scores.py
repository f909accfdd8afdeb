"""Scores on scenes: of runs that know everything, that draw what they like, and that are made to be right so often."""

import functools
import itertools
import json
import types

import numpy as np
import pytest

from transfusion.data.scenes import judge, tasks, words
from transfusion.data.scenes.draws import Chance, scene_for
from transfusion.data.scenes.graph import COLOURS, OPPOSITE, SHAPES, Scene
from transfusion.data.scenes.parse import parse
from transfusion.data.scenes.questions import FACTS
from transfusion.data.scenes.render import render
from transfusion.evaluation.scenes import both, facts
from transfusion.evaluation.scenes.measure import measure, results_of
from transfusion.evaluation.scenes.normalised import STATISTICS, Results, difference, interval, packed, unpacked

ANSWERS = (*words.NUMBERS, *OPPOSITE, *SHAPES, *COLOURS)
NUMBER = 3


class Painter:
    """Draws the true pictures of captions, but nothing on every `wrong`-th; reads any picture, unless it is blind."""

    draws, shows = ("image",), "image"

    def __init__(self, wrong=0, blind=False):
        sources = {n: types.SimpleNamespace(kind="scenes", name=n, resolution=32) for n in ("captions", "facts")}
        self.experiment = types.SimpleNamespace(data=types.SimpleNamespace(sources=sources))
        self.spec = types.SimpleNamespace(reads_media=True)
        self._wrong, self._blind = wrong, blind

    def draw(self, captions, kind, seed=0):
        made = []
        for number, caption in enumerate(captions, start=1):
            skill, says = words.understood(caption)
            split = next(split for split in ("test", "pairs", "counts") if says in words.all_says(skill, split))
            shown = scene_for(Chance(caption, seed), skill, says, split)
            bad = self._wrong and seed == 0 and number % self._wrong == 0
            made.append(render(Scene((), "grey") if bad else shown))
        return np.stack(made)

    def caption(self, pictures):
        return ["" if self._blind else self._caption(parse(picture).scene) for picture in pictures]

    def _caption(self, scene):
        shapes = [thing.shape for thing in scene.things]
        if len({*shapes}) == 1 < len(shapes):
            return f"{words.NUMBERS[len(shapes)]} {words.plural(shapes[0])}"
        return " and ".join(f"a {shape}" for shape in shapes)

    def answer(self, prompts, max_tokens):
        return [self._answer(*prompt) if isinstance(prompt, list) and not self._blind else "" for prompt in prompts]

    def _answer(self, picture, question):
        skill, says = questions()[question.strip()]
        return next((a for a in ANSWERS if FACTS[skill].true(says, a, parse(picture).scene)), "nothing")


@functools.cache
def questions():
    """All questions to facts, and what captions say of them."""
    every = itertools.product(FACTS, ("test", "pairs", "counts"))
    says = {(skill, one): None for skill, split in every for one in words.all_says(skill, split)}
    return {form.format(*FACTS[k].fields(one)): (k, one) for k, one in says for form in FACTS[k].words}


def test_a_run_that_knows_has_all_scores_and_a_blind_one_has_no_rank(tmp_path):
    found = measure(Painter(), 12, 0, tmp_path)
    for name in STATISTICS:
        assert found[name]["value"] == found["splits"]["pairs"][name]["value"] == 1
    assert found["atoms"]["value"] == 1 and (tmp_path / "scenes.png").is_file()
    assert found["both"]["own_pictures"]["both"]["value"] == found["both"]["described"]["value"] == 1
    assert found["both"]["cycle"]["value"] == 1 and found["both"]["imagined"]["gain"]["value"] > 0.5
    rows = [json.loads(line) for line in (tmp_path / "scenes.jsonl").read_text().splitlines()]
    assert len(rows) == 6 and all(row["drawn"] == row["read"] == 1 for row in rows)
    read = results_of(found)
    assert read.drawn.shape == (1, 6, 1) and read.drawn.all() and read.read.all()
    blind = measure(Painter(blind=True), 12, 0, tmp_path)
    assert blind["generation"]["value"] == 1 and blind["understanding"]["value"] < 0 and blind["rank"]["value"] == 0


def test_reading_its_own_drawings_makes_them_better():
    """Every third drawing is blank. Who can read sees it, and draws again."""
    run = Painter(wrong=3)
    (asked,) = facts.ask(run, [facts.Facts("captions", "test", NUMBER, 32)])
    assert asked.drawn.mean() == pytest.approx(2 / 3) and asked.read.all()
    found, consistent = both.measure(run, asked)
    assert found["guided"]["kept"]["value"] > 0.9 and found["guided"]["gain"]["low"] > 0
    assert found["own_pictures"]["no_scene"]["value"] == pytest.approx(1 / 3)
    assert found["both_directions"]["read_only"]["value"] == pytest.approx(1 / 3)
    assert not consistent[~asked.drawn].any()


def test_chance_is_nothing_and_a_planted_difference_is_found():
    rng, chance = np.random.default_rng(0), np.array([0.5, 0.2])

    def system(share):
        right = rng.random((3, 2, 400)) < (chance + (1 - chance) * share)[:, None]
        return Results(right, right, chance, chance)

    poor, good, same = system(0.0), system(0.5), system(0.5)
    for name, statistic in STATISTICS.items():
        found = interval(good, statistic)
        assert found["low"] < 0.5 < found["high"] and found["high"] - found["low"] < 0.15, name
    assert abs(interval(poor, STATISTICS["generation"])["value"]) < 0.05
    assert difference(good, poor, STATISTICS["rank"])["low"] > 0.2
    equal = difference(good, same, STATISTICS["rank"])
    assert equal["low"] < 0 < equal["high"]
    with pytest.raises(ValueError, match="paired"):
        difference(good, Results(good.drawn[:, :, :10], None, chance, chance), STATISTICS["generation"])


def test_bits_come_back():
    right = np.random.default_rng(0).random((6, 7)) < 0.5
    assert np.array_equal(unpacked(packed(right), 6, 7), right)
    with pytest.raises(ValueError, match="bits"):
        unpacked(packed(right), 6, 70)


@pytest.mark.parametrize("skill", words.SKILLS)
def test_a_fact_is_known_in_both_directions(skill):
    """The answer is true of the picture, and the best blind guess is right as often as stated."""
    right: dict[tuple, dict[str, int]] = {}
    drawn = [tasks.draw("facts", "test", number, skill) for number in range(600)]
    for one in drawn:
        fact = FACTS[skill]
        assert fact.true(one.says, one.texts[1], one.scenes[0])
        true = [a for a in ANSWERS if fact.true(one.says, a, one.scenes[0])]
        assert len(true) == 1 or skill in ("position", "binding")
        for answer in true:
            counts = right.setdefault(fact.fields(one.says), {})
            counts[answer] = counts.get(answer, 0) + 1
    # Of few questions each, the best guess looks better than it is.
    best = sum(max(counts.values()) for counts in right.values()) / len(drawn)
    assert FACTS[skill].blind - 0.04 < best < FACTS[skill].blind + 0.2


def test_captions_that_cannot_be_true_of_one_picture_do_not_agree():
    agree, position = judge.agree, ("position", ("circle", "left of", "ring"))
    assert agree(position, ("position", ("ring", "right of", "circle"))) and agree(
        position, ("two", ("ring", "circle"))
    )
    assert agree(position, ("position", ("circle", "above", "ring")))
    assert not agree(position, ("position", ("ring", "left of", "circle")))
    assert not agree(position, ("two", ("ring", "cross"))) and not agree(position, ("single", ("ring",)))
    red = ("binding", ("red", "circle", "blue", "ring"))
    assert agree(red, position) and not agree(red, ("binding", ("blue", "circle", "red", "ring")))
    assert not agree(("counting", ("two", "rings")), ("counting", ("three", "rings")))
