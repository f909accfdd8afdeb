"""OBELICS (arXiv 2306.16527) and MINT-1T (arXiv 2406.11271): texts and images of a page in reading order.

A row has the lists `texts` and `images`, equally long, of which one has a value at each place and the other none. An
image is the name of a downloaded file, its bytes, or `{bytes, path}`. In the tars of MINT-1T's PDFs it is
'page_3_image_17', and the pictures are the pages of the sample's .tiff, in the order of `image_metadata`.
"""

from collections.abc import Mapping


def read(row: Mapping[str, object]) -> dict:
    """One page of OBELICS or MINT-1T as a record with segments; raises ValueError if it is none."""
    texts, images = row.get("texts"), row.get("images")
    if not isinstance(texts, list) or not isinstance(images, list) or len(texts) != len(images):
        raise ValueError("texts and images are no lists of one length, as OBELICS and MINT-1T have them")
    pages = {
        f"page_{one.get('page')}_image_{one.get('xref')}": number
        for number, one in enumerate(row.get("image_metadata") or [])
        if isinstance(one, Mapping)
    }
    tiff = next((name for name in row.get("__members__", ()) if name in ("tiff", "tif")), "")
    segments = []
    for text, image in zip(texts, images, strict=True):
        if image and tiff:
            if image not in pages:
                raise ValueError(f"image_metadata has no {image!r:.60}")
            segments.append({"image": {"path": tiff, "frame": pages[image]}})
        elif image:
            segments.append({"image": image})
        if text and text.strip():
            segments.append({"text": text})
    return {"segments": segments}
