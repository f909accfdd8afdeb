"""The words of the recordings in Debian's package asterisk-core-sounds-en-wav, told from their file names."""

import re

_ONES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
         "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen")  # fmt: skip
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_ORDINALS = {"one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth",
             "twelve": "twelfth"}  # fmt: skip
_DAYS = ("Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")
_MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
           "December")  # fmt: skip
_SPOKEN = {"a-m": "a m", "p-m": "p m", "oclock": "o'clock"}


def _number(name: str) -> str:
    """'7' -> 'seven'; words stay."""
    if not name.isdigit():
        return name
    return _ONES[int(name)] if int(name) < 20 else _TENS[int(name) // 10 - 2]


def _ordinal(word: str) -> str:
    """'seven' -> 'seventh'."""
    return _ORDINALS.get(word) or (word[:-1] + "ieth" if word.endswith("y") else word + "th")


def spoken(name: str) -> str:
    """The words of a recording with a name such as '7' or 'vm-goodbye'.

    Numbers, ordinals, days and months are spelled out; other names are taken word by word.
    """
    prefix, _, rest = name.partition("-")
    if prefix == "day" and rest.isdigit():
        return _DAYS[int(rest)]
    if prefix == "mon" and rest.isdigit():
        return _MONTHS[int(rest)]
    if prefix == "h" and rest:
        return _ordinal(_number(rest))
    return _SPOKEN.get(name) or " ".join(re.findall(r"[A-Za-z']+|\d+", _number(name)))
