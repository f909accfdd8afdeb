"""Drawing the codes of images: by unmasking, one after another, or scale by scale.

Shape letters: B rows, N tokens of an image, n of a part of them, V vocabulary.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transfusion.errors import UsageError
from transfusion.objectives import ObjectivesConfig
from transfusion.objectives.masked import still_masked
from transfusion.sampling.config import SamplerConfig
from transfusion.sampling.parts import PaintedParts
from transfusion.sampling.place import lay
from transfusion.sampling.request import Prefix, Request
from transfusion.sampling.state import step_keys
from transfusion.sequence import MASKED


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CodeSchedule:
    """The settings that drawing codes reads from a config, as arrays.

    Attributes:
      temperature, top_p: scalars.
      left: int32 [steps], how many codes are still masked after each step of unmasking.
      noise: float32 [steps], the factor of the noise on the confidence in each step of unmasking.
      later: bool [steps, tokens], which codes are of later blocks in each step; None for one block.
    """

    temperature: jax.Array
    top_p: jax.Array
    left: jax.Array | None = None
    noise: jax.Array | None = None
    later: jax.Array | None = None


def code_schedule(objectives: ObjectivesConfig, parts: Any, config: SamplerConfig) -> CodeSchedule:
    """Makes the schedule for the ways whose number of steps is that of the image's codes or scales."""
    del objectives, parts
    return CodeSchedule(np.float32(config.code_temperature), np.float32(config.code_top_p))


def choose_codes(request: Request, logits: jax.Array, keys: jax.Array) -> jax.Array:
    """Draws ids int32 [B, n] from logits [B, n, V], with the keys [B] of the rows."""
    b, n, v = logits.shape
    every = jax.vmap(lambda key: jax.random.split(key, n))(keys).reshape(-1)
    schedule = request.schedule
    ids = request.filters.choose(logits.reshape(b * n, v), every, schedule.temperature, schedule.top_p)
    return ids.reshape(b, n)


# --- unmasking --------------------------------------------------------------------------------------------------------


