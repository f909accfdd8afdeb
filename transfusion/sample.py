r"""Samples from a trained run: an image for a text, a caption for an image, or whatever the model writes and draws.

  python -m transfusion.sample --workdir runs/digits --prompt 'a handwritten seven' --output out.png
  python -m transfusion.sample --workdir runs/digits --caption in.png
  python -m transfusion.sample --workdir runs/digits --prompt 'before <image:in.png> after' --num 4
  python -m transfusion.sample --workdir runs/speech --prompt 'seven' --output seven.wav
  python -m transfusion.sample --workdir runs/omni --prompt 'seven:' --kind sound --output seven.wav
  python -m transfusion.sample --workdir runs/digits --prompts prompts.jsonl --output drawings --json

Without --output the result is printed in reading order, and what is drawn is saved in WORKDIR/samples: images as PNG,
clips as animated WebP, sounds as WAV.

A file of prompts (`--prompts`) holds a JSON object per line, such as {"id": "a", "prompt": "a handwritten seven"},
{"image": "in.png"} (its caption) or {"text": "Once"} (what the model writes behind it); see
`transfusion.adapters.lines`. The folder `--output` gets the files and results.jsonl. The same command again goes on
where it was stopped.
"""

import json
import os
import pathlib
import re
import sys
from collections.abc import Iterator, Sequence

import numpy as np
from absl import flags

from transfusion import programs, storage
from transfusion.adapters import batches
from transfusion.adapters.lines import read_lines
from transfusion.api import MOST_SEED, Trained, load_run
from transfusion.api.prompts import as_path, checked_size, checked_text
from transfusion.api.settings import define_settings, settings_given
from transfusion.data import media
from transfusion.errors import UsageError, shown
from transfusion.remote.hub import is_model
from transfusion.running.jax_setup import set_up_jax
from transfusion.sampling.decoder import ROWS

MOST_SAMPLES = 1_000_000

_PLACEHOLDER = re.compile(r"<(?:image|video|sound):([^>]+)>")


def main(argv: Sequence[str]) -> None:
    del argv
    set_up_jax()
    # Paths may hold bytes that are no UTF-8, and what the model writes may be more than the terminal can show.
    sys.stdout.reconfigure(errors="backslashreplace")
    if not FLAGS.workdir:
        raise UsageError("--workdir is missing: give the folder of a training run, for example --workdir runs/digits")
    if sum(given is not None for given in (FLAGS.prompt, FLAGS.caption, FLAGS.prompts)) != 1:
        raise UsageError("give one of --prompt 'some text', --caption FILE and --prompts FILE.jsonl")
    if FLAGS.output and FLAGS.caption is not None:
        raise UsageError("--output is where a --prompt is drawn; --caption reads a file and prints text")
    asked = {"label": FLAGS.label, "kind": FLAGS.kind, "size": FLAGS.size and read_size(FLAGS.size)}
    asked = {name: value for name, value in asked.items() if value is not None}
    if asked and FLAGS.prompt is None:
        name, what = next(iter(asked)), {"label": "class"}
        other = "lines of --prompts have their own" if FLAGS.prompts else "--caption reads a file and prints text"
        raise UsageError(f"--{name} is the {what.get(name, name)} of what a --prompt draws; {other}")
    if FLAGS.json and FLAGS.prompts is None:
        raise UsageError("--json prints the results of --prompts")
    if FLAGS.output and FLAGS.prompts is None:
        check_output(FLAGS.output)
    settings = settings_given()
    if FLAGS.prompts is not None:
        return work_through(settings)
    run = load_run(FLAGS.workdir)
    if FLAGS.caption is not None:
        return caption(run, read_medium(run, FLAGS.caption), settings)
    settings |= asked
    prompt = read_prompt(run, FLAGS.prompt)
    if FLAGS.output:
        draw(run, prompt, pathlib.Path(FLAGS.output), settings)
    else:
        write(run, prompt, samples_folder(FLAGS.workdir), settings)


