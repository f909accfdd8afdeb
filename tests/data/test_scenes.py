"""Scenes: the parser reads what the renderer draws, words say what is shown, and no split shows what another holds."""

import dataclasses
import itertools
import json
import math
import re
from collections import Counter

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfusion.data.config import DataConfig, SourceConfig
from transfusion.data.pipeline import Pipeline
from transfusion.data.scenes import changes, draws, graph, judge, maps, moving, tasks, words
from transfusion.data.scenes.draws import Chance
from transfusion.data.scenes.graph import CELLS, COLOURS, SHAPES, SIZES, SPLITS, Scene, Thing
from transfusion.data.scenes.parse import parse, parse_clip
from transfusion.data.scenes.questions import QUESTIONS, ask
from transfusion.data.scenes.render import coverage, painted, render
from transfusion.data.sources import open_source
from transfusion.errors import UsageError
from transfusion.sequence import SequenceSpec, Stream, layouts, text

any_thing = st.builds(
    Thing, st.sampled_from(SHAPES), st.sampled_from([*COLOURS]), st.sampled_from([*SIZES]), st.integers(0, 8)
)
any_scene = st.builds(
    Scene,
    st.lists(any_thing, min_size=1, max_size=9, unique_by=lambda thing: thing.cell).map(tuple),
    st.sampled_from([*graph.BACKGROUNDS]),
)


@settings(max_examples=300, deadline=None)
@given(any_scene, st.sampled_from((32, 64)))
def test_the_parser_reads_every_scene_that_is_drawn(scene, pixels):
    shown = parse(render(scene, pixels))
    assert shown.scene == scene and not shown.faults


@pytest.mark.soak
def test_the_parser_reads_10_000_of_10_000_scenes_and_all_clips():
    for number in range(10_000):
        scene = tasks.draw("questions" if number % 2 else "captions", SPLITS[number % 6], number).scenes[0]
        for pixels in (32, 64):
            assert judge.same(scene, render(scene, pixels)), scene
    for number in range(5000):
        clip = tasks.draw("clips", ("train", "test", "pairs")[number % 3], number).clip
        assert parse_clip(moving.render_clip(clip)).states == clip.states(), clip


def test_the_parser_reads_through_noise_and_not_past_leftovers():
    rng = np.random.default_rng(0)
    for number in range(40):
        scene = tasks.draw("listed", "train", number).scenes[0]
        picture = render(scene).astype(np.float32)
        noisy = parse(np.clip(picture + rng.normal(0, 24, picture.shape), 0, 255))
        assert noisy.scene == scene and not noisy.faults
        spot = coverage("circle", 3.0, *rng.uniform(4, 28, 2).round().tolist(), 32)
        away = next(c for c in ("red", "blue", "cyan", "purple") if all(thing.colour != c for thing in scene.things))
        assert not judge.same(scene, painted(picture, spot, away))
        between = painted(picture, coverage("square", 4.0, 11.0, 11.0, 32), away)  # at the corner of four cells
        assert parse(between).faults
    for background in graph.BACKGROUNDS:
        assert parse(render(Scene((), background))).faults == ("nothing is there",)
    with pytest.raises(ValueError, match=r"\[4, 5, 3\]"):
        parse(np.zeros((4, 5, 3)))


def test_the_parser_reads_clips_and_what_they_are_not():
    for number in range(60):
        clip = tasks.draw("clips", ("train", "test", "pairs")[number % 3], number).clip
        frames = moving.render_clip(clip)
        shown = parse_clip(frames)
        assert (shown.states, shown.says, shown.background) == (clip.states(), clip.says, clip.background)
        backwards = parse_clip(frames[::-1])
        assert backwards.says != clip.says
        still = parse_clip(np.repeat(frames[:1], 8, 0))
        assert still.says == () and "no motion of ours" in still.faults
        spotted = np.where(np.arange(16)[:, None, None] > 12, frames ^ 128, frames)
        assert parse_clip(spotted).says == ()
    assert parse_clip(np.zeros((8, 16, 16, 3), np.uint8)).says == ()


