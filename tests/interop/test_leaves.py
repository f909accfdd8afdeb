"""The mapping language: exact inverses, fused and tied keys, parts of arrays, refusals."""

import jax
import numpy as np
import pytest
import released
from closeness import assert_close

from transfusion.errors import UsageError
from transfusion.interop import leaves as language
from transfusion.interop.converts import conv, conv3d, matrix, matrix_from, negated, patches, permuted, reshaped, same
from transfusion.interop.files import Checkpoint
from transfusion.interop.leaves import Leaf, read_params, their_shapes, theirs_from

RNG = np.random.default_rng(0)
CONVERTS = [
    (same(), (3, 4), (3, 4)),
    (same(), (), ()),
    (same(3, 2), (6,), (3, 2)),
    (reshaped((4,), (1, 1, 4)), (1, 1, 4), (4,)),
    (matrix(), (6, 4), (4, 6)),
    (matrix(3, 2), (6, 4), (4, 3, 2)),
    (matrix_from(3, 2), (4, 6), (3, 2, 4)),
    (conv(), (5, 4, 2, 3), (2, 3, 4, 5)),
    (conv3d(), (5, 4, 2, 3, 6), (2, 3, 6, 4, 5)),
    (patches(2), (5, 3, 2, 2), (12, 5)),
    (permuted([2, 0, 1], matrix()), (3, 4), (4, 3)),
    (negated(matrix(3, 2)), (6, 4), (4, 3, 2)),
]


def joined(params, leaves):
    """The released form, from the parts in which it comes."""
    parts = {}
    for key, part in theirs_from(params, leaves):
        parts.setdefault(key, []).append(part)
    return {key: np.concatenate(found) if found[0].ndim else found[0] for key, found in parts.items()}


def shapes(**tree):
    return {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in tree.items()}


def folder(path, **arrays):
    return Checkpoint(released.write(path / "released", {}, arrays))


@pytest.mark.parametrize("block", [1, 2**23])
@pytest.mark.parametrize("case", range(len(CONVERTS)))
def test_conversions_are_inverses_and_do_not_depend_on_blocks(tmp_path, monkeypatch, case, block):
    monkeypatch.setattr(language, "BLOCK_BYTES", block)
    convert, theirs, ours = CONVERTS[case]
    x = RNG.standard_normal(theirs).astype(np.float32)
    params = read_params(folder(tmp_path, k=x), [Leaf(("a",), "k", convert)], shapes(a=ours))
    np.testing.assert_array_equal(params["a"], convert.to_ours(x))
    back = joined(params, [Leaf(("a",), "k", convert)])
    assert back.keys() == {"k"} and back["k"].shape == x.shape
    np.testing.assert_array_equal(back["k"], x)


def test_conversions_mean_what_they_say():
    x, w = RNG.standard_normal(4), RNG.standard_normal((6, 4))
    assert_close(np.einsum("i,ihk->hk", x, matrix(3, 2).to_ours(w)).ravel(), w @ x, 4, np.float64)
    y, o = RNG.standard_normal((3, 2)), RNG.standard_normal((4, 6))
    assert_close(np.einsum("hk,hko->o", y, matrix_from(3, 2).to_ours(o)), o @ y.ravel(), 6, np.float64)
    image, kernel = RNG.standard_normal((2, 2, 3)), RNG.standard_normal((5, 3, 2, 2))
    want = np.einsum("yxc,ocyx->o", image, kernel)
    assert_close(image.ravel() @ patches(2).to_ours(kernel), want, 12, np.float64)
    assert_close(np.einsum("yxc,yxco->o", image, conv().to_ours(kernel)), want, 12, np.float64)
    assert permuted([2, 0, 1], same()).to_ours(np.array([5, 6, 7])).tolist() == [7, 5, 6]


