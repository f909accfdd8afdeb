"""The grid of experiments/scaling: three systems in several sizes and mixtures of texts and pictures.

The texts are Python's language reference. The pictures are scenes, which have no end, behind words that describe them;
of these records only the picture is learned.
"""

import dataclasses
import pathlib

from transfusion.data.config import SourceConfig
from transfusion.model.experts import FeedForwardConfig
from transfusion.objectives import ObjectivesConfig
from transfusion.programs import load_experiment
from transfusion.scaling import Grid, Run
from transfusion.sequence.text import TokenizerConfig

CONFIG = pathlib.Path(__file__).resolve().parents[2] / "configs" / "scenes.py"
# Width -> layers; heads are of 32 to 64 numbers, because many small ones make attention slow on a CPU.
LAYERS = {32: 2, 48: 2, 64: 3, 96: 3, 128: 4, 192: 4}
# A row has room for three pictures and their words, and for 160 bytes of texts. All runs have the same rows, so that
# their held-out losses are of the same records with the same noise.
TEXT, PICTURES = {"budget": 400}, {"budget": 192, "grid": (32, 32), "patch": 4, "weight": 5.0}
RECORD, WORDS = 417, 80  # mean bytes of a text, and of the words of a picture
FULL, HALF, QUARTER = 3.0, 1.5, 0.75  # pictures in a row: the mixtures


def of_size(width: int, pictures: float = FULL):
    """The dense model of a width; its rows have so many pictures, as the mean, and texts for the rest."""
    base = load_experiment(CONFIG)
    text, drawn = SourceConfig(name="text"), SourceConfig(kind="scenes", name="depicted", resolution=32)
    weight = (TEXT["budget"] - WORDS * pictures) / RECORD / pictures
    # Held-out records are read one source after the other, by the order of their names.
    held_out = {
        "language": dataclasses.replace(text, split="test[:50%]"),
        "pictures": dataclasses.replace(drawn, split="test"),
    }
    model = dataclasses.replace(base.model, width=width, layers=LAYERS[width], heads=max(width // 64, 1))
    # Constant, so that every measurement counts; larger models need smaller ones.
    optim = dataclasses.replace(
        base.optim, learning_rate=1.5e-3 * (64 / width) ** 0.5, schedule="constant", warmup=50, ema=0.99
    )
    return dataclasses.replace(
        base,
        batch_size=2,
        streams={
            name: dataclasses.replace(base.streams[name], **fields)
            for name, fields in (("text", TEXT), ("noised", PICTURES))
        },
        # Bytes of text, and velocities: a patch has 48 numbers.
        tokenizer=TokenizerConfig(),
        objectives=ObjectivesConfig(),
        layout={"text": base.layout["text"], "image": base.layout["image/target"]},
        model=model,
        data=dataclasses.replace(
            base.data, sources={"language": dataclasses.replace(text, weight=weight), "pictures": drawn}
        ),
        optim=optim,
        eval=dataclasses.replace(base.eval, sources=held_out, batches=72),  # 46 texts and about 280 pictures
    )


def mixture_of_transformers(dense):
    """Texts and pictures have weights of their own; a token costs as much as in the dense model."""
    return dataclasses.replace(
        dense, streams={name: dataclasses.replace(s, expert=name) for name, s in dense.streams.items()}
    )


def experts_by_token(dense):
    """Each token passes a shared feed-forward layer and 2 of 8 routed ones, together as wide as the dense one."""
    third = round(dense.model.hidden / 3)
    layers = {
        "shared": FeedForwardConfig("shared", ffn=third),
        "routed": FeedForwardConfig("routed", ffn=third, experts=8, top=2, score="sigmoid"),
    }
    model = dataclasses.replace(dense.model, ffn=third, feed_forwards=layers, ffn_absent=("trunk",))
    return dataclasses.replace(dense, model=model)


SYSTEMS = {"dense": lambda dense: dense, "mot": mixture_of_transformers, "experts": experts_by_token}
# System, width and mixture -> FLOPs. The last dense one is the largest; it is left out of the fit and predicted.
FLOPS = {
    ("dense", 32, FULL): 3e11, ("dense", 48, FULL): 5e11, ("dense", 64, FULL): 1.2e12, ("dense", 96, FULL): 2.4e12,
    ("dense", 128, FULL): 5e12, ("dense", 192, FULL): 1.5e13,
    **{("dense", width, pictures): flops
       for width, flops in ((48, 3e11), (96, 1.5e12)) for pictures in (HALF, QUARTER)},
    **{(system, width, FULL): flops for system in ("mot", "experts")
       for width, flops in ((48, 5e11), (64, 1.2e12), (96, 2.4e12), (128, 4e12))},
}  # fmt: skip
MIXED = {FULL: "", HALF: "_half", QUARTER: "_quarter"}


def get_scaling() -> Grid:
    """All runs, of which the cheapest take a minute."""
    runs = [
        Run(f"{system}_{width}{MIXED[pictures]}", system, SYSTEMS[system](of_size(width, pictures)), flops)
        for (system, width, pictures), flops in FLOPS.items()
    ]
    return Grid(runs, {"text": "text", "image": "noised"}, measurements=8, settled=120)
