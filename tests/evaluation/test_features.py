import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_close

from transfusion.codecs import features
from transfusion.codecs.features import BLOCKS, Vgg16, VggEmbedding, feature_maps, read_arrays, vgg16_from
from transfusion.errors import UsageError

# In sequence: the sums of a network of convolutions of 3 x 3 over two or three channels, and over their pixels.
OPERATIONS = sum(BLOCKS) * (3 * 3 * 3 + 2) + 16 * 16


def tiny_tree(seed=0):
    """The file's structure with two channels per layer."""
    rng = np.random.default_rng(seed)
    tree, inputs = {"VGG16_0": {}}, 3
    for i in range(sum(BLOCKS)):
        kernel = rng.normal(size=(3, 3, inputs, 2)).astype(np.float32)
        tree["VGG16_0"][f"Conv_{i}"] = {"kernel": kernel, "bias": rng.normal(size=2).astype(np.float32)}
        inputs = 2
    for i in range(len(BLOCKS)):
        tree[f"NetLinLayer_{i}"] = {"Conv_0": {"kernel": rng.uniform(size=(1, 1, 2, 1)).astype(np.float32)}}
    return tree


class Malicious:
    def __reduce__(self):
        return print, ("the file ran code",)


def test_only_arrays_are_unpickled(tmp_path, capsys):
    good, bad = tmp_path / "good.ckpt", tmp_path / "bad.ckpt"
    good.write_bytes(pickle.dumps({"a": np.arange(6.0).reshape(2, 3)}, protocol=3))
    np.testing.assert_array_equal(read_arrays(good)["a"], [[0, 1, 2], [3, 4, 5]])
    bad.write_bytes(pickle.dumps({"a": Malicious()}))
    with pytest.raises(UsageError, match="builtins.print is not allowed"):
        read_arrays(bad)
    assert "ran code" not in capsys.readouterr().out


def test_damaged_and_missing_files_are_one_clear_line(tmp_path):
    path = tmp_path / "cut.ckpt"
    path.write_bytes(pickle.dumps({"a": np.arange(600.0)})[:100])
    for broken in (path, tmp_path / "none.ckpt"):
        with pytest.raises(UsageError, match=r"transfusion\[eval\]") as error:
            read_arrays(broken)
        assert "\n" not in str(error.value)
    with pytest.raises(UsageError, match="lack"):
        vgg16_from({"VGG16_0": {}})


def test_missing_package_names_the_extra(monkeypatch):
    features.load_vgg16.cache_clear()
    monkeypatch.setattr(features.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"transfusion\[eval\]"):
        features.load_vgg16()


def lpips(vgg, first, second):
    """As the paper writes it: per layer, weighted squared differences of unit-length features, averaged over pixels."""
    total = 0.0
    for a, b, w in zip(feature_maps(vgg, first), feature_maps(vgg, second), vgg.channel_weights, strict=True):
        a, b = (x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + 1e-10) for x in (a, b))
        total += jnp.mean(jnp.sum(w[None, None, None] * (a - b) ** 2, axis=-1), axis=(1, 2))
    return total


def test_embedding_distance_is_lpips():
    vgg = vgg16_from(tiny_tree())
    rng = np.random.default_rng(1)
    first, second = rng.uniform(-1, 1, (2, 3, 16, 16, 3)).astype(np.float32)
    embed = VggEmbedding(vgg, layers=(0, 1, 2, 3, 4), batch=2)
    got = np.square(embed(first) - embed(second)).sum(-1)
    assert_close(got, jax.jit(lpips)(vgg, first, second), OPERATIONS)
    # Batches are an implementation detail, and grey images are repeated to three channels.
    assert_close(embed(first[1:])[0], embed(first)[1], OPERATIONS)
    np.testing.assert_array_equal(embed(first[..., :1]), embed(np.repeat(first[..., :1], 3, -1)))


def test_the_perceptual_loss_is_lpips_and_has_a_gradient_everywhere(monkeypatch):
    tree = tiny_tree()
    tree["VGG16_0"]["Conv_1"]["bias"] -= 3  # many pixels without features, where a square root has no slope
    monkeypatch.setattr(features, "load_vgg16", lambda: vgg16_from(tree))
    distance = features.lpips((0, 2), 16)
    first, second = np.random.default_rng(1).uniform(-1, 1, (2, 3, 16, 16, 1)).astype(np.float32)
    embed = VggEmbedding(vgg16_from(tree), layers=(0, 2))
    value, gradient = jax.jit(jax.value_and_grad(lambda a, b: distance(a, b).sum()))(first, second)
    assert_close(value, np.square(embed(first) - embed(second)).sum(), OPERATIONS)
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0
    assert not (feature_maps(vgg16_from(tree), np.repeat(first, 3, -1), 1)[0].sum(-1)).all()
    with pytest.raises(UsageError, match="16 pixels or more, not 8"):
        features.lpips((0,), 8)


def test_wrong_images_and_layers_are_refused():
    vgg = Vgg16((), ())
    with pytest.raises(UsageError, match="layers"):
        VggEmbedding(vgg, layers=(5,))
    with pytest.raises(UsageError, match="8, 8"):
        VggEmbedding(vgg)(np.zeros((1, 8, 8, 3)))


def test_pixel_distance_is_the_mean_square():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 1, 4, 4, 3))
    got = np.square(features.pixel_vectors(a) - features.pixel_vectors(b)).sum()
    assert_close(got, np.square(a - b).mean(), 4 * 4 * 3 + 8)


def test_real_weights_rank_distortions():
    features.load_vgg16.cache_clear()
    try:
        vgg = features.load_vgg16()
    except UsageError as error:
        pytest.skip(str(error))
    assert sum(k.size + b.size for k, b in vgg.convolutions) + sum(w.size for w in vgg.channel_weights) == 14_716_160
    assert all((w >= 0).all() for w in vgg.channel_weights)
    y, x = np.mgrid[-1:1:32j, -1:1:32j]
    disc = np.where((x**2 + y**2 < 0.5)[..., None], [0.9, -0.5, -0.8], [0.8, 0.9, 1.0])
    ring = np.where(((x**2 + y**2 < 0.5) & (x**2 + y**2 > 0.25))[..., None], [-0.9, 0.5, 0.1], [0.8, 0.9, 1.0])
    noise = np.random.default_rng(0).normal(size=disc.shape)
    images = np.stack([disc, disc + 0.05 * noise, disc + 0.4 * noise, ring]).clip(-1, 1)
    vectors = VggEmbedding(vgg)(images)
    distance = np.square(vectors - vectors[:1]).sum(-1)
    assert distance[0] == 0 < distance[1] < distance[2] and distance[1] < distance[3]
    assert np.isfinite(vectors).all() and vectors.shape[1] == 26_624