def unmask_schedule(objectives: ObjectivesConfig, parts: PaintedParts, config: SamplerConfig) -> CodeSchedule:
    """Makes the schedule of unmasking: after step i of S the objective's share of the codes is still masked.

    The noise on the confidence has the factor `unmask_noise` times the product of 1 - j / S over the steps j up to i
    (Show-o's code; MaskGIT, arXiv 2202.04200, has 1 - i / S). Several blocks are unmasked one after the other, each in
    its share of the steps: as long as one has masked codes, all later ones are masked.

    Raises:
      UsageError: if the blocks do not divide the codes of an item and the steps.
    """
    blocks, tokens = config.unmask_blocks, parts.tokens
    if tokens % blocks or config.steps % blocks:
        raise UsageError(
            f"sampling.unmask_blocks={blocks} must divide an item's {tokens} codes and sampling.steps={config.steps}"
        )
    size = tokens // blocks
    one = still_masked(size, config.steps // blocks, objectives.masked.schedule)
    left = np.concatenate([one + size * after for after in reversed(range(blocks))])
    noise = config.unmask_noise * np.cumprod(1 - np.arange(1, config.steps + 1) / config.steps)
    plain = code_schedule(objectives, parts, config)
    opened = np.arange(config.steps) * blocks // config.steps
    later = None if blocks == 1 else np.arange(tokens) // size > opened[:, None]
    return dataclasses.replace(plain, left=left.astype(np.int32), noise=noise.astype(np.float32), later=later)


def unmask(request: Request, parts: PaintedParts) -> jax.Array:
    """Draws codes by unmasking, as MaskGIT does, in Show-o's version (arXiv 2408.12528, section 3.4).

    All codes are masked at first. Each step draws all masked codes, keeps those with the greatest confidence, and masks
    the others again.
    """
    schedule, steps, guided = request.schedule, len(request.schedule.left), request.guided(parts)

    def step(x, scanned):
        number, left, noise, later = scanned
        t = number / steps
        logits = guided(x, t)
        keys = jax.vmap(jax.random.split)(step_keys(request.keys, request.drawn, number))
        drawing, ranking = jnp.moveaxis(keys, 1, 0)
        ids = choose_codes(request, logits, drawing)
        confidence = jnp.take_along_axis(jax.nn.log_softmax(logits), ids[..., None], axis=-1)[..., 0]
        confidence += noise * jax.vmap(lambda key: jax.random.gumbel(key, x.shape[1:]))(ranking)
        confidence = confidence if later is None else jnp.where(later[None], -jnp.inf, confidence)
        confidence = jnp.where(x == MASKED, confidence, jnp.inf)
        rank = jnp.argsort(jnp.argsort(confidence, axis=-1), axis=-1)
        return jnp.where(rank < left, MASKED, jnp.where(x == MASKED, ids, x)), None

    x = jnp.full((len(request.keys), parts.tokens), MASKED, jnp.int32)
    return jax.lax.scan(step, x, (jnp.arange(steps), schedule.left, schedule.noise, schedule.later))[0]


# --- codes that are kept in the cache ---------------------------------------------------------------------------------


def read_codes(
    request: Request, parts: PaintedParts, prefix: Prefix, content: jax.Array, first: jax.Array, count: int
) -> tuple[jax.Array, Prefix]:
    """Reads `count` tokens of the image from number `first` on: logits [B, count, V], and the prefix with the tokens.

    Args:
      request, parts: the request and the parts of the image.
      prefix: has room for the image's tokens, see `with_room`.
      content: the embed's input for these tokens.
      first, count: number of the first token, and how many tokens to read.
    """
    name = parts.name
    inputs = lay(parts.noisy, parts.spec, prefix.place, prefix.rows, {}, jnp.ones(len(prefix.rows)))[name]

    def part(x):
        return jax.lax.dynamic_slice_in_dim(x, first, count, axis=1)

    inputs = dataclasses.replace(
        inputs, content=content, position=part(inputs.position), item=part(inputs.item), place=part(inputs.place),
        metadata=jax.tree.map(part, inputs.metadata),
    )  # fmt: skip
    slots = prefix.cache.metadata.order.shape[1] - parts.tokens + first + jnp.arange(count)
    slots = {name: jnp.broadcast_to(slots, (len(prefix.rows), count))}
    encoded, cache = request.model.extend({name: inputs}, prefix.cache, slots)
    return request.model.head(name, encoded[name]), dataclasses.replace(prefix, cache=cache)


def with_room(request: Request, parts: PaintedParts) -> Prefix:
    """Joins the prefixes of the request, see `Request.joined`, and gives them room for the image's tokens."""
    return dataclasses.replace(request.joined, cache=request.joined.cache.grown(parts.tokens))


def guided_codes(
    request: Request,
    parts: PaintedParts,
    prefix: Prefix,
    t: jax.Array,
    ramp: float,
    content: jax.Array,
    first: jax.Array,
    count: int,
) -> tuple[jax.Array, Prefix]:
    """Calls `read_codes` for all prefixes and guides the logits; `ramp` in [0, 1] scales the guidance.

    All are read even where guidance does not apply, because later tokens see them.
    """
    logits, prefix = read_codes(request, parts, prefix, request.repeated(content), first, count)
    first_logits, *others = request.split(logits)
    if not others:
        return first_logits, prefix
    guidance = dataclasses.replace(request.guidance, scale=1 + ramp * (request.guidance.scale - 1))
    return jnp.where(guidance.applies(t), guidance.combine(first_logits, *others), first_logits), prefix


def one_after_another(request: Request, parts: PaintedParts) -> jax.Array:
    """Draws codes in raster order, each of which sees those before it (Janus, arXiv 2410.13848).

    The first code comes after the start token. The last is not read, because nothing is drawn after it."""
    n = parts.tokens

    def step(i, carry):
        x, prefix = carry
        content = jax.lax.dynamic_slice_in_dim(x, i, 1, axis=1)
        logits, prefix = guided_codes(request, parts, prefix, i / (n - 1), 1.0, content, i, 1)
        ids = choose_codes(request, logits, step_keys(request.keys, request.drawn, i))
        return jax.lax.dynamic_update_slice_in_dim(x, ids, i + 1, axis=1), prefix

    x = jnp.zeros((len(request.keys), n), jnp.int32)
    return jax.lax.fori_loop(0, n - 1, step, (x, with_room(request, parts)))[0]


def scale_by_scale(request: Request, parts: PaintedParts) -> jax.Array:
    """Draws all codes of a scale at once; they see all earlier scales (VAR, arXiv 2404.02905, section 3.2).

    Guidance grows linearly from none at the first scale to all of it at the last, as in VAR's code.
    """
    scales, first, prefix = parts.stream.scales, 0, with_room(request, parts)
    x = jnp.zeros((len(request.keys), parts.tokens), jnp.int32)
    for k, side in enumerate(scales):
        ramp, t, count = k / max(len(scales) - 1, 1), jnp.float32(k / len(scales)), side * side
        logits, prefix = guided_codes(request, parts, prefix, t, ramp, x, first, count)
        ids = choose_codes(request, logits, step_keys(request.keys, request.drawn, jnp.int32(k)))
        x = x.at[:, first : first + count].set(ids)
        first += count
    return x
