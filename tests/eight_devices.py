"""Run with eight virtual CPU devices by test_sharding: a few steps on one device and on meshes of eight, as JSON."""

import dataclasses
import json
import os
import re
import sys
import tempfile

import jax
import numpy as np
import tiny

from transfusion import sharding
from transfusion.codecs.autoencoder_config import AutoencoderConfig
from transfusion.config import Experiment
from transfusion.config.experiment import TelemetryConfig
from transfusion.initial import InitConfig, from_run
from transfusion.model.config import Stage
from transfusion.model.experts import FeedForwardConfig
from transfusion.model.names import by_path
from transfusion.model.quantizers import QuantizerConfig
from transfusion.model.vit import ViTConfig
from transfusion.optim import LearningRateGroup, OptimConfig
from transfusion.running.checkpoint import Checkpoints
from transfusion.sequence import Stream
from transfusion.tasks import AutoencoderTask, SequenceTask
from transfusion.training.step import abstract_state, make_init, make_step, state_shardings
from transfusion.training.telemetry import make_look

STEPS, ROWS = 3, 8
FROZEN = "trunk/blocks/trunk/q"
GROUPS = (LearningRateGroup(FROZEN, 0.0), LearningRateGroup("trunk", 0.5))


def experts() -> tuple:
    """Two experts, and a vision tower."""
    seen = tiny.image_stream(
        embed="vit", head="none", objective="none", expert="understanding", source="pixels", time="none", table="none"
    )
    of = tiny.SPECS["bagel"]
    run = tiny.image_run("semantic", position="item", boundary="inside", loss=False)
    tower = ViTConfig(width=16, ffn=32, layers=2, heads=2, patch=2, channels=1, grid=(2, 2), pool=False)
    model = tiny.model(kv_heads=2, layers=1, attention="blockwise", towers={"semantic": tower})
    return tiny.spec(dict(of.streams) | {"semantic": seen}, {"image": (*of.layout["image"], run)}), model


def discrete() -> tuple:
    """Codes that are unmasked, and a second trunk behind the first."""
    codes = Stream(vocabulary=6, grid=(2, 3), budget=24, objective="masked", attention="block")
    streams = {"text": tiny.text_stream(budget=40), "image": codes}
    behind = tiny.model(width=16, layers=1, heads=2, streams=tuple(streams))
    of = tiny.spec(streams, {"image": (tiny.image_run(boundary="inside"),)})
    return of, tiny.model(layers=1, stages={"behind": Stage(behind, "mlp")})


def pairs() -> tuple:
    """Images and texts that are compared over all rows."""
    streams = {
        "text": tiny.text_stream(head="none", objective="none", visible_to=("text",)),
        "image": tiny.image_stream(head="pair", objective="clip", time="none", weight=1.0, visible_to=("image",)),
    }
    return tiny.spec(streams, {"image": (tiny.image_run(opener=-1, closer=-1),)}), tiny.model(layers=1)


def routed() -> tuple:
    """Experts that a router chooses for the tokens of both streams, beside one that all share."""
    sets = {
        "all": FeedForwardConfig(experts=4, top=2, ffn=16, balance=0.1),
        "common": FeedForwardConfig("shared", ffn=8),
    }
    return tiny.SPECS["transfusion"], tiny.model(layers=1, feed_forwards=sets, ffn_absent=("trunk",))


SYSTEMS = {
    "dense": (tiny.SPECS["transfusion"], tiny.model(kv_heads=2, qk_norm="rms")),
    "experts": experts(),
    "codes": discrete(),
    "pairs": pairs(),
    "routed": routed(),
}
# What besides the mesh may change nothing.
CHANGES = {"fsdp": {"offload": True}, "all": {"accumulate": 2}}
MADE = ("one", "all")  # on which the parameters are made


def experiment(system: str = "dense", **optim) -> tuple[SequenceTask, Experiment]:
    of, model = SYSTEMS[system]
    config = Experiment(
        steps=STEPS, batch_size=ROWS, model=model, streams=dict(of.streams), layout=dict(of.layout),
        optim=OptimConfig(**{"learning_rate": 1e-2, "warmup": 1} | optim),
    )  # fmt: skip
    return SequenceTask(config.model, of, config.objectives), config


def run(mesh, task, config: Experiment, start=None, workdir: str = "") -> dict:
    """The losses of all steps, the last gradient norm, and the state; from the state `start`, or a fresh one."""
    shardings = state_shardings(task, config, mesh)
    rows = sharding.batch_shardings(task.batch_spec(ROWS), mesh)
    with jax.set_mesh(mesh):
        made = []
        if start is None:
            init = jax.jit(make_init(task, config), out_shardings=shardings).lower().compile()
            # The shapes that one device computes while the parameters are made.
            made, start = sorted(set(re.findall(r"f32\[([\d,]+)\]", init.as_text()))), init()
        state = first = jax.device_put(start, shardings)
        step = jax.jit(make_step(task, config), in_shardings=(shardings, rows), out_shardings=shardings)
        losses, before = [], 0.0
        for i in range(STEPS):
            state = step(state, jax.device_put(task.fake_batch(ROWS, i), rows))
            losses.append(float(state.log["loss"][0]) - before)
            before = float(state.log["loss"][0])
    if workdir:
        with Checkpoints(workdir) as checkpoints:
            checkpoints.save(STEPS, state, {}, {}, force=True)
            if config.optim.offload:
                abstract = abstract_state(task, config, shardings)
                state = checkpoints.restore(abstract)[1]
    norm = float(state.log["grad_norm"][0])
    return {"losses": losses, "grad_norm": norm, "first": first, "state": state, "made": made}


