"""torch's flex_attention under the same rule on the same rows, for `gpu.py`, in a process of its own.

It needs torch with CUDA; without it, it says so. The block lists of flex_attention are made before the clock starts,
as those of our kernel are: a step makes them once, and all layers share them.
"""

import argparse
import importlib.util
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import record

CASES = [(size, direction) for direction in ("gradients", "forward") for size in (128, 64)]
HEADS = 12


def seconds_per_call(call: Callable[[], Any], synchronize: Callable[[], None], rounds: int = 7) -> float:
    """The median over rounds of the time of a call; a round makes as many as take about 50 ms."""
    for _ in range(3):
        call()
    synchronize()
    start = time.perf_counter()
    call()
    synchronize()
    times = max(1, min(200, round(0.05 / (time.perf_counter() - start))))
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(times):
            call()
        synchronize()
        found.append((time.perf_counter() - start) / times)
    return statistics.median(found)


def measure(tokens: dict[str, np.ndarray], size: int, direction: str) -> dict[str, Any]:
    """Times attention on rows with the metadata `tokens`: int32 [B, L] each."""
    import torch
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    on = {name: torch.tensor(values, device="cuda") for name, values in tokens.items()}
    document, order, span, private = (on[name] for name in ("document", "order", "span", "private"))

    def may_see(b, h, q, k):
        same = (document[b, q] == document[b, k]) & (document[b, q] != 0)
        inside = (span[b, q] == span[b, k]) & (span[b, q] != 0)
        return same & (inside | ((order[b, k] <= order[b, q]) & (private[b, k] == 0)))

    rows, length = tokens["order"].shape
    blocks = create_block_mask(may_see, B=rows, H=None, Q_LEN=length, KV_LEN=length, device="cuda", _compile=True)
    attend = torch.compile(flex_attention)
    shape = (rows, HEADS, length, size)
    sets = [
        [torch.randn(shape, device="cuda", dtype=torch.bfloat16, requires_grad=i < 3) for i in range(4)]
        for _ in range(3)
    ]
    turn = iter(range(10**9))

    def call() -> None:
        q, k, v, change = sets[next(turn) % len(sets)]
        if direction == "gradients":
            torch.autograd.grad(attend(q, k, v, block_mask=blocks), (q, k, v), change)
        else:
            with torch.no_grad():
                attend(q, k, v, block_mask=blocks)

    return {"seconds": seconds_per_call(call, torch.cuda.synchronize), "torch": torch.__version__}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--rows", type=pathlib.Path, required=True, help="npz with the metadata of the rows")
    options = parser.parse_args()
    if importlib.util.find_spec("torch") is None:
        record.write(options.out, "flex", error="torch is not installed here")
        return
    end = time.monotonic() + options.seconds
    arrays = np.load(options.rows)
    lengths = sorted({int(name.partition("/")[0]) for name in arrays})
    for size, direction in CASES:
        for length in lengths:
            name = f"attention/{length}/{size}/{direction}/flex"
            if time.monotonic() > end:
                record.write(options.out, name, skipped="no time was left")
                continue
            tokens = {key.partition("/")[2]: arrays[key] for key in arrays if key.startswith(f"{length}/")}
            try:
                record.write(options.out, name, **measure(tokens, size, direction))
            except Exception as error:  # of any kind: the card's time must not be lost
                record.write(options.out, name, error=" ".join(str(error).split())[:300] or type(error).__name__)


if __name__ == "__main__":
    main()
