"""The records of each task, all of them made from scene graphs. `TASKS` is the table of the tasks.

A task draws its content first (`Drawn`: what is said and shown, which the evaluation compares with), and makes a record
of it. Captions and clips are short records with a medium and its caption; the others have segments.
"""

import dataclasses
import functools
from collections.abc import Callable

from transfusion.data.scenes import draws, maps, words
from transfusion.data.scenes.changes import CHANGES, draw_change
from transfusion.data.scenes.draws import Chance
from transfusion.data.scenes.graph import CELLS, SPLITS, Scene
from transfusion.data.scenes.moving import Clip, all_says, render_clip
from transfusion.data.scenes.questions import QUESTIONS, ask, ask_fact
from transfusion.data.scenes.render import render
from transfusion.data.segments import RawSegment
from transfusion.sequence import TEXT

PANELS = 4  # of a story
PLAN = ": "  # between what is asked or told and the list of all that the picture will show


@dataclasses.dataclass(frozen=True)
class Drawn:
    """The content of a record.

    Attributes:
      kind: a skill of `words.SKILLS`, a kind of question, a key of `changes.CHANGES`, or the name of the task.
      texts: what is said, in reading order.
      scenes: what is shown, in reading order.
      clip: what is shown, if it is a clip.
      says: what the caption says, see `words.Says`.
    """

    kind: str
    texts: tuple[str, ...]
    scenes: tuple[Scene, ...] = ()
    clip: Clip | None = None
    says: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class SceneTask:
    """A task.

    Attributes:
      draw: draws its content: from chance, of a split, of one of `kinds` ('': any).
      record: makes a record of it, with pictures of so many pixels.
      kinds: of which kinds a record may be.
      splits: those that it has.
      pixels: the usual size.
    """

    draw: Callable[[Chance, str, str], Drawn]
    record: Callable[[Drawn, int], dict]
    kinds: tuple[str, ...] = ()
    splits: tuple[str, ...] = SPLITS
    pixels: int = 32


def _caption(chance: Chance, split: str, kind: str, world: draws.World | None = None) -> Drawn:
    skill = kind or chance.of(words.skills_of(split))

    def draw() -> Drawn | None:
        says = chance.of(words.all_says(skill, split))
        caption = chance.of(words.templates(skill, split)).format(*says)
        scene = draws.scene_for(chance, skill, says, split, world)
        return Drawn(skill, (caption,), (scene,), says=says) if scene else None

    return draws.until(draw, lambda _: True)


def _listed(chance: Chance, split: str, kind: str, world: draws.World | None = None) -> Drawn:
    scene = draws.any_scene(chance, split, 1, words.MOST_LISTED, world=world)
    return Drawn("listed", (chance.of(words.templates("listed", split)).format(words.list_words(scene)),), (scene,))


def _planned(chance: Chance, split: str, kind: str) -> Drawn:
    """A caption of the plain world, and a list of all that its picture shows."""
    told = _caption(chance, split, kind, draws.plainly)
    return dataclasses.replace(told, texts=(*told.texts, words.list_words(told.scenes[0])))


def _question(chance: Chance, split: str, kind: str) -> Drawn:
    scene = draws.any_scene(chance, split, 2, 4)
    asked, question, answer = ask(chance, scene, split, kind)
    return Drawn(asked, (question, answer), (scene,))


def _fact(chance: Chance, split: str, kind: str, world: draws.World | None = None) -> Drawn:
    return fact_of(_caption(chance, split, kind, world), chance, split)


def fact_of(told: Drawn, chance: Chance, split: str) -> Drawn:
    """The question to what a caption says, about the caption's picture."""
    return dataclasses.replace(told, texts=ask_fact(chance, told.kind, told.says, split))


def _any_world(scene: Scene) -> Scene:
    """The world of all scenes. A world has those that it does not change."""
    return scene


def _edit(chance: Chance, split: str, kind: str, world: draws.World = _any_world) -> Drawn:
    def draw() -> tuple | None:
        before = world(draws.some_scene(chance, chance.of((1, 2, 3)), different=True))
        made = draw_change(chance, before)
        good = made is not None and made[0] == (kind or made[0]) and world(made[2]) == made[2]
        return (before, *made) if good and draws.belongs((before, made[2]), split) else None

    before, name, values, after = draws.until(draw, lambda _: True)
    return Drawn(name, (CHANGES[name].words(chance, values, False, split),), (before, after))


