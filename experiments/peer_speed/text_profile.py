"""Why a token of text takes as long as it does: the weights that it reads, and how fast this machine reads memory.

  .venv/bin/python experiments/peer_speed/text_profile.py --size medium

A token that is written alone uses every weight of the trunk and of the head once, in two operations each, so that
reading the weights takes the time. The program prints their bytes, the time of one matrix-vector product over as many
bytes (the least time of a step with these weights in float32), and the time of a token in our decoder. Then it prints
the time of a token's products alone, without attention, norms and cache: as the decoder computes them, with the
products of one input merged, and in bfloat16.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
import ours
import work

from transfusion.sampling.config import SamplerConfig


def median(step, repeats: int) -> float:
    """Seconds of a call."""
    step()
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        step()
        times.append(time.perf_counter() - begun)
    return float(np.median(times))


def products(size: work.Size, merged: bool, dtype: str):
    """A step of NEW_TOKENS tokens that meet every weight once, and do nothing else."""
    d, head, f = size.width, size.heads * size.head_size, size.ffn
    shapes = [(d, 3 * head), (head, d), (d, 2 * f), (f, d)] if merged else 3 * [(d, head)] + [(head, d)]
    shapes += [] if merged else 2 * [(d, f)] + [(f, d)]
    weights = [jnp.ones(shape, dtype) for shape in size.depth * shapes + [(d, work.VOCABULARY)]]

    def token(_, x, weights):
        for w in weights:  # each product waits for the one before it
            y = jnp.matmul(x[:, : w.shape[0]].astype(dtype), w, preferred_element_type=jnp.float32)
            x = x * 0.5 + jnp.mean(y) * 1e-3
        return x

    start = jnp.ones((1, max(d, head, f)))
    step = jax.jit(lambda weights, x: jax.lax.fori_loop(0, work.NEW_TOKENS, lambda i, x: token(i, x, weights), x))
    return lambda: jax.block_until_ready(step(weights, start))


def main() -> None:
    parser = work.arguments(__doc__.splitlines()[0])
    options = parser.parse_args()
    work.pin(options.threads)
    size = work.SIZES[options.size]
    setup = ours.experiment(size, "float32", work.IMAGE_SIDE, {})
    shapes = ours.SequenceTask(setup.model, setup.spec, setup.objectives).template.shapes
    leaves = jax.tree.leaves(shapes["trunk"]) + [shapes["parts"]["text"]["head"]["kernel"]]
    read = sum(4 * leaf.size for leaf in leaves)

    # One tall matrix of as many bytes needs no calls between products, and no order among its rows.
    matrix = jnp.ones((read // (4 * size.width), size.width), jnp.float32)
    vector, product = jnp.ones(size.width), jax.jit(jnp.matmul)
    least = median(lambda: jax.block_until_ready(product(matrix, vector)), 5 * options.repeats)

    text = SamplerConfig(max_tokens=work.NEW_TOKENS, max_images=0)
    token = median(ours.sampling_step(size, "float32", text), options.repeats) / work.NEW_TOKENS
    print(f"weights read per token         {read / 1e6:8.1f} MB")
    print(f"one matrix-vector product      {least * 1e3:8.2f} ms, {read / least / 1e9:.1f} GB/s")
    print(f"a token of the decoder         {token * 1e3:8.2f} ms, {read / token / 1e9:.1f} GB/s")
    for merged, dtype in ((False, "float32"), (True, "float32"), (True, "bfloat16")):
        alone = median(products(size, merged, dtype), options.repeats) / work.NEW_TOKENS
        name = f"products {'merged ' * merged}in {dtype}"
        print(f"{name:30s} {alone * 1e3:8.2f} ms")


if __name__ == "__main__":
    main()
