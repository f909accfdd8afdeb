"""The judge: an independent classifier, trained on real images only, that says what a generated image shows.

It never sees a generated image in training and shares no weights with the model that it judges. Its own accuracy on
held-out real images is reported beside every score that rests on it.
"""

import dataclasses
import functools
import json
import math
import pathlib
import struct
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from transfusion import storage
from transfusion.errors import UsageError
from transfusion.evaluation.intervals import Score, wilson
from transfusion.model.blocks import Conv, GroupNorm, Linear
from transfusion.model.parameters import Params, Template

NORM_GROUPS = 8


@dataclasses.dataclass(frozen=True)
class JudgeConfig:
    """The sizes and the training of the classifier. Images are float32 [N, height, width, channels] in [-1, 1].

    Attributes:
      classes: number of classes.
      features: width of the layer before the last.
      base: channels at the finest resolution, a multiple of `NORM_GROUPS`.
      shift: training moves images at random by up to so many pixels.
      smoothing: share of the labels' probability that is spread over all classes.
    """

    height: int = 8
    width: int = 8
    channels: int = 1
    classes: int = 10
    features: int = 128
    base: int = 16
    steps: int = 1000
    batch_size: int = 64
    learning_rate: float = 3e-3
    weight_decay: float = 0.05
    smoothing: float = 0.1
    shift: int = 1
    seed: int = 0

    def __post_init__(self):
        if min(self.height, self.width, self.channels, self.features, self.steps, self.batch_size) < 1:
            raise UsageError("judge: sizes, steps and batch_size must be at least 1")
        if self.classes < 2 or self.base < NORM_GROUPS or self.base % NORM_GROUPS:
            raise UsageError(f"judge: needs at least 2 classes and a base width that is a multiple of {NORM_GROUPS}")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels at each resolution. The image is halved between them until its shorter side is about 4."""
        halvings = max(0, round(math.log2(min(self.height, self.width) / 4)))
        return tuple(min(self.base * 2**i, 4 * self.base) for i in range(halvings + 1))


class Classifier(nnx.Module):
    """Two convolutions per resolution, with max pooling between resolutions, then two dense layers."""

    def __init__(self, config: JudgeConfig, rngs: nnx.Rngs):
        convolutions, norms, inputs = [], [], config.channels
        for width in config.widths:
            for _ in range(2):
                convolutions.append(Conv(inputs, width, rngs=rngs))
                norms.append(GroupNorm(width, NORM_GROUPS, rngs=rngs))
                inputs = width
        self.convolutions, self.norms = nnx.List(convolutions), nnx.List(norms)
        halvings = len(config.widths) - 1
        grid = (config.height >> halvings) * (config.width >> halvings)
        self.dense = Linear(grid * inputs, config.features, rngs=rngs)
        self.out = Linear(config.features, config.classes, axes=("conv_in", None), rngs=rngs)

    def features(self, images: jax.Array) -> jax.Array:
        """Images [N, H, W, C] -> the penultimate layer [N, F]."""
        x = images
        for i, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            if i and i % 2 == 0:
                x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
            x = jax.nn.silu(norm(convolution(x)))
        return jax.nn.silu(self.dense(x.reshape(x.shape[0], -1)))

    def logits(self, images: jax.Array) -> jax.Array:
        """Images [N, H, W, C] -> logits [N, classes]."""
        return self.out(self.features(images))


@functools.cache
def _template(config: JudgeConfig) -> Template:
    return Template(lambda rngs: Classifier(config, rngs))


@functools.cache
def _method(config: JudgeConfig, name: str) -> Callable[[Params, jax.Array], jax.Array]:
    """A method of the classifier as a jitted function of (params, images), compiled once per config."""
    return jax.jit(lambda params, images: getattr(_template(config).bind(params), name)(images))


@functools.cache
def _initial(config: JudgeConfig) -> Params:
    # On a CPU this generator compiles four times faster than the default one, which would take as long as the training.
    return jax.jit(_template(config).init)(jax.random.key(config.seed, impl="unsafe_rbg"))


@functools.cache
def _optimization(config: JudgeConfig) -> tuple[optax.GradientTransformation, Callable[..., tuple[Params, Any]]]:
    """The optimizer, and the jitted step (params, state, images, labels) -> (params, state)."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, config.steps // 10, config.steps)
    optimizer = optax.adamw(schedule, weight_decay=config.weight_decay)

    def loss(params: Params, images: jax.Array, labels: jax.Array) -> jax.Array:
        targets = optax.smooth_labels(jax.nn.one_hot(labels, config.classes), config.smoothing)
        return optax.softmax_cross_entropy(_template(config).bind(params).logits(images), targets).mean()

    @jax.jit
    def step(params: Params, state: Any, images: jax.Array, labels: jax.Array) -> tuple[Params, Any]:
        updates, state = optimizer.update(jax.grad(loss)(params, images, labels), state, params)
        return optax.apply_updates(params, updates), state

    return optimizer, step


