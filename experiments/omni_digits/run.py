"""Asks a model of `configs/omni_digits.py` for every medium from every medium, and has real judges say what came.

  python experiments/omni_digits/run.py --workdir runs/omni_digits

Reads held-out digits, writes and draws another sample of each, and prints the share that is the right digit: a table of
4 x 4 directions with Wilson's intervals of 95 %. A cell is written to matrix.json beside this file when it is measured,
and is not measured again unless the run or the settings have changed. examples.png shows the first digits of each cell.
"""

import datetime
import itertools
import json
import pathlib

import judges
import numpy as np
from absl import app, flags
from PIL import Image, ImageDraw

import transfusion
from transfusion.data.packaged.omni_digits import MEDIA, texts
from transfusion.evaluation.intervals import wilson
from transfusion.model.unified import parameter_count

HERE = pathlib.Path(__file__).resolve().parent
KINDS = {"image": "image", "sound": "sound", "clip": "video"}  # the names of the media in the layout
FLAGS = flags.FLAGS
flags.DEFINE_string("workdir", "runs/omni_digits", "Folder of the run.")
flags.DEFINE_string("data", "data/omni_digits", "Folder of the data.")
flags.DEFINE_integer("number", 300, "Digits of each direction; images and clips are the held-out ones again and again.")
flags.DEFINE_float("words", 2.0, "Guidance of what is drawn from a text.")
flags.DEFINE_float("media", 2.0, "Guidance of what is drawn from an image, a sound or a clip.")
flags.DEFINE_integer("steps", 8, "Steps of the solver.")
flags.DEFINE_string("solver", "heun", "The solver.")
flags.DEFINE_string("out", str(HERE), "Folder of matrix.json and examples.png.")
GOALS = {("text", "image"): 0.95, ("image", "text"): 0.95}  # of the other directions with a sound or a clip: 0.9


def given(folder: pathlib.Path, medium: str, number: int) -> tuple[list, np.ndarray]:
    """Prompts of real held-out samples of a medium, and their digits."""
    if medium == "text":
        named = [(f"{text}:", digit) for digit in range(10) for text in texts(digit)]
        named = [named[i] for i in np.random.default_rng(0).permutation(len(named))]
        samples, digits = [text for text, _ in named], np.array([digit for _, digit in named])
    else:
        samples, digits = judges.read(folder, medium, "heldout")
    at = np.arange(number) % len(samples)
    return [samples[i] for i in at], digits[at]


def made(run: transfusion.Trained, prompts: list, first: str, second: str) -> list:
    """What the model writes, draws or says behind each prompt."""
    if second == "text":
        answers = run.generate(prompts, max_images=0, temperature=0.0)
        return ["".join(part for part in answer if isinstance(part, str)) for answer in answers]
    guidance = {"guidance": FLAGS.words} if first == "text" else {"guidance": 1.0, "image_guidance": FLAGS.media}
    return list(run.draw(prompts, kind=KINDS[second], steps=FLAGS.steps, solver=FLAGS.solver, **guidance))


# --- what is shown ----------------------------------------------------------------------------------------------------


def plate(medium: str, sample) -> Image.Image:
    """A sample as a picture of 132 x 36 pixels: a text, an image, a spectrogram, or the frames of a clip."""
    sheet = Image.new("RGB", (132, 36), "white")
    if medium == "text":
        ImageDraw.Draw(sheet).text((4, 10), sample.rstrip(":"), fill="black", font_size=14)
        return sheet
    if medium == "sound":
        bands = np.clip(judges.MEL.encode(sample).T[::-1] * 60 + 110, 0, 255).astype(np.uint8)
        sheet.paste(Image.fromarray(bands).resize((96, 32)), (2, 2))
        return sheet
    frames = [sample] if medium == "image" else sample[1::2]
    for number, frame in enumerate(frames):
        sheet.paste(Image.fromarray(frame[..., 0]).resize((32, 32), Image.Resampling.NEAREST), (2 + 33 * number, 2))
    return sheet


def strip(first: str, second: str, prompts: list, answers: list) -> Image.Image:
    """The first two digits of a direction: what was given above what was made."""
    sheet = Image.new("RGB", (138, 150), "lightgrey")
    for number in range(2):
        sheet.paste(plate(first, prompts[number]), (3, number * 75 + 1))
        sheet.paste(plate(second, answers[number]), (3, number * 75 + 37))
    return sheet


def picture(strips: pathlib.Path) -> Image.Image:
    """The strips of all directions: a row has what was given in one medium, a column what was made in one."""
    sheet = Image.new("RGB", (4 * 138 - 1, 4 * 150 - 1), "black")
    for (y, first), (x, second) in itertools.product(enumerate(MEDIA), repeat=2):
        sheet.paste(Image.open(strips / f"{first}-{second}.png").crop((0, 0, 137, 149)), (x * 138, y * 150))
    return sheet


def table(cells: dict[str, dict]) -> str:
    def cell(first: str, second: str) -> str:
        score = cells[f"{first} -> {second}"]
        return f"{100 * score['value']:.1f} % ({100 * score['low']:.1f} to {100 * score['high']:.1f})"

    rows = [f"| {first} | {' | '.join(cell(first, second) for second in MEDIA)} |" for first in MEDIA]
    return "\n".join([f"| from | {' | '.join(MEDIA)} |", "| --- " * 5 + "|", *rows])


def missed(cells: dict[str, dict]) -> list[str]:
    """The directions whose share is below its goal."""
    goals = {
        (a, b): GOALS.get((a, b), 0.9 if {a, b} & {"sound", "clip"} else 0.0)
        for a, b in itertools.product(MEDIA, repeat=2)
    }
    return [f"{a} -> {b}" for (a, b), goal in goals.items() if cells[f"{a} -> {b}"]["value"] < goal]


def main(argv) -> None:
    del argv
    run, folder, out = transfusion.load_run(FLAGS.workdir), pathlib.Path(FLAGS.data), pathlib.Path(FLAGS.out)
    settings = {name: FLAGS[name].value for name in ("number", "words", "media", "steps", "solver")}
    about = {"step": run.step, "parameters": parameter_count(run.params), "settings": settings}
    path = out / "matrix.json"
    results = json.loads(path.read_text()) if path.is_file() else {}
    if any(results.get(name) != value for name, value in about.items()):
        results = {**about, "date": datetime.date.today().isoformat(), "judges": {}, "cells": {}}
    judge = {"text": judges.judge_texts}
    for medium in KINDS:
        judge[medium], right = judges.train_judge(folder, medium)
        results["judges"][medium] = wilson(right["right"], right["of"])
        print(f"the judge of each real held-out {medium}: {right['right']} of {right['of']} right", flush=True)
    strips = pathlib.Path(FLAGS.workdir) / "omni"
    strips.mkdir(exist_ok=True)
    for first, second in itertools.product(MEDIA, repeat=2):
        name = f"{first} -> {second}"
        if name in results["cells"]:
            continue
        prompts, digits = given(folder, first, FLAGS.number)
        answers = made(run, prompts, first, second)
        strip(first, second, prompts, answers).save(strips / f"{first}-{second}.png")
        right = int((judge[second](answers) == digits).sum())
        results["cells"][name] = wilson(right, len(digits))
        path.write_text(json.dumps(results, indent=1) + "\n")
        print(f"{name}: {right} of {len(digits)}", flush=True)
    print(table(results["cells"]))
    print("below its goal:", ", ".join(missed(results["cells"])) or "none")
    picture(strips).save(out / "examples.png", optimize=True)


if __name__ == "__main__":
    app.run(main)
