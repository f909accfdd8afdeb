"""Drawing codes written plainly: no cache, the whole document through the model for every step; see `reference`.

Every function takes a row of `transfusion.sampling.reference` and which of its images is drawn, and returns the codes.
"""

from collections.abc import Callable
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


class TokenFlows:
    """Draws patches of an image by a solver of their own, given the trunk's outputs for the image so far."""

    def __init__(self, row: Any, drawn: int, before: int):
        """`before` counts the tokens of the image in front of its first patch."""
        name = row.drawable.run.stream
        self.row, self.drawn = row, drawn
        self.continuous, (self.n, self.e) = row.task.objectives.of_continuous(name), row.parts.held.shape
        self.times = row.config.times(self.continuous.prediction, self.n - before)
        self.head = row.task.template.bind(row.params).head_of(name)

    def outputs(self, prompt: Prompt, x: np.ndarray, hidden: np.ndarray | None = None) -> jax.Array:
        """The trunk's outputs [1, N, D] for an image of patches x [N, E] after the prompt."""
        row, name = self.row, self.row.drawable.run.stream
        image = Segment(row.drawable.kind, row.drawable.stream.content.media(x, row.parts.shape[:-1]), "target")
        out, cost = row.outputs((*prompt.segments, image), hidden=hidden)
        return jnp.asarray(out[name][cost[name] - self.n : cost[name]])[None]

    def solve(self, outputs: Callable[[Prompt], jax.Array], n: int, number: int) -> np.ndarray:
        """Draws patches [n, E], given the outputs [1, n, D]; `number` counts how often patches have been drawn."""
        row, path, solver = self.row, PATHS[self.continuous.path], SOLVERS[self.row.config.solver]

        def field(x, t, ahead=None):
            def velocity(prompt: Prompt) -> jax.Array:
                hidden = outputs(prompt)
                return self.head.velocity(hidden, x, jnp.full(hidden.shape[:2], t))

            return estimates(path, self.continuous.prediction, t, x, row.guided(t, velocity))

        shape, of_image = (n, self.e), jnp.array([self.drawn])
        x = step_noise(row.key, of_image, number, shape)
        memory = solver.first_memory(x)
        for j, (t, s) in enumerate(zip(self.times[:-1], self.times[1:], strict=True)):
            step = self.n + number * len(self.times) + j
            noise = lambda step=step: step_noise(row.key, of_image, step, shape)  # noqa: E731
            x, _, memory = solver.step(field, path, x, t, s, noise, memory)
        return np.asarray(x)[0]


def token_by_token(row: Any, drawn: int) -> np.ndarray:
    """Draws patches in raster order, each by a solver, as NextStep-1 does."""
    flows = TokenFlows(row, drawn, before=1)
    x = np.zeros((flows.n, flows.e), np.float32)
    for i in range(flows.n - 1):
        x[i + 1] = flows.solve(lambda prompt, i=i: flows.outputs(prompt, x)[:, i : i + 1], 1, i)[0]
    return row.drawable.stream.content.media(x, row.parts.shape[:-1])


def revealed(row: Any, drawn: int) -> np.ndarray:
    """Draws patches in a random order, several at once, as MAR does."""
    flows = TokenFlows(row, drawn, before=0)
    n, hidden = flows.n, np.ones(flows.n, bool)
    order = np.asarray(jax.random.permutation(_key(row, drawn, 2 * n * (len(flows.times) + 1)), n))
    x = np.zeros((n, flows.e), np.float32)
    schedule = row.task.objectives.masked.schedule
    for number, left in enumerate(still_masked(n, row.config.unmask_steps or n, schedule)):
        patches = flows.solve(lambda prompt: flows.outputs(prompt, x, hidden), n, number)
        now = hidden & (order >= left)
        x[now], hidden[now] = patches[now], False
    return row.drawable.stream.content.media(x, row.parts.shape[:-1])


CODE_PAINTERS = {
    "token_flow": token_by_token,
    "masked_flow": revealed,
    "masked": unmasked,
    "next_token": one_after_another,
    "next_scale": scale_by_scale,
}