def test_negative_controls_are_at_the_chance_that_was_stated():
    """A caption of the same skill, a wrong number, nothing, a swapped relation, and the nearest picture of training."""
    chance = {"single": 1 / 6, "two": 2 / 30, "colours": 1 / 30}
    for skill, stated in chance.items():
        says, right, of = words.all_says(skill, "train"), 0, 0
        for number in range(20):
            picture = render(tasks.draw("captions", "train", number, skill).scenes[0])
            shown = parse(picture)
            right += sum(all(judge.atoms(skill, other, shown).values()) for other in says)
            of += len(says)
        assert right / of == pytest.approx(stated)
    for number in range(40):
        drawn = tasks.draw("captions", "test", number, "counting")
        for count in {"two", "three", "four"} - {drawn.says[0]}:
            assert not judge.shows("counting", (count, drawn.says[1]), render(drawn.scenes[0]))
        drawn = tasks.draw("captions", "test", number, "position")
        first, relation, second = drawn.says
        picture = render(drawn.scenes[0])
        assert judge.shows("position", drawn.says, picture)
        assert not judge.shows("position", (second, relation, first), picture)
        for background in ("white", "black"):
            assert not judge.shows("position", drawn.says, render(Scene((), background)))
    train = np.stack([render(tasks.draw("listed", "train", i).scenes[0]) for i in range(300)]).astype(np.float32)
    for number in range(40):
        scene = tasks.draw("listed", "test", number).scenes[0]
        nearest = train[np.argmin(((train - render(scene)) ** 2).sum((1, 2, 3)))]
        assert not judge.same(scene, nearest)


def test_relations_are_those_of_genevals_rule():
    def box(y, x, height=10, width=10):
        return (y - height / 2, x - width / 2, y + height / 2, x + width / 2)

    assert graph.relations(box(50, 20), box(50, 80)) == {"left of"}
    assert graph.relations(box(80, 50), box(20, 50)) == {"below"}
    assert graph.relations(box(20, 20), box(80, 80)) == {"left of", "above"}
    assert graph.relations(box(50, 50), box(51, 50.5)) == frozenset()  # nearer than a tenth of both extents
    # 14 to the side and 30 down: shortened by 0.1 * (20 + 20) to 10 and 26 of 33.1.
    assert graph.relations(box(80, 64, 20, 20), box(50, 50, 20, 20)) == {"below"}


def test_no_split_shows_what_another_holds_out():
    seen = {}
    for name, task in tasks.TASKS.items():
        for split in task.splits:
            for number in range(25):
                drawn = tasks.draw(name, split, number)
                if drawn.clip:
                    assert moving.clip_split(drawn.clip) == draws.home(split)
                    continue
                *before, last = map(graph.split_of, drawn.scenes)
                assert last == draws.home(split)
                assert set(before) <= ({"train"} if split == "train" else {"train", "test", last})
                seen.setdefault(draws.home(split), set()).add(drawn.scenes[-1].key)
    assert seen.keys() == {*SPLITS} - {"paraphrases"}
    for one, other in itertools.combinations(seen.values(), 2):
        assert not one & other


def test_captions_have_the_bits_that_are_stated():
    for skill in words.SKILLS:
        for split in SPLITS:
            says = words.all_says(skill, split)
            if says:
                texts = [t.format(*said) for said in says for t in words.templates(skill, split)]
                assert len({*texts}) == len(texts) and math.log2(len(texts)) == pytest.approx(words.bits(skill, split))
    texts = {
        words.clip_caption(said, template)
        for said in moving.all_says("train")
        for template in words.templates(words.clip_skill(said), "train")
    }
    assert math.log2(len(texts)) == pytest.approx(words.bits("clips"))
    # Of one thing: 9 cells, 6 shapes, 5 colours and 2 sizes, without the six places that are held out.
    assert words._lists(1) == (9 * 6 - 6) * 5 * 2
    scenes = (Scene((Thing(s, c, z, p),)) for s in SHAPES for c in COLOURS for z in SIZES for p in range(9))
    assert sum(not graph.held(scene) for scene in scenes) == words._lists(1)
    counts = Counter(tasks.draw("captions", "train", n, "single").texts[0] for n in range(2400))
    assert len(counts) == 24 and min(counts.values()) > 60  # 100 each, on average
    with pytest.raises(ValueError, match="pairs"):
        words.bits("listed", "pairs")


