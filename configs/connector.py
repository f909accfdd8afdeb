"""Connectors (MetaQueries, arXiv 2504.06256; Qwen-Image, arXiv 2508.02324; BLIP3-o, arXiv 2505.09568) on captioned
digits: a frozen language model tells a second trunk what to draw.

What: the trunk of a text run is frozen. Sixteen learned queries follow the caption and BOI in it, causal like text.
Behind it they pass through a bidirectional connector and enter a second trunk, which diffuses: there the noised image
sees the queries and nothing else, and the noise level modulates the image (adaLN-zero). Both trunks are made of the
same blocks. Images are drawn and never read, because the language model has never seen one.
Command: python -m transfusion.train --config configs/lmfusion.py:text --workdir runs/lmfusion_text
  python -m transfusion.train --config configs/connector.py --workdir runs/connector
  The first command trains the language model on captions alone; `--config.init.path=W` takes another text run.
Hardware: 2 CPU cores. Time and results: experiments/family_on_digits.
Forms: `configs/connector.py:cross` has cross-attention to the queries in place of joint self-attention (PixArt-alpha,
arXiv 2310.00426; Sana, which MetaQueries trains).
`configs/connector.py:qwen` has neither queries nor a connector. The language model's outputs for the caption condition
an MM-DiT: weights of their own for text and image, and joint attention. Rotary positions have axes (time, y, x). Text
goes along the diagonal, and the image's grid begins at its end, which is Qwen-Image's MSRoPE mirrored (its centred
coordinates differ by a shift, which rotations do not see). Text is causal and not modulated, unlike the original's, so
that it stays cached while an image is drawn.
`configs/connector.py:blip3o` draws the features of a vision tower and not pixels. Its second trunk diffuses them (flow
matching), with cross-attention to the queries, which come straight from the language model. The decoder of
`configs/autoencoder_semantic.py` makes pixels of them, so that this form needs its two runs as well, or
`--config.codec.path=W`. The original has CLIP's features and Lumina-Next's blocks (axes in the rotary positions, norms
on both sides), and decodes by diffusion.
`:debug`, `:cross_debug`, `:qwen_debug` and `:blip3o_debug` train 20 steps in seconds, without a text run: their
language model is frozen at random. `:blip3o_debug` needs a run of `configs/autoencoder_semantic.py:debug` in
`codec.path`.
"""

import dataclasses
import pathlib

from transfusion import layouts
from transfusion.codecs import CodecConfig
from transfusion.config import Experiment, check_form, to_config_dict
from transfusion.initial import InitConfig
from transfusion.model.config import Stage
from transfusion.optim import LearningRateGroup
from transfusion.programs import load_experiment
from transfusion.sequence import Stream

FORMS = ("", "cross", "qwen", "blip3o", "debug", "cross_debug", "qwen_debug", "blip3o_debug")
DENSE = pathlib.Path(__file__).with_name("digits.py")
QUERIES = 16


def get_config(form: str = ""):
    """The experiment; `form` is one of `FORMS`."""
    check_form(__file__, form, FORMS)
    debug = form.endswith("debug")
    dense = load_experiment(f"{DENSE}:debug" if debug else DENSE)
    make = {"cross": cross, "qwen": qwen, "blip3o": blip3o}.get(
        form.removesuffix("debug").removesuffix("_"), metaqueries
    )
    # The text run has an image stream, too, which it never saw; that of features has other sizes.
    fresh = "parts/image" if make is blip3o else ""
    init = InitConfig() if debug else InitConfig("runs/lmfusion_text", fresh=fresh)
    return to_config_dict(dataclasses.replace(make(frozen(dense)), init=init))


def frozen(dense: Experiment) -> Experiment:
    """The part that all forms share: a frozen language model, and a trunk of their own for images.

    The language model is that of `configs/lmfusion.py:text`. The noise level modulates images. Every document begins
    with its caption; without it, the document is the null condition of guidance.
    """
    image = dataclasses.replace(dense.streams["image"], expert="image", time="adaln", head="adaln")
    language = dataclasses.replace(dense.streams["text"], expert="text", head_after="trunk")
    return dataclasses.replace(
        dense,
        streams={"text": language, "image": image},
        data=dataclasses.replace(dense.data, caption_first=1.0),
        optim=dataclasses.replace(dense.optim, groups=(LearningRateGroup("trunk|parts/text", 0.0),)),
    )


def metaqueries(base: Experiment) -> Experiment:
    """MetaQueries: queries, a connector, and a second trunk in which queries and image attend to each other."""
    image, trunk = base.streams["image"], base.model
    queries = Stream(
        embed="queries", head="none", objective="none", source="none", attention="block", expert="text",
        grid=(QUERIES, 1), budget=image.max_items * QUERIES,
    )  # fmt: skip
    connector = dataclasses.replace(trunk, layers=2, qk_norm="rms", streams=("queries",))
    # Dense: whatever the experts are called elsewhere, here they own nothing.
    diffuse = dataclasses.replace(trunk, streams=("queries", "image"), untied=(), final_norm=False)
    stages = {"connector": Stage(connector), "diffuse": Stage(diffuse, "mlp")}
    return dataclasses.replace(
        base,
        model=dataclasses.replace(trunk, streams=("text", "queries"), causal=("queries",), stages=stages),
        streams=base.streams | {"queries": queries},
        layout=layouts.connector(),
    )


def cross(base: Experiment) -> Experiment:
    """MetaQueries with cross-attention to the queries."""
    experiment = metaqueries(base)
    stages = dict(experiment.model.stages)
    diffuse = dataclasses.replace(stages["diffuse"].trunk, cross=("queries",))
    stages["diffuse"] = dataclasses.replace(stages["diffuse"], trunk=diffuse)
    return dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, stages=stages))


def blip3o(base: Experiment) -> Experiment:
    """BLIP3-o: cross-attention to queries without a connector, and features of a vision tower in place of pixels."""
    experiment = cross(base)
    model, image = experiment.model, experiment.streams["image"]
    grid = tuple(side // image.patch for side in image.grid)
    # As wide as the tower of `configs/janusflow.py:understanding`.
    image = dataclasses.replace(image, channels=model.width // 2, patch=1, grid=grid)
    return dataclasses.replace(
        experiment,
        model=dataclasses.replace(model, stages={"diffuse": model.stages["diffuse"]}),
        streams=experiment.streams | {"image": image},
        codec=CodecConfig("autoencoder", "runs/autoencoder_semantic"),
    )


def qwen(base: Experiment) -> Experiment:
    """Qwen-Image: the language model's outputs for the caption condition an MM-DiT."""
    # Text has the same coordinate on all axes, so that the run with one axis is the same language model. The axes take
    # turns in its one series of frequencies: one after the other, the last would have slow ones only, and no image a
    # left and a right.
    trunk = dataclasses.replace(base.model, rope_axes=3, rope_interleaved=True)
    image = dataclasses.replace(base.streams["image"], table="none")
    diffuse = dataclasses.replace(trunk, streams=("text", "image"), qk_norm="rms", final_norm=False)
    return dataclasses.replace(
        base,
        model=dataclasses.replace(trunk, streams=("text",), stages={"diffuse": Stage(diffuse, "mlp")}),
        streams=base.streams | {"image": image},
        layout=layouts.connector(queries=False),
    )
