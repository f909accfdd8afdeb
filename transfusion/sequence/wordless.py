"""A packed batch without its words: what an image that is drawn without its prompt would see, for guidance in training.

Shape letters: see `transfusion.sequence`.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from transfusion.sequence.batch import Batch
from transfusion.sequence.content import TEXT
from transfusion.sequence.spec import SequenceSpec


def without_words(batch: Batch, spec: SequenceSpec) -> Batch:
    """Takes the words of every document out of the packed rows; images and the ids around them stay.

    Words become padding, and the rotary positions of what follows move back, so that every other token sees what it
    would if the document had been packed without words (`data.drop_caption` with `null_caption` 'drop'). Classes and
    pooled vectors become those of no condition, too.
    """
    text = batch[TEXT]
    runs = [run for row in spec.layout.values() for run in row]
    edges = np.unique([spec.bos, spec.eos, *(edge for run in runs for edge in (run.opener, run.closer))])
    word = (text.document > 0) & (text.item == 0) & ~jnp.isin(text.tokens, jnp.asarray(edges))

    def moved(part):
        before = (text.order[:, None, :] < part.order[:, :, None]) & word[:, None, :]
        gone = jnp.sum(before & (text.document[:, None, :] == part.document[:, :, None]), -1, dtype=jnp.int32)
        return part.position - gone[..., None]

    result = {}
    for name, part in batch.items():
        label = None if part.label is None else jnp.full_like(part.label, spec.streams[name].labels)
        pooled = None if part.pooled is None else jnp.zeros_like(part.pooled)
        result[name] = dataclasses.replace(part, position=moved(part), label=label, pooled=pooled)
    result[TEXT] = dataclasses.replace(result[TEXT], document=jnp.where(word, 0, text.document))
    return result
