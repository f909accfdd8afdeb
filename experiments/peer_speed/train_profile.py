"""Where a training step's time goes: its matrix products alone, in this library's compiler and in torch.

  .venv/bin/python experiments/peer_speed/train_profile.py --size medium

A step is the products of each weight with the tokens, forward and twice backward, and the rest (attention, norms, the
loss, AdamW). Both libraries time the same list of products, one after the other; the rest is the difference to a step.
Run it after `run.py`, whose environment of torch it uses.
"""

import subprocess

import numpy as np
import work
from run import PEER_PYTHON

Shape = tuple[int, int, int]  # rows, inner, columns of one product


def products(size: work.Size) -> list[Shape]:
    """The products of one step, forward and backward: y = x w, then dx = dy w', dw = x' dy."""
    tokens = size.batch * (size.text_before + size.latents + size.text_after)
    head, d, f = size.heads * size.head_size, size.width, size.ffn
    forward = size.depth * ([(tokens, d, head)] * 3 + [(tokens, head, d)] + [(tokens, d, f)] * 2 + [(tokens, f, d)])
    forward += [(size.batch * (size.text_before + size.text_after), d, work.VOCABULARY)]
    return [shape for n, i, o in forward for shape in ((n, i, o), (n, o, i), (i, n, o))]


def time_jax(shapes: list[Shape], repeats: int) -> float:
    """Seconds of all products."""
    import jax
    import jax.numpy as jnp
    from text_profile import median

    product, total = jax.jit(jnp.matmul), 0.0
    for shape in sorted(set(shapes)):
        n, i, o = shape
        a, b = jnp.ones((n, i)), jnp.ones((i, o))
        total += shapes.count(shape) * median(lambda a=a, b=b: jax.block_until_ready(product(a, b)), repeats)
    return total


def time_torch(shapes: list[Shape], repeats: int) -> float:
    """Seconds of all products."""
    import time

    import torch

    total = 0.0
    for shape in sorted(set(shapes)):
        n, i, o = shape
        a, b, times = torch.ones(n, i), torch.ones(i, o), []
        for _ in range(repeats + 1):
            begun = time.perf_counter()
            torch.matmul(a, b)
            times.append(time.perf_counter() - begun)
        total += shapes.count(shape) * float(np.median(times[1:]))
    return total


def main() -> None:
    parser = work.arguments(__doc__.splitlines()[0])
    parser.add_argument("--library", choices=("both", "torch"), default="both")
    options = parser.parse_args()
    work.pin(options.threads)
    shapes = products(work.SIZES[options.size])
    if options.library == "torch":
        import torch

        torch.set_num_threads(options.threads)
        print(time_torch(shapes, options.repeats))
        return
    command = [str(PEER_PYTHON), __file__, "--library", "torch", "--size", options.size]
    command += ["--repeats", str(options.repeats), "--threads", str(options.threads)]
    operations = sum(2.0 * n * i * o for n, i, o in shapes)
    rounds = []
    for _ in range(3):
        torch_seconds = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        rounds.append((time_jax(shapes, options.repeats), torch_seconds))
    for name, seconds in zip(("XLA", "torch"), zip(*rounds, strict=True), strict=True):
        low, middle, high = (1e3 * np.quantile(seconds, q) for q in (0, 0.5, 1))
        rate = operations / middle / 1e6
        print(f"{name:6s} {middle:7.0f} ms ({low:.0f}-{high:.0f}) for the matrix products, {rate:.0f} GFLOP/s")


if __name__ == "__main__":
    main()
