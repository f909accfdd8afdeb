"""What is told from shapes: the state exactly, the rest so that a sharding can be chosen."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny

from transfusion.config import Experiment
from transfusion.errors import UsageError
from transfusion.model.config import PRESETS
from transfusion.optim import LearningRateGroup, OptimConfig
from transfusion.planning import shapes
from transfusion.planning.cost import bounds
from transfusion.planning.shapes import Sharding
from transfusion.running.chips import CHIPS, parse_topology
from transfusion.sequence.masks import metadata, see
from transfusion.sequence.pairs import pairs_of_one_document
from transfusion.sequence.rows import assemble, expand
from transfusion.sharding import MeshConfig, batch_shardings
from transfusion.tasks import SequenceTask
from transfusion.training.step import state_shardings


def experiment(of=tiny.SPECS["transfusion"], **changes) -> tuple[SequenceTask, Experiment]:
    fields = dict(batch_size=8, model=tiny.model(), streams=dict(of.streams), layout=dict(of.layout))
    config = Experiment(**fields | changes)
    return SequenceTask(config.model, of, config.objectives), config


def local(tree, shardings) -> float:
    sizes = jax.tree.map(lambda s, on: np.prod(on.shard_shape(s.shape)) * s.dtype.itemsize, tree, shardings)
    return float(sum(jax.tree.leaves(sizes)))


def test_the_state_is_what_the_shardings_of_training_say():
    groups = (LearningRateGroup("trunk/blocks/trunk/q"),)
    task, config = experiment(optim=OptimConfig(groups=groups))
    on = Sharding(2, 2, 2, batch=8)
    cost = shapes.estimate(task, config, on, parse_topology("v5e:2x4"))
    state = state_shardings(task, config, on.mesh)
    batch = task.batch_spec(8)
    want = local(task.template.shapes, state.params) * 2 + local(batch, batch_shardings(batch, on.mesh))
    want += 2 * local(*(shapes.split(tree, groups)[0] for tree in (task.template.shapes, state.params)))
    assert cost.arguments == want and cost.peak == cost.arguments + cost.temporaries and cost.fits


def large(**changes) -> tuple[SequenceTask, Experiment]:
    text, image = tiny.text_stream(vocabulary=32_000, budget=2048), tiny.image_stream(grid=(32, 32), budget=2048)
    of = tiny.spec({"text": text, "image": image})
    model = dataclasses.replace(PRESETS["7B"], attention="dense")  # with kernels, memory would never be short
    return experiment(of, **{"model": model, "batch_size": 512, "mesh": MeshConfig(data=1, fsdp=-1)} | changes)


def test_parameters_and_optimizer_fall_as_one_over_the_devices():
    task, config = large()
    state = {}
    for name in ("v5p:4x4x4", "v5p:8x8x8"):
        topology = parse_topology(name)
        on = shapes.sharding_of(config, topology.devices)
        state[name] = shapes.estimate(task, config, on, topology).arguments - shapes.input_bytes(task, on)
    assert state["v5p:4x4x4"] == pytest.approx(8 * state["v5p:8x8x8"], rel=0.03)  # vectors are whole


def test_the_search_takes_what_fits_and_more_microbatches_only_where_it_must():
    task, config = large()
    names, row_flops = ("v5p:8x8x8", "v5e:16x16", "a100:64"), task.flops_of_one_document()
    found = {name: shapes.search(task, config, parse_topology(name), row_flops) for name in names}
    assert all(found.values())
    for name, options in found.items():
        topology = parse_topology(name)
        seconds = [one[2].step for one in options]
        assert seconds == sorted(seconds)
        on, cost, least = options[0]
        assert cost.fits and on.data * on.fsdp * on.tensor == topology.devices and on.batch == 512
        assert least == bounds(cost, 512 * row_flops, "full", topology)
    assert found["v5p:8x8x8"][0][0].accumulate == 1 < found["a100:64"][0][0].accumulate
    # On GPUs what stays among eight neighbours is cheap: the network is not asked for every layer's weights.
    assert found["a100:64"][0][1].program.bytes_sent(far=True) < found["a100:64"][-1][1].program.bytes_sent(far=True)
    on = shapes.sharding_of(config, 512)
    most = shapes.largest_batch(task, config, on, parse_topology("v5p:8x8x8"))
    fits = [
        shapes.estimate(task, config, dataclasses.replace(on, batch=b), parse_topology("v5p:8x8x8")).fits
        for b in (most.batch, 2 * most.batch)
    ]
    assert fits == [True, False]
    assert most.of(config).mesh == MeshConfig(slice=1, data=1, fsdp=512) and most.of(config).batch_size == most.batch


def test_meshes_and_batches_that_do_not_divide():
    _, config = large()
    with pytest.raises(UsageError, match="batch_size 512 does not divide over 768"):
        shapes.sharding_of(config, 768)
    with pytest.raises(UsageError, match="does not multiply to 100 devices"):
        shapes.sharding_of(dataclasses.replace(config, mesh=MeshConfig(data=3)), 100)


def test_topologies_have_names():
    assert parse_topology("v5p:8x8x8", 2).devices == 1024 and parse_topology("h100:64").domain == 8
    for wrong, said in (
        ("v5e:16x15", "did you mean 'v5e:16x16'"),
        ("v9:2x2", "none of v4, v5e"),
        ("h100", "number of"),
    ):
        with pytest.raises(UsageError, match=said):
            parse_topology(wrong)
    assert all(chip.flops > 1e14 and chip.memory > 1e10 and chip.link > 1e11 for chip in CHIPS.values())


@pytest.mark.parametrize("name", ["transfusion", "bagel"])
def test_pairs_of_one_document_are_those_of_a_full_row(name):
    base, rng, count = tiny.SPECS[name], np.random.default_rng(0), 20
    # Images of 64 tokens, each with its text, in one document. BOI and EOI are text too: few beside so many patches.
    larger = {
        k: s if s.vocabulary else dataclasses.replace(s, grid=(16, 16), budget=64) for k, s in base.streams.items()
    }
    base = dataclasses.replace(base, streams=larger)
    document = [part for _ in range(count) for part in (tiny.picture(rng, side=(16, 16)), tiny.words(1, 2, 3, 4))]
    row = expand(tuple(document), base, end=False)
    streams = {k: dataclasses.replace(s, budget=row.cost[k]) for k, s in base.streams.items()}
    spec = dataclasses.replace(base, streams=streams)
    tokens = metadata(assemble([[row]], spec), spec)
    want = int(see(tokens, tokens, spec.visibility).sum())
    assert pairs_of_one_document(spec, streams, streams) == pytest.approx(want, rel=0.06)
    assert pairs_of_one_document(spec, streams, streams) < 0.6 * sum(row.cost.values()) ** 2
