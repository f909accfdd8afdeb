"""Twenty records of each public form, as its data set has them, with tiny pictures of ours; and beside each record the
document that it means, written by hand.

`write(name, folder)` writes the files and returns `Form`: how the source is configured, and the documents.
"""

import csv
import dataclasses
import io
import json
import pathlib
import tarfile
from collections.abc import Callable

import numpy as np
from PIL import Image

from transfusion.data import images
from transfusion.sequence import Document, Segment, text

COUNT = 20
SIDE = 4


@dataclasses.dataclass(frozen=True)
class Form:
    fields: dict  # of SourceConfig
    documents: list[Document]


def pixels(number: int) -> np.ndarray:
    return (np.arange(SIDE * SIDE, dtype=np.int64).reshape(SIDE, SIDE, 1) * 7 + 11 * number).astype(np.uint8)


def png(number: int) -> bytes:
    return images.encode_png(pixels(number))


def picture(number: int, role: str, weight: float = 1.0) -> Segment:
    return Segment("image", pixels(number).astype(np.float32) / 127.5 - 1.0, role, weight=weight)


def words(value: str, weight: float = 1.0) -> Segment:
    return Segment("text", text.encode(value), weight=weight)


def user(*content: Segment) -> Document:
    """A turn of the user in the plain chat template: nothing of it is learned."""
    return words("User: ", 0), *(dataclasses.replace(one, weight=0) for one in content), words("\n", 0)


def assistant(*content: Segment, last: bool = True) -> Document:
    """A turn of the model, behind which the end of the document stands, or a further turn."""
    end = () if last else (Segment("text", np.array([text.EOS, 10], np.int32)),)
    return words("Assistant: ", 0), *content, *end


# --- files ------------------------------------------------------------------------------------------------------------


def jsonl(folder: pathlib.Path, name: str, rows: list[dict]) -> str:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / name)


def whole(folder: pathlib.Path, name: str, content: object) -> str:
    (folder / name).write_text(json.dumps(content))
    return str(folder / name)


def parquet(folder: pathlib.Path, name: str, rows: list[dict]) -> str:
    import pyarrow as arrow
    import pyarrow.parquet as files

    files.write_table(arrow.Table.from_pylist(rows), folder / name, row_group_size=7)
    return str(folder / name)


def tar(folder: pathlib.Path, name: str, members: list[tuple[str, bytes]]) -> str:
    with tarfile.open(folder / name, "w") as file:
        for member, data in members:
            info = tarfile.TarInfo(member)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return str(folder / name)


def pictures(folder: pathlib.Path, names: Callable[[int], str], count: int = COUNT) -> None:
    for number in range(count):
        path = folder / names(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number))


def tiff(numbers: list[int]) -> bytes:
    first, *rest = (Image.fromarray(pixels(number)[..., 0]) for number in numbers)
    out = io.BytesIO()
    first.save(out, "TIFF", save_all=True, append_images=rest)
    return out.getvalue()


# --- the forms --------------------------------------------------------------------------------------------------------


def obelics(folder: pathlib.Path) -> Form:
    """Parallel lists; the pictures were downloaded, and their bytes put in the place of their addresses."""
    rows, documents = [], []
    for i in range(COUNT):
        held = {"bytes": png(i), "path": None}
        rows.append(
            {
                "images": [None, held, None, {"bytes": png(i + 1), "path": None}],
                "texts": [f"Page {i} begins.", None, "Then comes:", None],
                "metadata": json.dumps([None, {"unformatted_src": "x"}, None, None]),
                "general_metadata": json.dumps({"url": "page"}),
            }
        )
        documents.append(
            (words(f"Page {i} begins."), picture(i, "both"), words("Then comes:"), picture(i + 1, "target"))
        )
    return Form({"path": parquet(folder, "train-00000-of-00001.parquet", rows), "reader": "obelics"}, documents)


def mint1t(folder: pathlib.Path) -> Form:
    """Tars of PDFs: a .json and a .tiff with one page for each picture."""
    members, documents = [], []
    for i in range(COUNT):
        numbers = [i, i + 5]
        fields = {
            "texts": ["Figure:", None, None, f"That was {i}."],
            "images": [None, "page_1_image_30", "page_2_image_9", None],
            "image_metadata": [
                {"page": 1, "xref": 30, "sha256": "ab", "width": SIDE, "height": SIDE},
                {"page": 2, "xref": 9, "sha256": "cd", "width": SIDE, "height": SIDE},
            ],
            "language_id_whole_page_fasttext": {"en": 0.9},
        }
        members += [(f"{i:08}.json", json.dumps(fields).encode()), (f"{i:08}.tiff", tiff(numbers))]
        documents.append(
            (words("Figure:"), *(picture(n, "both") for n in numbers), words(f"That was {i}."))
        )  # fmt: skip
    return Form({"path": tar(folder, "CC-MAIN-00000.tar", members), "reader": "mint1t"}, documents)


