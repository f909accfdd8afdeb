"""The configuration of the data: which sources are read, in which proportion, and how records become documents."""

import dataclasses
import math
from collections.abc import Mapping

from transfusion.data.sizes import Size, SizesConfig
from transfusion.errors import UsageError, check
from transfusion.sequence import text
from transfusion.sequence.chat import TURNS

TRAIN, HELD_OUT = SIDES = ("train", "held_out")


# The fields that a source of each kind reads, besides `COMMON_FIELDS`. Kinds that users add to `sources.SOURCES` may
# read any field.
COMMON_FIELDS = frozenset(("kind", "path", "weight", "hold_out", "part", "latents"))
FIELDS_OF_KINDS: dict[str, frozenset[str]] = {
    "tfds": frozenset(
        ("name", "split", "image_field", "caption_field", "text_field", "label_field", "caption_template")
        + ("resolution", "sizes", "channels", "length", "rate")
    ),
    "folder": frozenset(
        ("captions", "file_field", "caption_field", "medium", "follow_links")
        + ("resolution", "sizes", "channels", "length", "rate")
    ),
    "webdataset": frozenset(("caption_field", "follow_links", "resolution", "sizes", "channels")),
    "text": frozenset(("follow_links", "record_bytes")),
    "records": frozenset(("reader", "files", "follow_links", "resolution", "sizes", "channels", "length", "rate")),
    "scenes": frozenset(("name", "split", "resolution", "channels", "length")),
}

