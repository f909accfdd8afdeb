"""Connectors (MetaQueries, arXiv 2504.06256; Qwen-Image, arXiv 2508.02324; BLIP3-o, arXiv 2505.09568) on captioned
digits: a language model that stays as it is tells another trunk what to draw.

What: `configs/digits.py` with the trunk of a text run, frozen. Sixteen learned queries follow the caption and BOI in
it, causal like text; behind it they pass through a bidirectional connector and enter a trunk that diffuses, where the
noised image sees them and nothing else. The noise level modulates the image there (adaLN-zero). Trunks are made of one
block. An image is drawn and never read: the language model has seen none, and MetaQueries leaves its own untouched.
`configs/connector.py:cross` has cross-attention to the queries in place of joint self-attention (PixArt-alpha, arXiv
2310.00426; Sana, which MetaQueries trains). `configs/connector.py:qwen` has no queries and no connector: the language
model's outputs for the caption condition an MM-DiT, weights of their own for text and image and joint attention. Rotary
positions have axes (time, y, x): text goes along the diagonal, and the image's grid begins at its end, which is
Qwen-Image's MSRoPE mirrored (centred coordinates are those up to a shift, which rotations do not see). Text is causal
and not modulated there, which the original's is, so that it stays cached while one draws.
`configs/connector.py:blip3o` draws what a vision tower would see, not pixels: its second trunk diffuses a tower's
features (flow matching) with cross-attention to the queries, which come straight from the language model, and the
decoder of `configs/autoencoder_semantic.py` makes pixels of them. The original has CLIP's features and Lumina-Next's
blocks (axes in the rotary positions, norms on both sides), and decodes by diffusion.
Command: python -m transfusion.train --config configs/lmfusion.py:text --workdir runs/lmfusion_text
         python -m transfusion.train --config configs/connector.py --workdir runs/connector
         The first trains the language model on the captions alone; `--config.init.path=W` takes another text run.
         `:blip3o` needs the two runs of `configs/autoencoder_semantic.py` as well, or `--config.codec.path=W`.
Hardware: 2 CPU cores. Time and results: experiments/family_on_digits.
`configs/connector.py:debug` (`:cross_debug`, `:qwen_debug`, `:blip3o_debug`) trains 20 steps in seconds, without a text
run: its language model is frozen at random. `:blip3o_debug` wants a run of `configs/autoencoder_semantic.py:debug` in
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
    """What all forms share: the language model of `configs/lmfusion.py:text`, and images that the noise level modulates
    in a trunk of their own. Every document has its caption first; without it, it is the null condition of guidance."""
    image = dataclasses.replace(dense.streams["image"], expert="image", time="adaln", head="adaln")
    language = dataclasses.replace(dense.streams["text"], expert="text", head_after="trunk")
    return dataclasses.replace(
        dense,
        streams={"text": language, "image": image},
        data=dataclasses.replace(dense.data, caption_first=1.0),
        optim=dataclasses.replace(dense.optim, groups=(LearningRateGroup("trunk|parts/text", 0.0),)),
    )


def metaqueries(base: Experiment) -> Experiment:
    """Queries, a connector, and a trunk in which they and the image attend to each other."""
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
    """The same with cross-attention to the queries."""
    experiment = metaqueries(base)
    stages = dict(experiment.model.stages)
    diffuse = dataclasses.replace(stages["diffuse"].trunk, cross=("queries",))
    stages["diffuse"] = dataclasses.replace(stages["diffuse"], trunk=diffuse)
    return dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, stages=stages))


def blip3o(base: Experiment) -> Experiment:
    """The same without a connector, and features in place of pixels."""
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
    """The caption's own states condition an MM-DiT."""
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
