"""Changes of a scene: what edits ask for, and what happens between two panels of a story.

`CHANGES` is the table of them. Each has words that ask for it and words that tell it; `understood` reads both.
"""

import dataclasses
import functools
import itertools
import re
from collections.abc import Callable

from transfusion.data.scenes.draws import BACKGROUND_NAMES, COLOUR_NAMES, SIZE_NAMES, Chance
from transfusion.data.scenes.graph import CELLS, SHAPES, Scene, Thing

Values = dict[str, str]
"""What the fields of a change's words are."""

_FIELDS = {
    "colour": COLOUR_NAMES, "shape": SHAPES, "size": SIZE_NAMES, "place": CELLS, "background": BACKGROUND_NAMES,
    "new_colour": COLOUR_NAMES, "new_shape": SHAPES,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Change:
    """A kind of change.

    Attributes:
      asks: words of an edit: those of training, then one that the split 'paraphrases' has alone.
      tells: words of a story, in the same order.
      draw: values that fit a scene; None if it cannot be changed in this way.
      apply: the changed scene; None if the values do not fit the scene.
    """

    asks: tuple[str, ...]
    tells: tuple[str, ...]
    draw: Callable[[Chance, Scene], Values | None]
    apply: Callable[[Scene, Values], Scene | None]

    def words(self, chance: Chance, values: Values, told: bool, split: str) -> str:
        """Words for the change, of those that the split has."""
        *known, new = self.tells if told else self.asks
        return chance.of([new] if split == "paraphrases" else known).format(**values)


def _named(scene: Scene, values: Values) -> Thing | None:
    """The thing that the words name; None if there is none, or several."""
    found = [t for t in scene.things if (t.colour, t.shape) == (values["colour"], values["shape"])]
    return found[0] if len(found) == 1 else None


def _replaced(scene: Scene, old: Thing, new: Thing | None) -> Scene | None:
    things = [thing for thing in scene.things if thing != old]
    if new is not None and any(thing.cell == new.cell for thing in things):
        return None
    return dataclasses.replace(scene, things=(*things, *([new] if new else [])))


def _on_thing(change: Callable[[Thing, Values], Thing | None]) -> Callable[[Scene, Values], Scene | None]:
    def apply(scene: Scene, values: Values) -> Scene | None:
        thing = _named(scene, values)
        made = _replaced(scene, thing, change(thing, values)) if thing else None
        return made if made != scene else None

    return apply


def _draw_on_thing(draw: Callable[[Chance, Scene, Thing], Values]) -> Callable[[Chance, Scene], Values | None]:
    def chosen(chance: Chance, scene: Scene) -> Values | None:
        if not scene.things:
            return None
        thing = chance.of(scene.things)
        return {"colour": thing.colour, "shape": thing.shape} | draw(chance, scene, thing)

    return chosen


def _free(scene: Scene) -> list[str]:
    taken = {thing.cell for thing in scene.things}
    return [name for cell, name in enumerate(CELLS) if cell not in taken]


def _new(names: tuple[str, ...], chance: Chance, *old: str) -> str:
    return chance.of([name for name in names if name not in old])


def _draw_added(chance: Chance, scene: Scene) -> Values | None:
    shapes, colours = ({getattr(thing, name) for thing in scene.things} for name in ("shape", "colour"))
    if len(scene.things) > 3:
        return None
    return {
        "size": chance.of(SIZE_NAMES), "colour": _new(COLOUR_NAMES, chance, *sorted(colours)),
        "shape": _new(SHAPES, chance, *sorted(shapes)), "place": chance.of(_free(scene)),
    }  # fmt: skip


def _added(scene: Scene, values: Values) -> Scene | None:
    new = Thing(values["shape"], values["colour"], values["size"], CELLS.index(values["place"]))
    if any(thing.cell == new.cell for thing in scene.things):
        return None
    return dataclasses.replace(scene, things=(*scene.things, new))


def _turned_background(scene: Scene, values: Values) -> Scene | None:
    made = dataclasses.replace(scene, background=values["background"])
    return made if made != scene else None


_IT = "the {colour} {shape}"
CHANGES: dict[str, Change] = {
    "colour": Change(
        (f"make {_IT} {{new_colour}}", f"paint {_IT} {{new_colour}}", f"recolour {_IT} to {{new_colour}}"),
        (f"{_IT} turns {{new_colour}}", f"{_IT} becomes {{new_colour}}", f"now {_IT} is {{new_colour}}"),
        _draw_on_thing(
            lambda chance, scene, thing: {"new_colour": _new(COLOUR_NAMES, chance, *(t.colour for t in scene.things))}
        ),
        _on_thing(lambda thing, values: dataclasses.replace(thing, colour=values["new_colour"])),
    ),
    "place": Change(
        (f"move {_IT} to the {{place}}", f"put {_IT} at the {{place}}", f"shift {_IT} to the {{place}}"),
        (f"{_IT} moves to the {{place}}", f"{_IT} goes to the {{place}}", f"now {_IT} is at the {{place}}"),
        _draw_on_thing(lambda chance, scene, thing: {"place": chance.of(_free(scene))}),
        _on_thing(lambda thing, values: dataclasses.replace(thing, cell=CELLS.index(values["place"]))),
    ),
    "remove": Change(
        (f"remove {_IT}", f"take {_IT} away", f"delete {_IT}"),
        (f"{_IT} vanishes", f"{_IT} goes away", f"now {_IT} is gone"),
        lambda chance, scene: _draw_on_thing(lambda *_: {})(chance, scene) if len(scene.things) > 1 else None,
        _on_thing(lambda thing, values: None),
    ),
    "add": Change(
        ("add a {size} {colour} {shape} at the {place}", "put a {size} {colour} {shape} at the {place}")
        + ("place a {size} {colour} {shape} at the {place}",),
        ("a {size} {colour} {shape} appears at the {place}", "a {size} {colour} {shape} comes to the {place}")
        + ("now a {size} {colour} {shape} is at the {place}",),
        _draw_added,
        _added,
    ),
    "size": Change(
        (f"make {_IT} {{size}}", f"let {_IT} be {{size}}", f"resize {_IT} to {{size}}"),
        (f"{_IT} gets {{size}}", f"{_IT} becomes {{size}}", f"now {_IT} is {{size}}"),
        _draw_on_thing(lambda chance, scene, thing: {"size": _new(SIZE_NAMES, chance, thing.size)}),
        _on_thing(lambda thing, values: dataclasses.replace(thing, size=values["size"])),
    ),
    "shape": Change(
        (f"turn {_IT} into a {{new_shape}}", f"replace {_IT} by a {{new_shape}}", f"change {_IT} to a {{new_shape}}"),
        (f"{_IT} turns into a {{new_shape}}", f"{_IT} becomes a {{new_shape}}", f"now {_IT} is a {{new_shape}}"),
        _draw_on_thing(
            lambda chance, scene, thing: {"new_shape": _new(SHAPES, chance, *(t.shape for t in scene.things))}
        ),
        _on_thing(lambda thing, values: dataclasses.replace(thing, shape=values["new_shape"])),
    ),
    "background": Change(
        ("make the background {background}", "paint the background {background}", "set the background to {background}"),
        ("the background turns {background}", "the background becomes {background}")
        + ("now the background is {background}",),
        lambda chance, scene: {"background": _new(BACKGROUND_NAMES, chance, scene.background)},
        _turned_background,
    ),
}


def draw_change(chance: Chance, scene: Scene) -> tuple[str, Values, Scene] | None:
    """A change that fits a scene: its key in `CHANGES`, its values and the changed scene; None if none was found."""
    name = chance.of([*CHANGES])
    values = CHANGES[name].draw(chance, scene)
    made = CHANGES[name].apply(scene, values) if values else None
    return (name, values, made) if made else None


@functools.cache
def _patterns() -> tuple[tuple[str, re.Pattern], ...]:
    groups = {name: f"(?P<{name}>{'|'.join(values)})" for name, values in _FIELDS.items()}
    return tuple(
        (name, re.compile(template.format(**groups)))
        for name, change in CHANGES.items()
        for template in itertools.chain(change.asks, change.tells)
    )


def understood(words: str) -> tuple[str, Values] | None:
    """The key in `CHANGES` and the values of a change that words ask for or tell; None if they are no words of ours."""
    for name, pattern in _patterns():
        if found := pattern.fullmatch(words.strip()):
            return name, found.groupdict()
    return None


def changed(scene: Scene, words: str) -> Scene | None:
    """The scene after the change that words ask for or tell; None if they ask for none that fits it."""
    found = understood(words)
    return CHANGES[found[0]].apply(scene, found[1]) if found else None
