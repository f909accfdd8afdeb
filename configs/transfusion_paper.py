r"""Transfusion (arXiv 2408.11039, Table 2 and section 4.1) on users' own data: the paper's models in their own sizes.

What: the linear coder with 2x2 patches of 32x32x8 latents (256 patches per image), lambda 5, DDPM with the cosine
schedule, AdamW, rows of 4,096 tokens, and 250k steps of 2M tokens, as in the paper's controlled comparison.
Original: it has a tokenizer. Here text is bytes, because no tokenizer is shipped; `--config.tokenizer.path` takes one.
Command: python -m transfusion.train --config configs/transfusion_paper.py:7B --workdir FOLDER \
           --config.codec.path=<autoencoder's run> --config.data.sources.images.path=<shards>
Hardware: a TPU pod or GPU cluster. Not run by us; parameter counts and shardings are tested without one.
Forms: the sizes of Table 2, from '0.16B', which is the default, to '7B'. Up to '1.4B' the matrix products of a layer
are kept for the backward pass (`model.remat` 'dots'), which a chip of 80 GB holds for eight rows if attention is not
dense. '7B' recomputes its layers ('full'), so that it fits chips of 16 and 32 GB. With one row on a chip of 80 GB or
more, `--config.model.remat=dots` spares a quarter of its FLOPs.
"""

from transfusion import layouts
from transfusion.codecs import CodecConfig
from transfusion.config import Experiment, to_config_dict
from transfusion.data.config import DataConfig, SourceConfig
from transfusion.errors import UsageError, nearest
from transfusion.model.config import PRESETS
from transfusion.objectives import ObjectivesConfig
from transfusion.objectives.paths import ContinuousConfig
from transfusion.optim import OptimConfig
from transfusion.running.checkpoint import CheckpointConfig
from transfusion.sampling.config import SamplerConfig
from transfusion.sequence import Stream, text
from transfusion.sharding import MeshConfig


def get_config(size: str = "0.16B"):
    """The experiment of a preset size."""
    if size not in PRESETS:
        raise UsageError(f"no size {size!r}: {', '.join(PRESETS)}{nearest(size, PRESETS)}")
    experiment = Experiment(
        steps=250_000,
        batch_size=512,
        model=PRESETS[size],
        streams={
            "text": Stream(vocabulary=text.VOCABULARY, budget=2048),
            "image": Stream(
                embed="linear", head="linear", objective="continuous", attention="block", time="added",
                channels=8, patch=2, grid=(32, 32), budget=2048, weight=5.0,
            ),
        },
        layout=layouts.transfusion(),
        objectives=ObjectivesConfig(continuous={"image": ContinuousConfig(path="cosine", prediction="noise")}),
        codec=CodecConfig("autoencoder", path="runs/autoencoder"),
        data=DataConfig(
            sources={
                "images": SourceConfig(kind="webdataset", path="shards/*.tar", resolution=256, channels=3),
                "text": SourceConfig(kind="text", path="corpus"),
            },
            cache=False,
            read_threads=8,
        ),
        optim=OptimConfig(),
        checkpoint=CheckpointConfig(every=5000),
        sampling=SamplerConfig(solver="ddpm", steps=250, guidance=3.0),
        mesh=MeshConfig(data=1, fsdp=-1),
    )  # fmt: skip
    return to_config_dict(experiment)
