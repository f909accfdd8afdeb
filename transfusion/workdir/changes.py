"""Finds the fields in which two experiments differ, and says what each difference means for a run that continues.

A table of rules says which fields give the weights their meaning. Those may change only on purpose; all other changes
are logged.
"""

import dataclasses
import enum
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from transfusion.config import Experiment, to_json
from transfusion.objectives.paths import ContinuousConfig
from transfusion.workdir import portable


class Rule(enum.Enum):
    """What it means for a run that continues that a field differs from the checkpoint's."""

    MEANING = "it gives the weights their meaning: refused, unless --allow_change names it"
    POSITION = "the position in the data is counted with it: refused"
    GROWS = "half-filled rows of the data position have its size: it may become larger"
    FREE = "it may change, and the change is logged"
    BY_CONTENT = "a path: what lies there is compared elsewhere"


# Field -> its rule; the first row that fits decides. '*' stands for one name, '**' for any rest. A table's entry that
# only one of the two experiments has is a field, such as data.sources.mine. A test checks that every field has a row.
FIELD_RULES: dict[str, Rule] = {
    "task": Rule.MEANING,
    "seed": Rule.POSITION,
    "batch_size": Rule.POSITION,
    "steps": Rule.FREE,
    "log_every": Rule.FREE,
    # How the same numbers are computed.
    **dict.fromkeys(
        (f"{trunk}.{field}" for trunk in ("model", "model.stages.*.trunk") for field in
         ("dtype", "remat", "scan", "attention", "towers.*.remat", "feed_forwards.*.balance")), Rule.FREE,
    ),
    "model.**": Rule.MEANING,
    "streams.*.weight": Rule.FREE,
    "streams.*.budget": Rule.GROWS,
    "streams.*.items": Rule.GROWS,
    "streams.**": Rule.MEANING,
    "layout.**": Rule.MEANING,
    "objectives.next_token.chunk": Rule.FREE,
    "objectives.**": Rule.MEANING,
    "tokenizer.path": Rule.BY_CONTENT,  # the field sha256 is its content
    "tokenizer.**": Rule.MEANING,
    "codec.path": Rule.BY_CONTENT,
    "codec.**": Rule.MEANING,
    "codecs.*.path": Rule.BY_CONTENT,
    "codecs.**": Rule.MEANING,
    **dict.fromkeys(
        (f"autoencoder.{field}" for field in ("kl_weight", "perceptual_weight", "adversarial.weight",
         "adversarial.start", "quantizer.commitment", "quantizer.decay", "quantizer.revive", "tower.remat")), Rule.FREE,
    ),
    "autoencoder.**": Rule.MEANING,
    **dict.fromkeys(
        (f"data.sources.*.{field}" for field in
         ("medium", "length", "rate", "resolution", "channels", "caption_template")), Rule.MEANING,
    ),
    "data.sources.*.sizes.**": Rule.FREE,  # a stream of mixed sizes reads any
    **dict.fromkeys(
        (f"data.sources.*{field}" for field in
         ("", ".kind", ".name", ".path", ".split", ".weight", ".image_field", ".caption_field", ".text_field",
          ".label_field", ".file_field", ".captions", ".record_bytes", ".latents", ".hold_out", ".part",
          ".follow_links", ".reader", ".files")), Rule.FREE,
    ),
    "data.null_caption": Rule.MEANING,
    "data.open_rows": Rule.GROWS,
    **dict.fromkeys(
        (f"data.{field}" for field in
         ("data_dir", "caption_first", "drop_caption", "drop_conditions.**", "both", "edit", "draw_earlier", "flip",
          "shift", "learned_turns", "split_text", "min_piece", "cache", "cache_megabytes", "prefetch", "read_threads",
          "read_ahead", "pixel_limit", "max_bad_share", "max_bad_after", "truncate")), Rule.FREE,
    ),
    **dict.fromkeys(
        (f"{part}.**" for part in
         ("init", "optim", "checkpoint", "guard", "eval", "telemetry", "sampling", "mesh", "trackers")),
        Rule.FREE,
    ),
}  # fmt: skip


def rule_of(field: str) -> Rule | None:
    """The rule of a field such as 'streams.image.patch' or 'layout.image[0].opener'; None if no row fits."""
    plain = re.sub(r"\[\d+\]", "", field)
    return next((rule for pattern, rule in FIELD_RULES.items() if _regex(pattern).fullmatch(plain)), None)


def _regex(pattern: str) -> re.Pattern:
    parts = {"**": ".+", "*": r"[^.]+"}
    regex = r"\.".join(parts.get(part, re.escape(part)) for part in pattern.split("."))
    return re.compile(regex.replace(r"\..+", r"(\..+)?"))  # 'streams.**' is the whole table, too


@dataclasses.dataclass(frozen=True)
class Change:
    """A field whose value in the checkpoint (`old`) and in the experiment (`new`) differ; None: it is not there."""

    field: str
    old: Any
    new: Any

    @property
    def rule(self) -> Rule:
        rule = rule_of(self.field) or Rule.MEANING
        numbers = all(isinstance(value, int) for value in (self.old, self.new))
        if rule is Rule.GROWS and numbers and 0 < self.old < self.new:
            return Rule.FREE
        return rule

    def __str__(self) -> str:
        return f"{self.field}: {_shown(self.old)} -> {_shown(self.new)}"


def differences(old: Experiment, new: Experiment) -> list[Change]:
    """The fields in which two experiments differ. Where the tokenizer and the codec lie does not count."""
    # A stream without an entry has the default, so that it equals one whose entry has the default's values.
    streams = {name: ContinuousConfig() for one in (old, new) for name in one.objectives.continuous}
    trees = []
    for one in (old, new):
        objectives = dataclasses.replace(one.objectives, continuous=streams | dict(one.objectives.continuous))
        complete = dataclasses.replace(portable.as_recorded(one), objectives=objectives)
        trees.append(json.loads(to_json(complete)))
    # A relative path in an older workdir is shown as it is, because nothing says to which folder it is relative.
    found = _walk("", *trees, json.loads(to_json(old)))
    return [change for change in found if change.rule is not Rule.BY_CONTENT]


def _walk(field: str, old: Any, new: Any, shown: Any) -> Iterator[Change]:
    """Compares `old` with `new`; `shown` is `old` as a message shows it."""
    if isinstance(old, dict) and isinstance(new, dict):
        shown = shown if isinstance(shown, dict) else old
        for name in [*old, *(name for name in new if name not in old)]:
            inner = f"{field}.{name}" if field else name
            yield from _walk(inner, old.get(name), new.get(name), shown.get(name, old.get(name)))
    elif tables(old) and tables(new) and len(old) == len(new):
        for i, parts in enumerate(zip(old, new, shown, strict=True)):
            yield from _walk(f"{field}[{i}]", *parts)
    elif old != new:
        yield Change(field, shown, new)


def tables(value: Any) -> bool:
    """Whether a value is a list of tables, such as the runs of a layout."""
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _shown(value: Any) -> str:
    if isinstance(value, dict) or (tables(value) and value):
        return f"{{{', '.join(value)}}}" if isinstance(value, dict) and len(value) < 5 else "{...}"
    text = "none" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def listed(changes: Sequence[Change], most: int = 3) -> str:
    """The first changes as text, and how many more there are."""
    rest = f" and {len(changes) - most} more" if len(changes) > most else ""
    return "; ".join(map(str, changes[:most])) + rest
