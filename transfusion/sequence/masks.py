"""The attention rule: the one place that decides which token sees which."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from transfusion.sequence.arrays import Array, Bool, Int
from transfusion.sequence.batch import Batch
from transfusion.sequence.spec import SequenceSpec


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Metadata:
    """What attention knows of each token: int32 [B, L] each (see `StreamSlice`); `stream` is its stream's number."""

    document: Int[Array, "B *L"]
    order: Int[Array, "B *L"]
    span: Int[Array, "B *L"]
    private: Int[Array, "B *L"]
    stream: Int[Array, "B *L"]


def metadata(batch: Batch, spec: SequenceSpec, streams: list[str] | None = None) -> Metadata:
    """Joins the metadata of the given streams (default: all, in the order of the config) along the row."""
    numbers = {name: i for i, name in enumerate(spec.streams)}
    names = list(spec.streams) if streams is None else streams
    fields = {
        field: jnp.concatenate([jnp.asarray(getattr(batch[name], field)) for name in names], axis=1)
        for field in ("document", "order", "span", "private")
    }
    stream = jnp.concatenate([jnp.full_like(jnp.asarray(batch[n].document), numbers[n]) for n in names], axis=1)
    return Metadata(stream=stream, **fields)


def causal(tokens: Metadata) -> Metadata:
    """The same tokens outside of every bidirectional block, for a trunk that reads them one after the other."""
    return dataclasses.replace(tokens, span=jnp.zeros_like(tokens.span))


def see(q: Metadata, k: Metadata, may: Bool[np.ndarray, "streams streams"] | None = None) -> Bool[Array, "B Q K"]:
    """Whether each query sees each key: bool [B, Q, K].

    A token sees its own span, and every earlier token that is not private and that `may` lets its stream see; never
    another document, never padding. Padding queries see nothing.

    Two documents of six tokens, in reading order; a query is a row, and sees the keys that are marked. In Transfusion
    the patches P of an image are one span between the openers and closers O and C, which are text as T is. In BAGEL
    the noised copy N of an image is a private span, and the clean copy P another one behind it:

          T O P P C T          T N N P P T
        T x . . . . .        T x . . . . .
        O x x . . . .        N x x x . . .
        P x x x x . .        N x x x . . .
        P x x x x . .        P x . . x x .
        C x x x x x .        P x . . x x .
        T x x x x x x        T x . . x x x

    Args:
      q, k: metadata of the queries [B, Q] and of the keys [B, K].
      may: static bool [streams, streams], `may[stream of q, stream of k]`; None: all may.
    """

    def both(field):
        return getattr(q, field)[:, :, None], getattr(k, field)[:, None, :]

    (dq, dk), (sq, sk), (oq, ok) = both("document"), both("span"), both("order")
    earlier = (ok <= oq) & (k.private == 0)[:, None, :]
    if may is not None:
        earlier &= jnp.asarray(may)[both("stream")]
    return (dq == dk) & (dq != 0) & (((sq == sk) & (sq != 0)) | earlier)


NEVER = 2**30  # no token of a row has an order as large as this


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Intervals:
    """The same rule as `see`, as one interval per key: query q sees key k where `first[k] <= order[q] <= last[k]`.

    A pair costs two compares, and a kernel needs no other numbers of the tokens. This is the column-wise form of
    FlashMask (arXiv 2410.01359), in places of the reading order instead of places in memory.

    Attributes:
      order: int32 [B, Q], the order of each query; -1 of padding.
      first: int32 [B, K], the least order of the queries that see a key; `NEVER` where none does.
      last: int32 [B, C, K], the largest one, for each class C of query streams (see `classes`); -2 where none does.
      of: int32 [B, Q], the class of each query.
    """

    order: Int[Array, "B Q"]
    first: Int[Array, "B K"]
    last: Int[Array, "B C K"]
    of: Int[Array, "B Q"]


def classes(may: Bool[np.ndarray, "streams streams"] | None) -> tuple[np.ndarray, np.ndarray]:
    """Sorts streams into classes that see the same streams: (bool [C, streams] which they see, the class of each)."""
    if may is None:
        return np.ones((1, 1), bool), np.zeros(1, int)
    seen, of = np.unique(may, axis=0, return_inverse=True)
    return seen, of.reshape(-1)


def intervals(q: Metadata, k: Metadata, may: Bool[np.ndarray, "streams streams"] | None = None) -> Intervals:
    """`see(q, k, may)` as intervals.

    They say the same where the tokens of a document follow one another in the reading order, and those of a span, with
    no other token between them. `rows.assemble` refuses rows in which they do not.
    """
    seen, of = classes(may)
    real = q.document > 0

    def extreme(field: str, empty: int) -> Array:
        """Over the queries that share a key's value of `field`: the least order, or the largest one."""
        mine, theirs = getattr(q, field)[:, :, None], getattr(k, field)[:, None, :]
        together = (
            (q.document[:, :, None] == k.document[:, None, :]) & (mine == theirs) & ((mine > 0) & real[..., None])
        )
        # A compiler makes these into one loop that keeps the extremes only, and no array [B, Q, K].
        order = jnp.where(together, q.order[:, :, None], empty)
        return order.min(1) if empty > 0 else order.max(1)

    open_to = (k.private == 0)[:, None, :]
    if may is not None:
        open_to &= jnp.moveaxis(jnp.asarray(seen)[:, k.stream], 0, 1)
    open_to = jnp.broadcast_to(open_to, (len(k.order), len(seen), k.order.shape[1]))
    own = jnp.where(k.document > 0, k.order, NEVER)
    first = jnp.minimum(extreme("span", NEVER), jnp.where(k.private == 0, own, NEVER))
    in_span, in_document = extreme("span", -2)[:, None], extreme("document", -2)[:, None]
    last = jnp.maximum(in_span, jnp.where(open_to, in_document, -2))
    number = jnp.asarray(of, jnp.int32)[q.stream] if may is not None else jnp.zeros_like(q.stream)
    return Intervals(jnp.where(real, q.order, -1), first, last, number)
