"""Drawing the codes of images: by unmasking, one after another, or scale by scale.

Shape letters: B rows, N tokens of an image, n of a part of them, V vocabulary.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from transfusion.objectives import ObjectivesConfig
from transfusion.objectives.masked import still_masked
from transfusion.sampling.config import SamplerConfig
from transfusion.sampling.job import Job, Prefix, predict
from transfusion.sampling.layout import Layout, lay
from transfusion.sampling.state import step_keys
from transfusion.sequence import MASKED


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Plan:
    """Scalars `temperature` and `top_p`; of unmasking, [steps] each, how many codes are `left` masked after a step, and
    the factor of the `noise` on the confidence."""

    temperature: jax.Array
    top_p: jax.Array
    left: jax.Array | None = None
    noise: jax.Array | None = None


def plan(objectives: ObjectivesConfig, layout: Layout, config: SamplerConfig) -> Plan:
    """Of the ways that have as many steps as the image has codes or scales."""
    del objectives, layout
    return Plan(np.float32(config.code_temperature), np.float32(config.code_top_p))


def choose(job: Job, logits: jax.Array, keys: jax.Array) -> jax.Array:
    """Draws ids int32 [B, n] from logits [B, n, V], with the keys [B] of the rows."""
    b, n, v = logits.shape
    every = jax.vmap(lambda key: jax.random.split(key, n))(keys).reshape(-1)
    ids = job.choice.choose(logits.reshape(b * n, v), every, job.plan.temperature, job.plan.top_p)
    return ids.reshape(b, n)


# --- unmasking --------------------------------------------------------------------------------------------------------


def unmask_plan(objectives: ObjectivesConfig, layout: Layout, config: SamplerConfig) -> Plan:
    """After step i of S the schedule's share of the codes is still masked; the noise on the confidence has the factor
    `unmask_noise` times the product of 1 - j / S over the steps j up to i (Show-o's code; MaskGIT, arXiv 2202.04200,
    has 1 - i / S)."""
    left = still_masked(layout.tokens, config.steps, objectives.masked.schedule)
    noise = config.unmask_noise * np.cumprod(1 - np.arange(1, config.steps + 1) / config.steps)
    return dataclasses.replace(
        plan(objectives, layout, config), left=left.astype(np.int32), noise=noise.astype(np.float32)
    )


def unmask(job: Job) -> jax.Array:
    """MaskGIT's decoding as Show-o has it (arXiv 2408.12528, section 3.4): all codes are masked at first; each step
    draws all that are, keeps those with the greatest confidence, and masks the others again."""
    steps = len(job.plan.left)

    def step(x, scanned):
        number, left, noise = scanned
        t = number / steps
        logits = job.guided(t, lambda prefix: predict(job.model, job.layout, prefix, x, t))
        drawing, ranking = jnp.moveaxis(jax.vmap(jax.random.split)(step_keys(job.keys, job.drawn, number)), 1, 0)
        ids = choose(job, logits, drawing)
        confidence = jnp.take_along_axis(jax.nn.log_softmax(logits), ids[..., None], axis=-1)[..., 0]
        confidence += noise * jax.vmap(lambda key: jax.random.gumbel(key, x.shape[1:]))(ranking)
        confidence = jnp.where(x == MASKED, confidence, jnp.inf)
        rank = jnp.argsort(jnp.argsort(confidence, axis=-1), axis=-1)
        return jnp.where(rank < left, MASKED, jnp.where(x == MASKED, ids, x)), None

    x = jnp.full((len(job.keys), job.layout.tokens), MASKED, jnp.int32)
    return jax.lax.scan(step, x, (jnp.arange(steps), job.plan.left, job.plan.noise))[0]


# --- codes that are kept in the cache ---------------------------------------------------------------------------------


def read(job: Job, prefix: Prefix, content: jax.Array, first: jax.Array, count: int) -> tuple[jax.Array, Prefix]:
    """Logits [B, count, V] of the tokens number first, first + 1, ... of the image, and the prefix with them.

    Args:
      prefix: has been `opened`.
      content: what its embed reads of them.
    """
    layout, name = job.layout, job.layout.run.stream
    inputs = lay(layout.noisy, layout.spec, prefix.place, prefix.rows, {}, jnp.ones(len(prefix.rows)))[name]

    def part(x):
        return jax.lax.dynamic_slice_in_dim(x, first, count, axis=1)

    inputs = dataclasses.replace(
        inputs, content=content, position=part(inputs.position), item=part(inputs.item), place=part(inputs.place),
        metadata=jax.tree.map(part, inputs.metadata),
    )  # fmt: skip
    slots = prefix.cache.metadata.order.shape[1] - layout.tokens + first + jnp.arange(count)
    slots = {name: jnp.broadcast_to(slots, (len(prefix.rows), count))}
    encoded, cache = job.model.extend({name: inputs}, prefix.cache, slots)
    return job.model.head(name, encoded[name]), dataclasses.replace(prefix, cache=cache)


def opened(job: Job) -> list[Prefix]:
    """The prefixes that there are, with room for the image's tokens."""
    prefixes = [p for p in (job.prefix, job.without_text, job.without_images) if p is not None]
    return [dataclasses.replace(p, cache=p.cache.grown(job.layout.tokens)) for p in prefixes]