def _story(chance: Chance, split: str, kind: str, world: draws.World = _any_world) -> Drawn:
    def draw() -> tuple | None:
        scenes = [world(draws.some_scene(chance, chance.of((1, 2)), different=True))]
        told = []
        while len(scenes) < PANELS:
            made = draw_change(chance, scenes[-1])
            if made is None or world(made[2]) != made[2]:
                return None
            told.append(made[:2])
            scenes.append(made[2])
        return (scenes, told) if draws.belongs(scenes, split) else None

    scenes, told = draws.until(draw, lambda _: True)
    first = f"on {scenes[0].background} there is {words.list_words(scenes[0])}"
    texts = (first, *(CHANGES[name].words(chance, values, True, split) for name, values in told))
    return Drawn("stories", texts, tuple(scenes))


def _subjects(chance: Chance, split: str, kind: str, world: draws.World = _any_world) -> Drawn:
    """Two pictures with a thing each, and both things together at places that the words name."""

    def draw() -> tuple[Scene, ...] | None:
        both = world(draws.some_scene(chance, 2, different=True))
        alone = [
            Scene((dataclasses.replace(thing, cell=chance.of(range(9))),), both.background)
            for thing in chance.some(both.things, 2)
        ]
        return (*alone, both) if draws.belongs((*alone, both), split) else None

    first, second, both = draws.until(draw, lambda _: True)
    places = [next(CELLS[t.cell] for t in both.things if t.shape == alone.things[0].shape) for alone in (first, second)]
    template = "first {}, then {}" if split == "paraphrases" else "the first at the {}, the second at the {}"
    return Drawn("subjects", (template.format(*places),), (first, second, both))


def _mapped(name: str) -> Callable[[Chance, str, str], Drawn]:
    def draw(chance: Chance, split: str, kind: str) -> Drawn:
        scene = draws.any_scene(chance, split, 1, 3)
        return Drawn(name, (maps.MAPS[name][1](scene),), (scene,))

    return draw


def _clip(chance: Chance, split: str, kind: str) -> Drawn:
    """All that a caption can say has the same share."""
    says = chance.of([says for says in all_says(draws.home(split)) if kind in ("", words.clip_skill(says))])
    skill = words.clip_skill(says)
    caption = words.clip_caption(says, chance.of(words.templates(skill, split)))
    return Drawn(skill, (caption,), clip=draws.clip_for(chance, says, split), says=says)


# --- records ----------------------------------------------------------------------------------------------------------


def _captioned(drawn: Drawn, pixels: int) -> dict:
    return {"image": render(drawn.scenes[0], pixels), "caption": drawn.texts[0]}


def _moving(drawn: Drawn, pixels: int) -> dict:
    return {"video": render_clip(drawn.clip, pixels), "caption": drawn.texts[0]}


def _given(scene: Scene, pixels: int) -> RawSegment:
    return RawSegment("image", render(scene, pixels), "context", loss=False)


def _words(text: str) -> RawSegment:
    return RawSegment(TEXT, text, loss=False)


def _made(scene: Scene, pixels: int) -> RawSegment:
    return RawSegment("image", render(scene, pixels), "target")


def _depicted(drawn: Drawn, pixels: int) -> dict:
    """Only the picture is learned."""
    return {"segments": (_words(drawn.texts[0]), _made(drawn.scenes[0], pixels))}


def _thought(drawn: Drawn, pixels: int) -> dict:
    """The plan is learned, too."""
    caption, plan = drawn.texts
    return {"segments": (_words(caption + PLAN), RawSegment(TEXT, plan), _made(drawn.scenes[0], pixels))}


def _asked(drawn: Drawn, pixels: int) -> dict:
    question, answer = drawn.texts
    return {"segments": (_given(drawn.scenes[0], pixels), _words(f"{question} "), RawSegment(TEXT, answer))}


def _edited(drawn: Drawn, pixels: int) -> dict:
    *given, last = drawn.scenes
    return {"segments": (*(_given(scene, pixels) for scene in given), _words(drawn.texts[0]), _made(last, pixels))}


