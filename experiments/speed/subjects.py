"""What is measured: packed rows, attention on them, training steps and sampling, of the Transfusion paper's models."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transfusion.config import Experiment
from transfusion.data.packing import Item, Lane
from transfusion.kernels.kernel import Layout
from transfusion.kernels.plan import Cut, plan
from transfusion.kernels.runs import of_queries
from transfusion.model.attention import BACKENDS
from transfusion.programs import load_experiment
from transfusion.sequence import Segment
from transfusion.sequence.batch import Batch
from transfusion.sequence.masks import Metadata, intervals, metadata, see
from transfusion.sequence.rows import assemble, expand
from transfusion.sequence.spec import SequenceSpec

CONFIG = pathlib.Path(__file__).resolve().parents[2] / "configs" / "transfusion_paper.py"
KERNEL = "triton"  # the backend of attention that is measured
HEADS = 12
BLOCKS = (128, 64)  # queries and keys of a block of the kernel's forward pass
ROWS = {4096: 4, 16384: 1}  # tokens of a row -> rows
WARM_UP = 40  # rows that packing makes before those that are taken
# Documents: one in ten is text (the median of its lengths, in bytes), the others are images with captions.
TEXT_SHARE, TEXT_LENGTH, CAPTION_LENGTH, CAPTION_FIRST = 0.1, 900, 120, 0.8


# --- rows -------------------------------------------------------------------------------------------------------------


def experiment(
    size: str, rows: int, length: int = 4096, attention: str = KERNEL, remat: str = "full", mixture: bool = False
) -> Experiment:
    """A model of the paper on one device, on rows of `length` tokens, half of which are patches of images.

    Args:
      mixture: whether text and images have an expert each (a Mixture-of-Transformers).
    """
    loaded = load_experiment(f"{CONFIG}:{size}")
    streams = {
        name: dataclasses.replace(stream, budget=length // 2, expert=name if mixture else stream.expert)
        for name, stream in loaded.streams.items()
    }
    model = dataclasses.replace(loaded.model, attention=attention, remat=remat)
    mesh = dataclasses.replace(loaded.mesh, data=1, fsdp=1)
    return dataclasses.replace(loaded, streams=streams, model=model, mesh=mesh, batch_size=rows)


def documents(spec: SequenceSpec, seed: int) -> Callable[[int], Item]:
    """Returns `document(number)`: texts and captioned images of random content, and of lengths as web pages have."""
    image = spec.streams["image"]
    rng = np.random.default_rng(seed)

    def words(length: float) -> Segment:
        return Segment("text", rng.integers(1, 200, max(1, int(length))).astype(np.int32))

    def document(number: int) -> Item:
        if rng.random() < TEXT_SHARE:
            longest = 3 * spec.streams["text"].budget
            return expand((words(min(rng.lognormal(np.log(TEXT_LENGTH), 1.0), longest)),), spec)
        caption = words(rng.lognormal(np.log(CAPTION_LENGTH), 0.4))
        latents = rng.standard_normal((*image.grid, image.channels)).astype(np.float32)
        both = (caption, Segment("image", latents))
        return expand(both if rng.random() < CAPTION_FIRST else both[::-1], spec)

    return document


def packed(spec: SequenceSpec, rows: int, seed: int = 0) -> Batch:
    """Rows as the training program packs them."""
    lane = Lane(documents(spec, seed), spec.budgets)
    for _ in range(WARM_UP):
        lane.next_row()
    return assemble([[piece.item for piece in lane.next_row()] for _ in range(rows)], spec)


def tokens(length: int, rows: int) -> Metadata:
    """The metadata int32 [rows, length] of packed rows, as numpy arrays."""
    spec = experiment("0.16B", rows, length, attention="dense").spec
    return jax.tree.map(np.asarray, metadata(packed(spec, rows), spec))


def pairs_in_blocks(tokens: Metadata, allowed: np.ndarray) -> tuple[int, int]:
    """The pairs of tokens in blocks that a kernel computes, and in those that hold a pair that is allowed.

    Args:
      tokens: metadata [B, L] of rows with two slices of L / 2 tokens, whole blocks each.
      allowed: bool [B, L, L], what `masks.see` says.
    """
    rows, length = tokens.order.shape
    cuts = [Cut((length // 2, length // 2), size) for size in BLOCKS]
    visited = int(of_queries(plan(intervals(tokens, tokens), *cuts)).counts[..., 1].sum())
    (q, k), each = BLOCKS, BLOCKS[0] * BLOCKS[1]
    needed = allowed.reshape(rows, length // q, q, length // k, k).any((2, 4))
    return each * visited, each * int(needed.sum())


# --- attention --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Attention:
    """A way to compute attention: what is prepared once per step, and what every layer computes with it.

    Attributes:
      plan: (metadata of the tokens, head size) -> what all layers share.
      attend: (q, k, v [B, L, H, K], that) -> [B, L, H, K].
    """

    plan: Callable[[Metadata, int], Any]
    attend: Callable[[jax.Array, jax.Array, jax.Array, Any], jax.Array]

    def gradients(self, q: jax.Array, k: jax.Array, v: jax.Array, change: jax.Array, plan: Any) -> tuple[Any, Any]:
        """The output, and the gradients of q, k and v."""
        out, pull = jax.vjp(lambda q, k, v: self.attend(q, k, v, plan), q, k, v)
        return out, pull(change)


def of_backend(name: str) -> Attention:
    """A backend of the library, for rows of two streams of equal length."""
    backend = BACKENDS[name]

    def plan(tokens: Metadata, size: int) -> Any:
        slices = (tokens.order.shape[1] // 2,) * 2
        return backend.plan(tokens, tokens, None, Layout(slices, slices, size, "bfloat16"))

    return Attention(plan, backend.attend)


def _cudnn(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="cudnn")


ATTENTION: dict[str, Callable[[], Attention]] = {
    "kernel": lambda: of_backend(KERNEL),
    "cudnn": lambda: Attention(lambda tokens, size: see(tokens, tokens)[:, None], _cudnn),
    "dense": lambda: of_backend("dense"),
}


def arrays(length: int, rows: int, size: int, dtype: str = "bfloat16") -> list[jax.ShapeDtypeStruct]:
    """The shapes of q, k, v and of the gradient of the output."""
    return [jax.ShapeDtypeStruct((rows, length, HEADS, size), dtype)] * 4


def exact(q: jax.Array, k: jax.Array, v: jax.Array, change: jax.Array, mask: jax.Array) -> tuple[Any, Any]:
    """The output and the gradients in float64, with x64 enabled: the definition, with all pairs in memory."""

    def attend(q, k, v):
        scores = jnp.einsum("bqhk,bshk->bhqs", q, k) / q.shape[-1] ** 0.5
        scores = jnp.where(mask[:, None], scores, -jnp.inf)
        most = jnp.maximum(scores.max(-1, keepdims=True), -1e300)
        weights = jnp.exp(scores - most)
        weights = weights / jnp.maximum(weights.sum(-1, keepdims=True), 1e-300)
        return jnp.einsum("bhqs,bshk->bqhk", weights, v)

    out, pull = jax.vjp(attend, *(x.astype("float64") for x in (q, k, v)))
    return out, pull(change.astype("float64"))
