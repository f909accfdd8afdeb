"""Prompts that users pass to a run: a text, an array, a picture or a path, or a list of them.

A value that is no list is one prompt and gives one result; a list (or tuple) is several prompts. Each item of a list is
a prompt of one part, or itself a list of the parts of one prompt, in reading order.
"""

import dataclasses
import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from transfusion.errors import UsageError, shown
from transfusion.sampling.config import plain_number
from transfusion.sequence import TEXT

Part = str | np.ndarray | Image.Image | os.PathLike
Prompts = Part | Sequence[Part | Sequence[Part]]
MOST_CHARACTERS = 1_000_000
MOST_NUMBERS = 2**22  # latents or codes of a drawing whose size is asked for
WHAT = "a text, an array, a PIL image, a pathlib.Path or a list of these"


@dataclasses.dataclass(frozen=True)
class Given:
    """Prompts, each a tuple of its parts, and whether it is `one` that came without a list."""

    prompts: list[tuple[Part, ...]]
    one: bool


def as_prompts(value: Any, several_axes: int = 0) -> Given:
    """Turns the value that a user passes into prompts.

    Args:
      value: see the top of this file; an array of texts is a list of them.
      several_axes: axes of an array that holds several media, one for each prompt; 0: an array is one medium.

    Raises:
      UsageError: if it is none of these.
    """
    value = _plain(value)
    if isinstance(value, np.ndarray) and several_axes and value.ndim == several_axes:
        value = list(value)
    if not isinstance(value, list | tuple):
        return Given([(_part(value),)], True)
    if not len(value):
        raise UsageError("there are no prompts: the list is empty")
    return Given([_parts(_plain(item)) for item in value], False)


def _parts(item: Any) -> tuple[Part, ...]:
    return tuple(_part(_plain(part)) for part in item) if isinstance(item, list | tuple) else (_part(item),)


def _plain(value: Any) -> Any:
    """Turns arrays of other libraries into NumPy's, and arrays of texts into lists."""
    if isinstance(value, str | Image.Image) or not hasattr(value, "__array__"):
        return value
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:  # an array on a device that NumPy cannot read
        raise UsageError(f"a prompt is {WHAT}; this {type(value).__name__} is no array for NumPy: {error}") from error
    return array.tolist() if array.dtype.kind in "UO" else array


def _part(value: Any) -> Part:
    if isinstance(value, str):
        return checked_text(value)
    if isinstance(value, Image.Image | os.PathLike) or (isinstance(value, np.ndarray) and value.ndim):
        return value
    raise UsageError(f"a prompt is {WHAT}, not {type(value).__name__}")


def checked_text(text: str) -> str:
    """Returns the text if it can be encoded.

    Raises:
      UsageError: if it is too long, or holds something that is no character.
    """
    if len(text) > MOST_CHARACTERS:
        raise UsageError(f"a prompt of {len(text):,} characters: at most {MOST_CHARACTERS:,} are read")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"a prompt is not Unicode text: its character {error.start + 1} is a byte that is no UTF-8, or half of a "
            "surrogate pair"
        ) from error
    return text


def as_paths(value: Any) -> Any:
    """Turns every text in the prompts into a path, for calls that take media only.

    Raises:
      UsageError: if a prompt has several parts.
    """
    value = _plain(value)
    if isinstance(value, str):
        return as_path(value)
    if not isinstance(value, list | tuple):
        return value
    if any(isinstance(item, list | tuple) for item in value):
        raise UsageError("a caption is of one picture, clip or sound: use generate for prompts of several parts")
    return [as_path(item) if isinstance(item, str) else item for item in value]


def as_path(text: str) -> pathlib.Path:
    """Turns a text into the path of a file on this machine.

    Raises:
      UsageError: if it is empty, or is an address, which `pathlib` would turn into the path of something else.
    """
    if not text.strip():
        raise UsageError("the path of a file is empty")
    if "://" in text:
        raise UsageError(f"cannot read {shown(text)}: only files of this machine are read, so copy it here first")
    return pathlib.Path(text)


