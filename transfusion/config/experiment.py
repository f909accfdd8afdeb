"""The schema of an experiment, and the one border between it and files and flags.

A config file's `get_config(form='')` returns `to_config_dict(Experiment(...))`: an ml_collections.ConfigDict with every
field, so that each can be overridden on the command line; `from_config` turns it (or the JSON in a workdir) back into
frozen dataclasses, strictly: an unknown field or a wrong type is an error that names the field.
"""

import dataclasses
import json
import os
import reprlib
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from transfusion.codecs import CodecConfig
from transfusion.codecs.autoencoder_config import AutoencoderConfig
from transfusion.config import earlier, ranges
from transfusion.config.brief import brief
from transfusion.config.looks import EvalConfig, TelemetryConfig
from transfusion.data.config import DataConfig
from transfusion.errors import UsageError, check, nearest
from transfusion.initial import InitConfig
from transfusion.model.config import TransformerConfig
from transfusion.objectives import OBJECTIVES, ObjectivesConfig
from transfusion.optim import OptimConfig
from transfusion.running.checkpoint import CheckpointConfig
from transfusion.running.guard import GuardConfig
from transfusion.sampling.config import SamplerConfig
from transfusion.sequence import TEXT, Run, SequenceSpec, Stream, text
from transfusion.sequence.text import Tokenizer, TokenizerConfig
from transfusion.sharding import MeshConfig
from transfusion.trackers.config import TrackersConfig


@dataclasses.dataclass(frozen=True, repr=False)
class Experiment:
    """Everything that a run depends on.

    Attributes:
      task: 'sequence' (a unified model on packed documents) or 'autoencoder' (a codec).
      seed: decides the first parameters, the order of the data and all random draws of the training.
      steps: updates of the parameters in the whole run.
      batch_size: packed rows (images for an autoencoder) per step, over all devices.
      log_every: steps between two rows of metrics.
      model: the trunk.
      streams: the streams by name.
      layout: the runs of tokens into which a segment turns, by its 'kind' or 'kind/role'; see `transfusion.sequence`.
      objectives: settings of what the streams learn.
      tokenizer: how text becomes ids.
      codec: how media become latents or codes, for all kinds of segments that `codecs` does not name.
      codecs: the same for single kinds of segments.
      autoencoder: the codec that is trained; with task 'autoencoder' only.
      data: what is trained on, and how it is packed.
      init: where the first parameters come from.
      optim: how parameters are updated.
      checkpoint: when to save.
      guard: what happens when losses are not finite.
      eval: held-out data, and how the model is evaluated on it.
      telemetry: how often a training looks inside the model.
      sampling: how the model writes and draws, unless a call says otherwise.
      mesh: how arrays are split over devices.
      trackers: where the run is shown, besides its own files.
    """

    task: str = "sequence"
    seed: int = 0
    steps: int = 1000
    batch_size: int = 16
    log_every: int = 50
    model: TransformerConfig = TransformerConfig()
    streams: dict[str, Stream] = dataclasses.field(default_factory=dict)
    layout: dict[str, tuple[Run, ...]] = dataclasses.field(default_factory=dict)
    objectives: ObjectivesConfig = ObjectivesConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    codec: CodecConfig = CodecConfig()
    codecs: dict[str, CodecConfig] = dataclasses.field(default_factory=dict)
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    data: DataConfig = DataConfig()
    init: InitConfig = InitConfig()
    optim: OptimConfig = OptimConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    guard: GuardConfig = GuardConfig()
    eval: EvalConfig = EvalConfig()
    telemetry: TelemetryConfig = TelemetryConfig()
    sampling: SamplerConfig = SamplerConfig()
    mesh: MeshConfig = MeshConfig()
    trackers: TrackersConfig = TrackersConfig()

    def __post_init__(self):
        check("task", self.task, ("sequence", "autoencoder"))
        for field in ("seed", "steps", "batch_size", "log_every"):
            ranges.check_number(field, f"Experiment.{field}", getattr(self, field))
        if self.batch_size % self.optim.accumulate:
            raise UsageError(f"optim.accumulate {self.optim.accumulate} does not divide batch_size {self.batch_size}")
        for kind in self.codecs:
            check("codecs: kind of segment", kind, {key.partition("/")[0] for key in self.layout})
        for name, stream in self.streams.items():
            objective = OBJECTIVES.get(stream.objective, OBJECTIVES["none"])
            if self.optim.accumulate > 1 and objective.beside(objective.config(self.objectives, name)):
                raise UsageError(
                    f"optim.accumulate must be 1: stream {name!r} is compared with others over the whole batch"
                )

    def __repr__(self) -> str:
        return brief(self)

    def codec_of(self, kind: str) -> CodecConfig:
        """The codec of segments of this kind."""
        return self.codecs.get(kind, self.codec)

    @property
    def spec(self) -> SequenceSpec:
        """The streams and the layout, with the ids of the tokenizer, whose file this reads."""
        return self.spec_with(text.open_tokenizer(self.tokenizer))

    def spec_with(self, tokenizer: Tokenizer) -> SequenceSpec:
        """The streams and the layout, with the ids of a `tokenizer`.

        Raises:
          UsageError: if a special token has no row in the text stream's vocabulary.
        """
        streams, move = dict(self.streams), tokenizer.id
        for name, stream in streams.items():
            if stream.vocabulary and (TEXT in (name, stream.parts) or stream.fill >= 0):
                vocabulary, fill = tokenizer.vocabulary(stream.vocabulary), move(stream.fill)
                streams[name] = dataclasses.replace(stream, vocabulary=vocabulary, fill=fill)
        layout = {
            where: tuple(
                dataclasses.replace(r, opener=move(r.opener), closer=move(r.closer), spelling=r.spelling.moved(move))
                for r in runs
            )
            for where, runs in self.layout.items()
        }
        bos, eos = move(text.BOS), move(text.EOS)
        rows = streams[TEXT].vocabulary if TEXT in streams else 0
        edges = [edge for rs in layout.values() for r in rs for edge in (r.opener, r.closer, r.spelling.last)]
        if tokenizer.sha256 and (highest := max(tokenizer.size - 1, bos, eos, *edges)) >= rows:
            raise UsageError(
                f"streams.text.vocabulary: {rows} ids are too few for the tokenizer, whose highest is {highest}"
            )
        return SequenceSpec(streams, layout, bos, eos, self.model.rope_axes, tokenizer.words)


