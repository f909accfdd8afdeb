"""A mixture of all kinds of records, as files, and the streams of a model that reads all of them."""

import dataclasses
import json
import pathlib
from pydoc_data.topics import topics

import numpy as np

from transfusion.codecs import CodecConfig
from transfusion.codecs.mel import MelConfig
from transfusion.data import clips, images, sounds
from transfusion.data.config import DataConfig, SourceConfig
from transfusion.data.scenes import tasks
from transfusion.data.scenes.render import render
from transfusion.data.sizes import SizesConfig
from transfusion.sequence import Run, SequenceSpec, Stream, layouts, text

SIDE, FRAMES, FRAME_SIDE, RATE, SAMPLES = 32, 8, 16, 8000, 6144
MEL = MelConfig(bands=32, window=512, hop=256)
CODECS = {"sound": CodecConfig("mel", mel=MEL)}
SIZES = SizesConfig(tokens=64, multiple=4)


def write(folder: pathlib.Path, count: int = 200) -> None:
    """Writes `count` records of each kind but the scenes, which need no files: texts, captioned pictures of several
    sizes, clips, sounds, interleaved pages, conversations, edits, and pairs as in `omni_digits`."""
    rng = np.random.default_rng(0)
    for name in ("pictures", "clips", "sounds", "pairs"):
        (folder / name).mkdir(parents=True)
    says = [_media(folder, number, rng) for number in range(count)]
    for name in ("pictures", "clips", "sounds"):
        suffix = {"pictures": "png", "clips": "webp", "sounds": "wav"}[name]
        rows = [{"file_name": f"{i}.{suffix}", "caption": said} for i, said in enumerate(says)]
        _lines(folder / name / "captions.jsonl", rows)
    (folder / "prose.txt").write_text("\n\n".join(topics[name] for name in sorted(topics)))
    for name, kind in _RECORDS.items():
        _lines(folder / f"{name}.jsonl", [{"segments": kind(i, says, rng)} for i in range(count)])


def _media(folder: pathlib.Path, number: int, rng: np.random.Generator) -> str:
    """Writes picture, clip and sound `number`; returns what the picture shows."""
    drawn = tasks.draw("captions", "train", number)
    picture = render(drawn.scenes[0], 64)
    height, width = rng.integers(24, 65, 2)
    (folder / "pictures" / f"{number}.png").write_bytes(images.encode_png(picture[:height, :width]))
    clip = np.stack([np.roll(picture[::4, ::4], frame, 1) for frame in range(FRAMES)])
    (folder / "clips" / f"{number}.webp").write_bytes(clips.encode_clip(clip, ".webp"))
    tone = np.sin(np.arange(SAMPLES) * (0.1 + 0.01 * number))
    (folder / "sounds" / f"{number}.wav").write_bytes(sounds.encode_wav((tone * 9999).astype(np.int16), RATE))
    return drawn.says if isinstance(drawn.says, str) else drawn.says[0]


def _interleaved(number: int, says: list[str], rng: np.random.Generator) -> list[dict]:
    shown = rng.integers(0, len(says), rng.integers(1, 4))
    return [one for i in map(int, shown) for one in ({"text": says[i]}, {"image": f"pictures/{i}.png"})]


def _conversation(number: int, says: list[str], rng: np.random.Generator) -> list[dict]:
    turns = [{"image": f"pictures/{number}.png", "turn": "user"}]
    for i in rng.integers(0, len(says), rng.integers(1, 4)):
        turns += [{"text": "What is it?", "turn": "user"}, {"text": says[i], "turn": "assistant"}]
    return turns


def _edit(number: int, says: list[str], rng: np.random.Generator) -> list[dict]:
    picture = {"image": f"pictures/{number}.png"}
    return [{**picture, "role": "context"}, {"text": f"Make it {says[number]}.", "loss": False}, picture]


def _pair(number: int, says: list[str], rng: np.random.Generator) -> list[dict]:
    made = [{"text": says[number]}, {"image": f"pictures/{number}.png"}, {"clip": f"clips/{number}.webp"}]
    made += [{"sound": f"sounds/{number}.wav"}]
    first, second = (made[i] for i in divmod(number % 16, 4))
    return [{**first, "loss": False}, second]


_RECORDS = {"interleaved": _interleaved, "conversations": _conversation, "edits": _edit, "pairs": _pair}


def _lines(path: pathlib.Path, rows: list[dict]) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def data(folder: pathlib.Path, omni: str = "") -> DataConfig:
    """All kinds of records, alike often; `omni` is the file of `omni_digits`, else the pairs of `write` are read."""
    clips_are = {"resolution": FRAME_SIDE, "channels": 3}
    sources = {
        "texts": SourceConfig(kind="text", path=str(folder / "prose.txt")),
        "pictures": SourceConfig(kind="folder", path=str(folder / "pictures"), sizes=SIZES, channels=3),
        "clips": SourceConfig(kind="folder", path=str(folder / "clips"), medium="video", **clips_are),
        "sounds": SourceConfig(kind="folder", path=str(folder / "sounds"), medium="sound"),
        "omni": SourceConfig(kind="records", path=omni or str(folder / "pairs.jsonl"), **clips_are),
        "moving": SourceConfig(kind="scenes", name="clips", resolution=FRAME_SIDE),
    }
    for name in ("interleaved", "conversations", "edits"):
        path = str(folder / f"{name}.jsonl")
        sources[name] = SourceConfig(kind="records", path=path, sizes=SIZES, channels=3)
    for name in ("captions", "questions", "edits", "stories"):
        sources[f"scenes_{name}"] = SourceConfig(kind="scenes", name=name, resolution=SIDE)
    return DataConfig(sources=sources, prefetch=0)


def changed(config: DataConfig, without: tuple[str, ...] = (), **changes) -> DataConfig:
    """The data without some of its sources, and with other fields."""
    sources = {name: source for name, source in config.sources.items() if name not in without}
    return dataclasses.replace(config, sources=sources, **changes)


def spec(budgets: dict[str, int]) -> SequenceSpec:
    """Streams of text, images of mixed sizes, clips and sounds that hold `budgets` in a row; 'image:items' is the most
    images of a row."""
    item = {"embed": "linear", "head": "linear", "objective": "continuous", "attention": "block", "time": "added"}
    of_image = {"grid": (0, 0), "channels": 3, "budget": budgets["image"], "items": budgets["image:items"]}
    of_clip = {"grid": (FRAMES, FRAME_SIDE, FRAME_SIDE), "channels": 3, "patch_frames": 2, "budget": budgets["video"]}
    of_sound = {"grid": (SAMPLES // MEL.hop,), "channels": MEL.bands, "budget": budgets["sound"]}
    streams = {
        "text": Stream(vocabulary=text.VOCABULARY, budget=budgets["text"]),
        "image": Stream(**item, **of_image, patch=4),
        "video": Stream(**item, **of_clip, patch=4),
        "sound": Stream(**item, **of_sound, patch=4),
    }
    table: dict[str, tuple[Run, ...]] = {}
    for kind in ("image", "video", "sound"):
        table |= layouts.transfusion(kind=kind)
    return SequenceSpec(streams, table, text.BOS, text.EOS, 3)
