"""Show-o (arXiv 2408.12528) on captioned digits: codes of images, drawn by unmasking, and text in one trunk.

What: `configs/digits.py` at 28x28 pixels, as 7x7 codes of `configs/vq_digits.py`. In training a share of an image's
codes is masked (the cosine of an even number, at least one code), and only these are predicted. The codes of an image
see each other and the text before it. Drawing begins with all codes masked, and each step keeps the most certain ones.
Guidance is s = 1 + w here, for (1 + w) c - w u in the paper. An image that a caption follows has no masked code.
Original: it begins with a language model (Phi-1.5) and has the codes in its vocabulary. Here they have a head of their
own; in the original's code, too, the logits of an image are those of its codes. Here they enter as the codec's vectors
behind two dense layers, because a table of their own does not learn from so few images which codes are alike (76 % of
held-out captions).
Data: python -m transfusion.train --config configs/vq_digits.py --workdir runs/vq_digits
  This trains the codec.
Command: python -m transfusion.train --config configs/showo.py --workdir runs/showo
Hardware: 2 CPU cores. Time and results: experiments/family_on_digits.
Forms: `configs/showo.py:debug` trains 20 steps in seconds, on the grey levels of 8x8 pixels, which need no codec.
"""

import dataclasses
import pathlib

from transfusion import layouts
from transfusion.codecs import CodecConfig
from transfusion.codecs.levels import LevelsConfig
from transfusion.config import Experiment, check_form, to_config_dict
from transfusion.initial import InitConfig
from transfusion.programs import load_experiment
from transfusion.sequence import ConnectorConfig, Stream

FORMS = ("", "debug")
DENSE, CODES = (pathlib.Path(__file__).with_name(name) for name in ("digits.py", "vq_digits.py"))
CODEC = "runs/vq_digits"


def get_config(form: str = ""):
    """The experiment; `form` is one of `FORMS`."""
    check_form(__file__, form, FORMS)
    dense = load_experiment(f"{DENSE}:{form}" if form else DENSE)
    if form:
        levels = LevelsConfig(levels=16, patch=2)
        return to_config_dict(masks(dense, 4, levels.codes, CodecConfig("levels", levels=levels)))
    codec = load_experiment(CODES)
    codes = codec.autoencoder.quantizer.codes
    experiment = masks(on_its_images(dense, codec), grid_of(codec), codes, CodecConfig("autoencoder", CODEC))
    # With a weight of 1, as the codes have, 93 % of the captions are right; with 2 it is 95 %.
    words = dataclasses.replace(experiment.streams["text"], weight=2.0)
    init = InitConfig(CODEC, (("parts/image/embed/table", "quantizer/codebook"),))
    return to_config_dict(dataclasses.replace(experiment, streams=experiment.streams | {"text": words}, init=init))


def grid_of(codec: Experiment) -> int:
    """The side of the grid of codes that a codec makes of the images that it was trained on."""
    (source,) = codec.data.sources.values()
    return source.resolution // codec.autoencoder.down


def on_its_images(dense: Experiment, codec: Experiment) -> Experiment:
    """The experiment on images of the size that the codec was trained on."""
    (its,) = codec.data.sources.values()

    def fitted(sources):
        size = {"resolution": its.resolution, "channels": its.channels}
        return {name: dataclasses.replace(s, **size) for name, s in sources.items()}

    return dataclasses.replace(
        dense,
        data=dataclasses.replace(dense.data, sources=fitted(dense.data.sources)),
        eval=dataclasses.replace(dense.eval, sources=fitted(dense.eval.sources)),
    )


def masks(dense: Experiment, side: int, codes: int, codec: CodecConfig) -> Experiment:
    """The experiment on the `codes` codes of a codec, which gives `side` x `side` of them for an image."""
    image = Stream(
        vocabulary=codes, grid=(side, side), channels=8, embed="codes", connector=ConnectorConfig(2, "gelu"),
        objective="masked", attention="block", budget=2 * side * side,
    )  # fmt: skip
    return dataclasses.replace(
        dense,
        streams={"text": dataclasses.replace(dense.streams["text"], weight=1.0), "image": image},
        layout=layouts.showo(),
        codec=codec,
        sampling=dataclasses.replace(dense.sampling, steps=12, guidance=3.0),
    )
