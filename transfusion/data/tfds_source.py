"""The source of kind 'tfds': any TFDS dataset on disk in a random-access format (array_record), without TensorFlow."""

from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow_datasets as tfds

from transfusion.data import images
from transfusion.data.array_records import read_record
from transfusion.data.config import Record, SourceConfig
from transfusion.data.media import MEDIA, medium_of
from transfusion.data.tfds_open import open_builder, open_split
from transfusion.errors import UsageError, nearest


class TfdsSource:
    """One record per example of a dataset's split. The dataset is found as `SourceConfig` says.

    Images are stored compressed and decoded here, so that a broken one is an error record. The caption is the field
    `caption_field`. If the dataset has no captions but a class label, the caption is `caption_template` around the name
    of the class. A field may be nested ('captions/text'). If it holds several captions, the record has them all as
    'captions', of which `documents.choose_document` takes one, and the first as 'caption'.
    """

    def __init__(self, config: SourceConfig, data_dir: str, pixel_limit: int):
        self._config, self._pixel_limit = config, pixel_limit
        builder = open_builder(config, config.path or data_dir)
        features = builder.info.features
        self._name, self._folder = f"{builder.info.full_name}/{config.split}", str(builder.data_dir)
        self._fields, self._class_names = _fields(config, features, self._name)
        self._raw_images = {
            path for path in self._fields.values() if isinstance(_feature(features, path), tfds.features.Image)
        }
        self._open = lambda: open_split(builder, config.split, _decoders(features))
        self._data = self._open()

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"no record {index}")
        name = f"{self._name}#{index}"
        try:
            stored = read_record(name, self._folder, lambda: self._data[index], self._reopen)
            return {"id": name} | self._record(stored)
        except ValueError as error:
            return {"id": name, "error": str(error)}

    def _reopen(self) -> None:
        self._data = self._open()

    def _record(self, stored: Mapping[str, Any]) -> dict[str, Any]:
        record: dict[str, Any] = {}
        for field, path in self._fields.items():
            value = _value(stored, path)
            if field == "label":
                record["label"] = int(value)
            elif field == "caption":
                found = tuple(text for text in _texts(value) if text.strip())
                record["caption"] = found[0] if found else ""
                if len(found) > 1:
                    record["captions"] = found
            elif field == "text":
                record["text"] = "\n".join(_texts(value))
            elif path in self._raw_images:
                record[field] = images.decode(value, self._pixel_limit)
            else:
                record[field] = value
        if self._class_names and "caption" not in record:
            if not 0 <= record["label"] < len(self._class_names):
                raise ValueError(f"the label {record['label']} is none of {len(self._class_names)} classes")
            record["caption"] = self._config.caption_template.replace("{}", self._class_names[record["label"]])
        return record


def _fields(config: SourceConfig, features: Any, name: str) -> tuple[dict[str, str], list[str]]:
    """Returns {field of a record: path of the stored field}, and the class names if they replace missing captions."""
    known = list(features)
    wanted = {"image": config.image_field, "caption": config.caption_field, "text": config.text_field}
    wanted |= {kind: kind for kind in (*MEDIA, "rate") if kind not in wanted}
    fields = {field: path for field, path in wanted.items() if path and _feature(features, path) is not None}
    if isinstance(_feature(features, config.label_field), tfds.features.ClassLabel):
        fields["label"] = config.label_field
    for field, path in (wanted | {"label": config.label_field}).items():
        if path and _feature(features, path) is None and path != field:  # `field` is its default
            raise UsageError(f"{name} has no field {path!r}{nearest(path, known)}: {', '.join(known)}")
    for field in fields.keys() & {"caption", "text"}:
        if inner := _columns(_feature(features, fields[field])):
            parts = ", ".join(f"{fields[field]}/{part}" for part in sorted(inner))
            raise UsageError(f"{name}: {field}_field={fields[field]!r} is a table: name one of {parts}")
    medium = medium_of(fields)
    if not medium and "text" not in fields:
        raise UsageError(
            f"{name} has neither {config.image_field!r} nor {config.text_field!r}: it has {', '.join(known)}"
        )
    if not medium:
        fields = {"text": fields["text"]}
        return fields, []
    fields.pop("text", None)
    if "caption" in fields or not config.caption_field:
        return fields, []
    if "label" not in fields:
        raise UsageError(f"{name} has no captions in {config.caption_field!r}: set caption_field, or '' for none")
    return fields, [str(n).replace("_", " ") for n in features[fields["label"]].names]


# --- nested features --------------------------------------------------------------------------------------------------


def _feature(features: Any, path: str) -> Any:
    """The feature at 'a/b', which may lie within sequences; None if there is none."""
    if path in features:
        return features[path]
    for name in path.split("/"):
        while isinstance(features, tfds.features.Sequence):
            features = features.feature
        if not isinstance(features, tfds.features.FeaturesDict) or name not in features:
            return None
        features = features[name]
    return features


def _columns(feature: Any) -> list[str]:
    """The names in a feature that is a table, or a sequence of tables."""
    while isinstance(feature, tfds.features.Sequence):
        feature = feature.feature
    return list(feature) if isinstance(feature, tfds.features.FeaturesDict) else []


def _value(stored: Any, path: str) -> Any:
    """The stored value at 'a/b'. A sequence of tables is stored as a table of lists."""
    if path in stored:
        return stored[path]
    for name in path.split("/"):
        stored = [row[name] for row in stored] if isinstance(stored, list) else stored[name]
    return stored


def _decoders(features: Any) -> dict[str, Any]:
    """TFDS decoders that leave images compressed, except those within sequences."""
    result: dict[str, Any] = {}
    for name in features:
        if isinstance(features[name], tfds.features.Image):
            result[name] = tfds.decode.SkipDecoding()
        elif isinstance(features[name], tfds.features.FeaturesDict) and (inner := _decoders(features[name])):
            result[name] = inner
    return result


def _texts(value: Any) -> Iterator[str]:
    """Yields all texts of a value that may be nested.

    Raises:
      ValueError: if one is not UTF-8, or no text.
    """
    if isinstance(value, bytes):
        yield value.decode("utf-8")
    elif isinstance(value, str):
        yield value
    elif isinstance(value, Mapping) or not hasattr(value, "__iter__"):
        raise ValueError(f"a caption or text is {type(value).__name__}, not a text")
    else:
        for inner in value:
            yield from _texts(inner)