def on_all(system: str, meshes: dict) -> dict:
    """`run` on several meshes, the first of which makes the parameters."""
    results = {}
    for name, mesh in meshes.items():
        start = results[next(iter(results))]["first"] if results else None
        results[name] = run(mesh, *experiment(system), start)
    return {name: {"losses": r["losses"], "grad_norm": r["grad_norm"]} for name, r in results.items()}


def of_dense(mesh, start=None, workdir: str = "", **optim) -> dict:
    """What `run` says of the dense system, with where its parts are."""
    task, config = experiment(groups=GROUPS, **optim)
    result = run(mesh, task, config, start, workdir)
    state, first = result.pop("state"), result.pop("first")
    moved = {path: bool((x != y).any()) for (path, x), y in zip(
        by_path(jax.device_get(state.params)).items(), by_path(jax.device_get(first.params)).values(), strict=True
    )}  # fmt: skip
    gate, moment, average = (
        tree["trunk"]["blocks"]["trunk"]["gate"] for tree in (state.params, state.opt_state[1][0].mu, state.ema)
    )
    return result | {
        "still": [path for path, changed in moved.items() if not changed],
        "optimized": FROZEN in by_path(state.opt_state[1][0].mu),
        "gate": [list(gate.shape), _part(gate)],
        "moment": _part(moment),
        "average": _part(average),
        "memory": moment.sharding.memory_kind,
    }


def of_codec(mesh) -> dict:
    """A codec whose codebook follows moving averages, and takes codes anew that nothing uses."""
    quantizer = QuantizerConfig(codes=16, revive=0.1)
    codec = AutoencoderConfig(
        "vq", channels=(8,), latent_channels=4, norm_groups=4, middle_attention=False, quantizer=quantizer
    )
    config = Experiment(task="autoencoder", steps=STEPS, batch_size=ROWS, autoencoder=codec)
    result = run(mesh, AutoencoderTask(codec, (8, 8)), config)
    codebook = np.asarray(result["state"].params["quantizer"]["codebook"]).tolist()
    return {"losses": result["losses"], "grad_norm": result["grad_norm"], "codebook": codebook}


def _part(x: jax.Array) -> list[int]:
    return list(x.addressable_shards[0].data.shape)


def restart(mesh, workdir: str) -> dict:
    """Takes the parameters of a run on another mesh, and gives the part of one that a device holds."""
    task, config = experiment()
    shardings = state_shardings(task, config, mesh)
    wanted = jax.tree.map(
        lambda s, on: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=on), task.template.shapes, shardings.params
    )
    given = from_run(InitConfig(workdir), wanted)
    state = jax.jit(make_init(task, config), out_shardings=shardings)(given)
    gates = [by_path(tree)["trunk/blocks/trunk/gate"] for tree in (given, state.params, state.ema)]
    return {"parts": [_part(gate) for gate in gates], "sums": [float(abs(gate).sum()) for gate in gates]}


def dense(meshes: dict) -> dict:
    """The dense system on all meshes, and a new run on another mesh from the checkpoint of one."""
    with tempfile.TemporaryDirectory() as workdir:
        task, config = experiment(groups=GROUPS)
        start = jax.jit(make_init(task, config))()
        results = {}
        for name, mesh in meshes.items():
            given = None if name in MADE else start
            results[name] = of_dense(mesh, given, workdir if name == "fsdp" else "", **CHANGES.get(name, {}))
        return {"dense": results, "restart": restart(meshes["all"], workdir)}


def others(meshes: dict) -> dict:
    """Two experts, codes, and pairs over the whole batch on all meshes, and a codec."""
    results = {system: on_all(system, meshes) for system in ("experts", "codes", "pairs")}
    return results | {"codec": {name: of_codec(meshes[name]) for name in ("one", "fsdp")}}


def chosen(meshes: dict) -> dict:
    """Routed experts on all meshes, and what telemetry sees of them."""
    return {"routed": on_all("routed", meshes), "seen": {name: seen(meshes[name]) for name in ("one", "mixed")}}


def seen(mesh) -> dict:
    """What telemetry says of the fresh parameters."""
    task, config = experiment("routed")
    config = dataclasses.replace(config, telemetry=TelemetryConfig(every=1))
    shardings = state_shardings(task, config, mesh)
    rows = sharding.batch_shardings(task.batch_spec(ROWS), mesh)
    with jax.set_mesh(mesh):
        state = jax.device_put(jax.jit(make_init(task, config))(), shardings)
        return make_look(task, config, shardings, rows)(state, jax.device_put(task.fake_batch(ROWS), rows))


def main() -> None:
    # Threads of the CPU's devices. By default there is one for each device, and two collectives at a time, each of
    # which waits for all devices, may take all of them and wait for ever.
    os.environ["NPROC"] = "64"
    jax.config.update("jax_num_cpu_devices", 8)
    meshes = {"one": sharding.make_mesh(sharding.MeshConfig(), jax.devices()[:1])}
    meshes |= {name: sharding.make_mesh(sharding.MeshConfig(**size)) for name, size in json.loads(sys.argv[2]).items()}
    json.dump({"dense": dense, "others": others, "routed": chosen}[sys.argv[1]](meshes), sys.stdout)


if __name__ == "__main__":
    main()
