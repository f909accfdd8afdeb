"""The attention rule against masks that the published implementations of BAGEL and Show-o made."""

import jax
import jax.numpy as jnp
import numpy as np

from oracles import Oracle
from transfusion.sequence import Run, Segment, SequenceSpec, Stream
from transfusion.sequence.masks import Metadata, metadata, see
from transfusion.sequence.rows import assemble, expand

# --- BAGEL ------------------------------------------------------------------------------------------------------------

BOI, EOI = 3, 4


def image_run(stream: str, edges: bool, **fields) -> Run:
    return Run(stream, boundary="inside", opener=BOI if edges else -1, closer=EOI if edges else -1, **fields)


def bagel(length: int) -> SequenceSpec:
    """Clean images, and noised ones that only they themselves see; openers and closers lie inside the image's block."""
    image = Stream(objective="continuous", attention="block", channels=1, budget=length, items=length)
    layout = {"text": (Run("text"),)}
    for edges in (True, False):
        role = "framed" if edges else "bare"
        layout[f"clean/{role}"] = (image_run("clean", edges, time_low=1.0, position="item"),)
        layout[f"noised/{role}"] = (image_run("noised", edges, private=True, position="hold"),)
    return SequenceSpec({"text": Stream(vocabulary=8, budget=length), "clean": image, "noised": image}, layout, 1, 2)


def split(count: int, mode: int) -> Segment:
    """A split of so many tokens: causal text (0), or a clean (1) or noised (2) image, whose opener and closer are among
    them."""
    if mode == 0:
        return Segment("text", np.zeros(count, np.int32))
    kind, framed = ("clean", "noised")[mode - 1], count > 2
    patches = np.zeros((count - 2 * framed, 1, 1), np.float32)
    return Segment(kind, patches, "framed" if framed else "bare")


def splits(oracle: Oracle) -> dict[str, np.ndarray]:
    """BAGEL's packed rows: documents of splits, through a layout table of ours."""
    longest = max(len(mask) for mask in oracle.outputs.values())
    spec, rows = bagel(longest), []
    for name in oracle.outputs:
        row = name.removesuffix(".mask")
        lengths, modes, documents = (oracle.arrays[f"{row}.{part}"] for part in ("split", "mode", "docs"))
        first = np.searchsorted(np.cumsum(lengths), [0, *np.cumsum(documents)], side="right")
        parts = [split(*part) for part in zip(lengths.tolist(), modes.tolist(), strict=True)]
        inside = [tuple(parts[start:end]) for start, end in zip(first[:-1], first[1:], strict=True)]
        rows.append([expand(document, spec, begin=False, end=False) for document in inside])
    joined = metadata(assemble(rows, spec), spec)
    used = np.where(joined.document > 0, joined.order, longest)
    reading = jnp.asarray(np.argsort(used, axis=1, kind="stable")[:, :longest])
    tokens = jax.tree.map(lambda x: jnp.take_along_axis(x, reading, 1), joined)
    ours = zip(oracle.outputs.items(), np.asarray(see(tokens, tokens)), strict=True)
    return {name: mask[: len(value), : len(value)] for (name, value), mask in ours}


# --- Show-o, first version --------------------------------------------------------------------------------------------


def tokens_of(document: np.ndarray, span: np.ndarray) -> Metadata:
    """One row in reading order."""
    n = len(document)
    zeros = jnp.zeros((1, n), jnp.int32)
    return Metadata(
        document=jnp.asarray(document, jnp.int32)[None],
        order=jnp.arange(n)[None],
        span=jnp.asarray(span, jnp.int32)[None],
        private=zeros,
        stream=zeros,
    )


def show_o(oracle: Oracle) -> dict[str, np.ndarray]:
    """Drawing, with padding seen and removed; and reading.

    An image sees the text behind it too (and so it leaks), which stays causal: spans of queries and keys differ, which
    the rule can say and a packed row, with one span per token, cannot. To read, all up to the image's end is a block.
    """
    ours = {}
    for name, value in oracle.outputs.items():
        image = oracle.arrays[f"{name.partition('.')[0]}.is_image"]
        place, inside = np.arange(len(image)), np.flatnonzero(image)
        if name.endswith(".mask_mmu"):
            query, key = (place <= inside[-1],) * 2
        else:
            query, key = image, place >= inside[0]
        # The last token sees all but padding, which is one more document.
        document = 1 + value[-1]
        ours[name] = np.asarray(see(tokens_of(document, query), tokens_of(document, key))[0])
    return ours


CHECKS = {r"arrays: docs mask mode split$": splits, r"arrays: is_image mask mask_mmu mask_rmpad seq$": show_o}