def samples_folder(workdir: str) -> pathlib.Path:
    """Where drawings without an --output go: into the workdir; of a model on a hub into the current folder."""
    return pathlib.Path("samples") if is_model(workdir) else pathlib.Path(workdir) / "samples"


def parts() -> Iterator[tuple[int, int, int]]:
    """The --num samples in parts that fit the memory: the number of the first, how many there are, and how many are
    asked for. The last part asks for as many as the others, because another number would be compiled anew."""
    for first in range(0, FLAGS.num, ROWS):
        count = min(ROWS, FLAGS.num - first)
        yield first, count, ROWS if FLAGS.num > ROWS else count


def caption(run: Trained, medium: np.ndarray, settings: dict) -> None:
    """Prints --num captions of a picture, clip or sound."""
    for first, count, asked in parts():
        for line in run.caption([medium] * asked, seed=FLAGS.seed, first=first, **settings)[:count]:
            print(line)


def draw(run: Trained, prompt: list[str | np.ndarray], path: pathlib.Path, settings: dict) -> None:
    """Draws the prompt --num times and saves what is drawn."""
    for first, count, asked in parts():
        drawn = run.draw([prompt] * asked, seed=FLAGS.seed, first=first, **settings)[:count]
        path = path if path.suffix else path.with_suffix(suffix_of(drawn[0]))
        for i, medium in enumerate(drawn, start=first):
            save(run, medium, path if FLAGS.num == 1 else path.with_name(f"{path.stem}-{i}{path.suffix}"))


def write(run: Trained, prompt: list[str | np.ndarray], folder: pathlib.Path, settings: dict) -> None:
    """Continues the prompt --num times, prints texts and saves what is drawn."""
    for first, count, asked in parts():
        results = run.generate([prompt] * asked, seed=FLAGS.seed, first=first, **settings)[:count]
        for number, result in enumerate(results, start=first):
            line, drawn = "", 0
            for part in result:
                if isinstance(part, str):
                    line += part
                    continue
                path = folder / f"sample-{FLAGS.seed}-{number}-{drawn}{suffix_of(part)}"
                save(run, part, path)
                line, drawn = f"{line}<{kind_of(part)}:{path}>", drawn + 1
            print(line)


def work_through(settings: dict) -> None:
    """Makes what the lines of --prompts ask for and is not in the folder --output yet."""
    if not FLAGS.output or "://" in FLAGS.output:
        raise UsageError("--output is missing: give a folder of this machine for the results of --prompts")
    lines = read_lines(FLAGS.prompts, FLAGS.num, FLAGS.seed)
    folder = pathlib.Path(FLAGS.output)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--output={FLAGS.output} is a file: give a folder for the results of --prompts")
    todo = batches.Batches(load_run(FLAGS.workdir), lines, folder, settings, FLAGS.batch)
    made, before = batches.work_through(todo, tell_json if FLAGS.json else tell)
    print(f"made {made}, {before} were done before; see {folder / batches.RESULTS}", file=sys.stderr)


def tell_json(result: batches.Result) -> None:
    print(json.dumps(result, ensure_ascii=False), flush=True)


def tell(result: batches.Result) -> None:
    for name in result["files"]:
        print(f"saved {pathlib.Path(FLAGS.output) / name}", flush=True)
    if result["text"]:
        print(f"{shown(result['id'])}: {shown(result['text'])}", flush=True)


def check_output(output: str) -> None:
    """Refuses an --output that is no name of a file, before anything is loaded or drawn.

    Raises:
      UsageError: if it is a folder, or an address.
    """
    if "://" in output:
        raise UsageError(f"--output={output}: only files of this machine are written")
    if output.endswith("/") or pathlib.Path(output).name in ("", "..") or os.path.isdir(output):
        raise UsageError(
            f"--output={output} is a folder: give the name of a file in it, as in {output.rstrip('/')}/out.png"
        )


