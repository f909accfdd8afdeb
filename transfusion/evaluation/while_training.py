"""Draws pictures with a model that trains, for its trackers: held-out captions drawn, and held-out images captioned."""

import os
from collections.abc import Callable, Sequence

import jax
import numpy as np

from transfusion.api.run import Trained
from transfusion.config import Experiment
from transfusion.evaluation.examples import Examples, read_examples
from transfusion.evaluation.pictures import grid
from transfusion.latents import open_codecs
from transfusion.running.agreement import is_first
from transfusion.sharding import PyTree, replicated
from transfusion.tasks import SequenceTask, Task
from transfusion.trackers.tracker import Picture

Drawings = Callable[[PyTree, int], Sequence[Picture]]


def drawings(
    task: Task, experiment: Experiment, mesh: jax.sharding.Mesh, workdir: str | os.PathLike
) -> Drawings | None:
    """Returns `draw(params, step) -> pictures`, always of the same captions and images, with the same noise.

    Process 0 draws, on its first device, so that the parameters must have room there; the others only send it theirs.

    Returns:
      The function; None if the config asks for no pictures, or never evaluates, or the task is no sequence.
    """
    wanted = experiment.trackers.pictures and experiment.eval.every and experiment.eval.sources
    if not wanted or not isinstance(task, SequenceTask):
        return None
    gather = jax.jit(lambda params: params, out_shardings=replicated(mesh))
    kept: list[Examples] = []

    def draw(params: PyTree, step: int) -> Sequence[Picture]:
        whole = jax.tree.map(lambda leaf: leaf.addressable_data(0), gather(params))
        if not is_first():
            return ()
        run = Trained(experiment, task, whole, open_codecs(experiment), step, os.fspath(workdir))
        most = experiment.trackers.pictures
        if not kept:
            kept.append(read_examples(experiment.eval.sources, experiment.data, most, run.shows))
        with jax.set_mesh(jax.sharding.Mesh(np.array(jax.local_devices()[:1]), ("one",))):
            return _pictures(run, kept[0].take(np.arange(min(len(kept[0]), most))))

    return draw


def _pictures(run: Trained, examples: Examples) -> list[Picture]:
    """The captions drawn, and the images captioned, as far as the model can do either."""
    seed, found = run.experiment.seed, []
    if not len(examples) or not run.spec or run.shows not in ("image", "video"):
        return found
    if examples.captioned and run.draws:
        drawn = run.draw(list(examples.captions), seed=seed)
        found += [_shown(f"drawn/{i}", *pair) for i, pair in enumerate(zip(drawn, examples.captions, strict=True))]
    if examples.captioned and run.answers is None and run.spec.reads(run.shows):
        said = run.caption(list(examples.images), seed=seed)
        found += [_shown(f"captioned/{i}", *pair) for i, pair in enumerate(zip(examples.images, said, strict=True))]
    return found


def _shown(name: str, medium: np.ndarray, caption: str) -> Picture:
    """An image, or the frames of a clip in a row, enlarged so that people see the pixels of small ones."""
    frames = medium if medium.ndim == 4 else medium[None]
    printable = "".join(letter if letter.isprintable() else " " for letter in caption)
    return Picture(name, np.asarray(grid(list(frames), len(frames))), printable)
