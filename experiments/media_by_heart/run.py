"""What has a small run of clips or of speech learned? To name items, to draw them, and to name what it has drawn?

  python experiments/media_by_heart/run.py --workdir runs/speech

Prints numbers, and writes them to RUN.json beside this file: how many training and held-out items are named exactly,
how many drawn items the run itself names as asked, and for how many drawn items the nearest training item has the asked
name (by the mean squared difference of their latents). RUN.png shows recorded items (left) and drawn ones (right): the
frames of a clip, or the spectrogram of a sound.
"""

import datetime
import json
import pathlib

import numpy as np
from absl import app, flags
from PIL import Image

import transfusion
from transfusion.data.sources import open_source

HERE = pathlib.Path(__file__).resolve().parent
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
DRAWN = flags.DEFINE_integer("drawn", 48, "How many training items, from the first one on, have their names drawn.")
SHOWN = flags.DEFINE_integer("shown", 8, "How many items the picture shows.")


def strip(latents: np.ndarray) -> np.ndarray:
    """An item as a strip of pixels, uint8 [height, width, 3].

    The frames [T, h, w, C] in [-1, 1] of a clip lie side by side; of the bands [T, C] of a sound the low ones are
    below.
    """
    if latents.ndim == 2:
        values = np.clip(latents.T[::-1] * 64 + 96, 0, 255)
        return np.repeat(values.astype(np.uint8)[..., None], 3, -1)
    frames = np.clip((latents + 1) * 127.5, 0, 255).astype(np.uint8)
    return np.concatenate(list(frames), axis=1)


def picture(pairs: list[tuple[np.ndarray, np.ndarray]]) -> Image.Image:
    rows = []
    for recorded, drawn in pairs:
        left, right = strip(recorded), strip(drawn)
        rows += [np.concatenate([left, np.full((len(left), 4, 3), 255, np.uint8), right], 1)]
        rows += [np.full((2, rows[-1].shape[1], 3), 255, np.uint8)]
    image = Image.fromarray(np.concatenate(rows[:-1]))
    return image.resize((2 * image.width, 2 * image.height), Image.Resampling.NEAREST)


def main(argv) -> None:
    del argv
    workdir = pathlib.Path(WORKDIR.value)
    run = transfusion.load_run(workdir)
    data = run.experiment.data
    ((name, source),) = data.sources.items()

    def read(source) -> list[dict]:
        records = open_source(source, data.data_dir, data.pixel_limit)
        return [records[i] for i in range(len(records))]

    train, held_out = read(source), read(run.experiment.eval.sources[name])
    (kind,) = {"sound", "video"} & set(train[0])

    def named(items, names) -> dict[str, int]:
        right = [a.strip() == b.strip() for a, b in zip(run.caption(items), names, strict=True)]
        return {"right": sum(right), "of": len(right)}

    result = {
        "date": datetime.date.today().isoformat(),
        "steps": run.step,
        "training items named": named([r[kind] for r in train], [r["caption"] for r in train]),
        "held-out items named": named([r[kind] for r in held_out], [r["caption"] for r in held_out]),
    }
    names = [r["caption"] for r in train[: DRAWN.value]]
    drawn = list(run.draw(names))
    recorded, made = ([run.codec.encode(item) for item in items] for items in ([r[kind] for r in train], drawn))
    nearest = [train[int(np.argmin([np.mean((m - r) ** 2) for r in recorded]))]["caption"] for m in made]
    result["drawn items named as asked"] = named(drawn, names)
    result["nearest training item"] = {
        "right": sum(a == b for a, b in zip(nearest, names, strict=True)),
        "of": len(names),
    }
    (HERE / f"{workdir.name}.json").write_text(json.dumps(result, indent=2) + "\n")
    picture(list(zip(recorded, made, strict=False))[: SHOWN.value]).save(HERE / f"{workdir.name}.png", optimize=True)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    app.run(main)
