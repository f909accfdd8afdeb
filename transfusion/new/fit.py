"""Chooses sizes, budgets, the batch and the model for a folder of images, by packing its records."""

import dataclasses
import math
import os
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from transfusion import layouts
from transfusion.data.config import DataConfig
from transfusion.data.documents import choose_document
from transfusion.data.examples import make_example
from transfusion.data.hold_out import fraction
from transfusion.data.packing import Bad, Lane
from transfusion.errors import UsageError
from transfusion.new.folder import Found
from transfusion.sequence import SequenceSpec, Stream, text
from transfusion.sequence.rows import Expanded

SIDES = (8, 16, 24, 28, 32, 48, 64, 96, 128, 192, 256)
USUAL = 32  # pixels of a side that a CPU trains in an hour; larger ones are asked for
TOKENS = 64  # about so many tokens of an image: a patch is an eighth of the side
PACKED = 600  # records that are packed to try a budget
PER_ROW = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)  # images of a row that are tried
LONGEST_ROW = 2048  # tokens; attention costs their square
ENOUGH = 0.92  # a row that is filled so far is as good as any
IMAGES_OF_A_STEP, PASSES = 32, 40
LEAST, MOST = 1000, 20_000  # steps
HELD_OUT = (0.05, 0.1, 0.2)  # shares that are tried, until at least FEW records are held out
FEW, FEWEST = 4, 20  # of fewer than FEWEST images none is held out
DATA = DataConfig(drop_caption=0.1, caption_first=0.8)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What was chosen for a folder.

    Attributes:
      side: pixels of an image's side.
      channels: 1 or 3.
      patch: pixels of a patch's side.
      images: images of a row.
      text_budget: tokens of text of a row.
      open_rows: rows that packing fills at the same time.
      truncate: whether captions that are too long are cut.
      batch: rows of a step.
      steps: of the training.
      width, layers, heads: of the model.
      hold_out: share of the images that is held out; 0 for none.
      held_out: how many these are.
      longest: tokens of text of the longest caption.
      mean: tokens of text of a caption, on average.
      filled: the share of a row that packing fills: by stream, and of 'all'.
    """

    side: int
    channels: int
    patch: int
    images: int
    text_budget: int
    open_rows: int
    truncate: bool
    batch: int
    steps: int
    width: int
    layers: int
    heads: int
    hold_out: float
    held_out: int
    longest: int
    mean: float
    filled: dict[str, float]

    @property
    def tokens(self) -> int:
        """Tokens of an image."""
        return (self.side // self.patch) ** 2

    @property
    def image_budget(self) -> int:
        return self.images * self.tokens


def plan(found: Found, side: int = 0, patch: int = 0) -> Plan:
    """Chooses everything for a folder.

    Args:
      found: what the folder holds.
      side: pixels of an image's side; 0: the largest usual one that the images have.
      patch: pixels of a patch's side; 0: so that an image has about `TOKENS` tokens.

    Raises:
      UsageError: if the patch does not divide the side.
    """
    side = side or _side(found)
    patch = patch or _patch(side)
    if side % patch:
        raise UsageError(f"--patch={patch} does not divide --resolution={side}")
    channels, tokens = (1 if found.grey else 3), (side // patch) ** 2
    items = examples(found, side, patch, channels)
    texts = [item.cost.get("text", 0) for item in items]
    best = _best_row(items, tokens, max(texts), float(np.mean(texts)))
    batch = max(1, round(IMAGES_OF_A_STEP / best["images"]))
    hold_out, held_out = held_out_share([name for name, _ in found.captions])
    steps = PASSES * len(found.captions) / (batch * best["images"])
    width, layers, heads = (128, 4, 2) if side <= 16 else (256, 6, 4) if side <= 64 else (384, 8, 6)
    return Plan(
        side=side, channels=channels, patch=patch, batch=batch, width=width, layers=layers, heads=heads,
        steps=int(np.clip(100 * round(steps / 100), LEAST, MOST)), hold_out=hold_out, held_out=held_out,
        longest=max(texts), mean=float(np.mean(texts)), **best,
    )  # fmt: skip


def _side(found: Found) -> int:
    """The largest usual side that most images have, but no more than is quick to train."""
    shorter = float(np.median(found.sizes.min(1)))
    return max((side for side in SIDES if side <= min(shorter, USUAL)), default=SIDES[0])


def _patch(side: int) -> int:
    """The patch that divides an image into about `TOKENS` tokens."""
    wanted = side / math.sqrt(TOKENS)
    return min((size for size in range(1, side + 1) if side % size == 0), key=lambda size: abs(size - wanted))


def held_out_share(names: Sequence[str]) -> tuple[float, int]:
    """The share of the images that is held out, and how many these are; the split is that of `data.hold_out`."""
    if len(names) < FEWEST:
        return 0.0, 0
    places = np.array([fraction(os.path.normpath(name)) for name in names])
    share = next((share for share in HELD_OUT if FEW <= (places < share).sum() < len(names)), 0.0)
    return share, int((places < share).sum())


def examples(found: Found, side: int, patch: int, channels: int) -> list[Expanded]:
    """The tokens of images spread over the folder, with the captions, drops and order that training chooses."""
    spec = _spec(side, patch, channels, 2**20, 2**20)
    count = min(PACKED, len(found.captions))
    blank, items = np.zeros((side, side, channels), np.uint8), []
    for i in range(count):
        name, caption = found.captions[i * len(found.captions) // count]
        record = {"id": name, "image": blank} | ({"caption": caption} if caption else {})
        item = make_example(record, choose_document(record, DATA, (0, i)), spec)
        if isinstance(item, Bad):
            raise UsageError(f"{name}: {item.error}")
        items.append(item)
    return items


def _spec(side: int, patch: int, channels: int, image_budget: int, text_budget: int) -> SequenceSpec:
    image = Stream(
        embed="linear", head="linear", objective="continuous", attention="block", time="added", channels=channels,
        patch=patch, grid=(side, side), budget=image_budget // (side // patch) ** 2 * (side // patch) ** 2,
    )  # fmt: skip
    streams = {"text": Stream(vocabulary=text.VOCABULARY, budget=text_budget), "image": image}
    return SequenceSpec(streams, layouts.transfusion(), text.BOS, text.EOS)


# --- rows -------------------------------------------------------------------------------------------------------------


def _best_row(items: Sequence[Expanded], tokens: int, longest: int, mean: float) -> dict:
    """The shortest row that packing fills well enough, or else the one that it fills best."""
    tried = []
    for images, budget, truncate in _rows(tokens, longest, mean):
        for open_rows in (8, 32):
            budgets = {"text": budget, "image": images * tokens}
            filled = fill(items, budgets, open_rows)
            row = dict(images=images, text_budget=budget, open_rows=open_rows, truncate=truncate, filled=filled)
            if filled["all"] >= ENOUGH:
                return row
            tried.append(row)
    return max(tried, key=lambda row: row["filled"]["all"])


def _rows(tokens: int, longest: int, mean: float) -> Iterator[tuple[int, int, bool]]:
    """Yields (images of a row, its text budget, whether captions are cut) to try, short rows first.

    The text budget is that of so many captions of the mean length, and has room for the longest caption. If no row of
    a reasonable length has, captions are cut.
    """
    found = False
    for images in PER_ROW:
        for spare in (1.0, 1.08):
            budget = math.ceil(images * mean * spare / 8) * 8
            if images > 1 and images * tokens + budget > LONGEST_ROW:
                continue
            if budget >= longest:
                found = True
                yield images, budget, False
    if not found:
        images = max((n for n in PER_ROW if n * (tokens + mean) <= LONGEST_ROW), default=1)
        most = math.ceil(images * mean / 8) * 8
        yield images, min(max(most, 64), longest), True


def fill(items: Sequence[Expanded], budgets: Mapping[str, int], open_rows: int) -> dict[str, float]:
    """The share of each budget that packing fills, and of 'all', over three passes of the items in random order."""
    order = np.concatenate([np.random.default_rng(epoch).permutation(len(items)) for epoch in range(3)])
    fits = [item for item in items if all(item.cost.get(name, 0) <= budget for name, budget in budgets.items())]
    lane = Lane(lambda index: items[order[index % len(order)]], budgets, open_rows=open_rows)
    used, rows = dict.fromkeys(budgets, 0), 0
    while fits and lane.read < len(order):
        for piece in lane.next_row():
            for name in budgets:
                used[name] += piece.item.cost.get(name, 0)
        rows += 1
    shares = {name: used[name] / max(rows * budget, 1) for name, budget in budgets.items()}
    return shares | {"all": sum(used.values()) / max(rows * sum(budgets.values()), 1)}
