"""Chameleon (arXiv 2405.09818) on captioned digits: an image is written as codes in the text's vocabulary.

What: the data and codes of `configs/showo.py` (7x7 codes of `configs/vq_digits.py` for 28x28 pixels, which move by up
to 2). The codes stand between BOI and EOI, and all of it is one causal text. QK-norm, a z-loss of 1e-5 and sampling are
as published. Norms precede the sublayers, as in the 7B model; `--config.model.norm_place=post` puts them behind, as in
the 34B model.
Data: python -m transfusion.train --config configs/vq_digits.py --workdir runs/vq_digits
  This trains the codec.
Command: python -m transfusion.train --config configs/chameleon.py --workdir runs/chameleon
Hardware: 2 CPU cores. Time and results: experiments/family_on_digits.
Forms: `:mot` has one expert for text and one for codes (Mixture-of-Transformers, arXiv 2411.04996, section 3.2).
`:speech` has these experts on the recordings of `configs/speech.py`, whose words are 80 codes of coarse log-mel frames
(section 3.3). `:debug`, `:mot_debug` and `:speech_debug` train 20 steps of each in seconds.
"""

import dataclasses
import math
import pathlib

from transfusion import layouts
from transfusion.codecs import CodecConfig
from transfusion.codecs.levels import LevelsConfig
from transfusion.config import Experiment, check_form, to_config_dict
from transfusion.initial import InitConfig
from transfusion.objectives import ObjectivesConfig
from transfusion.objectives.next_token import NextTokenConfig
from transfusion.programs import load_experiment
from transfusion.sequence import Stream, text

FORMS = ("", "debug", "mot", "mot_debug", "speech", "speech_debug")
SPEECH = CodecConfig("mel_levels", levels=LevelsConfig(levels=3, channels=8, low=-0.7, high=2.3))


def get_config(form: str = ""):
    """The experiment; `form` is one of `FORMS`."""
    check_form(__file__, form, FORMS)
    debug, experts = ":debug" if form.endswith("debug") else "", form.startswith(("mot", "speech"))
    name = "speech" if form.startswith("speech") else "showo"
    base = load_experiment(f"{pathlib.Path(__file__).with_name(name)}.py{debug}")
    if name == "speech":
        return to_config_dict(spelled(base, SPEECH, SPEECH.levels.codes, experts))
    # Images move, so that so few of them are not always the same codes.
    data = dataclasses.replace(base.data, shift=0 if debug else 2)
    base = dataclasses.replace(base, data=data, init=InitConfig())
    return to_config_dict(spelled(base, base.codec, base.streams["image"].vocabulary, experts))


def spelled(base: Experiment, codec: CodecConfig, count: int, experts: bool = False) -> Experiment:
    """The experiment in which an image or a sound is written as codes in the text's vocabulary.

    The codec has `count` codes, and one of them stands at each place of the latents' grid. With `experts` codes have a
    stream and weights of their own.
    """
    (kind,) = (name for name in base.streams if name != "text")
    grid = base.streams[kind].grid
    codes = 2 * math.prod(grid)  # of two documents a row
    # A multiple of 8, so that the vocabulary axis of the embedding can be split over a mesh axis.
    vocabulary = text.VOCABULARY + -(-count // 8) * 8
    words = dataclasses.replace(base.streams["text"], vocabulary=vocabulary, weight=1.0)
    streams = {"text": dataclasses.replace(words, budget=words.budget + codes)}
    if experts:
        own = Stream(parts="text", vocabulary=vocabulary, expert=kind, budget=codes)
        streams = {"text": dataclasses.replace(words, expert="text"), "codes": own}
    sampling = dataclasses.replace(
        base.sampling,
        guidance=3.0,
        image_guidance=1.2,
        image_against="nothing",
        code_temperature=0.7,
        code_top_p=0.9,
    )
    return dataclasses.replace(
        base,
        model=dataclasses.replace(base.model, qk_norm="layer"),
        streams=streams,
        layout=layouts.chameleon(count, grid, "codes" if experts else "text", kind),
        objectives=ObjectivesConfig(NextTokenConfig(z_loss=1e-5)),
        codec=dataclasses.replace(codec, mel=base.codec.mel),
        sampling=sampling,
    )
