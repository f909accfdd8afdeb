"""Why a token of text takes as long as it does: the weights that it reads, and how fast this machine reads memory.

  .venv/bin/python experiments/peer_speed/text_profile.py --size medium

A token that is written alone meets every weight of the trunk and of the head once, and does two operations with each:
the time is that of reading them. Printed are these bytes, the time of one matrix-vector product over as many bytes (the
least that a step can take with these weights in float32), and the time of a token of our decoder.
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


def main() -> None:
    parser = work.arguments(__doc__.splitlines()[0])
    options = parser.parse_args()
    work.pin(options.threads)
    size = work.SIZES[options.size]
    setup = ours.experiment(size, "float32", work.IMAGE_SIDE, {})
    shapes = ours.SequenceTask(setup.model, setup.spec, setup.objectives).template.shapes
    leaves = jax.tree.leaves(shapes["trunk"]) + [shapes["parts"]["text"]["head"]["kernel"]]
    read = sum(4 * leaf.size for leaf in leaves)

    # One tall matrix of as many bytes: no calls, no order among its rows.
    matrix = jnp.ones((read // (4 * size.width), size.width), jnp.float32)
    vector, product = jnp.ones(size.width), jax.jit(jnp.matmul)
    least = median(lambda: jax.block_until_ready(product(matrix, vector)), 5 * options.repeats)

    text = SamplerConfig(max_tokens=work.NEW_TOKENS, max_images=0)
    token = median(ours.sampling_step(size, "float32", text), options.repeats) / work.NEW_TOKENS
    print(f"weights read per token         {read / 1e6:8.1f} MB")
    print(f"one matrix-vector product      {least * 1e3:8.2f} ms, {read / least / 1e9:.1f} GB/s")
    print(f"a token of the decoder         {token * 1e3:8.2f} ms, {read / token / 1e9:.1f} GB/s")


if __name__ == "__main__":
    main()
