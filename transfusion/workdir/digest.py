"""A run is known by the digest of its config, so that all who name the same experiment share one run.

What counts is what changes the trained model or its measures. Names and places do not count: a path of data counts as
the names and sizes of what lies there, and a path of another run as that run.
"""

import dataclasses
import fnmatch
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from transfusion.codecs import CodecConfig
from transfusion.config import Experiment
from transfusion.data.config import SourceConfig
from transfusion.initial import InitConfig
from transfusion.objectives.paths import ContinuousConfig
from transfusion.running import seals
from transfusion.sequence import text
from transfusion.workdir import portable

# Fields that change neither the model nor a score: what is written and when, where things lie, how fast data is read,
# and how the same numbers are computed (they may differ by rounding).
WITHOUT_EFFECT = (
    "log_every", "checkpoint", "mesh", "*.remat", "eval.guidances", "tokenizer.path", "data.data_dir",
    *(f"data.{field}" for field in ("prefetch", "read_threads", "read_ahead", "cache", "cache_megabytes")),
)  # fmt: skip
LENGTH = 16  # hexadecimal digits: a billion runs collide with a chance of 3 %


def digest(experiment: Experiment, runs: Mapping[str, str] = {}) -> str:
    """The digest of an experiment, of `LENGTH` hexadecimal digits.

    A field that has its default counts as absent, so that a version with further fields knows the same runs.

    Args:
      runs: the digests of runs that this one begins with or encodes with, by their absolute paths. A run that is not
        among them counts as the bytes of its newest intact checkpoint.
    """
    content = without_defaults(_without_places(experiment, runs), WITHOUT_EFFECT)
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:LENGTH]


def _without_places(experiment: Experiment, runs: Mapping[str, str]) -> Experiment:
    """The experiment with what lies at each of its paths in the place of the path."""

    def run(path: str) -> str:
        return _name_of_run(path, runs) if path else ""

    def source(config: SourceConfig) -> SourceConfig:
        return dataclasses.replace(config, path=_listing(config.path), latents=_listing(config.latents))

    def begin(config: InitConfig) -> InitConfig:
        others = {name: begin(other) for name, other in config.others.items()}
        return dataclasses.replace(config, path=run(config.path), others=others)

    def codec(config: CodecConfig) -> CodecConfig:
        return dataclasses.replace(config, path=run(config.path))

    data, held_out = experiment.data, experiment.eval
    sources, others = ({name: source(s) for name, s in part.sources.items()} for part in (data, held_out))
    # A stream without an entry has the default, so that it equals one whose entry has the default's values.
    own = {n: c for n, c in experiment.objectives.continuous.items() if c != ContinuousConfig()}
    return dataclasses.replace(
        experiment,
        data=dataclasses.replace(data, sources=sources),
        eval=dataclasses.replace(held_out, sources=others),
        init=begin(experiment.init),
        codec=codec(experiment.codec),
        codecs={kind: codec(config) for kind, config in experiment.codecs.items()},
        tokenizer=text.recorded(experiment.tokenizer),
        objectives=dataclasses.replace(experiment.objectives, continuous=own),
    )


def _name_of_run(path: str, runs: Mapping[str, str]) -> str:
    known = {portable.absolute(place): name for place, name in runs.items()}
    if (place := portable.absolute(path)) in known:
        return f"run {known[place]}"
    if "://" in path or not os.path.isdir(path):
        return place
    root = seals.folder_of(path)
    step, _ = seals.newest_intact(root)
    return place if step is None else f"checkpoint {_sha(seals.seal_path(root, step).read_bytes())}"


def _listing(path: str) -> str:
    """The names and sizes of all files at a path as one digest; the path itself if nothing is there."""
    place = pathlib.Path(path)
    if not path or "://" in path or not place.exists():
        return portable.absolute(path)
    files = [place] if place.is_file() else sorted(each for each in place.rglob("*") if each.is_file())
    names = [[each.relative_to(place.parent if place.is_file() else place).as_posix(), each.stat().st_size]
             for each in files]  # fmt: skip
    return f"files {_sha(json.dumps(names).encode())}"


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:LENGTH]


def without_defaults(value: Any, left_out: Sequence[str] = (), field: str = "") -> Any:
    """Dataclasses as JSON, without fields that equal the default, nor those that a pattern of `left_out` names.

    Tables keep their order, as draws of streams and sources depend on it. `field` is where the value is.
    """
    if dataclasses.is_dataclass(value):
        found = {}
        for each in sorted(dataclasses.fields(value), key=lambda each: each.name):
            inner = f"{field}.{each.name}" if field else each.name
            if any(fnmatch.fnmatchcase(inner, pattern) for pattern in left_out):
                continue
            own = without_defaults(getattr(value, each.name), left_out, inner)
            if own != without_defaults(_default(each), left_out, inner):
                found[each.name] = own
        return found
    if isinstance(value, Mapping):
        return [[name, without_defaults(one, left_out, f"{field}.{name}")] for name, one in value.items()]
    if isinstance(value, (list, tuple)):
        return [without_defaults(one, left_out, field) for one in value]
    return value


def _default(field: dataclasses.Field) -> Any:
    """The default of a field; for one without a default a value that no other equals."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
