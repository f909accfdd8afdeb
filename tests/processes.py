"""Run by test_processes as one of several processes: trains small experiments on a mesh of all their devices."""

import dataclasses
import json
import sys

import jax
import tiny

from transfusion import layouts
from transfusion.codecs import CodecConfig
from transfusion.codecs.levels import LevelsConfig
from transfusion.config import EvalConfig, Experiment
from transfusion.data.config import SourceConfig
from transfusion.model.config import TransformerConfig
from transfusion.optim import OptimConfig
from transfusion.running import distributed
from transfusion.running.jax_setup import set_up_jax
from transfusion.sequence import Stream, text
from transfusion.sharding import MeshConfig
from transfusion.train import train


def experiments(folder: str, steps: int, mesh: dict[str, int] | None = None) -> dict[str, Experiment]:
    """Dense with held-out losses, a mixture of experts by modality, and masked codes."""
    constant = OptimConfig(learning_rate=1e-2, final_learning_rate=1e-2, warmup=1)
    model = TransformerConfig(width=16, layers=1, heads=2, ffn_multiple=16)
    dense = tiny.experiment(
        folder, steps=steps, log_every=1, optim=constant, mesh=MeshConfig(**mesh or {}), model=model
    )  # fmt: skip
    held_out = EvalConfig(every=2, batches=1, sources={"mine": SourceConfig(kind="folder", path=folder)})
    levels = LevelsConfig(levels=16, patch=2)
    codes = Stream(vocabulary=levels.codes, grid=(4, 4), objective="masked", attention="block", budget=32)
    experts = {name: dataclasses.replace(stream, expert=name) for name, stream in dense.streams.items()}
    return {
        "dense": dataclasses.replace(dense, eval=held_out),
        "experts": dataclasses.replace(dense, streams=experts),
        "codes": dataclasses.replace(
            dense, streams={"text": Stream(vocabulary=text.VOCABULARY, budget=64), "image": codes},
            layout=layouts.showo(), codec=CodecConfig("levels", levels=levels),
        ),
    }  # fmt: skip


def main() -> None:
    given = json.loads(sys.argv[1])
    jax.config.update("jax_num_cpu_devices", given["devices"])
    set_up_jax()
    distributed.start(given["coordinator"], given["processes"], given["index"], 240)
    made = experiments(given["folder"], given["steps"], given["mesh"])
    for name in given["names"]:
        train(made[name], f"{given['runs']}/{name}")


if __name__ == "__main__":
    main()
