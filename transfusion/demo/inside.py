"""What the tokens of a conversation look at: the attention of every layer and head, recorded in one slow forward pass.

Shape letters: L layers, H heads, Q tokens that look, S tokens that are seen, T tokens of the conversation.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from transfusion.api import Trained
from transfusion.errors import UsageError
from transfusion.model.attention import Backend, grouped, heads_first, masked_attention
from transfusion.model.blockwise import UNSEEN_SCORE
from transfusion.model.unified import model_template
from transfusion.sampling.drawable import drawables_of
from transfusion.sampling.prompts import Fit, Prompt, expand_prompt, fit_of, prefill_of
from transfusion.sequence import Document
from transfusion.sequence.batch import Batch
from transfusion.sequence.masks import Metadata, see
from transfusion.sequence.rows import assemble

MOST_TOKENS = 512
MOST_NUMBERS = 2**25  # of all weights together: 64 MB for each visitor


@dataclasses.dataclass(frozen=True)
class Inside:
    """A conversation as the model reads it.

    Attributes:
      batch: its tokens, as one packed row.
      fit: the tables with which the row was made.
      labels: what each token is, in reading order.
      weights: float16 [L, H, T, T]: how much a token (row) takes from each other one (column), in reading order. A row
        of a token that a trunk does not change is 0.
    """

    batch: Batch
    fit: Fit
    labels: list[str]
    weights: np.ndarray


def look_inside(run: Trained, said: Document) -> Inside:
    """Reads what was `said`, a document that ends where text may follow, and records the attention.

    Raises:
      UsageError: if the model cannot read it, or it is too long for a picture.
    """
    prompt, drawables = Prompt(said), drawables_of(run.spec)
    fit = fit_of([prompt], run.spec, drawables)
    layers = run.task.model.layers + sum(stage.trunk.layers for stage in run.task.model.stages.values())
    if fit.length > MOST_TOKENS or fit.length**2 * layers * run.task.model.heads > MOST_NUMBERS:
        raise UsageError(f"the conversation has {fit.length} tokens: too many to show what each of them looks at")
    expanded = expand_prompt(said, run.spec, None)
    order = {name: piece["order"] for name, piece in expanded.pieces.items()}
    labels = [""] * expanded.length
    for name, places in order.items():
        ids = expanded.pieces[name].get("tokens")
        readable = run.spec.streams[name].vocabulary and "values" not in expanded.pieces[name]
        for at, place in enumerate(places):
            labels[place] = _word(run, int(ids[at])) if readable else name
    weights = _recorded(run, prefill_of([prompt], run.spec, drawables, fit=fit).inputs, expanded.length)
    return Inside(assemble([[expanded]], fit.spec), fit, labels, weights)


def _word(run: Trained, token: int) -> str:
    """A token of text as people read it."""
    runs = [one for of_kind in run.spec.layout.values() for one in of_kind]
    special = {run.spec.bos: "BOS", run.spec.eos: "EOS"}
    special |= {one.opener: "open" for one in runs} | {one.closer: "close" for one in runs}
    word = run.task.tokenizer.decode([token]).replace(" ", "␣")
    return special.get(token) or (word if word and word.isprintable() else f"#{token}")


def _recorded(run: Trained, inputs: dict, length: int) -> np.ndarray:
    """Runs the model layer by layer, without compiling, and collects the weights of its attention."""
    record: list[np.ndarray] = []

    def plan(q: Metadata, k: Metadata, may: np.ndarray | None, layout: object) -> tuple:
        return see(q, k, may), _places(q), _places(k)

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, plan: tuple) -> jax.Array:
        mask, rows, columns = plan
        record.append(_in_reading_order(weights_of(q, k, mask)[0], rows, columns, length))
        return masked_attention(q, k, v, mask)

    recording = Backend(plan, attend, attend, plan, attend)
    config = dataclasses.replace(run.task.model, remat="none")
    template = model_template(config, run.spec, lambda name, layout: recording)
    with jax.disable_jit():  # so that loops over layers run one by one, on arrays that can be kept
        template.bind(run.params).encode(inputs)
    most = max(len(layer) for layer in record)  # trunks may differ in their heads
    padded = [np.pad(layer, ((0, most - len(layer)), (0, 0), (0, 0))) for layer in record]
    return np.stack(padded)


def weights_of(q: jax.Array, k: jax.Array, mask: jax.Array) -> jax.Array:
    """The weights float32 [B, H, Q, S] of attention: queries [B, Q, H, K], keys [B, S, G, K], mask bool [B, Q, S]."""
    b, n, h, _ = q.shape
    groups = k.shape[2]
    scores = jnp.einsum("bgqk,bgsk->bgqs", grouped(q, groups), heads_first(k), preferred_element_type=jnp.float32)
    scores = scores.reshape(b, groups, n, h // groups, -1).transpose(0, 1, 3, 2, 4).reshape(b, h, n, -1)
    weights = jax.nn.softmax(jnp.where(mask[:, None], scores, UNSEEN_SCORE), axis=-1)
    return weights * mask.any(-1)[:, None, :, None]


def _places(tokens: Metadata) -> np.ndarray:
    """The place of each token in reading order; -1 for padding."""
    return np.where(np.asarray(tokens.document)[0] > 0, np.asarray(tokens.order)[0], -1)


def _in_reading_order(weights: jax.Array, rows: np.ndarray, columns: np.ndarray, length: int) -> np.ndarray:
    """Turns weights [H, Q, S] into float16 [H, T, T]."""
    found = np.zeros((weights.shape[0], length, length), np.float16)
    real_rows, real_columns = np.flatnonzero(rows >= 0), np.flatnonzero(columns >= 0)
    chosen = np.asarray(weights)[:, real_rows][:, :, real_columns]
    found[:, rows[real_rows][:, None], columns[real_columns][None]] = chosen
    return found