def test_layers_are_stacked_and_a_layer_without_a_key_stays_zero(tmp_path):
    arrays = {f"layers.{i}.w": RNG.standard_normal((3, 2)).astype(np.float32) for i in (0, 2)}
    leaves = [Leaf(("w",), ("layers.0.w", None, "layers.2.w"), matrix())]
    params = read_params(folder(tmp_path, **arrays), leaves, shapes(w=(3, 2, 3)))
    np.testing.assert_array_equal(params["w"][2], arrays["layers.2.w"].T)
    assert not params["w"][1].any()
    np.testing.assert_equal(joined(params, leaves), arrays)


def test_a_fused_key_is_parted_and_joined(tmp_path, monkeypatch):
    x = RNG.standard_normal((10, 3)).astype(np.float32)
    leaves = [
        Leaf(("gate",), ("0.gate_up",), matrix(), rows=(0, 5)),
        Leaf(("up",), ("0.gate_up",), matrix(), rows=(5, 10)),
    ]
    params = read_params(folder(tmp_path, **{"0.gate_up": x}), leaves, shapes(gate=(1, 3, 5), up=(1, 3, 5)))
    np.testing.assert_array_equal(params["up"][0], x[5:].T)
    monkeypatch.setattr(language, "BLOCK_BYTES", 24)
    assert len(list(theirs_from(params, leaves[::-1]))) == 6
    np.testing.assert_array_equal(joined(params, leaves[::-1])["0.gate_up"], x)
    with pytest.raises(ValueError, match="covered in part"):
        their_shapes([leaves[0], Leaf(("up",), ("0.gate_up",), matrix(), rows=(6, 11))], params)


def test_several_keys_fill_one_array(tmp_path):
    arrays = {name: RNG.standard_normal((4, 3)).astype(np.float32) for name in "ab"}
    leaves = [Leaf(("w",), name, matrix(), at=(slice(None), i)) for i, name in enumerate("ab")]
    params = read_params(folder(tmp_path, **arrays), leaves, shapes(w=(3, 2, 4)))
    np.testing.assert_array_equal(params["w"][:, 1], arrays["b"].T)
    np.testing.assert_equal(joined(params, leaves), arrays)
    with pytest.raises(ValueError, match="fill 12 of 24 numbers of w"):
        their_shapes(leaves[:1], shapes(w=(3, 2, 4)))


@pytest.mark.parametrize("block", [24, 2**23])
def test_tied_arrays_must_stay_equal(tmp_path, monkeypatch, block):
    monkeypatch.setattr(language, "BLOCK_BYTES", block)
    x = RNG.standard_normal((4, 3)).astype(np.float32)
    leaves = [Leaf(("embed",), "table", same()), Leaf(("head",), "table", matrix())]
    params = read_params(folder(tmp_path, table=x), leaves, shapes(embed=(4, 3), head=(3, 4)))
    np.testing.assert_array_equal(joined(params, leaves)["table"], x)
    params["head"][0, 3] += 1
    with pytest.raises(UsageError, match="embed and head are one array table"):
        list(theirs_from(params, leaves))


def test_keys_and_shapes_that_do_not_fit_are_named(tmp_path):
    found = folder(tmp_path, weight=np.ones((2, 3), np.float32), extra=np.ones(1, np.float32), ids=np.arange(3))
    leaves, wanted = [Leaf(("w",), "weight", matrix())], shapes(w=(3, 2))
    with pytest.raises(UsageError, match="key ids is not understood .and 1 more"):
        read_params(found, leaves, wanted)
    with pytest.raises(UsageError, match="key extra is not understood$"):
        read_params(found, leaves, wanted, ignore=["i.*"])
    assert read_params(found, leaves, wanted, ignore=["ex.*", "ids"])["w"].shape == (3, 2)
    with pytest.raises(UsageError, match=r"key weight has the shape \[2, 3\].* asks for \[5, 4\]"):
        read_params(found, leaves, shapes(w=(4, 5)))
    with pytest.raises(UsageError, match="no key weigth .did you mean 'weight'"):
        read_params(found, [Leaf(("w",), "weigth", matrix())], wanted)
    with pytest.raises(UsageError, match="key ids holds I64"):
        read_params(found, [Leaf(("w",), "ids", same())], shapes(w=(3,)))
