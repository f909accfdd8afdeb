"""Pictures of what tokens look at."""

import numpy as np
from PIL import Image, ImageDraw

from transfusion.demo.inside import Inside
from transfusion.evaluation.pictures import FAINT, INK, PAPER, font, mask_picture

SIDE = 640  # pixels of a map, about
LABELLED = 80  # tokens up to which each has its name beside the map
BLUE = np.array((30, 64, 175))


def mask_of(inside: Inside) -> Image.Image:
    """Which token may see which."""
    return mask_picture(inside.batch, inside.fit.spec)


def attention_map(inside: Inside, layer: int, head: int) -> Image.Image:
    """How much each token (row) takes from each other (column), in one layer, counted from 1.

    `head` is counted from 1, too; 0 is the mean of all heads. The darkest cell is the largest weight of its row.
    """
    layers, heads = inside.weights.shape[:2]
    of_layer = inside.weights[min(max(layer, 1), layers) - 1].astype(np.float32)
    weights = of_layer[min(head, heads) - 1] if head else of_layer.mean(0)
    largest = weights.max(1, keepdims=True)
    share = np.sqrt(weights / np.where(largest > 0, largest, 1))  # small weights can be seen, too
    colours = (np.array(PAPER) + share[..., None] * (BLUE - np.array(PAPER))).astype(np.uint8)
    length = len(weights)
    cell = max(1, SIDE // length)
    plot = Image.fromarray(np.repeat(np.repeat(colours, cell, 0), cell, 1))
    named = length <= LABELLED and cell >= 8
    margin = 74 if named else 12
    picture = Image.new("RGB", (margin + plot.width + 12, margin + plot.height + 34), PAPER)
    picture.paste(plot, (margin, margin))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((margin - 1, margin - 1, margin + plot.width, margin + plot.height), outline=FAINT)
    if named:
        _name(picture, inside.labels, margin, cell)
    what = f"head {min(head, heads)}" if head else f"mean of {heads} heads"
    title = f"layer {layer} of {layers}, {what}; rows look, columns are seen"
    draw.text((12, margin + plot.height + 10), title, font=font(13), fill=INK)
    return picture


def _name(picture: Image.Image, labels: list[str], margin: int, cell: int) -> None:
    """Writes what each token is to the left of its row, and, turned, above its column."""
    picture.paste(_names(labels, margin - 6, cell), (4, margin))
    turned = _names(labels[::-1], margin - 6, cell).transpose(Image.Transpose.ROTATE_270)
    picture.paste(turned, (margin, 4))


def _names(labels: list[str], width: int, cell: int) -> Image.Image:
    """Names below each other, `cell` pixels apart."""
    band = Image.new("RGB", (width, cell * len(labels)), PAPER)
    draw, small = ImageDraw.Draw(band), font(min(12, max(8, cell)))
    for i, label in enumerate(labels):
        draw.text((width - 2, cell * i + cell // 2), label[:9], font=small, fill=INK, anchor="rm")
    return band
