r"""Samples from a trained run: an image for a text, a caption for an image, or whatever the model writes and draws.

  python -m transfusion.sample --workdir runs/digits --prompt 'a handwritten seven' --image out.png
  python -m transfusion.sample --workdir runs/digits --caption in.png
  python -m transfusion.sample --workdir runs/digits --prompt 'before <image:in.png> after' --num 4

Without --image the result is printed in reading order, and drawn images are saved in WORKDIR/samples.
"""

import dataclasses
import pathlib
import re
from collections.abc import Sequence

import numpy as np
from absl import flags

from transfusion import programs
from transfusion.api import Run, load_run
from transfusion.data import images
from transfusion.errors import UsageError
from transfusion.sampling.config import SamplerConfig

_PLACEHOLDER = re.compile(r"<image:([^>]+)>")


def main(argv: Sequence[str]) -> None:
    del argv
    programs.set_up_jax()
    if not FLAGS.workdir:
        raise UsageError("--workdir is missing: give the folder of a training run, for example --workdir runs/digits")
    if (FLAGS.prompt is None) == (FLAGS.caption is None):
        raise UsageError("give either --prompt 'some text' or --caption IMAGE")
    if FLAGS.image and FLAGS.prompt is None:
        raise UsageError("--image is where a --prompt is drawn; --caption reads an image and prints text")
    run = load_run(FLAGS.workdir)
    settings = {f.name: getattr(FLAGS, f.name) for f in dataclasses.fields(SamplerConfig)}
    settings = {name: value for name, value in settings.items() if value is not None}
    if FLAGS.caption is not None:
        image = read_image(run, FLAGS.caption)
        for line in run.caption([image] * FLAGS.num, seed=FLAGS.seed, **settings):
            print(line)
    elif FLAGS.image:
        draw(run, read_prompt(run, FLAGS.prompt), pathlib.Path(FLAGS.image), settings)
    else:
        write(run, read_prompt(run, FLAGS.prompt), pathlib.Path(FLAGS.workdir) / "samples", settings)


def draw(run: Run, prompt: list[str | np.ndarray], path: pathlib.Path, settings: dict) -> None:
    """Draws the prompt --num times and saves the images."""
    settings = {"max_tokens": 0, "max_images": 1} | settings
    results = run.generate([prompt] * FLAGS.num, draw=True, seed=FLAGS.seed, **settings)
    for i, result in enumerate(results):
        image = next(part for part in result if not isinstance(part, str))
        save(image, path if len(results) == 1 else path.with_name(f"{path.stem}-{i}{path.suffix or '.png'}"))


def write(run: Run, prompt: list[str | np.ndarray], folder: pathlib.Path, settings: dict) -> None:
    """Continues the prompt --num times, prints texts and saves images."""
    results = run.generate([prompt] * FLAGS.num, seed=FLAGS.seed, **settings)
    for i, result in enumerate(results):
        line, count = "", 0
        for part in result:
            if isinstance(part, str):
                line += part
                continue
            path = folder / f"sample-{FLAGS.seed}-{i}-{count}.png"
            save(part, path)
            line, count = f"{line}<image:{path}>", count + 1
        print(line)


def save(image: np.ndarray, path: pathlib.Path) -> None:
    """Writes uint8 [H, W, C] as PNG."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(images.encode_png(image))
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error
    print(f"saved {path}")


def read_prompt(run: Run, prompt: str) -> list[str | np.ndarray]:
    """The texts and images of a prompt in reading order."""
    parts = _PLACEHOLDER.split(prompt)
    return [read_image(run, part) if i % 2 else part for i, part in enumerate(parts) if i % 2 or part]


def read_image(run: Run, path: str) -> np.ndarray:
    """An image file as uint8 [H, W, C] of the size and channels of the run's images.

    Raises:
      UsageError: if it cannot be read, or has another size.
    """
    try:
        image = images.decode(pathlib.Path(path).read_bytes())
    except OSError as error:
        raise UsageError(f"cannot read the image {path}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"cannot read the image {path}: {error}") from error
    stream = next((s for s in run.spec.streams.values() if not s.discrete and s.source != "none"), None)
    if stream is None:
        raise UsageError("this model has no images")
    channels = stream.channels if run.experiment.codec.kind == "pixels" else 3
    height, width = (side * run.codec.down for side in stream.grid)
    if stream.grid != (0, 0) and image.shape[:2] != (height, width):
        raise UsageError(
            f"{path} has {image.shape[0]}x{image.shape[1]} pixels: resize it to {height}x{width}, as in training"
        )
    return images.fit(image, channels=channels)


def define_flags() -> None:
    """The program's flags; each field of SamplerConfig is one."""
    flags.DEFINE_string("workdir", None, "Folder of the training run.")
    flags.DEFINE_string("prompt", None, "Text, in which <image:PATH> stands for an image.")
    flags.DEFINE_string(
        "image", None, "Draw the prompt into this PNG file; with --num, into NAME-0.png, NAME-1.png, ..."
    )
    flags.DEFINE_string("caption", None, "Print a caption of this image file.")
    flags.DEFINE_integer("num", 1, "How many samples.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Same seed, same result.")
    define = {str: flags.DEFINE_string, int: flags.DEFINE_integer, float: flags.DEFINE_float}
    for field in dataclasses.fields(SamplerConfig):
        define[field.type](field.name, None, f"Replaces the config's sampling.{field.name}.")


FLAGS = flags.FLAGS

if __name__ == "__main__":
    define_flags()
    programs.run(main)
