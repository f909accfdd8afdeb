"""Zero-shot classes of a contrastive model (CLIP, arXiv 2103.00020, section 3.1): the nearest caption names an image.

A softmax over the captions of the classes is not needed, because only the nearest counts.
"""

from collections.abc import Sequence

import jax
import numpy as np

from transfusion.api import Trained
from transfusion.evaluation.examples import Examples, class_captions
from transfusion.evaluation.intervals import Score, wilson
from transfusion.evaluation.losses import clean_draws
from transfusion.objectives import OBJECTIVES
from transfusion.objectives.contrastive import Pairs, pairs_of
from transfusion.sequence import Document
from transfusion.sequence.rows import assemble, expand

ROWS = 32  # documents that are encoded at once, one in a row


def compared(run: Trained) -> tuple[str, str] | None:
    """The stream of images that the run has learned to compare, and that of the text; None if there is none."""
    for name, stream in run.spec.streams.items():
        objective = OBJECTIVES[stream.objective]
        for other in objective.beside(objective.config(run.task.objectives, name)):
            return name, other
    return None


def vectors(run: Trained, documents: Sequence[Document]) -> tuple[np.ndarray, np.ndarray]:
    """The vectors of the images and of the texts of documents that hold one of each: [N, E] and [N, E]."""
    name, other = compared(run)
    task = run.task

    @jax.jit
    def encode(params, batch) -> Pairs:
        model, draws = task.template.bind(params), clean_draws(task, batch)
        encoded = model.encode({stream: task.inputs(stream, batch, draws) for stream in task.spec.streams})
        return pairs_of(model.head_of(name), encoded[name].hidden, batch[name], encoded[other].hidden, batch[other])

    images, texts = [], []
    for first in range(0, len(documents), ROWS):
        rows = [[expand(document, run.spec)] for document in documents[first : first + ROWS]]
        pairs = encode(run.params, assemble(rows + [[]] * (ROWS - len(rows)), run.spec))
        images.append(np.asarray(pairs.images)[: len(rows), 0])
        texts.append(np.asarray(pairs.texts)[: len(rows), 0])
    return np.concatenate(images), np.concatenate(texts)


def zero_shot(run: Trained, real: Examples, held_out: Examples, count: int) -> Score:
    """The share of the first `count` held-out images whose nearest caption, of those of the classes, is their own.

    The captions are those of the first real example of each label.
    """
    captions = class_captions(real)
    words = [run.segments(caption) for caption in captions.values()]
    pictures = [run.segments(image) for image in held_out.images[:count]]
    documents = [(*words[0], *picture) for picture in pictures] + [(*word, *pictures[0]) for word in words]
    images, texts = vectors(run, documents)
    nearest = np.argmax(images[: len(pictures)] @ texts[len(pictures) :].T, axis=1)
    right = np.array(list(captions))[nearest] == held_out.labels[: len(pictures)]
    return wilson(int(right.sum()), len(right))
