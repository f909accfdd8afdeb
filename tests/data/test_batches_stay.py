"""Packed batches of ordinary data are those of the first release, to the last bit: old runs go on as they began."""

import dataclasses
import hashlib

import numpy as np
import pytest

from transfusion.data.config import DataConfig, SourceConfig
from transfusion.data.pipeline import Pipeline, epoch_batches
from transfusion.sequence import Run, SequenceSpec, Stream, text

IMAGE = Stream(
    embed="linear", head="linear", objective="continuous", attention="block", budget=64, channels=1, patch=2,
    grid=(8, 8),
)  # fmt: skip
SPEC = SequenceSpec(
    {"text": Stream(budget=96, vocabulary=text.VOCABULARY), "image": IMAGE},
    {"text": (Run("text"),), "image": (Run("image", opener=text.BOI, closer=text.EOI),)},
    text.BOS,
    text.EOS,
)


class Digits:
    """Captioned images like those of the data set `digits`, some of them broken."""

    def __len__(self):
        return 53

    def __getitem__(self, i):
        if i in (7, 31):
            return {"id": f"digit {i}", "error": "broken"}
        image = (np.arange(64, dtype=np.int64).reshape(8, 8, 1) * (i + 3) % 251).astype(np.uint8)
        return {"id": f"digit {i}", "image": image, "caption": f"a handwritten {i % 10} äöü"}


class Stories:
    def __len__(self):
        return 17

    def __getitem__(self, i):
        return {"id": f"story {i}", "text": f"<{i}> " + "once upon a time " * (1 + 5 * i % 13)}


OPENED = {"digits": Digits(), "stories": Stories()}
CONFIG = DataConfig(
    sources={"digits": SourceConfig(weight=0.7), "stories": SourceConfig(weight=0.3)},
    prefetch=0, max_bad_share=0.5, edit=0.1, both=0.2, flip=0.3, shift=1,
)  # fmt: skip


def digest(batches):
    found = hashlib.sha256()
    for batch in batches:
        for name, part in sorted(batch.items()):
            for field in dataclasses.fields(part):
                value = getattr(part, field.name)
                if value is not None:
                    found.update(f"{name}.{field.name} {value.dtype} {value.shape}".encode() + value.tobytes())
    return found.hexdigest()


OTHER = {"split_text": False, "open_rows": 3, "cache": False, "read_threads": 2}
TRAINING = "5d71310e6cd81d9d2ad5e6361f6bb1a4dee4dab71dc5b50802c60fe0f9375a58"
WITH_OTHER = "26260c087f10fbb599d952b4bf820a507ff88789d9279fed8f5eb21be64a5f71"
HELD_OUT = "c408ddb8a82e27947875e3729afc78b000ce404b519bb999b8611201e4d9731a"


@pytest.mark.parametrize("change, expected", [({}, TRAINING), (OTHER, WITH_OTHER)])
def test_training_batches_stay(change, expected):
    with Pipeline(dataclasses.replace(CONFIG, **change), SPEC, 4, seed=11, opened=OPENED) as pipeline:
        assert digest(next(pipeline) for _ in range(40)) == expected


def test_held_out_batches_stay():
    batches = (b for source in OPENED.values() for b in epoch_batches(source, CONFIG, SPEC, 4, seed=11))
    assert digest(batches) == HELD_OUT
