r"""Samples from a trained run: an image for a text, a caption for an image, or whatever the model writes and draws.

  python -m transfusion.sample --workdir runs/digits --prompt 'a handwritten seven' --output out.png
  python -m transfusion.sample --workdir runs/digits --caption in.png
  python -m transfusion.sample --workdir runs/digits --prompt 'before <image:in.png> after' --num 4
  python -m transfusion.sample --workdir runs/speech --prompt 'seven' --output seven.wav

Without --output the result is printed in reading order, and what is drawn is saved in WORKDIR/samples: images as PNG,
clips as animated WebP, sounds as WAV.
"""

import dataclasses
import pathlib
import re
from collections.abc import Sequence

import numpy as np
from absl import flags

from transfusion import programs
from transfusion.api import Run, load_run
from transfusion.data import clips, media
from transfusion.data.config import SourceConfig
from transfusion.errors import UsageError
from transfusion.sampling.config import SamplerConfig

PIXEL_LIMIT = 50_000_000

_PLACEHOLDER = re.compile(r"<(?:image|video|sound):([^>]+)>")


def main(argv: Sequence[str]) -> None:
    del argv
    programs.set_up_jax()
    if not FLAGS.workdir:
        raise UsageError("--workdir is missing: give the folder of a training run, for example --workdir runs/digits")
    if (FLAGS.prompt is None) == (FLAGS.caption is None):
        raise UsageError("give either --prompt 'some text' or --caption FILE")
    if FLAGS.output and FLAGS.prompt is None:
        raise UsageError("--output is where a --prompt is drawn; --caption reads a file and prints text")
    run = load_run(FLAGS.workdir)
    settings = {f.name: getattr(FLAGS, f.name) for f in dataclasses.fields(SamplerConfig)}
    settings = {name: value for name, value in settings.items() if value is not None}
    if FLAGS.caption is not None:
        medium = read_medium(run, FLAGS.caption)
        for line in run.caption([medium] * FLAGS.num, seed=FLAGS.seed, **settings):
            print(line)
    elif FLAGS.output:
        draw(run, read_prompt(run, FLAGS.prompt), pathlib.Path(FLAGS.output), settings)
    else:
        write(run, read_prompt(run, FLAGS.prompt), pathlib.Path(FLAGS.workdir) / "samples", settings)


def draw(run: Run, prompt: list[str | np.ndarray], path: pathlib.Path, settings: dict) -> None:
    """Draws the prompt --num times and saves what is drawn."""
    drawn = run.draw([prompt] * FLAGS.num, seed=FLAGS.seed, **settings)
    path = path if path.suffix else path.with_suffix(suffix_of(drawn[0]))
    for i, medium in enumerate(drawn):
        save(run, medium, path if len(drawn) == 1 else path.with_name(f"{path.stem}-{i}{path.suffix}"))


def write(run: Run, prompt: list[str | np.ndarray], folder: pathlib.Path, settings: dict) -> None:
    """Continues the prompt --num times, prints texts and saves what is drawn."""
    results = run.generate([prompt] * FLAGS.num, seed=FLAGS.seed, **settings)
    for i, result in enumerate(results):
        line, count = "", 0
        for part in result:
            if isinstance(part, str):
                line += part
                continue
            path = folder / f"sample-{FLAGS.seed}-{i}-{count}{suffix_of(part)}"
            save(run, part, path)
            line, count = f"{line}<{kind_of(part)}:{path}>", count + 1
        print(line)


def kind_of(medium: np.ndarray) -> str:
    """What a drawing is: a sound [samples], an image [H, W, C] or a clip [T, H, W, C]."""
    return {1: "sound", 3: "image"}.get(medium.ndim, "video")


def suffix_of(medium: np.ndarray) -> str:
    """Of the file of a drawing."""
    return {"sound": ".wav", "image": ".png", "video": ".webp"}[kind_of(medium)]


def save(run: Run, medium: np.ndarray, path: pathlib.Path) -> None:
    """Writes an image, a clip or a sound; see `transfusion.data.media.to_file`."""
    data = media.to_file(medium, path.suffix.lower(), run.codec.rate)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error
    print(f"saved {path}")


def read_prompt(run: Run, prompt: str) -> list[str | np.ndarray]:
    """The texts and media of a prompt in reading order."""
    parts = _PLACEHOLDER.split(prompt)
    return [read_medium(run, part) if i % 2 else part for i, part in enumerate(parts) if i % 2 or part]


def read_medium(run: Run, path: str) -> np.ndarray:
    """An image, animation or WAV file as what the run's codec reads: uint8 [H, W, C] or [T, H, W, C], int16 [samples].

    A clip's frames are taken evenly, a sound is cut or followed by silence, so that they have the model's length.

    Raises:
      UsageError: if it cannot be read, is of another kind than the model's media, or a picture has another size.
    """
    stream = next((s for s in run.spec.streams.values() if s.media and s.source != "none"), None)
    spelling = run.spec.spelling
    if spelling is None and stream is None:
        raise UsageError("this model has no images")
    grids = spelling.grids if spelling else (stream.grid,)
    kind = {1: "sound", 2: "image", 3: "video"}[len(grids[0])]
    try:
        data = pathlib.Path(path).read_bytes()
        if kind == "image" and clips.is_animated(data):
            kind = "video"  # its frames are the images
        record = media.MEDIA[kind].decode(data, PIXEL_LIMIT)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"cannot read {path}: {error}") from error
    if kind == "sound":
        config = SourceConfig(rate=run.codec.rate, length=grids[0][0] * run.codec.down)
        return media.MEDIA[kind].fit(record, config)
    found = record[kind].shape[-3:-1]
    sizes = [tuple(side * run.codec.down for side in grid[-2:]) for grid in grids]
    if all(map(all, sizes)) and found not in sizes:
        wanted = " or ".join(f"{height}x{width}" for height, width in sizes)
        raise UsageError(f"{path} has {found[0]}x{found[1]} pixels: resize it to {wanted}, as in training")
    sources, codec = run.experiment.data.sources.values(), run.experiment.codec
    channels = next((source.channels for source in sources if source.channels), 3)
    if codec.kind == "levels":
        channels = codec.levels.channels
    if stream is not None and "pixels" in (codec.kind, stream.source):
        channels = stream.channels
    length = grids[0][0] if len(grids[0]) == 3 else 0
    return media.MEDIA[kind].fit(record, SourceConfig(channels=channels, length=length))


def define_flags() -> None:
    """The program's flags; each field of SamplerConfig is one."""
    flags.DEFINE_string("workdir", None, "Folder of the training run.")
    flags.DEFINE_string(
        "prompt", None, "Text, in which <image:PATH>, <video:PATH> or <sound:PATH> stands for what a file holds."
    )
    flags.DEFINE_string(
        "output", None, "Draw the prompt into this file (image .png, clip .webp, .gif or .png, sound .wav); with --num "
        "into NAME-0.png, NAME-1.png, ...",
    )  # fmt: skip
    flags.DEFINE_alias("image", "output")
    flags.DEFINE_string("caption", None, "Print a caption of this image, animation or WAV file.")
    flags.DEFINE_integer("num", 1, "How many samples.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Same seed, same result.")
    define = {str: flags.DEFINE_string, int: flags.DEFINE_integer, float: flags.DEFINE_float}
    for field in dataclasses.fields(SamplerConfig):
        define[field.type](field.name, None, f"Replaces the config's sampling.{field.name}.")


FLAGS = flags.FLAGS

if __name__ == "__main__":
    define_flags()
    programs.run(main)
