"""Readers of public forms: each turns a row of a file into the record form of `transfusion.data.segments`.

`READERS` is the table of their names. A reader is a module with a function from a row's fields to a record; where a
file is read as a whole, another one says which rows it has.

- `interleaved`: OBELICS and MINT-1T.
- `conversations`: LLaVA, and TUNA's conversations.
- `drawn`: OmniGen, and TUNA's edits and captions.
- `bagel`: BAGEL's captions, edits, and interleaved thoughts and pictures.
- `pictures`: the `imagefolder` and the Parquet files of Hugging Face `datasets`.
- `captions`: COCO captions and Flickr30k.
- `questions`: VQAv2.
- `prompts`: the prompt files of GenEval.
"""

import dataclasses
from collections.abc import Callable, Mapping

from transfusion.data.readers import (
    bagel,
    captions,
    conversations,
    drawn,
    interleaved,
    pictures,
    prompts,
    questions,
)
from transfusion.data.record_files import RowsOf, Store, plain_rows


@dataclasses.dataclass(frozen=True)
class Reader:
    """How a public form is read.

    Attributes:
      read: makes a row the record form: `{"segments": [...]}` or a short form. Raises ValueError if it is no such row.
      rows: the rows of a file that is read as a whole.
      names: names of the files that a folder of this form has; the first that exists is read.
      folder: reads a folder that has no file of records; None: there are none.
    """

    read: Callable[[Mapping[str, object]], Mapping[str, object]]
    rows: RowsOf = plain_rows
    names: tuple[str, ...] = ()
    folder: Callable[[str], Store] | None = None


# Fields of public forms that the record form does not have, and the reader that reads them.
_MARKS = {
    "conversations": "llava", "messages": "llava", "texts": "obelics", "image_list": "bagel", "question": "vqav2",
    "input_images": "omnigen", "output_image": "omnigen", "out_image": "tuna", "prompt": "geneval",
    "file_name": "imagefolder",
}  # fmt: skip


def _plain(row: Mapping[str, object]) -> Mapping[str, object]:
    """The record form itself; a row of a public form is refused, because much of it would be left out unseen."""
    found = next((mark for mark in _MARKS if mark in row), None)
    if found and "segments" not in row:
        raise ValueError(f"it has {found!r} and no segments: set reader={_MARKS[found]!r} if it is of that form")
    return row


READERS: dict[str, Reader] = {
    "": Reader(_plain),
    "obelics": Reader(interleaved.read),
    "mint1t": Reader(interleaved.read),
    "llava": Reader(conversations.read),
    "omnigen": Reader(drawn.read_omnigen),
    "tuna": Reader(drawn.read_tuna),
    "bagel": Reader(bagel.read),
    "imagefolder": Reader(
        pictures.read, names=("metadata.jsonl", "metadata.csv", "metadata.parquet"), folder=pictures.Folder
    ),
    "datasets": Reader(pictures.read),
    "coco": Reader(captions.read, captions.coco_rows),
    "flickr30k": Reader(captions.read, captions.flickr_rows),
    "vqav2": Reader(questions.read, questions.rows),
    "geneval": Reader(prompts.read, prompts.rows, ("evaluation_metadata.jsonl",)),
}
