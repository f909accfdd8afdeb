"""transfusion on the CPU: one training step, 64 text tokens, one image, one guided image.

Only public functions: `tasks.SequenceTask`, `train.make_step` (the training program's own step, with its finite check
and gradient norms), `rows.expand` and `assemble`, the decoder of `transfusion.sampling`.

    python ours.py --size small --work train
    python ours.py --size small --dump dump.npz     # parameters, batch, loss and gradient norms, for check_control.py
"""

import argparse
import dataclasses
import importlib.metadata
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import work

from transfusion.config import Experiment
from transfusion.learner import Draws
from transfusion.model.config import TransformerConfig
from transfusion.objectives.paths import PATHS, interpolate, target
from transfusion.optim import OptimConfig
from transfusion.running.jax_setup import without_ynnpack
from transfusion.sampling.config import SamplerConfig
from transfusion.sampling.decoder import Prompt, generate
from transfusion.sequence import Run, Segment, Stream, text
from transfusion.sequence.batch import Batch
from transfusion.sequence.masks import metadata
from transfusion.sequence.rows import assemble, expand
from transfusion.tasks import SequenceTask
from transfusion.training.step import TrainState, make_init, make_step

# name -> settings of the trunk. run.py reports the fastest.
VARIANTS = {
    "unrolled": {"scan": False},
    "scan": {"scan": True},
    "blockwise": {"scan": False, "attention": "blockwise"},
}


def experiment(size: work.Size, dtype: str, side: int, settings: dict[str, object]) -> Experiment:
    """Transfusion with linear patches; rows hold one image and no padding. No clipping, no average, as the others."""
    return Experiment(
        batch_size=size.batch,
        steps=1000,
        model=TransformerConfig(
            width=size.width, layers=size.depth, heads=size.heads, head_size=size.head_size, ffn=size.ffn, dtype=dtype,
            **settings,
        ),
        streams={
            # BOS, BOI, EOI and EOS besides the row's text.
            "text": Stream(vocabulary=work.VOCABULARY, budget=size.text_before + size.text_after + 4),
            "image": Stream(
                embed="linear", head="linear", objective="continuous", attention="block", time="added",
                budget=side * side, weight=work.IMAGE_LOSS_SCALE, channels=work.CHANNELS, grid=(side, side),
            ),
        },
        layout={"text": (Run("text"),), "image": (Run("image", opener=text.BOI, closer=text.EOI),)},
        optim=OptimConfig(
            learning_rate=work.LEARNING_RATE, warmup=1, b1=work.BETAS[0], b2=work.BETAS[1],
            weight_decay=work.WEIGHT_DECAY, clip=0.0, ema=0.0,
        ),
    )  # fmt: skip


def packed(setup: Experiment, size: work.Size) -> Batch:
    """The shared rows as a packed batch."""
    rows = work.training_rows(size)
    documents = []
    for before, latents, after in zip(rows.before, rows.latents, rows.after, strict=True):
        segments = [Segment("text", before), Segment("image", latents)]
        documents.append((*segments, Segment("text", after)) if len(after) else tuple(segments))
    return assemble([[expand(document, setup.spec)] for document in documents], setup.spec)


def train_step(size: work.Size, dtype: str, settings: dict[str, object]) -> Callable[[], None]:
    setup = experiment(size, dtype, size.side, settings)
    task = SequenceTask(setup.model, setup.spec, setup.objectives)
    state: list[TrainState] = [jax.jit(make_init(task, setup))()]
    batch = jax.device_put(packed(setup, size))
    step = jax.jit(make_step(task, setup), donate_argnums=0)

    def run() -> None:
        state[0] = jax.block_until_ready(step(state[0], batch))

    return run


def sampling_step(size: work.Size, dtype: str, config: SamplerConfig) -> Callable[[], None]:
    """One continuation of the prompt: an image if the config has one, else text."""
    setup = experiment(size, dtype, work.IMAGE_SIDE, {})
    # Without an end of documents the model cannot choose it, so that every text has the length that is asked for.
    task = SequenceTask(setup.model, dataclasses.replace(setup.spec, eos=-1), setup.objectives)
    params = jax.jit(task.template.init)(jax.random.key(0))
    prompt = Prompt((Segment("text", work.prompt()),), draw=config.max_images > 0)
    wanted = config.max_tokens or work.IMAGE_SIDE**2 * work.CHANNELS

    def step() -> None:
        (segment,) = generate(task, params, [prompt], 0, config)[0]
        if segment.value.size != wanted:
            raise RuntimeError(f"{segment.kind} of size {segment.value.size} instead of {wanted}")

    return step