def _planned_edit(drawn: Drawn, pixels: int) -> dict:
    """What the picture will show is written first."""
    *given, last = drawn.scenes
    said = (_words(drawn.texts[0] + PLAN), RawSegment(TEXT, words.list_words(last)))
    return {"segments": (*(_given(scene, pixels) for scene in given), *said, _made(last, pixels))}


def _told(drawn: Drawn, pixels: int) -> dict:
    """Each panel is drawn, and read by what follows."""
    parts: list[RawSegment] = []
    for text, scene in zip(drawn.texts, drawn.scenes, strict=True):
        parts += [RawSegment(TEXT, text), RawSegment("image", render(scene, pixels), "both")]
    return {"segments": tuple(parts)}


def _planned_story(drawn: Drawn, pixels: int) -> dict:
    """What a panel will show is written behind its sentence; the first sentence lists it itself."""
    first, *told = drawn.texts
    plans = (text + PLAN + words.list_words(scene) for text, scene in zip(told, drawn.scenes[1:], strict=True))
    return _told(dataclasses.replace(drawn, texts=(first, *plans)), pixels)


def _from_map(drawn: Drawn, pixels: int) -> dict:
    (scene,) = drawn.scenes
    shown = RawSegment("image", maps.MAPS[drawn.kind][0](scene, pixels), "context", loss=False)
    return {"segments": (shown, _words(drawn.texts[0]), _made(scene, pixels))}


# Words name a thing by its colour and shape, so that no two may share them: then there is nothing to count.
_UNCOUNTED = tuple(split for split in SPLITS if split != "counts")
_PLAIN_CHANGES = tuple(name for name in CHANGES if name not in ("size", "background"))
_OF_CLIPS = ("train", "test", "pairs", "paraphrases")


def _plain(name: str, draw: Callable, record: Callable, planned: Callable, kinds: tuple[str, ...] = ()) -> dict:
    """A task of the plain world, and the same with a plan before each picture."""
    plain = functools.partial(draw, world=draws.plainly)
    made = {f"plain_{name}": record, f"planned_{name}": planned}
    return {key: SceneTask(plain, record, kinds, _UNCOUNTED) for key, record in made.items()}


TASKS: dict[str, SceneTask] = {
    "captions": SceneTask(_caption, _captioned, words.SKILLS),
    "listed": SceneTask(_listed, _captioned),
    "depicted": SceneTask(_listed, _depicted),
    "questions": SceneTask(_question, _asked, tuple(QUESTIONS)),
    "facts": SceneTask(_fact, _asked, words.SKILLS),
    "plain_captions": SceneTask(functools.partial(_caption, world=draws.plainly), _captioned, words.SKILLS),
    "plain_listed": SceneTask(functools.partial(_listed, world=draws.plainly), _captioned),
    "plain_told": SceneTask(functools.partial(_caption, world=draws.plainly), _depicted, words.SKILLS),
    "plain_planned": SceneTask(_planned, _thought, words.SKILLS),
    "plain_facts": SceneTask(functools.partial(_fact, world=draws.plainly), _asked, words.SKILLS),
    "edits": SceneTask(_edit, _edited, tuple(CHANGES), _UNCOUNTED),
    "stories": SceneTask(_story, _told, splits=_UNCOUNTED),
    "subjects": SceneTask(_subjects, _edited, splits=_UNCOUNTED),
    **_plain("edits", _edit, _edited, _planned_edit, _PLAIN_CHANGES),
    **_plain("stories", _story, _told, _planned_story),
    **_plain("subjects", _subjects, _edited, _planned_edit),
    **{name: SceneTask(_mapped(name), _from_map) for name in maps.MAPS},
    "clips": SceneTask(_clip, _moving, ("moves", "appears", "vanishes", "turns"), _OF_CLIPS, 16),
}


def draw(task: str, split: str, number: int, kind: str = "") -> Drawn:
    """The content of record `number` of a task and a split.

    Args:
      task: a key of `TASKS`.
      split: one of its `splits`.
      number: from 0 on.
      kind: one of the task's `kinds`; '' draws one.
    """
    return TASKS[task].draw(Chance(task, split, number, kind), split, kind)
