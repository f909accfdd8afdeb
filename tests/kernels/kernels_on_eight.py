"""Run with eight virtual CPU devices by test_backends: how far a kernel on them is from the reference, as JSON."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from interpreted import BACKENDS, TRITON
from jax.sharding import PartitionSpec
from packed_streams import by_streams

from transfusion.kernels import devices
from transfusion.kernels.kernel import Layout
from transfusion.model import attention
from transfusion.sequence.masks import Metadata
from transfusion.sharding import MeshConfig, join, make_mesh

SIZES, SHARES = (32, 16), 4
NAMES = ("out", "dq", "dk", "dv")


def results(attend, q, k, v, do):
    out, back = jax.vjp(attend, q, k, v)
    return out, *back(do)


def distances(ours, plain) -> dict[str, float]:
    return {
        name: float(np.linalg.norm(np.asarray(x) - np.asarray(y)) / np.linalg.norm(np.asarray(y)))
        for name, x, y in zip(NAMES, ours, plain, strict=True)
    }


def of_mesh(mesh, shares, tokens, *arrays):
    layout = Layout(SIZES, tuple(n // shares for n in SIZES) * shares, 16, "float32", shares)

    def run(name, tokens, *arrays):
        backend = BACKENDS.get(name) or attention.BACKENDS[name]
        return results(partial(attend_with, backend, tokens), *arrays)

    def attend_with(backend, tokens, q, k, v):
        return backend.attend(q, k, v, backend.plan(tokens, tokens, None, layout))

    plain = jax.jit(partial(run, "dense"))(tokens, *arrays)
    with jax.set_mesh(mesh):
        return distances(jax.jit(partial(run, "triton"))(tokens, *arrays), plain), plain


def of_ring(mesh, tokens, *arrays):
    """Queries, keys and values all stay split over 'context'; those of keys go around."""
    share, whole = tuple(n // SHARES for n in SIZES), PartitionSpec(None, "context")

    def run(tokens: Metadata, q, k, v, do):
        plans = devices.ring_plans(TRITON, tokens, tokens, None, share, share, (16, "float32"), "context")
        return results(lambda q, k, v: devices.ring(TRITON, q, k, v, plans, "context")[0], q, k, v, do)

    with jax.set_mesh(mesh):
        return jax.jit(jax.shard_map(run, in_specs=(whole,) * 5, out_specs=whole, check_vma=False))(tokens, *arrays)


def main() -> None:
    rng = np.random.default_rng(0)
    tokens = by_streams(rng, 4, SIZES)
    # Each device has its share of every stream.
    parts = [jax.tree.map(lambda x, i=i: jnp.split(x, [SIZES[0]], 1)[i], tokens) for i in range(2)]
    shared = jax.tree.map(lambda *x: join(x, SHARES), *parts)
    arrays = [jnp.asarray(rng.standard_normal((4, sum(SIZES), n, 16)), jnp.float32) for n in (4, 2, 2, 4)]
    context, heads = (
        make_mesh(MeshConfig(**sizes)) for sizes in ({"data": 2, "context": 4}, {"data": 2, "fsdp": 2, "tensor": 2})
    )
    found = {}
    found["context"], plain = of_mesh(context, SHARES, shared, *arrays)
    found["ring"] = distances(of_ring(context, shared, *arrays), plain)
    found["heads"], _ = of_mesh(heads, 1, tokens, *arrays)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