def check_form(file: str, form: str, forms: Sequence[str]) -> None:
    """Refuses a `form` that the config `file` does not have; the first of `forms` is the one without a name.

    Raises:
      UsageError: naming the forms, and the nearest.
    """
    if form not in forms:
        name = f"configs/{os.path.basename(file)}"
        raise UsageError(f"{name} has no form {form!r}: {', '.join(forms[1:])}{nearest(form, forms)}")


def debug_form(experiment: Experiment, batch_size: int = 2) -> Experiment:
    """The same experiment with a tiny trunk and 20 steps, which take seconds; it saves a checkpoint halfway."""
    return dataclasses.replace(
        experiment, steps=20, batch_size=batch_size, log_every=5,
        model=dataclasses.replace(experiment.model, width=32, layers=2, heads=2, scan=True),
        checkpoint=CheckpointConfig(every=10, keep=2),
        eval=dataclasses.replace(experiment.eval, every=10),
        trackers=dataclasses.replace(experiment.trackers, pictures=0),
    )  # fmt: skip


def to_config_dict(experiment: Experiment) -> ml_collections.ConfigDict:
    """The experiment as a ConfigDict, each field of which a flag can override."""
    return ml_collections.ConfigDict(dataclasses.asdict(experiment))


def to_json(experiment: Experiment) -> str:
    """The experiment as config.json holds it."""
    return json.dumps(dataclasses.asdict(experiment), indent=2)