@dataclasses.dataclass(frozen=True)
class Judge:
    """A trained classifier: its config and its parameters (dict of arrays)."""

    config: JudgeConfig
    params: Params

    def _apply(self, method: str, images: np.ndarray, batch: int = 256) -> np.ndarray:
        images = _checked(images, self.config)
        function = _method(self.config, method)
        # All batches have one shape, so that nothing is compiled for the last one.
        batch = min(batch, len(images))
        padded = np.pad(images, ((0, -len(images) % batch), (0, 0), (0, 0), (0, 0)))
        parts = [np.asarray(function(self.params, padded[i : i + batch])) for i in range(0, len(padded), batch)]
        return np.concatenate(parts)[: len(images)]

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Images float [N, H, W, C] in [-1, 1] -> logits float32 [N, classes]."""
        return self._apply("logits", images)

    def features(self, images: np.ndarray) -> np.ndarray:
        """Images float [N, H, W, C] in [-1, 1] -> the penultimate layer, float32 [N, F]."""
        return self._apply("features", images)

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Images float [N, H, W, C] in [-1, 1] -> the most likely classes, int [N]."""
        return self.logits(images).argmax(-1)

    def accuracy(self, images: np.ndarray, labels: np.ndarray) -> Score:
        """The share of images recognised as their labels [N], with Wilson's interval. Images with NaN never are."""
        images, labels = np.asarray(images, np.float32), np.asarray(labels)
        if len(images) != len(labels):
            raise UsageError(f"judge: {len(images)} images and {len(labels)} labels")
        finite = np.isfinite(images).reshape(len(images), -1).all(-1)
        right = (self.predict(np.nan_to_num(images)) == labels) & finite
        return wilson(int(right.sum()), len(labels))

    def save(self, path: str | pathlib.Path) -> None:
        """Writes a safetensors file that holds the config as metadata. Raises UsageError if it cannot be written."""
        leaves = jax.tree_util.tree_leaves_with_path(self.params)
        arrays = {_name(key): np.ascontiguousarray(leaf) for key, leaf in leaves}
        storage.write_whole(path, save(arrays, metadata={"judge": json.dumps(dataclasses.asdict(self.config))}))


def _name(path: tuple[Any, ...]) -> str:
    return "/".join(str(key.key) for key in path)


def load_judge(path: str | pathlib.Path) -> Judge:
    """Reads a judge that `Judge.save` wrote.

    Raises:
      UsageError: if the file is missing, damaged or not a judge.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise UsageError(f"no judge at {path}: evaluate trains one and puts it there")
    try:
        with safe_open(path, "numpy") as file:
            config = JudgeConfig(**json.loads((file.metadata() or {})["judge"]))
            shapes = _template(config).shapes
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError, OSError, struct.error) as error:
        raise UsageError(f"{path} is not a judge or is damaged: remove it to train a new one") from error
    expected = {_name(key): leaf.shape for key, leaf in jax.tree_util.tree_leaves_with_path(shapes)}
    if {name: array.shape for name, array in arrays.items()} != expected:
        raise UsageError(f"{path} holds other weights than its config says: remove it to train a new one")
    params = jax.tree_util.tree_map_with_path(lambda key, _: jnp.asarray(arrays[_name(key)]), shapes)
    return Judge(config, params)


def _checked(images: np.ndarray, config: JudgeConfig) -> np.ndarray:
    images = np.asarray(images, np.float32)
    if images.ndim != 4 or images.shape[1:] != (config.height, config.width, config.channels) or not len(images):
        expected = f"[N, {config.height}, {config.width}, {config.channels}]"
        raise UsageError(f"judge: images of shape {list(images.shape)}, expected {expected}, float in [-1, 1]")
    return images


def shifted(images: np.ndarray, rng: np.random.Generator, most: int) -> np.ndarray:
    """Moves each image of [N, H, W, C] by up to `most` pixels along each axis. Border pixels are repeated."""
    if not most:
        return images
    n, height, width, _ = images.shape
    padded = np.pad(images, ((0, 0), (most, most), (most, most), (0, 0)), mode="edge")
    rows, columns = rng.integers(0, 2 * most + 1, (2, n, 1))
    rows, columns = rows + np.arange(height), columns + np.arange(width)
    return padded[np.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]


def train_judge(images: np.ndarray, labels: np.ndarray, config: JudgeConfig) -> Judge:
    """Trains a judge on real images float [N, H, W, C] in [-1, 1] with int labels [N]. The seed decides the judge.

    Raises:
      UsageError: if shapes or labels do not fit the config.
    """
    images, labels = _checked(images, config), np.asarray(labels)
    if labels.shape != (len(images),) or labels.min() < 0 or labels.max() >= config.classes:
        raise UsageError(f"judge: needs one label in 0..{config.classes - 1} per image")
    optimizer, step = _optimization(config)
    rng = np.random.default_rng(config.seed)
    params = _initial(config)
    state, order = optimizer.init(params), np.zeros(0, np.int64)
    for _ in range(config.steps):
        while len(order) < config.batch_size:
            order = np.concatenate([order, rng.permutation(len(images))])
        chosen, order = order[: config.batch_size], order[config.batch_size :]
        params, state = step(params, state, shifted(images[chosen], rng, config.shift), labels[chosen])
    return Judge(config, params)