def test_captions_say_what_is_shown_and_are_read_back():
    for number in range(120):
        split = SPLITS[number % 6]
        drawn = tasks.draw("captions", split, number)
        assert judge.shows(drawn.kind, drawn.says, render(drawn.scenes[0]))
        assert words.understood(drawn.texts[0]) == (drawn.kind, drawn.says)
        drawn = tasks.draw("listed", split, number)
        assert words.understood_list(drawn.texts[0]).things == drawn.scenes[0].things
    for number in range(60):
        drawn = tasks.draw("clips", "paraphrases" if number % 2 else "train", number)
        assert words.understood(drawn.texts[0]) == ("clips", drawn.clip.says)
    for wrong in ("", "a red", "a large red circle at the moon", "a red red circle at the top"):
        assert words.understood(wrong) is None and words.understood_list(wrong) is None
    twice = "a large red circle at the top and a small blue ring at the top"
    assert words.understood_list(twice) is None


def answer(question: str, scene: Scene) -> str:
    """The answer, found by another way: from the words and the things of the parsed picture."""
    named = [word for word in re.findall(r"[a-z]+", question) if word in (*SHAPES, *COLOURS)]
    shape = next((s for s in SHAPES if words.plural(s) in question.split("?")[0].split()), None) or next(
        (s for s in SHAPES if words.plural(s) + "?" in question or words.plural(s) + "." in question), None
    )
    if shape:
        return words.NUMBERS[sum(thing.shape == shape for thing in scene.things)]
    relation = next((name for name in graph.RELATIONS if f" {name} the " in question), None)
    if relation:
        first, second = (next(t for t in scene.things if t.shape == s) for s in named)
        return "yes" if relation in graph.relations(graph.box_of(first), graph.box_of(second)) else "no"
    if len(named) == 2:
        return "yes" if tuple(named) in {(t.colour, t.shape) for t in scene.things} else "no"
    (thing,) = (t for t in scene.things if named[0] in (t.shape, t.colour))
    if named[0] in COLOURS:
        return thing.shape
    if "colour" in question:
        return thing.colour
    return CELLS[thing.cell] if "where" in question or "place" in question else thing.size


def test_answers_are_right_and_cannot_be_guessed():
    yes = Counter()
    for number in range(600):
        split = ("train", "test", "paraphrases")[number % 3]
        drawn = tasks.draw("questions", split, number)
        assert drawn.texts[1] == answer(drawn.texts[0], parse(render(drawn.scenes[0])).scene), drawn
        if drawn.kind in ("exists", "relation"):
            yes[drawn.texts[1]] += 1
    assert 0.38 < yes["yes"] / yes.total() < 0.62
    assert {tasks.draw("questions", "train", n, "count").kind for n in range(9)} == {"count"}
    lonely = Scene((Thing("circle", "green", "large", 4),))
    assert ask(Chance(0), lonely, "train", "relation")[0] in QUESTIONS  # another kind, because it has no answer


def test_words_of_edits_and_stories_change_the_scene_as_it_is_shown():
    for number in range(140):
        kind, split = [*changes.CHANGES][number % 7], ("train", "test", "paraphrases", "pairs")[number % 4]
        plain = "" if kind in ("size", "background") else ("", "plain_")[number % 2]
        drawn = tasks.draw(f"{plain}edits", split, number, kind)
        before, after = drawn.scenes
        assert drawn.kind == kind and changes.changed(before, drawn.texts[0]) == after != before
        story = tasks.draw(f"{plain}stories", split, number)
        both = tasks.draw(f"{plain}subjects", split, number)
        for one in (drawn, story, both):
            assert not plain or all(draws.plainly(scene) == scene for scene in one.scenes)
        first, told = story.texts[0], story.texts[1:]
        assert words.understood_list(first.split(" there is ")[1]).things == story.scenes[0].things
        for one, two, said in zip(story.scenes, story.scenes[1:], told, strict=False):
            assert changes.changed(one, said) == two
    scene = Scene((Thing("circle", "green", "large", 4), Thing("ring", "red", "small", 0)))
    for wrong in ("sing", "move the red circle to the top", "move the red ring to the middle", "make the red ring red"):
        assert changes.changed(scene, wrong) is None


