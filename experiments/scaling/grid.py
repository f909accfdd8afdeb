"""The grid of experiments/scaling: three systems in several sizes on scenes, which have no end, in several mixtures.

Half of the records are pictures to be described, and only their words are learned; half are words to be depicted, and
only the picture is learned. The mixture is the share of the latter.
"""

import dataclasses
import pathlib

from transfusion.data.config import SourceConfig
from transfusion.model.experts import FeedForwardConfig
from transfusion.programs import load_experiment
from transfusion.scaling import Grid, Run

CONFIG = pathlib.Path(__file__).resolve().parents[2] / "configs" / "scenes.py"
# Width -> layers; heads are of 32 to 64 numbers, because many small ones make attention slow on a CPU.
LAYERS = {32: 2, 48: 2, 64: 3, 96: 3, 128: 4, 192: 4}
# A row holds about three records of 79 bytes and 64 patches; the room for pictures allows for both mixtures.
BUDGETS = {"text": 270, "noised": 128, "clean": 128}
EVEN, FEW, MANY = 1 / 2, 1 / 3, 2 / 3  # shares of records to be depicted


def of_size(width: int, share: float = EVEN):
    """The dense model of a width, which is trained with this share of records to be depicted."""
    base = load_experiment(CONFIG)
    weights = {"described": 1 - share, "depicted": share}
    train = {
        name: SourceConfig(kind="scenes", name=f"one_way/{name}", resolution=32, weight=weight)
        for name, weight in weights.items()
    }
    held_out = {"both": SourceConfig(kind="scenes", name="one_way", resolution=32, split="test")}
    heads = max(width // 64, 1)
    return dataclasses.replace(
        base,
        batch_size=2,
        streams={name: dataclasses.replace(s, budget=BUDGETS[name]) for name, s in base.streams.items()},
        model=dataclasses.replace(base.model, width=width, layers=LAYERS[width], heads=heads),
        data=dataclasses.replace(base.data, sources=train),
        # Constant, so that every measurement counts; larger models need smaller ones.
        optim=dataclasses.replace(
            base.optim, learning_rate=1.5e-3 * (64 / width) ** 0.5, schedule="constant", warmup=50, ema=0.99
        ),
        eval=dataclasses.replace(base.eval, sources=held_out, batches=44),  # about 264 records
    )


def mixture_of_transformers(dense):
    """Words and pictures have weights of their own; a token costs as much as in the dense model."""
    expert = {"text": "text", "noised": "image", "clean": "image"}
    return dataclasses.replace(
        dense, streams={name: dataclasses.replace(s, expert=expert[name]) for name, s in dense.streams.items()}
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
    ("dense", 32, EVEN): 3e11, ("dense", 48, EVEN): 8e11, ("dense", 64, EVEN): 2e12, ("dense", 96, EVEN): 4e12,
    ("dense", 128, EVEN): 6e12, ("dense", 192, EVEN): 2e13,
    **{("dense", width, share): flops for width, flops in ((48, 5e11), (96, 2e12)) for share in (FEW, MANY)},
    **{(system, width, EVEN): flops for system in ("mot", "experts")
       for width, flops in ((48, 8e11), (64, 1.5e12), (96, 3e12), (128, 4.5e12))},
}  # fmt: skip


def get_scaling() -> Grid:
    """All runs, of which the cheapest take a minute."""
    runs = []
    for (system, width, share), flops in FLOPS.items():
        mixed = "" if share == EVEN else f"_{share:.0%}".removesuffix("%")
        experiment = SYSTEMS[system](of_size(width, share))
        runs.append(Run(f"{system}_{width}{mixed}", system, experiment, flops))
    return Grid(runs, {"text": "text", "image": "noised"}, measurements=8, settled=120)