def llava(folder: pathlib.Path) -> Form:
    pictures(folder, lambda i: f"coco/train2017/{i:012}.png")
    rows, documents = [], []
    for i in range(COUNT):
        said = [
            {"from": "human", "value": "<image>\nWhat is it?"},
            {"from": "gpt", "value": f"Number {i}."},
            {"from": "human", "value": "Really?"},
            {"from": "gpt", "value": "Yes."},
        ]
        rows.append({"id": f"{i:012}", "image": f"coco/train2017/{i:012}.png", "conversations": said})
        documents.append(
            (
                *user(picture(i, "context"), words("What is it?")),
                *assistant(words(f"Number {i}."), last=False),
                *user(words("Really?")),
                *assistant(words("Yes.")),
            )
        )
    return Form({"path": whole(folder, "llava_instruct_150k.json", rows), "reader": "llava"}, documents)


def omnigen(folder: pathlib.Path) -> Form:
    pictures(folder / "images", lambda i: f"{i}.png", COUNT + 2)
    rows, documents = [], []
    for i in range(COUNT):
        given = [f"{i}.png", f"{i + 1}.png"]
        first = "<img><|image_1|></img> and <img><|image_2|></img>"
        rows.append(
            {
                "task_type": "subject_driven",
                "instruction": f"Put {first} together.",
                "input_images": given,
                "output_image": f"{i + 2}.png",
            }
        )
        documents.append(
            (
                words("Put", 0), picture(i, "context", 0), words("and", 0), picture(i + 1, "context", 0),
                words("together.", 0), picture(i + 2, "target"),
            )
        )  # fmt: skip
    fields = {"path": jsonl(folder, "toy_data.jsonl", rows), "files": str(folder / "images"), "reader": "omnigen"}
    return Form(fields, documents)


def tuna(folder: pathlib.Path) -> Form:
    """Edits and conversations in turn."""
    pictures(folder, lambda i: f"imgs/{i:03}.png", COUNT + 1)
    rows, documents = [], []
    for i in range(COUNT):
        name = f"imgs/{i:03}.png"
        if i % 2:
            rows.append({"raw_image": name, "out_image": f"imgs/{i + 1:03}.png", "instruction": "make it sunset"})
            documents.append((words("make it sunset", 0), picture(i, "context", 0), picture(i + 1, "target")))
        else:
            said = [{"from": "human", "value": "What's in this image?"}, {"from": "gpt", "value": "A cat."}]
            rows.append({"image": name, "conversations": said})
            documents.append(
                (*user(picture(i, "context"), words("What's in this image?")), *assistant(words("A cat.")))
            )
    return Form({"path": jsonl(folder, "train.jsonl", rows), "reader": "tuna"}, documents)


def bagel(folder: pathlib.Path) -> Form:
    """Edits."""
    rows = [
        {"image_list": [png(i), png(i + 1), png(i + 2)], "instruction_list": [["add one"], [f"add {i}"]]}
        for i in range(COUNT)
    ]
    documents = [
        (
            picture(i, "context", 0), words("add one", 0), picture(i + 1, "both"), words(f"add {i}", 0),
            picture(i + 2, "target"),
        )
        for i in range(COUNT)
    ]  # fmt: skip
    return Form({"path": parquet(folder, "chunk_0.parquet", rows), "reader": "bagel"}, documents)


def bagel_captions(folder: pathlib.Path) -> Form:
    rows = [{"image": png(i), "captions": json.dumps({"caption": f"number {i}"})} for i in range(COUNT)]
    documents = [(words(f"number {i}", 0), picture(i, "target")) for i in range(COUNT)]
    return Form({"path": parquet(folder, "t2i.parquet", rows), "reader": "bagel"}, documents)


def bagel_thoughts(folder: pathlib.Path) -> Form:
    """Thoughts and pictures in turn; the last thought is the answer."""
    rows = [
        {
            "image_list": [png(i), png(i + 1)],
            "instruction_list": ["Solve it."],
            "output_text_list": ["<think>first</think>", f"It is {i}."],
        }
        for i in range(COUNT)
    ]
    documents = [
        (
            picture(i, "context", 0), words("Solve it.", 0), words("<think>first</think>"), picture(i + 1, "both"),
            words(f"It is {i}."),
        )
        for i in range(COUNT)
    ]  # fmt: skip
    return Form({"path": parquet(folder, "think.parquet", rows), "reader": "bagel"}, documents)


