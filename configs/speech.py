"""Transfusion (arXiv 2408.11039) on recorded words: words from their spelling, and spelling from words.

What: 94 recordings of one speaker ('seven', 'nineteenth', 'Thursday', 'October') at 8 kHz, cut or padded to 1.28 s.
They become 80 frames of 64 mel bands, two frames per token. From so few recordings the model learns to say the words
that it has heard; held-out words test the machine and not its speech.
Data: apt-get install asterisk-core-sounds-en-wav (Debian), then
  python -m transfusion.prepare --data_dir data speech
Command: python -m transfusion.train --config configs/speech.py --workdir runs/speech
  python -m transfusion.sample --workdir runs/speech --prompt 'seven' --output seven.wav
  python -m transfusion.sample --workdir runs/speech --caption seven.wav
Hardware: 2 CPU cores. Time: 21 minutes beside other programs (2026-11-22). Results: experiments/media_by_heart.
Forms: `configs/speech.py:debug` trains 20 steps in seconds.
"""

import dataclasses

from transfusion import layouts
from transfusion.codecs import CodecConfig
from transfusion.codecs.mel import MelConfig
from transfusion.config import EvalConfig, Experiment, check_form, debug_form, to_config_dict
from transfusion.data.config import DataConfig, SourceConfig
from transfusion.model.config import TransformerConfig
from transfusion.optim import OptimConfig
from transfusion.running.checkpoint import CheckpointConfig
from transfusion.sampling.config import SamplerConfig
from transfusion.sequence import Stream, text

FORMS = ("", "debug")
FRAMES = 80


def get_config(form: str = ""):
    """The experiment; `form` is one of `FORMS`."""
    check_form(__file__, form, FORMS)
    mel = MelConfig()
    sound = Stream(
        embed="linear", head="linear", objective="continuous", attention="block", time="added",
        channels=mel.bands, patch=2, grid=(FRAMES,), budget=3 * FRAMES // 2, weight=5.0,
    )  # fmt: skip
    source = SourceConfig(name="speech/digits", rate=mel.rate, length=FRAMES * mel.hop)
    experiment = Experiment(
        steps=1400,
        batch_size=8,
        log_every=50,
        model=TransformerConfig(width=192, layers=6, heads=4, scan=False),
        streams={"text": Stream(vocabulary=text.VOCABULARY, budget=48), "sound": sound},
        layout=layouts.transfusion(kind="sound"),
        codec=CodecConfig(kind="mel", mel=mel),
        data=DataConfig(sources={"speech": source}, caption_first=0.6),
        optim=OptimConfig(learning_rate=1.5e-3, final_learning_rate=2e-5, warmup=100, weight_decay=0.01, ema=0.995),
        checkpoint=CheckpointConfig(every=500, keep=2),
        eval=EvalConfig(
            every=1000, sources={"speech": dataclasses.replace(source, split="heldout")}, prompts="held_out"
        ),
        sampling=SamplerConfig(solver="heun", steps=20, guidance=2.0, temperature=0.0, max_tokens=16),
    )
    if form == "debug":
        experiment = debug_form(experiment)
    return to_config_dict(experiment)
