"""Any TFDS dataset that is on disk in a random-access format (array_record), read without TensorFlow."""

from pathlib import Path

import tensorflow_datasets as tfds

from transfusion.data import builders, images
from transfusion.data.config import Record, SourceConfig
from transfusion.data.media import MEDIA, medium_of
from transfusion.errors import UsageError, nearest


class TfdsSource:
    """Split `split` of the dataset `name` below `path` or `data_dir`, or of the one whose directory is `path`.

    Images are stored compressed and decoded here, so that a broken one is an error record. The caption is the field
    `caption_field`; where the dataset has none but a class label, `caption_template` around the name of the class.
    """

    def __init__(self, config: SourceConfig, data_dir: str, pixel_limit: int):
        self._config, self._pixel_limit = config, pixel_limit
        builder = _builder(config, config.path or data_dir)
        if config.split not in builder.info.splits:
            known = list(builder.info.splits)
            raise UsageError(
                f"dataset {config.name or config.path!r} has no split {config.split!r}{nearest(config.split, known)}: "
                + ", ".join(known)
            )
        self._name = f"{builder.info.full_name}/{config.split}"
        self._fields, self._class_names = _fields(config, builder.info.features, self._name)
        features = builder.info.features
        self._raw_images = {stored for stored in features if isinstance(features[stored], tfds.features.Image)}
        decoders = {stored: tfds.decode.SkipDecoding() for stored in self._raw_images}
        try:
            self._data = builder.as_data_source(split=config.split, decoders=decoders)
        except NotImplementedError as error:
            raise UsageError(
                f"{self._name} is stored as {builder.info.file_format}, which gives no random access: "
                "prepare it again with file_format='array_record'"
            ) from error

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> Record:
        stored = self._data[index]
        record: dict = {"id": f"{self._name}#{index}"}
        for field, name in self._fields.items():
            value = stored[name]
            if field == "label":
                record["label"] = int(value)
            elif field == "image":
                try:
                    record["image"] = images.decode(value, self._pixel_limit) if name in self._raw_images else value
                except ValueError as error:
                    return {"id": record["id"], "error": str(error)}
            else:
                record[field] = value.decode("utf-8") if isinstance(value, bytes) else value
        if self._class_names and "caption" not in record:
            record["caption"] = self._config.caption_template.replace("{}", self._class_names[record["label"]])
        return record


def _builder(config: SourceConfig, where: str) -> tfds.core.DatasetBuilder:
    if not config.name:
        if not Path(where, "dataset_info.json").is_file():
            raise UsageError(f"no prepared TFDS dataset in {where!r}: it has no dataset_info.json; set name or path")
        return tfds.builder_from_directory(where)
    name, _, variant = config.name.partition("/")
    advice = ": prepare it with file_format='array_record'"
    if name in builders.BUILDERS:
        advice = f": run `python -m transfusion.data.prepare --data_dir {where} {config.name}`"
        builder_class, variant = builders.resolve(config.name)
        name = builder_class.name
    known = [path.name for path in Path(where).iterdir() if path.is_dir()] if Path(where).is_dir() else []
    if name not in known:
        if config.name.partition("/")[0] not in builders.BUILDERS:
            advice = nearest(name, {*known, *builders.BUILDERS}) + advice
        raise UsageError(f"no dataset {config.name!r} in {where!r}{advice}")
    try:
        builder = tfds.builder(f"{name}/{variant}" if variant else name, data_dir=where)
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        raise UsageError(f"cannot open dataset {config.name!r} in {where!r}: {str(error).splitlines()[0]}") from error
    if not Path(builder.data_dir, "dataset_info.json").is_file():
        raise UsageError(f"dataset {config.name!r} is not prepared in {where!r}{advice}")
    return builder


def _fields(config: SourceConfig, features, name: str) -> tuple[dict[str, str], list[str]]:
    """Returns {field of a record: stored name} and the class names that replace a missing caption."""
    known = list(features)
    wanted = {"image": config.image_field, "caption": config.caption_field, "text": config.text_field}
    wanted |= {kind: kind for kind in (*MEDIA, "rate") if kind not in wanted}
    fields = {field: stored for field, stored in wanted.items() if stored and stored in known}
    if config.label_field in known and isinstance(features[config.label_field], tfds.features.ClassLabel):
        fields["label"] = config.label_field
    for field, stored in (wanted | {"label": config.label_field}).items():
        if stored and stored not in known and stored != field:  # `field` is its default
            raise UsageError(f"{name} has no field {stored!r}{nearest(stored, known)}: {', '.join(known)}")
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
