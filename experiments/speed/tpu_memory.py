"""Memory of attention and its gradients on TPUs, as their compiler plans it: the kernel against dense attention.

    python experiments/speed/tpu_memory.py --lengths 4096,16384,65536 --chips v5e,v5p,v6e

Needs no TPU, but its compiler: pip install 'transfusion[tpu]'. One row, 12 heads of 128 numbers in bfloat16.
"""

import argparse
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from transfusion.kernels.mosaic import attend as attend_in_blocks
from transfusion.kernels.mosaic import plan_of
from transfusion.model.attention import masked_attention
from transfusion.planning.compiled import devices_of
from transfusion.running.chips import parse_topology
from transfusion.sequence.masks import Metadata, see

SMALLEST = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
HEADS, SIZE = 12, 128


def in_blocks(q: jax.Array, k: jax.Array, v: jax.Array, tokens: Metadata) -> jax.Array:
    slices = (tokens.order.shape[1],)
    return attend_in_blocks(q, k, v, plan_of(tokens, tokens, None, slices, slices))[0]


def dense(q: jax.Array, k: jax.Array, v: jax.Array, tokens: Metadata) -> jax.Array:
    return masked_attention(q, k, v, see(tokens, tokens))


WAYS = {"kernel": in_blocks, "dense": dense}


def shapes(
    chip: str, length: int, heads: int = HEADS, size: int = SIZE, dtype: str = "bfloat16"
) -> tuple[list[jax.ShapeDtypeStruct], Metadata]:
    """Arrays of one row on one device of a chip, and the metadata of its tokens."""
    mesh = Mesh(np.array(devices_of(parse_topology(SMALLEST[chip]))[:1]), ("devices",))
    whole = NamedSharding(mesh, PartitionSpec())
    arrays = [jax.ShapeDtypeStruct((1, length, heads, size), dtype, sharding=whole)] * 7
    return arrays, Metadata(*[jax.ShapeDtypeStruct((1, length), jnp.int32, sharding=whole)] * 5)


def compiled(chip: str, way: str, length: int, mode: str = "reverse", **form) -> jax.stages.Compiled:
    """Attention and its gradients, or in `mode` 'forward' its tangents, compiled for one device of a chip."""
    arrays, tokens = shapes(chip, length, **form)

    def reverse(q, k, v, change, tokens):
        out, pull = jax.vjp(lambda *x: WAYS[way](*x, tokens), q, k, v)
        return out, pull(change)

    def forward(q, k, v, t_q, t_k, t_v, tokens):
        return jax.jvp(lambda *x: WAYS[way](*x, tokens), (q, k, v), (t_q, t_k, t_v))

    if mode == "reverse":
        return jax.jit(reverse).lower(*arrays[:4], tokens).compile()
    return jax.jit(forward).lower(*arrays[:6], tokens).compile()


def table(chips: Sequence[str], lengths: Sequence[int], ways: Sequence[str]) -> None:
    """Prints a line for each program: temporary memory, and all that it reserves with its inputs and outputs."""
    print("| chip | tokens | attention | temporary MiB | all MiB | compiled in |\n|---|---|---|---|---|---|")
    for chip in chips:
        for length in lengths:
            for way in ways:
                start = time.perf_counter()
                try:
                    memory = compiled(chip, way, length).memory_analysis()
                    held = memory.argument_size_in_bytes + memory.output_size_in_bytes
                    sizes = [memory.temp_size_in_bytes, held + memory.temp_size_in_bytes]
                    told = " | ".join(f"{size / 2**20:,.0f}" for size in sizes)
                except jax.errors.JaxRuntimeError as error:
                    told = "does not fit | " + " ".join(str(error).split())[:120].replace("|", "/")
                print(f"| {chip} | {length} | {way} | {told} | {time.perf_counter() - start:.0f} s |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", default="4096,16384,65536")
    parser.add_argument("--chips", default=",".join(SMALLEST))
    parser.add_argument("--ways", default=",".join(WAYS))
    options = parser.parse_args()
    lengths = [int(length) for length in options.lengths.split(",")]
    table(options.chips.split(","), lengths, options.ways.split(","))


if __name__ == "__main__":
    main()
