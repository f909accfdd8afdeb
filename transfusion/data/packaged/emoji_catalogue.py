"""The names of emoji as natural captions, and the (emoji, skin tone) combinations that are held out.

The held-out combinations test composition: training shows the emoji with other skin tones, and other emoji with the
tone.
"""

import dataclasses
import hashlib
import re
from collections.abc import Iterable

from transfusion.errors import require

HELD_OUT_SHARE = 0.1
_TONE = re.compile(r" ((?:medium-light|medium-dark|medium|light|dark) skin tone)")
_HAIR = re.compile(r"^(man|woman|person) ((?:red|curly|white|blond) hair|beard)$")
_PEOPLE = re.compile(r"^(couple with heart|kiss|family) ((?:(?:man|woman|person|adult|child|boy|girl) ?)+)$")


@dataclasses.dataclass(frozen=True)
class NamedEmoji:
    """An emoji and its name. `base` is the caption without skin tones; `tones` names one or two tones, or is ''."""

    codepoints: str  # lower-case hexadecimal, joined by '-', without the variation selector where the art has none
    characters: str
    name: str
    base: str
    tones: str

    @property
    def caption(self) -> str:
        return f"{self.base}, {self.tones}" if self.tones else self.base


def catalogue(available: Iterable[str]) -> list[NamedEmoji]:
    """Returns the named emoji whose codepoints are in `available` (file stems of Twemoji), each once, sorted.

    Raises:
      UsageError: if the package `emoji` is missing.
      ValueError: if two emoji would have the same caption.
    """
    data = require("emoji", "demo").EMOJI_DATA
    available = set(available)
    found: dict[str, NamedEmoji] = {}
    for characters, entry in data.items():
        for text in (characters, characters.replace("\ufe0f", "")):
            key = "-".join(f"{ord(c):x}" for c in text)
            if key in available:
                found.setdefault(key, _emoji(key, characters, entry["en"]))
                break
    result = [found[key] for key in sorted(found)]
    if len({e.caption for e in result}) != len(result):
        raise ValueError("two emoji have one caption: this version of the package 'emoji' needs a new naming rule")
    return result


def held_out(emoji: Iterable[NamedEmoji], share: float = HELD_OUT_SHARE) -> set[str]:
    """Returns the codepoints of the combinations to hold out: about `share` of all that have a skin tone.

    A combination is held out if a hash of (base, tones) is below a threshold, so that the choice does not change when
    other emoji come or go. At least one combination of each base and of each tone stays in training: if none is left,
    the one with the largest hash returns.
    """
    toned = [e for e in emoji if e.tones]
    out = {e.codepoints for e in toned if _share(e.base, e.tones) < share}
    for part in ("base", "tones"):
        groups: dict[str, list[NamedEmoji]] = {}
        for e in toned:
            groups.setdefault(getattr(e, part), []).append(e)
        for group in groups.values():
            if all(e.codepoints in out for e in group):
                out.discard(max(group, key=lambda e: _share(e.base, e.tones)).codepoints)
    return out


def _emoji(codepoints: str, characters: str, alias: str) -> NamedEmoji:
    name = alias.strip(":").replace("_", " ").replace("’", "'")
    tones = _TONE.findall(name)
    base = _natural(_TONE.sub("", name))
    if _is_flag(characters):
        base = f"flag of {base}"
    return NamedEmoji(codepoints, characters, name, base, " and ".join(tones))


def _natural(base: str) -> str:
    """Puts back the words that the package's aliases lose: 'man red hair', 'kiss woman man', 'person bald'."""
    if match := _HAIR.match(base):
        return f"{match[1]} with {match[2]}"
    if match := re.match(r"^(man|woman|person) bald$", base):
        return f"bald {match[1]}"
    if match := _PEOPLE.match(base):
        people = match[2].split()
        return f"{match[1]}, {', '.join(people[:-1])} and {people[-1]}" if len(people) > 1 else base
    return base


def _is_flag(characters: str) -> bool:
    regional = len(characters) == 2 and all(0x1F1E6 <= ord(c) <= 0x1F1FF for c in characters)
    return regional or any(0xE0061 <= ord(c) <= 0xE007A for c in characters)


def _share(*parts: str) -> float:
    return int.from_bytes(hashlib.sha256("|".join(parts).encode()).digest()[:8], "big") / 2**64
