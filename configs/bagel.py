"""BAGEL (arXiv 2505.14683) on captioned digits: two experts, and each drawn image up to three times.

What: `configs/digits.py` with one expert that understands (text, a vision tower's tokens, BOI and EOI) and one that
generates (latents). A drawn image comes first as noised latents, which nothing else sees. Then it comes as clean
latents and as the tower's tokens, which are what later tokens read. An image has one rotary index, and fixed 2-D sine
and cosine tables inside it.
Original: the text before an image does not learn to open it, which it does here.
Command: python -m transfusion.train --config configs/bagel.py --workdir runs/bagel
Hardware: 2 CPU cores. Time and results: experiments/family_on_digits.
Forms: `configs/bagel.py:edit` adds examples of editing ('negative', 'mirrored', 'upside down'). Only these have images
as conditions, and so the dropout of such conditions and the guidance by images:
  python -m transfusion.sample --workdir runs/bagel --prompt '<image:in.png>negative' --output out.png
`configs/bagel.py:7b` has the sizes of BAGEL-7B-MoT (two experts of Qwen2.5-7B, the tower of SigLIP so400m without its
last layer, latents of 16 channels) on users' own images of 224 pixels, in rows of 4,096 tokens. The original packs
32,000 tokens, mixes sizes and has a tokenizer; here text is bytes. We have not run it: it is for `transfusion.plan`
(experiments/pod_plans).
`configs/bagel.py:debug` trains 20 steps in seconds.
"""

import dataclasses
import pathlib

from transfusion import layouts
from transfusion.codecs import CodecConfig
from transfusion.config import Experiment, check_form, to_config_dict
from transfusion.data.config import DataConfig, SourceConfig
from transfusion.model.config import TransformerConfig
from transfusion.model.vit import ViTConfig
from transfusion.optim import OptimConfig
from transfusion.programs import load_experiment
from transfusion.running.checkpoint import CheckpointConfig
from transfusion.sampling.config import SamplerConfig
from transfusion.sequence import Released, Stream, TimeConfig
from transfusion.sharding import MeshConfig

FORMS = ("", "debug", "edit", "7b")
DENSE = pathlib.Path(__file__).with_name("digits.py")


def get_config(form: str = ""):
    """The experiment; `form` is one of `FORMS`."""
    check_form(__file__, form, FORMS)
    if form == "7b":
        return to_config_dict(published())
    experiment = twice(load_experiment(f"{DENSE}:debug" if form == "debug" else DENSE))
    if form:
        experiment = dataclasses.replace(
            experiment,
            data=dataclasses.replace(experiment.data, edit=0.4),
            sampling=dataclasses.replace(experiment.sampling, image_guidance=1.5, renorm="channel"),
        )
    return to_config_dict(experiment)


def twice(dense: Experiment) -> Experiment:
    """The experiment with one expert for understanding and one for generation, and a vision tower of half the width."""
    width, patch = dense.model.width // 2, dense.streams["image"].patch
    image, words = dense.streams["image"], dense.streams["text"]
    tower = ViTConfig(
        width=width, ffn=2 * width, layers=2, heads=2, patch=patch, channels=image.channels,
        grid=tuple(side // patch for side in image.grid), pool=False,
    )  # fmt: skip
    noised = dataclasses.replace(image, expert="generation")
    streams = {
        "text": dataclasses.replace(words, expert="understanding", budget=words.budget + 24),
        "noised": noised,
        "clean": dataclasses.replace(noised, parts="noised", objective="none"),
        "semantic": Stream(
            embed="vit", head="none", objective="none", attention="block", expert="understanding", source="pixels",
            channels=image.channels, patch=patch, grid=image.grid, budget=image.budget, table="sincos",
        ),
    }  # fmt: skip
    return dataclasses.replace(
        dense,
        model=dataclasses.replace(dense.model, qk_norm="rms", towers={"semantic": tower}),
        streams=streams,
        layout=layouts.bagel(),
        # Some images are drawn and read, so that the model learns how to go on after its own. Dropout as in the paper.
        data=dataclasses.replace(
            dense.data, both=0.1, drop_caption=0.1, drop_conditions={"semantic": 0.5, "clean": 0.1}
        ),
    )


def published() -> Experiment:
    """BAGEL-7B-MoT in its own sizes, with the original's dropout of conditions and time embedding."""
    tower = ViTConfig(
        width=1152, ffn=4304, layers=26, heads=16, patch=14, channels=3, grid=(70, 70), pool=False, remat=True
    )
    model = TransformerConfig(
        width=3584, layers=28, heads=28, kv_heads=4, ffn=18_944, biases=("qkv",), qk_norm="rms", norm_epsilon=1e-6,
        rope_theta=1e6, towers={"semantic": tower}, dtype="bfloat16",
        # A row's matrix products would take 10.6 GiB, more than chips of 16 and 32 GB have left.
        remat="full",
    )  # fmt: skip
    noised = Stream(
        embed="linear", head="linear", objective="continuous", attention="block", expert="generation", time="added",
        channels=16, patch=2, grid=(28, 28), budget=784, table="learned",
        released=Released(time=TimeConfig(scale=1.0, reversed=True), table_grid=(64, 64)),
    )  # fmt: skip
    streams = {
        "text": Stream(vocabulary=152_064, budget=1504, expert="understanding"),
        "noised": noised,
        "clean": dataclasses.replace(noised, parts="noised", objective="none"),
        "semantic": Stream(
            embed="vit", head="none", objective="none", attention="block", expert="understanding", source="pixels",
            channels=3, patch=14, grid=(224, 224), budget=1024, table="learned",
            released=Released(table_grid=(70, 70)),
        ),
    }  # fmt: skip
    images = SourceConfig(kind="webdataset", path="shards/*.tar", resolution=224, channels=3)
    return Experiment(
        steps=200_000,
        batch_size=512,
        model=model,
        streams=streams,
        layout=layouts.bagel(),
        codec=CodecConfig("autoencoder", path="runs/autoencoder"),
        data=DataConfig(
            sources={"images": images, "text": SourceConfig(kind="text", path="corpus")}, cache=False, read_threads=8,
            both=0.1, drop_conditions={"semantic": 0.5, "clean": 0.1},
        ),
        optim=OptimConfig(learning_rate=1e-4, final_learning_rate=1e-4, warmup=2500, weight_decay=0.0, ema=0.9999),
        checkpoint=CheckpointConfig(every=5000),
        sampling=SamplerConfig(steps=49, guidance=4.0, guidance_high=0.6, renorm="global"),
        # The tower's width, 1152, divides over 128 devices and not over 256.
        mesh=MeshConfig(data=-1, fsdp=128),
    )  # fmt: skip
