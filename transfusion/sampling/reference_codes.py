"""Drawing codes written plainly: no cache, the whole document through the model for every step; see `reference`.

Every function takes a row of `transfusion.sampling.reference` and which of its images is drawn, and returns the codes.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transfusion.objectives.masked import still_masked
from transfusion.objectives.paths import PATHS, estimates
from transfusion.sampling.choose import Filters
from transfusion.sampling.prompts import Prompt
from transfusion.sampling.solvers import SOLVERS
from transfusion.sampling.state import step_keys, step_noise
from transfusion.sequence import Segment


def _logits(row: Any, prompt: Prompt, codes: np.ndarray, hidden: np.ndarray | None = None) -> jax.Array:
    """Computes the logits [1, N, V] of an image of these codes [n], drawn after the prompt; start token included."""
    image = Segment(row.drawable.kind, codes.reshape(row.parts.shape).astype(np.int32), "target")
    out, cost = row.outputs((*prompt.segments, image), hidden=hidden)
    name = row.drawable.run.stream
    return jnp.asarray(out[name][cost[name] - row.parts.tokens : cost[name]])[None]


def _choose(row: Any, logits: jax.Array, key: jax.Array) -> np.ndarray:
    """Chooses one id for each of the logits [1, n, V], one after the other."""
    config = row.config
    filters = Filters.of(config.code_temperature, config.code_top_k, config.code_top_p)
    keys = jax.random.split(key, logits.shape[1])
    temperature, top_p = config.code_temperature, config.code_top_p
    return np.array([
        int(filters.choose(logits[:, i], keys[i : i + 1], temperature, top_p)[0]) for i in range(logits.shape[1])
    ])  # fmt: skip


def _key(row: Any, drawn: int, step: int) -> jax.Array:
    return step_keys(row.key, jnp.array([drawn]), jnp.int32(step))[0]


def unmasked(row: Any, drawn: int) -> np.ndarray:
    """Draws codes by unmasking, as Show-o does, or in blocks, as LLaDA does."""
    config, n = row.config, row.parts.tokens
    size, each = n // config.unmask_blocks, config.steps // config.unmask_blocks
    of_a_block = still_masked(size, each, row.task.objectives.masked.schedule)
    counts = [left + n - end for end in range(size, n + 1, size) for left in of_a_block]
    codes, hidden = np.zeros(n, np.int64), np.ones(n, bool)
    noise = config.unmask_noise
    for step, left in enumerate(counts):
        logits = row.guided(step / config.steps, lambda p: _logits(row, p, codes, hidden))
        drawing, ranking = jax.random.split(_key(row, drawn, step))
        ids = _choose(row, logits, drawing)
        noise *= 1 - (step + 1) / config.steps
        bumps = np.asarray(jax.random.gumbel(ranking, (n,)))
        sure = np.asarray(jax.nn.log_softmax(logits[0]))[np.arange(n), ids] + np.float32(noise) * bumps
        codes[hidden] = ids[hidden]
        now = step // each  # the number of the block
        masked = (place for place in range(n) if hidden[place])
        unsure = sorted(masked, key=lambda place: (place // size <= now, sure[place]))
        hidden[:] = False
        hidden[unsure[:left]] = True
    return codes.reshape(row.parts.shape).astype(np.int32)


def one_after_another(row: Any, drawn: int) -> np.ndarray:
    """Draws codes in raster order, as Janus does."""
    n = row.parts.tokens - 1
    codes = np.zeros(n, np.int64)
    for i in range(n):
        logits = row.guided(i / n, lambda p: _logits(row, p, codes))
        codes[i] = _choose(row, logits[:, i : i + 1], _key(row, drawn, i))[0]
    return codes.reshape(row.parts.shape).astype(np.int32)


def scale_by_scale(row: Any, drawn: int) -> np.ndarray:
    """Draws codes scale by scale, as VAR does."""
    scales, first = row.drawable.stream.scales, 0
    codes = np.zeros(row.parts.tokens, np.int64)
    for k, side in enumerate(scales):
        logits = row.guided(k / len(scales), lambda p: _logits(row, p, codes), k / max(len(scales) - 1, 1))
        here = slice(first, first + side * side)
        codes[here] = _choose(row, logits[:, here], _key(row, drawn, k))
        first += side * side
    return codes.astype(np.int32)


def token_by_token(row: Any, drawn: int) -> np.ndarray:
    """Draws patches in raster order, each by a solver, as NextStep-1 does."""
    config, name, stream = row.config, row.drawable.run.stream, row.drawable.stream
    continuous, (n, e) = row.task.objectives.of_continuous(name), row.parts.held.shape
    path, solver, number = PATHS[continuous.path], SOLVERS[config.solver], jnp.array([drawn])
    head = row.task.template.bind(row.params).head_of(name)
    x, times = np.zeros((n, e), np.float32), config.times(continuous.prediction, n - 1)

    def velocity(prompt: Prompt, i: int, patch: jax.Array, t: jax.Array) -> jax.Array:
        image = Segment(row.drawable.kind, stream.content.media(x, row.parts.shape[:-1]), "target")
        out, cost = row.outputs((*prompt.segments, image))
        hidden = jnp.asarray(out[name][cost[name] - n + i])[None, None]
        return head.velocity(hidden, patch, jnp.full((1, 1), t))

    for i in range(n - 1):

        def field(patch, t, ahead=None, i=i):
            return estimates(
                path, continuous.prediction, t, patch, row.guided(t, lambda prompt: velocity(prompt, i, patch, t))
            )

        patch = step_noise(row.key, number, i, (1, e))
        memory = solver.first_memory(patch)
        for j, (t, s) in enumerate(zip(times[:-1], times[1:], strict=True)):
            noise = lambda i=i, j=j: step_noise(row.key, number, n + i * len(times) + j, (1, e))  # noqa: E731
            patch, _, memory = solver.step(field, path, patch, t, s, noise, memory)
        x[i + 1] = np.asarray(patch)[0, 0]
    return stream.content.media(x, row.parts.shape[:-1])


CODE_PAINTERS = {
    "token_flow": token_by_token,
    "masked": unmasked,
    "next_token": one_after_another,
    "next_scale": scale_by_scale,
}
