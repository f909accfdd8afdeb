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