def test_maps_leave_out_what_their_words_say():
    """The map and the words together leave one scene, apart from the background of a layout, which it shows."""
    for number in range(30):
        scene = tasks.draw("masks", "train", number).scenes[0]
        other = dataclasses.replace(
            scene, things=tuple(dataclasses.replace(t, colour="red") for t in scene.things), background="grey"
        )
        np.testing.assert_array_equal(maps.masks(scene), maps.masks(other))
        np.testing.assert_array_equal(maps.edges(scene), maps.edges(other))
        assert all(f"a {t.colour} {t.shape}" in maps.MAPS["edges"][1](scene) for t in scene.things)
        colours = {tuple(pixel) for pixel in maps.layout(scene).reshape(-1, 3)}
        assert colours == {COLOURS[t.colour] for t in scene.things} | {graph.BACKGROUNDS[scene.background]}


def test_records_are_the_same_everywhere():
    """Literal records: a change of them changes every result that was ever measured."""
    drawn = tasks.draw("edits", "train", 0)
    assert (drawn.texts, drawn.scenes[1].key) == (("paint the background white",), "white|1 large purple ring")
    assert tasks.draw("clips", "train", 5).clip.key == "black|up  12 7 purple ring"
    assert tasks.draw("questions", "test", 7).texts == ("what is purple?", "triangle")


def source(name, split="train", **fields):
    return SourceConfig(kind="scenes", name=name, split=split, **fields)


def test_a_source_has_no_end_no_files_and_one_line_for_each_mistake():
    endless = open_source(source("captions", resolution=64))
    assert len(endless) == 2**30 and endless[2**30 - 1]["image"].shape == (64, 64, 3)
    assert len(open_source(source("stories", "test"))) == 1000
    clips = open_source(source("clips", length=4, resolution=24, channels=1))
    assert clips[3]["video"].shape == (4, 24, 24, 1)
    counting = open_source(source("captions/counting"))
    assert all(counting[i]["caption"].endswith("s") for i in range(5))
    for fields, line in (
        ({"name": "caption"}, "'caption'.*'captions'"),
        ({"name": "captions/countin"}, "counting"),
        ({"name": "clips", "split": "counts"}, "counts"),
        ({"name": "captions", "hold_out": 0.1}, "nothing to hold out"),
        ({"name": "captions", "resolution": 8}, "at least 16"),
    ):
        with pytest.raises(UsageError, match=line):
            open_source(SourceConfig(kind="scenes", **fields))


IMAGE = Stream(
    embed="linear", head="linear", objective="continuous", attention="block", time="added", channels=3, patch=8,
    grid=(32, 32), budget=256,
)  # fmt: skip
SPEC = SequenceSpec(
    {"text": Stream(vocabulary=text.VOCABULARY, budget=768), "image": IMAGE}, layouts.transfusion(), text.BOS, text.EOS
)


def test_a_mixture_of_all_tasks_resumes_exactly():
    names = [name for name in tasks.TASKS if name != "clips"]
    config = DataConfig(sources={name: source(name) for name in names}, cache=False, caption_first=0.5)
    with Pipeline(config, SPEC, 2) as pipeline:
        for _ in range(4):
            next(pipeline)
        state = json.loads(json.dumps(pipeline.state()))
        expected = [next(pipeline) for _ in range(3)]
        assert not pipeline.stats()["bad"]
    with Pipeline(config, SPEC, 2) as pipeline:
        pipeline.restore(state)
        found = [next(pipeline) for _ in range(3)]
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(ours, theirs)