def as_labels(label: Any, given: Given) -> tuple[Given, list[int]]:
    """Gives each prompt a class, -1 for none; one prompt with several classes becomes as many prompts.

    Raises:
      UsageError: if their numbers differ, or a class is no whole number from 0 on.
    """
    count = len(given.prompts)
    if label is None:
        return given, [-1] * count
    label = label.tolist() if hasattr(label, "tolist") else label
    labels = list(label) if isinstance(label, list | tuple | range) else [label]
    for number in labels:
        if isinstance(number, bool) or not isinstance(number, int | np.integer) or not 0 <= number < 2**31:
            raise UsageError(
                f"label={shown(repr(number))} is no class: give a whole number from 0 on, or a list of them"
            )
    if not labels:
        raise UsageError("label is an empty list: leave it out, or give a class for each prompt")
    if not isinstance(label, list | tuple | range):
        return given, [int(label)] * count
    if given.one:
        return Given(given.prompts * len(labels), False), [int(number) for number in labels]
    if len(labels) != count:
        raise UsageError(f"{len(labels)} labels for {count} prompts: give one for each, or one for all")
    return given, [int(number) for number in labels]


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a prompt asks for: a class, -1 for none; the kind of its drawing, '' for the model's only one; and its size,
    zeros for the model's."""

    label: int = -1
    kind: str = ""
    size: tuple[int, ...] = (0, 0)


def as_asked(given: Given, label: Any, kind: Any, size: Any) -> tuple[Given, list[Asked]]:
    """Gives each prompt what it asks for; each value is one for all, or a list with one for each.

    One prompt with a list becomes as many prompts.

    Raises:
      UsageError: if their numbers differ, or one is no class, no name of a kind or no size.
    """
    size = size.tolist() if isinstance(size, np.ndarray) else size
    several = {"kind": isinstance(kind, list | tuple), "size": is_several(size)}
    given, labels = as_labels(label, given)
    for name, values in (("kind", kind), ("size", size)):
        if not several[name]:
            continue
        if not len(values):
            raise UsageError(f"{name} is an empty list: leave it out, or give a {name} for each prompt")
        if given.one:
            given, labels = Given(given.prompts * len(values), False), labels * len(values)
        if len(values) != len(given.prompts):
            raise UsageError(
                f"{len(values)} {name}s for {len(given.prompts)} prompts: give one for each, or one for all"
            )
    count = len(given.prompts)
    kinds = [checked_kind(one) for one in (kind if several["kind"] else [kind] * count)]
    sizes = [checked_size(one) for one in (size if several["size"] else [size] * count)]
    return given, [Asked(*asked) for asked in zip(labels, kinds, sizes, strict=True)]


def is_several(size: Any) -> bool:
    """Whether a size is a list of sizes."""
    return isinstance(size, list | tuple) and any(isinstance(side, list | tuple | np.ndarray) for side in size)


def checked_kind(kind: Any) -> str:
    """Returns the name of a kind of drawing.

    Raises:
      UsageError: if it is none.
    """
    if not isinstance(kind, str):
        raise UsageError(f"kind={shown(repr(kind))} must be the name of what is drawn, such as 'image'")
    if kind == TEXT:
        raise UsageError("kind='text': a text is written, not drawn; leave kind out, and set max_images=0")
    return kind


def yes_or_no(name: str, value: Any) -> bool:
    """Returns a setting that must be true or false.

    Raises:
      UsageError: naming it, if it is something else.
    """
    value = plain_number(value)
    if not isinstance(value, int) or value not in (0, 1):
        raise UsageError(f"{name}={shown(repr(value))} must be True or False")
    return bool(value)


def whole_number(name: str, value: Any, most: int) -> int:
    """Returns a setting that must be a whole number from 0 to `most`.

    Raises:
      UsageError: naming it, if it is something else.
    """
    value = plain_number(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise UsageError(f"{name}={shown(repr(value))} must be a whole number")
    if not 0 <= value <= most:
        raise UsageError(f"{name}={f'{value}':.40} must be between 0 and {most}")
    return int(value)


def checked_size(size: Sequence[int]) -> tuple[int, ...]:
    """Returns the sides of a drawing.

    Raises:
      UsageError: if they are no whole numbers, or make too many latents.
    """
    size = size.tolist() if isinstance(size, np.ndarray) else size
    if not isinstance(size, list | tuple) or not 1 <= len(size) <= 3:
        raise UsageError(f"size={shown(repr(size))} must be one to three whole numbers, as in size=(8, 8)")
    sides = tuple(whole_number("size", side, MOST_NUMBERS) for side in size)
    if math.prod(sides) > MOST_NUMBERS or (any(sides) and not all(sides)):
        raise UsageError(f"size={sides}: all sides are 0, or together at most {MOST_NUMBERS:,} latents")
    return sides
