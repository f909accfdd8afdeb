"""Checkpoint folders: what is refused, and what is written."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from transfusion.errors import UsageError
from transfusion.interop.files import Checkpoint
from transfusion.interop.writing import write_checkpoint


def put(folder, name="model.safetensors", **arrays):
    save_file(arrays, folder / name)
    return folder


def raw(folder, header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return folder


def index(folder, weight_map):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def entry(shape, stop, dtype="F32", start=0):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def test_rows_and_dtypes_are_read_as_they_are(tmp_path):
    values = np.arange(12, dtype=np.float32).reshape(4, 3)
    arrays = {"f": values, "b": values.astype(ml_dtypes.bfloat16), "h": values.astype(np.float16)}
    found = Checkpoint(put(tmp_path, **arrays, i=np.arange(3)))
    for key in arrays:
        assert found.read(key).dtype == np.float32
        np.testing.assert_array_equal(found.read(key), values)
        np.testing.assert_array_equal(found.read(key, (1, 3)), values[1:3])
    assert found.read("i").dtype == np.int64 and found.raw("b").dtype == ml_dtypes.bfloat16
    assert found.config == {} and found.shape("f") == (4, 3)
    with pytest.raises(UsageError, match="no key ff .did you mean 'f'"):
        found.read("ff")


BROKEN = {
    "its header does not fit": lambda d: raw(d, {}, length=10**15),
    "truncated": lambda d: raw(d, b""),
    "no JSON": lambda d: raw(d, b"{x}"),
    "key a is there twice": lambda d: raw(d, b'{"a": 1, "a": 2}'),
    "key a ends at byte": lambda d: raw(d, {"a": entry([4], 16)}, b"x"),
    "key a of F32.3. takes 12 bytes": lambda d: raw(d, {"a": entry([3], 16)}, b"x" * 16),
    "key a has the dtype F8_E4M3": lambda d: raw(d, {"a": entry([4], 4, "F8_E4M3")}, b"x" * 4),
    "broken shape": lambda d: raw(d, {"a": entry([-4], 16)}, b"x" * 16),
    "key a needs dtype": lambda d: raw(d, {"a": {"shape": [1]}}),
    "key b begins at byte": lambda d: raw(d, {"a": entry([1], 4), "b": entry([1], 4)}, b"x" * 4),
    "2 bytes that belong to no key": lambda d: raw(d, {"a": entry([1], 4)}, b"x" * 6),
    "no .*safetensors file": lambda d: d,
    "several files and no index": lambda d: put(put(d, "a.safetensors", x=np.ones(1)), "b.safetensors", x=np.ones(1)),
    "shard gone.safetensors is missing": lambda d: index(put(d, a=np.ones(1)), {"a": "gone.safetensors"}),
    "lists key b, but": lambda d: index(put(d, a=np.ones(1)), dict.fromkeys("ab", "model.safetensors")),
    "key b of model.safetensors is not listed": lambda d: index(
        put(d, a=np.ones(1), b=np.ones(1)), {"a": "model.safetensors"}
    ),
    "key a is in both one.safetensors and two.safetensors": lambda d: index(
        put(put(d, "one.safetensors", a=np.ones(1)), "two.safetensors", a=np.ones(1), b=np.ones(1)),
        {"a": "one.safetensors", "b": "two.safetensors"},
    ),
    "not a file of the same folder": lambda d: index(put(d, a=np.ones(1)), {"a": "../model.safetensors"}),
    r"names \[\], which is not a file": lambda d: index(put(d, a=np.ones(1)), {"a": []}),
    "__metadata__ must be": lambda d: raw(d, {"__metadata__": []}),
    "has no weight_map": lambda d: index(put(d, a=np.ones(1)), {}),
}


@pytest.mark.parametrize("message", sorted(BROKEN))
def test_broken_folders_are_refused_in_one_line(tmp_path, message):
    with pytest.raises(UsageError, match=message) as caught:
        Checkpoint(BROKEN[message](tmp_path))
    assert "\n" not in str(caught.value)


def test_a_broken_config_is_refused(tmp_path):
    (put(tmp_path, a=np.ones(1)) / "config.json").write_text("{'a'}")
    with pytest.raises(UsageError, match="config.json is no JSON"):
        Checkpoint(tmp_path)


def test_written_files_are_read_by_the_package_and_split_by_size(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal((5, 7)).astype(np.float32) for name in "abc"}
    forms = {"a": ((5, 7), "F32"), "b": ((5, 7), "BF16"), "c": ((5, 7), "F32")}
    parts = [("c", arrays["c"][:2]), ("b", arrays["b"]), ("c", arrays["c"][2:]), ("a", arrays["a"])]
    leaves = iter(parts)
    write_checkpoint(tmp_path / "out", {"x": 1}, leaves, forms, max_shard_bytes=220)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]
    first, second = (load_file(tmp_path / "out" / name) for name in names[1:3])
    assert (first.keys(), second.keys()) == ({"a", "b"}, {"c"})
    np.testing.assert_array_equal(first["a"], arrays["a"])
    np.testing.assert_array_equal(first["b"], arrays["b"].astype(ml_dtypes.bfloat16))
    np.testing.assert_array_equal(Checkpoint(tmp_path / "out").read("c"), arrays["c"])
    with pytest.raises(UsageError, match="exists already"):
        write_checkpoint(tmp_path / "out", {}, iter(()), {})


def test_nothing_is_left_of_a_write_that_failed(tmp_path):
    row = ("a", np.ones((1, 2), np.float32))
    for rows, message in ((1, "nothing was given for a, or a part"), (3, "one too many")):
        with pytest.raises(ValueError, match=message):
            write_checkpoint(tmp_path / "out", {}, iter([row] * rows), {"a": ((2, 2), "F32")})
    with pytest.raises(ValueError, match="nothing was given for a"):
        write_checkpoint(tmp_path / "out", {}, iter(()), {"a": ((1,), "F32")})
    assert not list(tmp_path.iterdir())
