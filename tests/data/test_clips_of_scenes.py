"""Clips that are made as they are read: some of them only, and their frames as images."""

import itertools

import numpy as np
import pytest

from transfusion.data.config import DataConfig, SourceConfig
from transfusion.data.documents import pixel_latents
from transfusion.data.image_batches import ImageBatches, image_epoch
from transfusion.data.sources import open_source
from transfusion.errors import UsageError


def clips(split: str = "train", name: str = "clips"):
    return open_source(SourceConfig(kind="scenes", name=name, resolution=16, split=split), "", 10**6)


def test_the_first_records_of_a_split_are_those_of_the_whole():
    whole, some = clips(), clips("train[:20]")
    assert len(some) == 20 and len(whole) > 10**6 and len(clips("test[:5]")) == 5
    assert some[19]["id"] == whole[19]["id"]
    np.testing.assert_array_equal(some[19]["video"], whole[19]["video"])
    for wrong in ("train[:0]", "train[:x]", "train[:5", "test[:5000]"):
        with pytest.raises(UsageError, match="N from 1 to"):
            clips(wrong)
    with pytest.raises(UsageError, match="did you mean 'train'"):
        clips("trian[:5]")


def test_an_autoencoder_of_images_learns_from_the_frames_of_clips():
    source = SourceConfig(kind="scenes", name="clips", resolution=16, split="train[:6]")
    records = clips("train[:6]")
    frames = {pixel_latents(frame).tobytes() for i in range(6) for frame in records[i]["video"]}
    with ImageBatches(DataConfig(sources={"clips": source}, cache=False), 4, shape=(16, 16, 3)) as batches:
        found = [image for batch in itertools.islice(batches, 20) for image in batch["images"]]
    assert {image.tobytes() for image in found} <= frames
    assert len({image.tobytes() for image in found}) > 6, "more than one frame of a clip"
    (batch,) = image_epoch(records, 6, shape=(16, 16, 3))
    np.testing.assert_array_equal(batch["images"][5], pixel_latents(records[5]["video"][5]))
    (whole,) = image_epoch(records, 6, "video", (8, 16, 16, 3))
    assert whole["images"].shape == (6, 8, 16, 16, 3)
