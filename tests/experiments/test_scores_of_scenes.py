"""The measures of scenes and of moving shapes: a run that knows everything is always right, one that is blind never."""

import argparse
import dataclasses
import importlib.util
import json
import pathlib

import numpy as np
import pytest

import transfusion
from transfusion.data.pipeline import Pipeline
from transfusion.data.scenes import changes, moving, tasks, words
from transfusion.data.scenes.draws import Chance
from transfusion.data.scenes.render import render
from transfusion.evaluation.scenes import tasks as judged
from transfusion.programs import load_experiment
from transfusion.sequence.text import open_tokenizer
from transfusion.train import train

ROOT = pathlib.Path(__file__).parents[2]


def load(name):
    spec = importlib.util.spec_from_file_location(name.replace("/", "_"), ROOT / "experiments" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Knowing:
    """A run that gives what the records say; if it is blind, the background alone and no words."""

    def __init__(self, drawn, blind=False):
        self._drawn, self._blind = drawn, blind

    def _picture(self, scene):
        return np.zeros((32, 32, 3), np.uint8) if self._blind else render(scene)

    shows, sides = "image", 3

    def draw(self, prompts, kind):
        assert len(prompts) == len(self._drawn)
        if self._drawn[0].clip:
            clips = [moving.render_clip(one.clip) for one in self._drawn]
            return [np.zeros_like(clip) if self._blind else clip for clip in clips]
        return [self._picture(one.scenes[-1]) for one in self._drawn]

    def caption(self, media):
        return ["" if self._blind else one.texts[0] for one in self._drawn]

    def answer(self, prompts, **settings):
        return ["" if self._blind else f" {one.texts[1]}" for one in self._drawn]

    def generate(self, prompts, think=0, **settings):
        if think:
            assert all(
                prompt[-1] == one.texts[0] + tasks.PLAN for prompt, one in zip(prompts, self._drawn, strict=True)
            )
            plans = ["" if self._blind else words.list_words(one.scenes[-1]) for one in self._drawn]
            return [[plan, self._picture(one.scenes[-1])] for plan, one in zip(plans, self._drawn, strict=True)]
        told = [(*one.texts[1:], "")[: len(one.scenes)] for one in self._drawn]
        return [
            [part for scene, said in zip(one.scenes, after, strict=True) for part in (self._picture(scene), said)]
            for one, after in zip(self._drawn, told, strict=True)
        ]


@pytest.mark.parametrize("task", tasks.TASKS)
def test_a_run_that_knows_is_right_and_a_blind_one_is_not(task):
    drawn = [tasks.draw(task, "test", number) for number in range(20)]
    for blind, wanted in ((False, 1.0), (True, 0.0)):
        for right in judged.TASKS[task](Knowing(drawn, blind), drawn, tasks.TASKS[task].pixels).values():
            assert len(right) == 20 and {*map(float, right)} == {wanted}


def test_a_story_goes_on_from_what_was_drawn():
    """A wrong second panel is one wrong panel if the third is right from there on."""
    one = next(d for d in (tasks.draw("stories", "test", n) for n in range(99)) if len(d.scenes[1].things) > 1)
    name, values, wrong = changes.draw_change(Chance("wrong"), one.scenes[1])
    run = Knowing([one])
    (parts,) = run.generate([])
    parts[2] = render(wrong)  # panel 2
    third = changes.CHANGES["background"]
    ground = "black" if wrong.background != "black" else "white"
    parts[3] = third.tells[0].format(background=ground)
    parts[4] = render(third.apply(wrong, {"background": ground}))
    parts = parts[:5]
    run.generate = lambda *_, **__: [parts]
    assert judged.stories(run, [one], 32) == {"told": [False], "panels": [0.5]}


def test_a_plan_stands_between_what_is_told_and_its_picture_and_is_not_judged():
    """A run whose plans are wrong but whose pictures are right has told its story."""
    one = tasks.draw("planned_stories", "test", 0)
    said = [part.value for part in tasks.TASKS["planned_stories"].record(one, 24)["segments"][::2]]
    assert said == [
        one.texts[0],
        *(f"{t}: {words.list_words(s)}" for t, s in zip(one.texts[1:], one.scenes[1:], strict=True)),
    ]
    run = Knowing([dataclasses.replace(one, texts=(*(f"{text}: a lie" for text in one.texts),))])
    assert judged.stories(run, [one], 32) == {"told": [True], "panels": [1.0]}
    for name in ("planned_edits", "planned_subjects"):
        one = tasks.draw(name, "test", 0)
        *given, asked, plan, picture = tasks.TASKS[name].record(one, 24)["segments"]
        assert len(given) == len(one.scenes) - 1 and asked.value == f"{one.texts[0]}: "
        assert plan.value == words.list_words(one.scenes[-1]) and np.array_equal(
            picture.value, render(one.scenes[-1], 24)
        )
        assert [part.loss for part in (*given, asked, plan, picture)] == [False] * (len(given) + 1) + [None] * 2


def test_the_longest_story_with_plans_fits_a_row():
    config = load_experiment(ROOT / "configs/scenes.py:planned")
    tokenizer, task = open_tokenizer(config.tokenizer), tasks.TASKS["planned_stories"]
    said = [task.record(tasks.draw("planned_stories", "train", n), 24)["segments"][::2] for n in range(300)]
    longest = max(sum(len(tokenizer.encode(part.value)) for part in parts) for parts in said)
    assert longest + tasks.PANELS * (9 + 2) + 2 < config.streams["text"].budget


def test_every_record_fits_a_row_of_its_config():
    for form in ("", ":stories", ":subjects", ":any"):
        config = load_experiment(ROOT / f"configs/scenes.py{form}")
        tokenizer = open_tokenizer(config.tokenizer)
        with Pipeline(config.data, config.spec, 1, tokenizer=tokenizer) as pipeline:
            for _ in range(4):
                next(pipeline)
            assert not pipeline.stats()["bad"], pipeline.stats()["errors"]
        # Words alone decide whether a story fits: the longest are known.
        stories = [tasks.draw("stories", "train", n).texts for n in range(300)]
        longest = max(sum(len(tokenizer.encode(text)) for text in texts) for texts in stories)
        budget = config.streams["text"].budget
        assert form not in (":stories", ":any") or longest + 20 < budget


class World:
    """A run that continues clips with frames made of the true ones."""

    def __init__(self, change):
        self._change = change

    def generate(self, prompts, **settings):
        clips = [moving.render_clip(tasks.draw("clips", "test", n).clip) for n in range(len(prompts))]
        assert all(np.array_equal(p[1], clip[:2]) for p, clip in zip(prompts, clips, strict=True))
        return [list(self._change(clip)[2:]) for clip in clips]


def test_a_world_model_is_measured_by_the_very_state():
    module, whole = load("moving/run"), "clips whose state is kept over all frames"
    given = argparse.Namespace(worlds=12, frames=2, shown=2)
    assert module.worlds(World(lambda clip: clip), given)[0][whole]["right"] == 12
    still, _ = module.worlds(World(lambda clip: np.repeat(clip[1:2], 8, 0)), given)
    assert still[whole]["right"] == 0


def test_captions_of_clips_are_understood_in_any_paraphrase():
    for says in moving.all_says("train")[::9]:
        skill = words.clip_skill(says)
        for split in ("train", "paraphrases"):
            for template in words.templates(skill, split):
                assert words.understood(words.clip_caption(says, template)) == ("clips", says)


@pytest.mark.soak
def test_one_model_learns_all_tasks_and_draws_from_any_of_them(tmp_path):
    config = load_experiment(ROOT / "configs/scenes.py:any_debug")
    config = dataclasses.replace(config, eval=dataclasses.replace(config.eval, every=0))
    train(config, tmp_path)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.9 * losses[0]
    run = transfusion.load_run(tmp_path)
    edit = tasks.draw("edits", "test", 0)
    drawn = run.draw([[render(edit.scenes[0]), edit.texts[0]]], steps=2)
    assert drawn.shape == (1, 32, 32, 3) and drawn.dtype == np.uint8


@pytest.mark.soak
@pytest.mark.parametrize("form", ["debug", "world_debug"])
def test_moving_shapes_train_and_are_measured(form, tmp_path):
    train(load_experiment(ROOT / f"configs/moving.py:{form}"), tmp_path)
    module, run = load("moving/run"), transfusion.load_run(tmp_path)
    given = argparse.Namespace(rounds=1, described=4, worlds=2, frames=2, shown=2)
    result, shown = (module.clips_and_captions if run.sides == 3 else module.worlds)(run, given)
    assert shown.size[0] == 8 * 18 * 3 and result
