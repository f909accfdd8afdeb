"""What is left of moving shapes behind a codec: the exact parser reads held-out clips that were encoded and decoded.

  python experiments/moving/codec.py --workdir runs/autoencoder_moving          # of clips, causal in time
  python experiments/moving/codec.py --workdir runs/autoencoder_moving_frames   # frame by frame

Prints numbers with Wilson intervals of 95 %, and writes them to RUN.json beside this file. A clip is right if the
parser reads shape, colour and motion as captions say them; exact, if it reads the very state of every frame, to a
pixel. Single frames go through the codec as images. 'with noise' adds normal noise to the latents, so many of their
standard deviations: a model never draws latents exactly.
"""

import argparse
import datetime
import json
import pathlib

import numpy as np

from transfusion.codecs import CodecConfig
from transfusion.data.scenes import moving, tasks
from transfusion.data.scenes.parse import parse_clip, parse_frame
from transfusion.evaluation.intervals import wilson
from transfusion.latents import Codec, open_codec

HERE = pathlib.Path(__file__).resolve().parent
NOISES = (0.1, 0.2, 0.3, 0.5)


def share(right: list[bool]) -> dict:
    found = wilson(sum(right), len(right))
    return {"right": int(sum(right)), "of": len(right)} | {name: round(found[name], 4) for name in ("low", "high")}


def measure(codec: Codec, count: int) -> dict:
    """What the parser reads of `count` held-out clips behind a codec."""
    drawn = [tasks.draw("clips", "test", number) for number in range(count)]
    clips = np.stack([moving.render_clip(one.clip) for one in drawn])
    latents = np.concatenate([codec.encode(clips[i : i + 50]) for i in range(0, len(clips), 50)])
    rng, spread = np.random.default_rng(0), float(latents.std())

    def made(noise: float) -> list:
        z = latents + np.float32(noise * spread) * rng.standard_normal(latents.shape, np.float32)
        return [parse_clip(clip) for i in range(0, len(z), 50) for clip in codec.decode(z[i : i + 50])]

    def right(parsed: list) -> dict:
        return share([p.says == one.says for p, one in zip(parsed, drawn, strict=True)])

    plain, wanted = made(0.0), [one.clip.states() for one in drawn]
    exact = [bool(p.says) and p.states == states for p, states in zip(plain, wanted, strict=True)]
    images = [parse_frame(codec.decode(codec.encode(clip[moving.CHANGE]))) for clip in clips]
    same = [s == w[moving.CHANGE] and not fault for (s, _, fault), w in zip(images, wanted, strict=True)]
    return {
        "values of a clip": int(np.prod(clips.shape[1:])),
        "values of its latents": int(np.prod(latents.shape[1:])),
        "shape of the latents": list(latents.shape[1:]),
        "standard deviation of the latents": round(spread, 3),
        "clips right": right(plain),
        "clips exact": share(exact),
        "single frames exact": share(same),
        "clips right with noise": {str(noise): right(made(noise)) for noise in NOISES},
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="folder of the autoencoder's run")
    parser.add_argument("--clips", type=int, default=500, help="held-out clips")
    given = parser.parse_args()
    found = measure(open_codec(CodecConfig("autoencoder", str(given.workdir))), given.clips)
    result = {"date": datetime.date.today().isoformat()} | found
    (HERE / f"{given.workdir.name}.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