def from_config(config: Mapping[str, Any]) -> Experiment:
    """Builds the frozen dataclasses.

    Raises:
      UsageError: on an unknown field (naming the nearest known one), a wrong type, or a value that cannot work.
    """
    return _convert(Experiment, config, "config")


def checked(experiment: Experiment) -> Experiment:
    """The same experiment, checked as strictly as one from a file: Python code can put any value into a field."""
    return from_config(dataclasses.asdict(experiment))


def from_json(data: str | bytes) -> Experiment:
    """The experiment of a workdir's config.json; fields of earlier versions go where they are now.

    Raises:
      UsageError: if it is no JSON, or as `from_config` does.
    """
    try:
        return from_config(earlier.today(_parsed(data)))
    except RecursionError:
        raise UsageError("the config is no experiment: it is nested too deeply") from None


def _parsed(data: str | bytes) -> Any:
    try:
        return json.loads(data.decode("utf-8-sig") if isinstance(data, bytes) else data)
    except ValueError as error:  # no JSON, no UTF-8, or a number of thousands of digits
        raise UsageError(f"the config is damaged, it is no JSON: {_line(error)}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _convert(kind: Any, value: Any, where: str, field: str = "") -> Any:
    """Converts `value` to the type `kind`. Errors call it `where`; `field` ('Class.field') is its row in `ranges`."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _convert(next(a for a in arguments if a is not type(None)), value, where, field)
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, value, where)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise UsageError(f"{where} must be a list of values, not {_short(value)}")
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(_convert(arguments[0], item, f"{where}[{i}]", field) for i, item in enumerate(value))
        if len(arguments) != len(value):
            raise UsageError(f"{where} must have {len(arguments)} values, not {len(value)}")
        pairs = enumerate(zip(arguments, value, strict=True))
        return tuple(_convert(a, v, f"{where}[{i}]", field) for i, (a, v) in pairs)
    if origin in (dict, Mapping, typing.get_origin(Mapping[str, int])):
        if not isinstance(value, (Mapping, ml_collections.ConfigDict)):
            raise UsageError(f"{where} must be a table of names, not {_short(value)}")
        names = [_convert(str, key, f"a name in {where}") for key in value]
        return {key: _convert(arguments[1], value[key], f"{where}.{key}", field) for key in names}
    return _scalar(kind, value, where, field)


def _scalar(kind: type, value: Any, where: str, field: str) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        ranges.check_number(where, field, value)  # before it is a float: a number of 400 digits cannot be one
        value = float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise UsageError(f"{where} must be of type {kind.__name__}, not {_short(value)}")
    if kind in (int, float):
        ranges.check_number(where, field, value)
    return _text(value, where) if kind is str else value


def _text(value: str, where: str) -> str:
    """Refuses a string that cannot be printed or cannot name a file."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{where} is not Unicode text: {_short(value)}") from error
    if "\0" in value:
        raise UsageError(f"{where} holds a zero byte: {_short(value)}")
    return value


def _short(value: Any) -> str:
    """The value that the user gave, shortened for a message; a number may have too many digits to be shown at all."""
    if isinstance(value, int) and abs(value) >= 10**15:
        return "a number of more than 15 digits"
    shown = ascii(value) if isinstance(value, str) and not value.isprintable() else reprlib.repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."


def _dataclass(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, (Mapping, ml_collections.ConfigDict)):
        raise UsageError(f"{where} must be a table of fields, not {_short(value)}")
    fields = {field.name for field in dataclasses.fields(kind)}
    for name in value:
        if name not in fields:
            raise UsageError(f"{where}: unknown field {_short(name)}{nearest(name, fields)}")
    for field in dataclasses.fields(kind):
        if field.name not in value and field.default is field.default_factory is dataclasses.MISSING:
            raise UsageError(f"{where}: the field {field.name!r} is missing")
    hints, name_of = typing.get_type_hints(kind), kind.__name__
    return kind(**{name: _convert(hints[name], value[name], f"{where}.{name}", f"{name_of}.{name}") for name in value})