def captioned(rows: list[str]) -> list[Document]:
    """The documents of pictures with captions, with the caption first."""
    return [(words(row), picture(i, "target")) for i, row in enumerate(rows)]


def imagefolder(folder: pathlib.Path) -> Form:
    pictures(folder / "train", lambda i: f"{i:04}.png")
    rows = [{"file_name": f"{i:04}.png", "text": f"number {i}"} for i in range(COUNT)]
    with open(folder / "train" / "metadata.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["file_name", "text"])
        writer.writeheader()
        writer.writerows(rows)
    return Form(
        {"path": str(folder / "train"), "reader": "imagefolder"}, captioned([f"number {i}" for i in range(COUNT)])
    )


def classes(folder: pathlib.Path) -> Form:
    """An imagefolder without metadata: the name of its folder is the class of a picture."""
    pictures(folder, lambda i: f"class {i // 10}/{i % 10}.png")
    captions = [f"class {i // 10}" for i in range(COUNT)]
    return Form({"path": str(folder), "reader": "imagefolder"}, captioned(captions))


def datasets(folder: pathlib.Path) -> Form:
    rows = [{"image": {"bytes": png(i), "path": f"{i}.png"}, "text": f"number {i}"} for i in range(COUNT)]
    path = parquet(folder, "train-00000-of-00001.parquet", rows)
    return Form({"path": path, "reader": "datasets"}, captioned([f"number {i}" for i in range(COUNT)]))


def coco(folder: pathlib.Path) -> Form:
    pictures(folder / "val2017", lambda i: f"{i:012}.png")
    content = {
        "info": {"year": 2017},
        "licenses": [],
        "images": [
            {"id": i, "file_name": f"{i:012}.png", "height": SIDE, "width": SIDE, "license": 1} for i in range(COUNT)
        ],
        "annotations": [{"id": 100 + i, "image_id": i, "caption": f"Number {i}. "} for i in range(COUNT)],
    }
    path = whole(folder, "captions_val2017.json", content)
    fields = {"path": path, "files": str(folder / "val2017"), "reader": "coco"}
    return Form(fields, captioned([f"Number {i}." for i in range(COUNT)]))


def flickr30k(folder: pathlib.Path) -> Form:
    pictures(folder / "flickr30k-images", lambda i: f"{1000 + i}.jpg")
    lines = [f"{1000 + i}.jpg#0\tTwo of {i} .\n" for i in range(COUNT)]
    (folder / "results_20130124.token").write_text("".join(lines))
    fields = {"path": str(folder / "results_20130124.token"), "files": str(folder / "flickr30k-images")}
    return Form(fields | {"reader": "flickr30k"}, captioned([f"Two of {i} ." for i in range(COUNT)]))


def vqav2(folder: pathlib.Path) -> Form:
    pictures(folder / "val2014", lambda i: f"COCO_val2014_{i:012}.jpg")
    questions = [{"image_id": i, "question": f"Is it {i}?", "question_id": 10 * i} for i in range(COUNT)]
    answers = [
        {"question_id": 10 * i, "image_id": i, "multiple_choice_answer": "yes", "answers": [{"answer": "yes"}]}
        for i in range(COUNT)
    ]
    whole(folder, "v2_mscoco_val2014_annotations.json", {"annotations": answers, "data_subtype": "val2014"})
    content = {"questions": questions, "data_subtype": "val2014", "task_type": "Open-Ended"}
    path = whole(folder, "v2_OpenEnded_mscoco_val2014_questions.json", content)
    documents = [
        (*user(picture(i, "context"), words(f"Is it {i}?")), *assistant(words("yes"))) for i in range(COUNT)
    ]  # fmt: skip
    return Form({"path": path, "files": str(folder / "val2014"), "reader": "vqav2"}, documents)


def geneval(folder: pathlib.Path) -> Form:
    rows = [
        {"tag": "single_object", "include": [{"class": "bench", "count": i}], "prompt": f"a photo of {i} benches"}
        for i in range(COUNT)
    ]
    path = jsonl(folder, "evaluation_metadata.jsonl", rows)
    return Form({"path": path, "reader": "geneval"}, [(words(row["prompt"]),) for row in rows])


FORMS = {
    form.__name__: form
    for form in (
        obelics, mint1t, llava, omnigen, tuna, bagel, bagel_captions, bagel_thoughts, imagefolder, classes, datasets,
        coco, flickr30k, vqav2, geneval,
    )
}  # fmt: skip


def write(name: str, folder: pathlib.Path) -> Form:
    folder.mkdir(parents=True, exist_ok=True)
    return FORMS[name](folder)
