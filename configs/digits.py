"""Handwritten digits with captions: the five-minute run.

What: 1,500 real 8x8 digits, 'a handwritten seven' and the like; captions written byte by byte, pixels drawn by flow
matching, in one model of 0.9 M parameters.
Command: python -m transfusion.train --config configs/digits.py --workdir runs/digits
Hardware: 2 CPU cores. Time and results: README, 'Measured'; `make demo` prints them.
"""

from transfusion.codecs import text
from transfusion.config import EvalConfig, Experiment, to_config_dict
from transfusion.checkpoint import CheckpointConfig
from transfusion.data.config import DataConfig, SourceConfig
from transfusion.model.transformer import TransformerConfig
from transfusion.optim import OptimConfig
from transfusion.sampling.config import SamplerConfig
from transfusion.sequence import Run, Stream


def get_config(form: str = ""):
    """`form` 'debug' trains 20 steps in seconds."""
    debug = form == "debug"
    experiment = Experiment(
        steps=20 if debug else 1400,
        batch_size=4 if debug else 16,
        log_every=5 if debug else 50,
        model=TransformerConfig(width=32, layers=2, heads=2) if debug else TransformerConfig(width=128, layers=4, heads=4),
        streams={
            "text": Stream(vocabulary=text.VOCABULARY, budget=128),
            "image": Stream(
                embed="linear", head="linear", objective="continuous", attention="block", time="added",
                channels=1, patch=2, grid=(8, 8), budget=80, weight=5.0, table="sincos",
            ),
        },
        layout={
            "text": (Run("text"),),
            "image": (Run("image", opener=text.BOI, closer=text.EOI),),
            # The Transfusion paper's cap (section 4.3.4): an image before its caption keeps half of its signal.
            "image/context": (Run("image", opener=text.BOI, closer=text.EOI, time_low=0.5),),
        },
        data=DataConfig(sources={"digits": SourceConfig(name="digits", split="train")}, caption_first=0.8),
        optim=OptimConfig(learning_rate=2e-3, final_learning_rate=1e-5, warmup=100, weight_decay=0.01, ema=0.995),
        checkpoint=CheckpointConfig(every=10 if debug else 500, keep=2),
        eval=EvalConfig(every=10 if debug else 200, sources={"digits": SourceConfig(name="digits", split="test")}),
        sampling=SamplerConfig(steps=25, guidance=2.0, temperature=0.0, max_tokens=32),
    )  # fmt: skip
    return to_config_dict(experiment)
