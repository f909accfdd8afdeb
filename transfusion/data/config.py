"""The data part of an experiment: which sources, in which proportion, and how records become documents."""

import dataclasses
import math
from collections.abc import Mapping

from transfusion.errors import UsageError, check
from transfusion.sequence import text

TRAIN, HELD_OUT = SIDES = ("train", "held_out")


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """One source of records.

    `kind` is 'tfds' (`name`, as in 'digits', 'emoji/32' or 'digits:1.1.0', below `path` or `DataConfig.data_dir`; or
    `path` alone, the directory of one prepared dataset), 'folder' (`path` with images, clips or sounds and a captions
    file), 'webdataset' (`path` is a tar, a folder of tars or a glob) or 'text' (`path` is a .txt file or a folder of
    them). An empty field name means that the field is not read: images without captions have `caption_field=''`.
    """

    kind: str = "tfds"
    name: str = ""
    path: str = ""
    split: str = "train"  # tfds only; also parts and sums, as in 'train[:90%]' and 'train+test'
    weight: float = 1.0  # share of the records in the mixture, relative to the other sources
    hold_out: float = 0.0  # share of the records that is held out, chosen by a hash of their names
    part: str = TRAIN  # 'train': the rest; 'held_out': those that are held out
    image_field: str = "image"
    caption_field: str = "caption"  # tfds: may be nested ('captions/text'), and one of several is taken by chance
    text_field: str = "text"
    label_field: str = "label"
    file_field: str = "file_name"  # folder only: the column with the path of the image
    captions: str = ""  # folder only: the captions file, or 'NAME-*.parquet'; empty: captions.jsonl, .csv or .parquet
    follow_links: bool = False  # whether links may lead out of `path`, as those of DVC, git-annex and caches do
    caption_template: str = "{}"  # tfds without captions: {} becomes the name of the label
    medium: str = "image"  # folder only: what its files hold, a key of `transfusion.data.media.MEDIA`
    length: int = 0  # frames of a clip, taken evenly; samples of a sound, cut or followed by silence; 0 keeps them
    rate: int = 0  # samples per second that sounds are resampled to; 0 keeps what is stored
    resolution: int = 0  # centre-cropped to a square and resized to it; 0 keeps the size
    channels: int = 0  # 1 or 3; 0 keeps what is stored
    record_bytes: int = 1024  # text only: at most so long is a record, cut at paragraphs where possible
    latents: str = ""  # folder in which `data.cache_latents` put this source's records, encoded; '' encodes them

    def validate(self, where: str, pixel_limit: int) -> None:
        """Raises UsageError on values that cannot work; `where` names the source in the config."""
        if not 0 < self.weight < math.inf:
            raise UsageError(f"{where}.weight={self.weight} must be positive: remove the source instead")
        if self.channels not in (0, 1, 3):
            raise UsageError(f"{where}.channels={self.channels} must be 0, 1 or 3")
        if not 0 <= self.hold_out < 1:
            raise UsageError(f"{where}.hold_out={self.hold_out} must be a share from 0 up to 1")
        check(f"{where}.part", self.part, SIDES)
        if self.part == HELD_OUT and not self.hold_out:
            raise UsageError(f"{where}.part is {HELD_OUT!r}: set hold_out too, to the share of the training source")
        ranges = {"record_bytes": (4, 2**24), "rate": (0, 1_000_000), "length": (0, pixel_limit)}
        ranges |= {"resolution": (0, math.isqrt(max(pixel_limit, 0)))}  # checked before such a picture is made
        _check_ranges(f"{where}.", self, ranges)
        if self.resolution**2 * max(self.length, 1) > pixel_limit:
            raise UsageError(
                f"{where}: {self.length} frames of {self.resolution}x{self.resolution} are more than "
                f"data.pixel_limit={pixel_limit}"
            )


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Everything about the data that does not depend on the batch size or on the number of hosts."""

    data_dir: str = "data"
    sources: dict[str, SourceConfig] = dataclasses.field(
        default_factory=lambda: {"digits": SourceConfig(name="digits")}
    )
    caption_first: float = 0.8  # probability that the caption stands before its image
    drop_caption: float = 0.1  # probability, of caption-first documents, that the caption is left out
    null_caption: str = "drop"  # what stands in its place then, a key of `transfusion.sequence.text.UNSEEN`
    drop_conditions: dict[str, float] = dataclasses.field(default_factory=dict)  # see `data.documents.choose_document`
    both: float = 0.0  # probability that an image is drawn and then read, not only one of the two
    edit: float = 0.0  # probability that a captioned image becomes an example of editing
    draw_earlier: float = 0.0  # probability that its first image is drawn and read, not only read
    flip: float = 0.0  # probability of a horizontal mirror
    shift: int = 0  # an image or clip moves by at most so many pixels to each side, all distances alike
    open_rows: int = 8  # bins that a lane keeps open; more packs tighter and reads further ahead
    split_text: bool = True  # text-only documents may be cut to fill a row
    min_piece: int = 16  # tokens; no text is cut to fill less room than this
    truncate: bool = False  # captions, and texts that are not split, are cut to what a row holds, not skipped
    cache: bool = True  # keep decoded records and their tokens in memory
    cache_megabytes: int = 2048  # half for records, half for tokens; what comes later is made again
    prefetch: int = 2  # batches made ahead by a background thread; 0 makes them in the caller's thread
    read_threads: int = 0  # threads that read and decode ahead; 0 reads when the packer asks
    read_ahead: int = 4  # documents per lane that those threads hold ready
    pixel_limit: int = 50_000_000  # larger images are not decoded (a small file can hold a huge picture)
    max_bad_share: float = 0.01  # more unreadable records than this stop the run ...
    max_bad_after: int = 100  # ... once so many have been read

    def validate(self) -> None:
        """Raises UsageError on values that cannot work."""
        if not self.sources:
            raise UsageError("data.sources is empty: give at least one source")
        shares = {
            n: getattr(self, n)
            for n in ("caption_first", "drop_caption", "both", "edit", "draw_earlier", "flip", "max_bad_share")
        }
        for name, share in (shares | {f"drop_conditions.{n}": p for n, p in self.drop_conditions.items()}).items():
            if not 0 <= share <= 1:
                raise UsageError(f"data.{name}={share} is not a share between 0 and 1")
        if self.shift < 0:
            raise UsageError(f"data.shift={self.shift} is no number of pixels")
        check("data.null_caption", self.null_caption, text.UNSEEN)
        _check_ranges("data.", self, _RANGES)
        for name, source in self.sources.items():
            source.validate(f"data.sources.{name}", self.pixel_limit)


# From and up to which whole number; where there is no reason for an end, it is what 64 bits hold.
_RANGES = {
    "open_rows": (1, 100_000),
    "min_piece": (1, 2**63),
    "pixel_limit": (1, 2**63),
    "max_bad_after": (1, 2**63),
    "read_ahead": (1, 10_000),
    "prefetch": (0, 10_000),  # a queue without an end would take all memory
    "read_threads": (0, 1_000),
    "cache_megabytes": (0, 2**40),
}


def _check_ranges(where: str, config: object, ranges: Mapping[str, tuple[int, int]]) -> None:
    for name, (least, most) in ranges.items():
        value = getattr(config, name)
        if not least <= value <= most:
            bound = f"at least {least}" if value < least else f"at most {most}"
            raise UsageError(f"{where}{name}={value} must be {bound}")


Record = Mapping[str, object]
"""'id' with a medium and 'caption', or with 'text', perhaps 'label'; a broken one has 'error'. The medium's key is its
kind: 'image' (uint8 [H, W, 1 or 3]), 'video' (uint8 [T, H, W, 1 or 3]), 'sound' (int16 or float [samples], and 'rate'),
or any other, whose array the model's codec reads. With 'encoded' the array is what the codec has made of it. Several
captions stand in 'captions'; 'caption' is the first of them then."""
