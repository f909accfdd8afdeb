"""Draws pictures for people: the attention mask of a packed row, grids of images with captions, and strips.

mask_picture(batch, spec, row=0, path="mask.png")
grid(images, columns=8, captions=captions, path="samples.png")
"""

import dataclasses
import functools
import io
import math
import os
import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from transfusion import storage
from transfusion.codecs.pixels import to_uint8
from transfusion.errors import UsageError
from transfusion.sequence import SequenceSpec
from transfusion.sequence.batch import Batch, StreamSlice
from transfusion.sequence.masks import metadata, see

# One hue per stream, which colour-blind readers can tell apart (Okabe and Ito 2008). Further streams start again.
HUES = ((0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233))
INK, FAINT, PAPER = (34, 34, 40), (120, 120, 128), (255, 255, 255)
HIDDEN = (243, 243, 245)  # keys of the same document that are not seen
OTHER = (226, 226, 230)  # keys of another document, or padding
DOCUMENTS = ((70, 70, 78), (170, 170, 178))
FONTS = ("DejaVuSans.ttf", "LiberationSans-Regular.ttf", "Arial.ttf", "Helvetica.ttc")
BAND = 9  # pixels of a band beside a mask
MARGIN = 2 * BAND + 44  # pixels left of and above a mask
LONGEST = 1200  # pixels of a mask's side, to which longer rows are reduced
TINY = 96  # pixels to which smaller images are about enlarged


@functools.cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """A sans-serif font of `size` pixels: the first of `FONTS` that the system has, or the font inside Pillow."""
    for name in FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size)


# --- the mask ---------------------------------------------------------------------------------------------------------


