"""The attention rule against masks that the published implementations of BAGEL and Show-o made."""

import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transfusion.masks import Metadata, metadata, see
from transfusion.rows import assemble, expand
from transfusion.sequence import Run, Segment, SequenceSpec, Stream

FOLDER = pathlib.Path(
    os.environ.get("TRANSFUSION_ORACLES") or pathlib.Path(__file__).parents[1].parent / "shared" / "oracles"
)
FILE = FOLDER / "masks.npz"
pytestmark = pytest.mark.skipif(not FILE.is_file(), reason=f"no {FILE.name} in {FOLDER} (set TRANSFUSION_ORACLES)")


def stored() -> dict[str, np.ndarray]:
    with np.load(FILE, allow_pickle=False) as file:
        return dict(file.items())


def names(prefix: str, having: str) -> list[str]:
    """The layouts of the file, 'bagel0' and so on, that store `having`."""
    if not FILE.is_file():
        return []
    with np.load(FILE, allow_pickle=False) as file:
        return sorted(n.partition(".")[0] for n in file.files if n.startswith(prefix) and n.endswith("." + having))


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
    """A split of so many tokens: causal text, or an image, whose opener and closer are among them."""
    if mode == 0:
        return Segment("text", np.zeros(count, np.int32))
    kind, framed = ("clean", "noised")[mode - 1], count > 2
    patches = np.zeros((count - 2 * framed, 1, 1), np.float32)
    return Segment(kind, patches, "framed" if framed else "bare")


@pytest.mark.parametrize("name", names("bagel", "split"))
def test_bagel(name):
    """Its packed layouts: splits that are causal (0), full (1) or noise (2), in documents."""
    data = {field: stored()[f"{name}.{field}"] for field in ("split", "mode", "docs", "mask")}
    length = int(data["docs"].sum())
    spec = bagel(length)
    ends = np.cumsum(data["split"])
    documents, start = [], 0
    for end in np.cumsum(data["docs"]):
        inside = (start < ends) & (ends <= end)
        parts = zip(data["split"][inside].tolist(), data["mode"][inside].tolist(), strict=True)
        documents.append(expand(tuple(split(*part) for part in parts), spec, begin=False, end=False))
        start = end
    joined = metadata(assemble([documents], spec), spec)
    reading = np.argsort(np.where(joined.document[0] > 0, joined.order[0], 10**6), kind="stable")[:length]
    tokens = jax.tree.map(lambda x: x[:, reading], joined)
    np.testing.assert_array_equal(see(tokens, tokens)[0], data["mask"])


# --- Show-o, first version --------------------------------------------------------------------------------------------


def tokens_of(document, span) -> Metadata:
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


@pytest.mark.parametrize("name", names("showo", "is_image"))
@pytest.mark.parametrize("field", ["mask", "mask_rmpad"])
def test_show_o_draws_with_text_before_one_block(name, field):
    """Up to the image's end; its rows also see what comes after, see below. Padding sees itself there, nothing here."""
    data = stored()
    wanted, image = data[f"{name}.{field}"], data[f"{name}.is_image"]
    n = np.flatnonzero(image)[-1] + 1
    used = wanted[-1, :n]  # the last token sees all but padding
    tokens = tokens_of(used, image[:n])
    np.testing.assert_array_equal(see(tokens, tokens)[0][used], wanted[:n, :n][used])


@pytest.mark.parametrize("name", names("showo", "mask_mmu"))
def test_show_o_reads_with_all_up_to_the_image_s_end_as_one_block(name):
    data = stored()
    n, end = len(data[f"{name}.is_image"]), np.flatnonzero(data[f"{name}.is_image"])[-1]
    tokens = tokens_of(np.ones(n), np.arange(n) <= end)
    np.testing.assert_array_equal(see(tokens, tokens)[0], data[f"{name}.mask_mmu"])


@pytest.mark.parametrize("name", names("showo", "is_image"))
@pytest.mark.parametrize("field", ["mask", "mask_rmpad"])
def test_show_o_images_see_later_text_if_it_lies_in_their_block_as_a_key_only(name, field):
    """Text after an image is causal itself, but the image sees it (and so it leaks): the spans of queries and keys
    differ, which the rule can say and a packed row, with one span per token, cannot."""
    data = stored()
    wanted, image = data[f"{name}.{field}"], data[f"{name}.is_image"]
    used = wanted[-1]  # the last token sees all but padding
    later = np.arange(len(image)) > np.flatnonzero(image)[0]
    queries, keys = tokens_of(used, image), tokens_of(used, image | later)
    np.testing.assert_array_equal(see(queries, keys)[0][used], wanted[used])
    assert not np.array_equal(see(queries, queries)[0][used], wanted[used])
