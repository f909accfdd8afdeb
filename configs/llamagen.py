"""LlamaGen (arXiv 2406.06525) on captioned digits: a Llama that writes the codes of images, one after another.

What: the data and codes of `configs/showo.py` (7x7 codes of `configs/vq_digits.py` for 28x28 pixels, which move by up
to 2) behind a caption, all causal. Blocks are Llama's: RMSNorm, SwiGLU, no biases. Rotary positions have two axes, y
and x of a code in its image (section 3.2). Training leaves out one caption in ten, and guidance compares with that.
The model only draws: captions have no loss, and no image precedes its caption.
Original: it begins with a frozen T5's features of the caption, or with one vector for a class, and the last of these
predicts the first code. Here the caption's bytes are tokens of the same trunk, whose positions go on counting where the
original does not rotate them, and a start token predicts the first code. There is no dropout, and nothing stands in
place of a caption that is left out, where the original has learned vectors.
Data: python -m transfusion.train --config configs/vq_digits.py --workdir runs/vq_digits
  This trains the codec.
Command: python -m transfusion.train --config configs/llamagen.py --workdir runs/llamagen
Hardware: 2 CPU cores. Time and results: experiments/family_on_digits.
Forms: `configs/llamagen.py:debug` trains 20 steps in seconds, on the grey levels of 8x8 pixels, which need no codec.
"""

import dataclasses
import pathlib

from transfusion.config import check_form, to_config_dict
from transfusion.initial import InitConfig
from transfusion.programs import load_experiment
from transfusion.sequence import Run, Stream, text

FORMS = ("", "debug")
CODES = pathlib.Path(__file__).with_name("showo.py")


def get_config(form: str = ""):
    """The experiment; `form` is one of `FORMS`."""
    check_form(__file__, form, FORMS)
    base = load_experiment(f"{CODES}:{form}" if form else CODES)
    codes = base.streams["image"]
    image = Stream(
        vocabulary=codes.vocabulary, grid=codes.grid, embed="token", head="token", objective="next_token",
        attention="causal", budget=codes.budget + 2,
    )  # fmt: skip
    drawn = Run("image", opener=text.BOI, position="grid")
    return to_config_dict(
        dataclasses.replace(
            base,
            model=dataclasses.replace(base.model, rope_axes=2, rope_interleaved=True),
            streams={"text": dataclasses.replace(base.streams["text"], weight=1.0), "image": image},
            layout={"text": (Run("text", loss=False),), "image": (drawn,), "image/context": ()},
            # Images move, so that so few of them are not always the same codes.
            data=dataclasses.replace(base.data, caption_first=1.0, shift=0 if form else 2),
            init=InitConfig(),  # the codes' vectors are its own
            sampling=dataclasses.replace(base.sampling, guidance=2.0, max_tokens=0),
        )
    )