def read_all(
    job: Job, prefixes: list[Prefix], t: jax.Array, ramp: float, *part: jax.Array | int
) -> tuple[jax.Array, list[Prefix]]:
    """`read` after all prefixes, and the logits guided; `ramp` in [0, 1] is the share of the guidance that applies.

    All are read even where guidance does not apply: what follows sees them.
    """
    logits, prefixes = zip(*(read(job, prefix, *part) for prefix in prefixes), strict=True)
    if len(logits) == 1:
        return logits[0], list(prefixes)
    guidance = dataclasses.replace(job.guidance, scale=1 + ramp * (job.guidance.scale - 1))
    guided = guidance.combine(logits[0], logits[1], logits[2] if len(logits) > 2 else None)
    return jnp.where(guidance.applies(t), guided, logits[0]), list(prefixes)


def one_after_another(job: Job) -> jax.Array:
    """Codes in raster order, each seeing those before it (Janus, arXiv 2410.13848); the first stands behind the start
    token. The last is not read: nothing is drawn after it."""
    n = job.layout.tokens

    def step(i, carry):
        x, prefixes = carry
        content = jax.lax.dynamic_slice_in_dim(x, i, 1, axis=1)
        logits, prefixes = read_all(job, prefixes, i / (n - 1), 1.0, content, i, 1)
        ids = choose(job, logits, step_keys(job.keys, job.drawn, i))
        return jax.lax.dynamic_update_slice_in_dim(x, ids, i + 1, axis=1), prefixes

    x = jnp.zeros((len(job.keys), n), jnp.int32)
    return jax.lax.fori_loop(0, n - 1, step, (x, opened(job)))[0]


def scale_by_scale(job: Job) -> jax.Array:
    """All codes of a scale at once, seeing all scales before it (VAR, arXiv 2404.02905, section 3.2).

    Guidance grows linearly from none at the first scale to all of it at the last, as in VAR's code.
    """
    scales, first, prefixes = job.layout.stream.scales, 0, opened(job)
    x = jnp.zeros((len(job.keys), job.layout.tokens), jnp.int32)
    for k, side in enumerate(scales):
        ramp = k / max(len(scales) - 1, 1)
        logits, prefixes = read_all(job, prefixes, jnp.float32(k / len(scales)), ramp, x, first, side * side)
        ids = choose(job, logits, step_keys(job.keys, job.drawn, jnp.int32(k)))
        x = x.at[:, first : first + side * side].set(ids)
        first += side * side
    return x