def mask_picture(
    batch: Batch,
    spec: SequenceSpec,
    row: int = 0,
    path: str | os.PathLike | None = None,
    *,
    stored: bool = False,
    cell: int = 0,
) -> Image.Image:
    """Which token of a packed row sees which, as a picture: a row per query, a column per key.

    The hue is the stream of the query, light for earlier tokens, full inside a bidirectional block, dark and striped
    inside a private one. Bands along the edges show the stream and the document of each token.

    Args:
      batch: packed rows, arrays [B, N] per stream.
      spec: the streams and layout that the batch was made with.
      row: which of the B rows.
      path: where to write the picture as PNG; None writes no file.
      stored: show tokens in the order of memory (stream by stream, with padding) instead of the reading order.
      cell: pixels per token; 0 makes the picture about 700 pixels wide.

    Raises:
      UsageError: if the row does not exist or holds no token.
    """
    rows = next(iter(batch.values())).document.shape[0]
    if not 0 <= row < rows:
        raise UsageError(f"row {row} does not exist: the batch has the rows 0 to {rows - 1}")
    one = {name: _row(part, row) for name, part in batch.items()}
    meta = metadata(one, spec)
    visible = np.asarray(see(meta, meta, spec.visibility))[0]
    fields = {name: np.asarray(getattr(meta, name))[0] for name in ("document", "order", "span", "private", "stream")}
    if not stored:
        real = np.flatnonzero(fields["document"])
        if not len(real):
            raise UsageError(f"row {row} of the batch holds no document")
        chosen = real[np.argsort(fields["order"][real], kind="stable")]
        visible, fields = visible[np.ix_(chosen, chosen)], {name: value[chosen] for name, value in fields.items()}
    length = len(visible)
    cell = cell or max(1, min(12, 700 // length))
    plot = _cells(visible, fields, cell)
    if max(plot.size) > LONGEST:
        plot = plot.resize((LONGEST, LONGEST), Image.Resampling.BOX)
    order = "memory order (padding included)" if stored else "reading order"
    picture = _framed(plot, fields, list(spec.streams), f"{length} tokens in {order}; rows: queries, columns: keys")
    if path is not None:
        _save(picture, path)
    return picture


def _save(picture: Image.Image, path: str | os.PathLike) -> None:
    out = io.BytesIO()
    picture.save(out, "PNG")
    storage.write_whole(path, out.getvalue())


def _row(part: StreamSlice, row: int) -> StreamSlice:
    """One row of a stream's slice of a batch."""
    arrays = {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
    return StreamSlice(**{n: None if a is None else np.asarray(a)[row : row + 1] for n, a in arrays.items()})


def _mixed(colour: tuple[int, int, int], other: tuple[int, int, int], share: float) -> np.ndarray:
    return np.round(np.array(colour) * (1 - share) + np.array(other) * share).astype(np.uint8)


def shades(stream: int) -> dict[str, np.ndarray]:
    """The colours of a stream's queries, uint8 [3] each."""
    hue = HUES[stream % len(HUES)]
    return {
        "earlier": _mixed(hue, PAPER, 0.55),
        "block": _mixed(hue, PAPER, 0.0),
        "private": _mixed(hue, (0, 0, 0), 0.45),
    }


def _cells(visible: np.ndarray, fields: dict[str, np.ndarray], cell: int) -> Image.Image:
    """The mask [L, L] as cells of `cell` pixels."""
    length = len(visible)
    document, span, private = fields["document"], fields["span"], fields["private"]
    same = (document[:, None] == document[None]) & (document[:, None] != 0)
    colour = np.where(same[..., None], np.uint8(HIDDEN), np.uint8(OTHER))
    block = visible & (span[:, None] == span[None]) & (span[:, None] != 0)
    hidden_elsewhere = block & (private[None] != 0)
    for stream in np.unique(fields["stream"]):
        mine = (fields["stream"] == stream)[:, None]
        shade = shades(int(stream))
        for name, where in (("earlier", visible & ~block), ("block", block), ("private", hidden_elsewhere)):
            colour[mine & where] = shade[name]
    pixels = np.repeat(np.repeat(colour, cell, 0), cell, 1)
    if hidden_elsewhere.any():
        stripes = (np.add.outer(np.arange(length * cell), np.arange(length * cell)) // max(2, cell // 2)) % 3 == 0
        pixels[stripes & np.repeat(np.repeat(hidden_elsewhere, cell, 0), cell, 1)] = PAPER
    if cell >= 6:  # lines between tokens, where there is room for them
        pixels[::cell] = _darker(pixels[::cell])
        pixels[:, ::cell] = _darker(pixels[:, ::cell])
    return Image.fromarray(pixels)


def _darker(pixels: np.ndarray) -> np.ndarray:
    return (pixels * 0.94).astype(np.uint8)


def _framed(plot: Image.Image, fields: dict[str, np.ndarray], streams: list[str], title: str) -> Image.Image:
    """The plot with bands, ticks and a legend."""
    side, length, small = plot.size[0], len(fields["order"]), font(13)
    margin, band = MARGIN, BAND
    entries = _legend_entries(fields, streams)
    lines = _legend_lines(entries, margin + side + 16 - 24, small)
    picture = Image.new("RGB", (margin + side + 16, margin + side + 16 + 24 * (len(lines) + 1)), PAPER)
    picture.paste(plot, (margin, margin))
    draw, scale = ImageDraw.Draw(picture), side / length
    for kind, offset in (("document", margin - 2 * band - 3), ("stream", margin - band - 1)):
        for start, stop, value in _runs(fields[kind] if kind == "document" else _streams(fields)):
            low, high = margin + round(start * scale), margin + round(stop * scale) - 1
            if kind == "document":
                fill = DOCUMENTS[value % 2] if value else OTHER
            else:
                fill = OTHER if value < 0 else HUES[value % len(HUES)]
            draw.rectangle((low, offset, max(low, high), offset + band - 2), fill=fill)
            draw.rectangle((offset, low, offset + band - 2, max(low, high)), fill=fill)
    for tick in _ticks(length):
        at = margin + round(tick * scale)
        draw.line((at, margin - 2 * band - 8, at, margin - 2 * band - 4), fill=FAINT)
        draw.line((margin - 2 * band - 8, at, margin - 2 * band - 4, at), fill=FAINT)
        draw.text((at, margin - 2 * band - 10), str(tick), font=small, fill=INK, anchor="mb")
        draw.text((margin - 2 * band - 11, at), str(tick), font=small, fill=INK, anchor="rm")
    y = margin + side + 12
    draw.text((12, y), title, font=small, fill=INK)
    for line in lines:
        x, y = 12, y + 24
        for text, colour, width in line:
            draw.rectangle((x, y + 1, x + 13, y + 14), fill=tuple(int(c) for c in colour), outline=FAINT)
            draw.text((x + 19, y), text, font=small, fill=INK)
            x += width
    return picture


def _streams(fields: dict[str, np.ndarray]) -> np.ndarray:
    return np.where(fields["document"] > 0, fields["stream"], -1)


def _runs(values: np.ndarray) -> list[tuple[int, int, int]]:
    """(start, stop, value) of each run of equal values."""
    edges = [0, *(np.flatnonzero(np.diff(values)) + 1).tolist(), len(values)]
    return [(a, b, int(values[a])) for a, b in zip(edges[:-1], edges[1:], strict=True)]


def _ticks(length: int) -> range:
    """At most ten round numbers."""
    step = next(s for k in range(12) for s in (10**k, 2 * 10**k, 5 * 10**k) if length / s <= 10)
    return range(0, length, step)


def _legend_entries(fields: dict[str, np.ndarray], streams: list[str]) -> list[tuple[str, np.ndarray]]:
    entries = []
    for number, name in enumerate(streams):
        mine = (fields["stream"] == number) & (fields["document"] > 0)
        if not mine.any():
            continue
        shade = shades(number)
        entries.append((f"{name} sees earlier tokens", shade["earlier"]))
        if (fields["span"][mine] > 0).any():
            entries.append((f"{name} sees its block", shade["block"]))
        if (fields["private"][mine] > 0).any():
            entries.append((f"{name}: private block", shade["private"]))
    entries += [("not seen", np.array(HIDDEN)), ("another document", np.array(OTHER))]
    return entries + [("outer band: documents", np.array(DOCUMENTS[0])), ("inner band: streams", np.array(HUES[0]))]


def _legend_lines(entries, width: int, small) -> list[list[tuple[str, np.ndarray, int]]]:
    """Entries with their widths, broken into lines of at most `width` pixels."""
    lines: list[list] = [[]]
    for text, colour in entries:
        own = 19 + math.ceil(small.getlength(text)) + 18
        if lines[-1] and sum(entry[2] for entry in lines[-1]) + own > width:
            lines.append([])
        lines[-1].append((text, colour, own))
    return lines


# --- images -----------------------------------------------------------------------------------------------------------


def to_picture(image: np.ndarray) -> Image.Image:
    """uint8 [H, W, 1 or 3] as a Pillow image.

    Raises:
      UsageError: if the array is something else.
    """
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3) or 0 in image.shape:
        raise UsageError(f"an image must be uint8 [H, W, 1 or 3], not {image.dtype} {list(image.shape)}")
    return Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).convert("RGB")


def grid(
    images: Sequence[np.ndarray],
    columns: int,
    captions: Sequence[str] | None = None,
    *,
    scale: int = 0,
    marks: Sequence[bool] | None = None,
    path: str | os.PathLike | None = None,
) -> Image.Image:
    """Images in rows of `columns`, each with its caption below, wrapped to the width of its image.

    Args:
      images: uint8 [H, W, C] each, C = 1 or 3; sizes may differ.
      captions: one per image, or None.
      scale: pixels per pixel, without smoothing; 0 makes the longest side about 96 pixels or more.
      marks: which images get a red frame, one truth value per image.
      path: where to write the picture as PNG; None writes no file.

    Raises:
      UsageError: if there are no images, or not one caption (mark) per image.
    """
    pictures = [to_picture(image) for image in images]
    if not pictures or columns < 1:
        raise UsageError("a grid needs at least one image and one column")
    for name, values in (("captions", captions), ("marks", marks)):
        if values is not None and len(values) != len(pictures):
            raise UsageError(f"a grid of {len(pictures)} images needs as many {name}, not {len(values)}")
    longest = max(max(picture.size) for picture in pictures)
    scale = scale or max(1, round(TINY / longest))
    width, height = (scale * max(picture.size[axis] for picture in pictures) for axis in (0, 1))
    # Captions of tiny images need more than the image's own width, to have room for a word.
    cell = width if captions is None else max(width, 104)
    wrapped = [_wrapped(text, cell) for text in captions or [""] * len(pictures)]
    line, gap = 15, 8
    caption = line * max(map(len, wrapped)) + (4 if captions is not None else 0)
    columns = min(columns, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    canvas = Image.new("RGB", (columns * (cell + gap) + gap, rows * (height + caption + gap) + gap), PAPER)
    draw = ImageDraw.Draw(canvas)
    for i, picture in enumerate(pictures):
        x, y = gap + (i % columns) * (cell + gap), gap + (i // columns) * (height + caption + gap)
        big = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
        left = x + (cell - big.width) // 2
        canvas.paste(big, (left, y))
        if marks is not None and marks[i]:
            draw.rectangle((left - 3, y - 3, left + big.width + 2, y + big.height + 2), outline=(200, 30, 30), width=3)
        for k, text in enumerate(wrapped[i]):
            draw.text((x + cell // 2, y + height + 4 + k * line), text, font=font(12), fill=INK, anchor="ma")
    if path is not None:
        _save(canvas, path)
    return canvas


def _wrapped(text: str, width: int) -> list[str]:
    """Lines that fit into `width` pixels; control characters and line breaks become spaces."""
    if not text:
        return []
    clean = "".join(c if c.isprintable() else " " for c in text)
    letters = max(4, int(width / font(12).getlength("abcdefghijklmnop ") * 17))
    lines = textwrap.wrap(clean, letters) or [""]
    return lines[:5] if len(lines) <= 5 else [*lines[:4], lines[4][: letters - 3] + "..."]


def strip(images: Sequence[np.ndarray], *, scale: int = 0, path: str | os.PathLike | None = None) -> Image.Image:
    """Images [H, W, C] in one row, uint8 or, as a trajectory records its steps, float in [-1, 1]."""
    images = [to_uint8(image) if np.asarray(image).dtype.kind == "f" else image for image in images]
    return grid(images, len(images), scale=scale, path=path)