def plan(options: argparse.Namespace) -> work.Plan:
    size, dtype = work.SIZES[options.size], options.dtype
    image = SamplerConfig(solver="euler", steps=work.EVALUATIONS, max_tokens=0)
    works = {
        "text": SamplerConfig(max_tokens=work.NEW_TOKENS, max_images=0),
        "image": image,
        "guided": dataclasses.replace(image, guidance=work.GUIDANCE),
    }
    result = {("train", name): partial(train_step, size, dtype, settings) for name, settings in VARIANTS.items()}
    return result | {(name, "decoder"): partial(sampling_step, size, dtype, config) for name, config in works.items()}


# --- for check_control.py ---------------------------------------------------------------------------------------------


def flat(tree: dict, prefix: str) -> dict[str, np.ndarray]:
    """{'a/b/c': array} of a nested dict."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {"/".join((prefix, *(str(key.key) for key in path))): np.asarray(leaf) for path, leaf in leaves}


def control_batch(task: SequenceTask, batch: Batch, draws: Draws) -> dict[str, np.ndarray]:
    """The fields of control.Batch: the joined rows and what the noise made of the images."""
    words, image = batch["text"], batch["image"]
    config = task.objectives.of_continuous("image")
    time, noise = draws["image"]["time"], draws["image"]["noise"]
    per_token = jnp.take_along_axis(time, jnp.asarray(image.item), 1)[..., None]
    path = PATHS[config.path]
    joined = metadata(batch, task.spec)
    position = np.concatenate([batch[name].position[..., 0] for name in ("text", "image")], 1)
    return {
        "ids": words.tokens, "targets": words.targets, "text_weight": words.loss_weight,
        "noised": interpolate(path, per_token, image.values, noise),
        "velocity": target(path, config.prediction, per_token, image.values, noise),
        "image_weight": image.loss_weight, "time": time, "item": image.item,
        "document": joined.document, "order": joined.order, "span": joined.span, "position": position,
    }  # fmt: skip


def dump(size: work.Size, path: str) -> None:
    """Parameters with random norm scales and biases, one batch, its loss and the norm of every gradient, as npz.

    Fresh scales are 1 and fresh biases 0, which would hide a wrong copy of them: all parameters get noise.
    """
    setup = experiment(size, "float32", size.side, {})
    task = SequenceTask(setup.model, setup.spec, setup.objectives)
    params = task.template.init(jax.random.key(0))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    leaves = [p + 0.1 * p.std() * jax.random.normal(k, p.shape) + 0.01 for p, k in zip(leaves, keys, strict=True)]
    params = jax.tree.unflatten(tree, leaves)
    batch = packed(setup, size)
    draws = task.draw(batch, jax.random.key(2))
    gradient = jax.jit(jax.value_and_grad(lambda p: task.loss(p, batch, draws, task.totals(batch))[0]))
    loss, grads = gradient(params)
    norms = jax.tree.map(jnp.linalg.norm, jax.tree.map(jnp.ravel, grads))
    arrays = flat(params, "param") | flat(norms, "norm") | {"loss": np.asarray(loss)}
    arrays |= {f"batch/{name}": np.asarray(value) for name, value in control_batch(task, batch, draws).items()}
    np.savez(path, **arrays)


def main() -> None:
    parser = work.arguments(__doc__.splitlines()[0])
    parser.add_argument("--dump", help="write the npz for check_control.py here and measure nothing")
    options = parser.parse_args()
    work.pin(options.threads)
    without_ynnpack()  # as every program of the library
    size = work.SIZES[options.size]
    if options.dump:
        dump(dataclasses.replace(size, batch=2), options.dump)
        return
    setup = experiment(size, options.dtype, size.side, {})
    shapes = SequenceTask(setup.model, setup.spec, setup.objectives).template.shapes
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax")}
    work.report("ours", options, count, versions, plan(options))


if __name__ == "__main__":
    main()
