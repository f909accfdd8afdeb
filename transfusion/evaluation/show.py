r"""Shows records as training reads them, in one HTML page: segments, tokens, roles, what is learned, and the mask.

  python -m transfusion.data.show rows.jsonl --number 5 --reader llava --output records.html
  python -m transfusion.data.show emoji --config configs/emoji.py        # a source of a config, in its streams

SOURCE is a file, pattern or folder of records, a folder with a captions file, a .txt file, or the name of a source of
the config. Without a config the tokens are bytes of text and patches of pixels.
"""

import dataclasses
import os
from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from transfusion import programs
from transfusion.config import Experiment
from transfusion.data.config import SourceConfig
from transfusion.data.documents import choose_document, segments_of
from transfusion.data.examples import make_example
from transfusion.data.forms import Form
from transfusion.data.packing import Bad, Lane
from transfusion.data.sources import Source, open_source
from transfusion.errors import UsageError, nearest
from transfusion.evaluation import page, pictures, records_page
from transfusion.latents import forms_of, open_codecs
from transfusion.sequence import SequenceSpec, Stream, text
from transfusion.sequence.layouts import transfusion
from transfusion.sequence.rows import assemble
from transfusion.sequence.text import open_tokenizer

MOST_MASKS = 3
_SIZES = ("resolution", "sizes", "channels", "length", "rate")


def plain_experiment() -> Experiment:
    """Text as bytes, and pictures as patches of their pixels."""
    image = Stream(
        embed="linear", head="linear", objective="continuous", attention="block", budget=2048, channels=3, patch=8,
        grid=(32, 32),
    )  # fmt: skip
    streams = {"text": Stream(budget=4096, vocabulary=text.VOCABULARY), "image": image}
    size = {"": SourceConfig(kind="records", resolution=32, channels=3)}
    experiment = Experiment(streams=streams, layout=transfusion())
    return dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, sources=size))


def source_of(name: str, experiment: Experiment, reader: str, files: str) -> SourceConfig:
    """The source that a person names: one of the config, else a path, with the sizes of the config's first source.

    Raises:
      UsageError: if there is neither such a source nor such a path.
    """
    known = experiment.eval.sources | experiment.data.sources
    if name in known:
        return dataclasses.replace(known[name], latents="")
    if not os.path.exists(name) and not any(sign in name for sign in "*?[{"):
        raise UsageError(f"no file or folder {name!r}, and no such source in the config{nearest(name, known)}")
    first = next(iter(experiment.data.sources.values()))
    sizes = {field: getattr(first, field) for field in _SIZES}
    form = forms_of(experiment.spec, open_codecs(experiment)).get("image", Form())
    if form.sizes and not first.fitted:  # the pictures of the config's source have the right size as they are
        sizes |= {"resolution": form.sizes[0][0], "channels": sizes["channels"] or form.channels}
    captions = os.path.isdir(name) and any(one.startswith("captions.") for one in os.listdir(name))
    if captions and not reader:
        return SourceConfig(kind="folder", path=name, **sizes)
    if name.endswith(".txt") and not reader:
        return SourceConfig(kind="text", path=name)
    return SourceConfig(kind="records", path=name, reader=reader, files=files, **sizes)


def show(source: Source, experiment: Experiment, number: int, first: int = 0) -> str:
    """The page of `number` records from `first` on."""
    tokenizer = open_tokenizer(experiment.tokenizer)
    spec, codecs = experiment.spec_with(tokenizer), open_codecs(experiment)
    config = dataclasses.replace(experiment.data, drop_caption=0.0, drop_conditions={})
    sections, examples = [], []
    for index in range(first, min(first + number, len(source))):
        record = source[index]
        name, heading = f"record-{index}", os.path.basename(str(record["id"]))
        if "error" in record:
            sections.append((name, heading, page.absent(str(record["error"]))))
            continue
        choice = choose_document(record, config, (experiment.seed, index))
        segments = segments_of(record, choice, "video" not in spec.layout)
        example = make_example(record, choice, spec, codecs.encode, tokenizer)
        body = records_page.segments_table(segments)
        if isinstance(example, Bad):
            body += page.absent(example.error)
        else:
            body += records_page.tokens(example, spec, tokenizer) + records_page.counts(example)
            examples.append(example)
        sections.append((name, heading, body))
    if not sections:
        raise UsageError(f"the source has {len(source)} records: none from number {first} on")
    said = f"{len(sections)} of {len(source)} records, as training reads them. {records_page.LEGEND}"
    sections += [
        (f"row-{row}", f"Row {row}, packed", page.plate(picture, "attention mask of a packed row"))
        for row, picture in enumerate(_masks(examples, spec, experiment))
    ]
    return page.page("Records", f'<p class="lead">{said}</p>', sections)


def _masks(examples: Sequence, spec: SequenceSpec, experiment: Experiment) -> list:
    """The masks of the first rows into which these examples are packed."""
    waiting = iter(examples)
    lane = Lane(lambda index: next(waiting), spec.budgets, split=experiment.data.split_text)
    rows = []
    try:
        while len(rows) < MOST_MASKS:
            rows.append(lane.next_row())
    except StopIteration:
        while len(rows) < MOST_MASKS and (row := lane.drain()) is not None:
            rows.append(row)
    batches = (assemble([[piece.item for piece in row]], spec) for row in rows)
    return [pictures.mask_picture(batch, spec) for batch in batches]


def main(argv: Sequence[str]) -> None:
    if len(argv) < 2:
        raise UsageError("name the source: python -m transfusion.data.show SOURCE --number 5")
    given = flags.FLAGS.config
    experiment = plain_experiment() if given is None else programs.experiment_of(given)
    config = source_of(argv[1], experiment, flags.FLAGS.reader, flags.FLAGS.files)
    config.validate("SOURCE", experiment.data.pixel_limit)
    source = open_source(config, experiment.data.data_dir, experiment.data.pixel_limit)
    made = show(source, experiment, flags.FLAGS.number, flags.FLAGS.first)
    try:
        with open(flags.FLAGS.output, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(made)
    except OSError as error:
        raise UsageError(f"cannot write {flags.FLAGS.output}: {error.strerror}") from error
    print(f"wrote {flags.FLAGS.output}")


def define_flags() -> None:
    config_flags.DEFINE_config_file("config", None, "Config whose streams the records become; without it, plain ones.")
    flags.DEFINE_integer("number", 5, "How many records.", lower_bound=1, upper_bound=1000)
    flags.DEFINE_integer("first", 0, "The number of the first.", lower_bound=0)
    flags.DEFINE_string("reader", "", "The public form of the records, such as llava.")
    flags.DEFINE_string("files", "", "Folder of the files that they name; default: that of the records.")
    flags.DEFINE_string("output", "records.html", "The page that is written.")


if __name__ == "__main__":
    define_flags()
    programs.run(main, files=1)