ONE_MEDIUM = ("tfds", "folder", "webdataset", "text")  # kinds of sources whose media are all of one kind


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """One source of records: where it lies, which of its fields are read, and how its media are resized.

    `kind` decides which of the other fields are read (`FIELDS_OF_KINDS`); one that is set and not read is refused.

    - 'tfds': a TFDS dataset on disk. `name` ('digits', 'emoji/32' or 'digits:1.1.0') lies below `path`, or below
      `DataConfig.data_dir` where there is no `path`. With a `path` and no `name`, `path` is the dataset's own folder.
    - 'folder': `path` is a folder of images, clips or sounds with a captions file.
    - 'webdataset': `path` is a tar, a folder of tars, or a pattern such as 'shards-{000..099}.tar'.
    - 'text': `path` is a text file, or a folder of .txt files.
    - 'records': `path` is a file of records with segments (.jsonl, .json, .parquet, .tar or .array_record), a folder of
      them or a pattern, or what a `reader` reads.
    - 'scenes': pictures and clips of shapes that are made as they are read; no files. `name` is a task of
      `transfusion.data.scenes.tasks.TASKS`, or a kind of it ('captions', 'captions/counting', 'clips'), and `split` one
      of `graph.SPLITS`. 'train' has no end.

    The name of a stored field may be empty: that field is then not read. Images without captions have
    `caption_field=''`.
    """

    kind: str = "tfds"  # what is read, see above
    name: str = ""  # of a TFDS dataset, or of a task of scenes
    path: str = ""  # the file or folder, or a pattern of files
    split: str = "train"  # may be a part or a sum, as in 'train[:90%]' and 'train+test'
    weight: float = 1.0  # share of the records in the mixture, relative to the other sources
    hold_out: float = 0.0  # share of the records that is held out, chosen by a hash of their names
    part: str = TRAIN  # 'train' reads the records that are not held out, 'held_out' reads those that are
    image_field: str = "image"  # the stored field that holds the image
    caption_field: str = "caption"  # of TFDS it may be nested ('captions/text'), and may hold several captions
    text_field: str = "text"  # the stored field that holds a text
    label_field: str = "label"  # the stored field that holds the number of the class
    file_field: str = "file_name"  # the column of the captions file that names an image, clip or sound, or holds it
    captions: str = ""  # the captions file, or 'NAME-*.parquet'; '' looks for captions.jsonl, .csv or .parquet
    follow_links: bool = False  # whether links may lead out of `path`, as those of DVC, git-annex and caches do
    caption_template: str = "{}"  # for datasets without captions: {} becomes the name of the label
    medium: str = "image"  # what the files of a folder hold, a key of `transfusion.data.media.MEDIA`
    length: int = 0  # frames of a clip, taken evenly; samples of a sound, cut or followed by silence; 0 keeps all
    rate: int = 0  # samples per second that sounds are resampled to; 0 keeps what is stored
    resolution: int = 0  # images are cropped to a centred square and resized to this side; 0 keeps their size
    sizes: SizesConfig = SizesConfig()  # or images keep nearly their own aspect
    channels: int = 0  # 1 or 3; 0 keeps what is stored
    reader: str = ""  # the public form of the records, a key of `transfusion.data.readers.READERS`; '': the record form
    files: str = ""  # the folder of the files that records name; '': the folder of the records
    record_bytes: int = 1024  # the longest record of a text, which is cut at paragraphs where possible
    latents: str = ""  # the folder of this source's cached latents (`transfusion.cache_latents`); '' encodes its media

    @property
    def fitted(self) -> tuple[Size, ...]:
        """The sizes to which images are cropped and resized; () keeps their own. Of sizes that grow, the last."""
        return self.sizes.last or ((self.resolution, self.resolution),) * bool(self.resolution)

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
        self.sizes.validate(f"{where}.sizes", pixel_limit, self.length)
        if self.sizes and self.resolution:
            raise UsageError(f"{where} has both sizes and resolution={self.resolution}: remove one of them")
        if self.sizes.growth and self.latents:
            raise UsageError(f"{where}.latents: cached latents do not grow: remove sizes.growth, or train without them")
        self._check_kind(where)

    def _check_kind(self, where: str) -> None:
        """Refuses a field that was set although sources of this kind do not read it: it would be ignored in silence."""
        reads = FIELDS_OF_KINDS.get(self.kind)
        for field in dataclasses.fields(self) if reads is not None else ():
            value = getattr(self, field.name)
            if value != field.default and field.name not in reads | COMMON_FIELDS:
                kinds = [repr(kind) for kind, fields in FIELDS_OF_KINDS.items() if field.name in fields]
                raise UsageError(
                    f"{where}.{field.name}={value!r} is read by sources of kind {' and '.join(kinds)} only, and this "
                    f"one is of kind {self.kind!r}: remove it"
                )


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Everything about the data that does not depend on the batch size or on the number of hosts."""

    data_dir: str = "data"  # the folder of prepared data sets
    sources: dict[str, SourceConfig] = dataclasses.field(  # a mixture, by names of one's own
        default_factory=lambda: {"digits": SourceConfig(name="digits")}
    )
    caption_first: float = 0.8  # probability that the caption stands before its image
    drop_caption: float = 0.1  # probability that the caption is left out, of documents that it would begin
    null_caption: str = "drop"  # what stands in place of a caption that is left out, a key of `sequence.text.UNSEEN`
    learned_turns: tuple[str, ...] = ("assistant",)  # of conversations: the turns that are learned
    drop_conditions: dict[str, float] = dataclasses.field(default_factory=dict)  # see `documents.choose_document`
    both: float = 0.0  # probability that an image is drawn and then read, not only one of the two
    edit: float = 0.0  # probability that a captioned image becomes an example of editing
    draw_earlier: float = 0.0  # probability that the image to be edited is drawn and read, not only read
    flip: float = 0.0  # probability of a horizontal mirror
    shift: int = 0  # an image or clip moves by at most so many pixels to each side, all distances alike
    open_rows: int = 8  # rows that a lane fills at the same time; more waste less room, and read further ahead
    split_text: bool = True  # text-only documents may be cut to fill a row
    min_piece: int = 16  # no text is cut to fill less room than so many tokens
    truncate: bool = False  # captions, and texts that are not split, are cut to what a row holds, not skipped
    cache: bool = True  # keep decoded records and their tokens in memory
    cache_megabytes: int = 2048  # half for records, half for tokens; what has no room is made again each time
    prefetch: int = 2  # batches that a background thread makes ahead; 0 makes them in the caller's thread
    read_threads: int = 0  # threads that read and decode ahead; 0 reads when a document is needed
    read_ahead: int = 4  # documents per lane that those threads hold ready
    pixel_limit: int = 50_000_000  # larger images are not decoded (a small file can hold a huge picture)
    max_bad_share: float = 0.01  # training stops if more of the records than this cannot be used ...
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
            raise UsageError(f"data.shift={self.shift} must not be negative: it is a number of pixels")
        check("data.null_caption", self.null_caption, text.UNSEEN)
        for turn in self.learned_turns:
            check("data.learned_turns", turn, TURNS)
        _check_ranges("data.", self, _RANGES)
        for name, source in self.sources.items():
            source.validate(f"data.sources.{name}", self.pixel_limit)


# The least and the largest whole number of each field; the largest is what 64 bits hold where nothing else limits it.
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
"""One record of a source. It has an 'id' and one of these:

- 'segments', a tuple of `transfusion.data.segments.RawSegment` in reading order. The others are short forms of it.
- 'text', if it is a text.
- A medium and mostly its 'caption'. The medium's key is its kind: 'image' (uint8 [H, W, 1 or 3]), 'video' (uint8
  [T, H, W, 1 or 3]), 'sound' (int16 or float [samples], with its 'rate'), or any other name, whose array the model's
  codec reads. Where there are several captions, 'captions' has them all and 'caption' is the first.
- 'error', one line, if it cannot be used.

It may have a 'label'. With 'encoded', the medium's array is what the codec made of it.
"""