def kind_of(medium: np.ndarray) -> str:
    """What a drawing is: a sound [samples], an image [H, W, C] or a clip [T, H, W, C]."""
    return {1: "sound", 3: "image"}.get(medium.ndim, "video")


def suffix_of(medium: np.ndarray) -> str:
    """The suffix of the file that a drawing is saved in."""
    return {"sound": ".wav", "image": ".png", "video": ".webp"}[kind_of(medium)]


def save(run: Trained, medium: np.ndarray, path: pathlib.Path) -> None:
    """Writes an image, a clip or a sound; see `transfusion.data.media.to_file`."""
    data = media.to_file(medium, path.suffix.lower(), run.codecs[kind_of(medium)].rate)

    def put() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    try:
        storage.insist(f"cannot write {path}", put)
    except OSError as error:
        raise storage.lasting(f"cannot write {path}", error) from error
    print(f"saved {path}")


def read_prompt(run: Trained, prompt: str) -> list[str | np.ndarray]:
    """The texts and media of a prompt in reading order.

    Raises:
      UsageError: if a text is none, or a medium cannot be read.
    """
    parts = _PLACEHOLDER.split(prompt)
    return [read_medium(run, part) if i % 2 else checked_text(part) for i, part in enumerate(parts) if i % 2 or part]


def read_size(text: str) -> tuple[int, ...]:
    """The sides in a text such as '8,8'.

    Raises:
      UsageError: if they are no whole numbers.
    """
    sides = [side.strip() for side in text.split(",")]
    if not all(side.isdecimal() and len(side) < 9 for side in sides):
        raise UsageError(f"--size={shown(text)}: give one to three whole numbers, as in --size=8,8")
    return checked_size([int(side) for side in sides])


def read_medium(run: Trained, path: str) -> np.ndarray:
    """An image, animation or WAV file as what the run's codec reads, fitted as in training; see `Trained.fitted`.

    Raises:
      UsageError: if it cannot be read, or is of another kind than the model's media.
    """
    return run.fitted(as_path(path))


def define_flags() -> None:
    """The program's flags; each field of SamplerConfig is one."""
    flags.DEFINE_string("workdir", None, "Folder of the training run.")
    flags.DEFINE_string(
        "prompt", None, "Text, in which <image:PATH>, <video:PATH> or <sound:PATH> stands for what a file holds."
    )
    flags.DEFINE_string(
        "output", None, "Draw the prompt into this file (image .png, clip .webp, .gif or .png, sound .wav); with --num "
        "into NAME-0.png, NAME-1.png, ...; with --prompts the folder of all results.",
    )  # fmt: skip
    flags.DEFINE_alias("image", "output")
    flags.DEFINE_string("caption", None, "Print a caption of this image, animation or WAV file.")
    flags.DEFINE_string("prompts", None, "Draw, caption and write what the lines of this JSONL file ask for.")
    flags.DEFINE_bool("json", False, "Print each result of --prompts as a JSON line.")
    flags.DEFINE_integer("batch", batches.ROWS, "Samples of --prompts that are made at a time.", lower_bound=1)
    flags.DEFINE_integer("label", None, "The class of what is drawn, of models that have classes.", lower_bound=0)
    flags.DEFINE_string("kind", None, "What is drawn, such as 'sound', of models that draw several kinds of media.")
    flags.DEFINE_string(
        "size", None, "Sides of the latents that are drawn, such as 8,8, of models that draw several sizes."
    )
    flags.DEFINE_integer("num", 1, "How many samples.", lower_bound=1, upper_bound=MOST_SAMPLES)
    flags.DEFINE_integer("seed", 0, "Same seed, same result.", lower_bound=0, upper_bound=MOST_SEED)
    define_settings()


FLAGS = flags.FLAGS

if __name__ == "__main__":
    define_flags()
    programs.run(main)
