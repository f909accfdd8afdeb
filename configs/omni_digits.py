"""Digits as text, images, spoken words and clips: one model that reads each of the four and makes each of the four.

What: 1,500 real digits of 8x8 pixels, clips of 8 frames in which these are drawn stroke by stroke, and ten spoken words
at other pitches and tempos. A document is a digit in one medium and then another sample of it in a medium, all 16 pairs
alike often. Text is written byte by byte, pixels and mel frames are drawn by flow matching. Each medium that is drawn
has an opener of its own, so that the model opens whichever it likes, or the one that it is asked for.
Data: apt-get install asterisk-core-sounds-en-wav (Debian), then
  python -m transfusion.prepare --data_dir data omni_digits
Command: python -m transfusion.train --config configs/omni_digits.py --workdir runs/omni_digits
  python -m transfusion.sample --workdir runs/omni_digits --prompt 'seven:' --kind sound --output seven.wav
Hardware: 2 CPU cores. Time: 21 minutes beside other programs (2026-11-28). Results: experiments/omni_digits.
Forms: `:mot` has a set of trunk weights for each medium, 6.7 million in all (Mixture-of-Transformers, arXiv 2411.04996,
whose third setting has text, images and speech). `:debug` and `:mot_debug` train 20 steps of each in seconds.
"""

import dataclasses

from transfusion.codecs import CodecConfig
from transfusion.codecs.mel import MelConfig
from transfusion.config import EvalConfig, Experiment, check_form, debug_form, to_config_dict
from transfusion.data.config import DataConfig, SourceConfig
from transfusion.model.config import TransformerConfig
from transfusion.optim import OptimConfig
from transfusion.running.checkpoint import CheckpointConfig
from transfusion.sampling.config import SamplerConfig
from transfusion.sequence import Run, Stream, text

FORMS = ("", "debug", "mot", "mot_debug")
FRAMES, MEL = 8, MelConfig(bands=32, window=512, hop=256, mean=-7.7, deviation=1.65)
SOUND_FRAMES = 24
# The begin and end of each kind of medium. Ids from `text.VOCABULARY` on are the config's own.
EDGES = {
    "image": (text.BOI, text.EOI),
    "sound": (text.VOCABULARY, text.VOCABULARY + 1),
    "video": (text.VOCABULARY + 2, text.VOCABULARY + 3),
}


def get_config(form: str = ""):
    """The experiment; `form` is one of `FORMS`."""
    check_form(__file__, form, FORMS)
    image = Stream(
        embed="linear", head="linear", objective="continuous", attention="block", time="added", channels=1, patch=4,
        grid=(8, 8), budget=20, table="sincos",
    )  # fmt: skip
    video = dataclasses.replace(image, patch_frames=2, grid=(FRAMES, 8, 8), budget=64)
    sound = dataclasses.replace(image, channels=MEL.bands, grid=(SOUND_FRAMES,), budget=48)
    words = Stream(vocabulary=text.VOCABULARY + 8, budget=64)
    streams = {"text": words, "image": image, "sound": sound, "video": video}
    experiment = Experiment(
        steps=2200,
        batch_size=12,
        log_every=50,
        model=TransformerConfig(width=160, layers=5, heads=2, rope_axes=3, rope_interleaved=True, scan=False),
        streams=streams,
        layout=layout(),
        codecs={"sound": CodecConfig("mel", mel=MEL)},
        data=DataConfig(sources={"pairs": pairs("train")}, drop_conditions=dict.fromkeys(EDGES, 0.1), open_rows=16),
        optim=OptimConfig(learning_rate=2e-3, final_learning_rate=1e-5, warmup=100, weight_decay=0.01, ema=0.995),
        checkpoint=CheckpointConfig(every=500, keep=2),
        eval=EvalConfig(every=500, sources={"pairs": pairs("heldout")}, prompts="held_out"),
        sampling=SamplerConfig(solver="heun", steps=8, guidance=2.0, temperature=0.0, max_tokens=12),
    )
    if form.startswith("mot"):
        each = {name: dataclasses.replace(stream, expert=name) for name, stream in streams.items()}
        experiment = dataclasses.replace(experiment, streams=each)
    if form.endswith("debug"):
        experiment = debug_form(experiment)
    return to_config_dict(experiment)


def layout() -> dict[str, tuple[Run, ...]]:
    """A medium that is read is clean and no target; one that is drawn is noised."""
    table = {"text": (Run("text"),)}
    for kind, (opener, closer) in EDGES.items():
        drawn = Run(kind, opener=opener, closer=closer, position="grid")
        table |= {kind: (drawn,), f"{kind}/context": (dataclasses.replace(drawn, time_low=1.0, loss=False),)}
    return table


def pairs(split: str) -> SourceConfig:
    """The records of a split. Clips are stored in three channels, as all are."""
    return SourceConfig(kind="records", path=f"data/omni_digits/{split}.jsonl", channels=1)
