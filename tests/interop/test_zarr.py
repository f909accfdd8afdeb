"""Arrays on disk that are written part by part, against the reader of checkpoints."""

import numpy as np
import pytest
import tensorstore as ts

from transfusion.interop.zarr import DiskArray


def read(folder):
    spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": str(folder)}}
    return ts.open(spec, open=True).result().read().result()


@pytest.mark.parametrize("chunks", [(1, 5, 4), (1, 2, 4), (3, 5, 3), (2, 3, 3)])
def test_parts_become_the_array(tmp_path, chunks):
    values = np.random.default_rng(0).standard_normal((3, 5, 4)).astype(np.float32)
    array = DiskArray(tmp_path / "a", values.shape, chunks)
    for layer in range(3):
        view = array[(layer, ...)]
        assert view.shape == (5, 4)
        for rows in (slice(0, 2), slice(2, 5)):
            view[(rows, ...)] = values[layer, rows]
    np.testing.assert_array_equal(read(tmp_path / "a"), values)
    array[(..., slice(1, 3))][(slice(None), 2, ...)] = np.ones((3, 2), np.float32)
    values[:, 2, 1:3] = 1
    np.testing.assert_array_equal(read(tmp_path / "a"), values)
    again = DiskArray.open(tmp_path / "a")
    assert again.shape == (3, 5, 4)
    np.testing.assert_array_equal(again[(...,)], values)
    np.testing.assert_array_equal(again[(1, ...)][(slice(1, 4), ...)][(..., slice(0, 3))], values[1, 1:4, :3])


def test_a_number_and_what_cannot_be_written(tmp_path):
    DiskArray(tmp_path / "a", (), ())[(...,)] = np.float32(3).reshape(())
    assert read(tmp_path / "a") == np.asarray(DiskArray.open(tmp_path / "a")) == 3
    assert DiskArray.open(tmp_path / "none") is None
    array = DiskArray(tmp_path / "b", (4,), (4,))
    with pytest.raises(ValueError, match="place of"):
        array[(...,)] = np.ones(3, np.float32)
    with pytest.raises(ValueError, match="step 1"):
        array[(slice(0, 4, 2), ...)]
