"""COCO captions (arXiv 1504.00325) and Flickr30k: a picture with five captions, of which chance takes one."""

import csv
import io
from collections.abc import Mapping, Sequence

from transfusion.data.segments import Read


def coco_rows(content: object, beside: Read) -> Sequence[Mapping]:
    """The pictures of `captions_val2017.json`, each with all of its captions; those without any are left out."""
    names = {one["id"]: one["file_name"] for one in content["images"]}
    found: dict[object, list[str]] = {}
    for one in content["annotations"]:
        found.setdefault(one["image_id"], []).append(one["caption"].strip())
    return [{"file_name": names[number], "captions": texts} for number, texts in sorted(found.items())]


def flickr_rows(content: object, beside: Read) -> Sequence[Mapping]:
    """The pictures of `results_20130124.token`, of `results.csv` (columns divided by |), or of `dataset_flickr30k.json`
    (with the splits of Karpathy)."""
    if isinstance(content, Mapping):
        return [
            {"file_name": one["filename"], "captions": [said["raw"] for said in one["sentences"]]}
            for one in content["images"]
        ]
    found: dict[str, list[str]] = {}
    bars = content.lstrip().startswith("image_name|")
    lines = csv.reader(io.StringIO(content), delimiter="|" if bars else "\t", quoting=csv.QUOTE_NONE)
    for cells in list(lines)[int(bars) :]:
        if cells:
            found.setdefault(cells[0].partition("#")[0].strip(), []).append(cells[-1].strip())
    return [{"file_name": name, "captions": texts} for name, texts in found.items()]


def read(row: Mapping[str, object]) -> dict:
    """A row of these, or of a Parquet file with `image` and `caption`, `captions` or `sentences`."""
    picture = row.get("image") or row.get("filepath") or row.get("file_name") or row.get("filename")
    texts = row.get("captions") or row.get("caption") or row.get("sentences")
    if not picture or not texts:
        raise ValueError("it has no picture or no captions")
    return {"image": picture, "captions": texts if isinstance(texts, list) else [texts]}
