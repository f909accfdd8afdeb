"""Times sampling with the code of a tree, for `gpu.py`: of this one, and of an earlier commit beside it.

Weights are random, as only time is measured. Text is greedy, so that it does not end before its time.
"""

import argparse
import pathlib
import statistics
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
CALLS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--tree", type=pathlib.Path, required=True, help="the folder with transfusion/ and configs/")
    parser.add_argument("--as", dest="name", required=True, help="name of the tree in what is written")
    options = parser.parse_args()
    sys.path[:0] = [str(options.tree), str(HERE)]
    import jax
    import record
    from settings import WORKS

    if jax.default_backend() != "gpu":
        record.write(options.out, f"sampler/{options.name}", error=f"jax found no GPU, but {jax.default_backend()}")
        sys.exit(1)
    end = time.monotonic() + options.seconds
    for work, rows in WORKS:
        name = f"sampler/{options.name}/{work}/{rows}"
        if time.monotonic() > end:
            record.write(options.out, name, skipped="no time was left")
            continue
        try:
            record.write(options.out, name, **measure(options.tree, work, rows))
        except Exception as error:  # of any kind: the card's time must not be lost
            record.write(options.out, name, error=" ".join(str(error).split())[:300] or type(error).__name__)


def measure(tree: pathlib.Path, work: str, rows: int) -> dict[str, float]:
    """Seconds of a call for `rows` prompts, and the same per token or image of a row."""
    import jax
    import numpy as np
    from settings import PROMPT, SIZE, TOKENS, sampled

    from transfusion.programs import load_experiment
    from transfusion.sampling.decoder import Prompt, generate
    from transfusion.sequence import Segment
    from transfusion.tasks import make_task

    experiment = sampled(load_experiment(f"{tree / 'configs' / 'transfusion_paper.py'}:{SIZE}"), work)
    task = make_task(experiment)
    params = jax.jit(task.template.init)(jax.random.key(0))
    rng = np.random.default_rng(0)
    prompts = [Prompt((Segment("text", rng.integers(1, 200, PROMPT).astype(np.int32)),), work != "text")] * rows
    found = []
    for call in range(CALLS + 1):
        start = time.perf_counter()
        written = generate(task, params, prompts, call, experiment.sampling, batch=rows)
        found.append(time.perf_counter() - start)
    parts = max(sum(segment.value.size for segment in row) for row in written) if work == "text" else 1
    if work == "text" and parts < TOKENS:
        raise RuntimeError(f"the text ended after {parts} of {TOKENS} tokens")
    seconds = statistics.median(found[1:])
    return {"seconds": seconds, "each": seconds / parts, "first_seconds": found[0]}


if __name__ == "__main__":
    main()
