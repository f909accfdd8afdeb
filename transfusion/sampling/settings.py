"""The compiled decoder's view of a `SamplerConfig`: values that may change per call, and those that are compiled in."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from transfusion.sampling.choose import Filters
from transfusion.sampling.config import SamplerConfig
from transfusion.sampling.guidance import Guidance
from transfusion.sampling.prompts import bucket


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KindSettings:
    """Those of `Settings` with which one kind is drawn: its `schedule`, see `transfusion.sampling.drawing`."""

    schedule: Any
    guidance: Guidance


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings that may change without compiling anew: scalars, and those of each kind that is drawn."""

    kinds: tuple[KindSettings, ...]
    temperature: jax.Array
    top_p: jax.Array
    think: jax.Array
    max_tokens: jax.Array
    min_images: jax.Array


@dataclasses.dataclass(frozen=True)
class KindLimits:
    """Those of `Limits` that are of one kind that is drawn.

    Attributes:
      kind: its name in the layout.
      size: sides of the latents or codes that are drawn; zeros leave it to the model.
      solver: a key of `transfusion.sampling.solvers.SOLVERS`.
      codes: the filters of its codes.
    """

    kind: str
    size: tuple[int, ...]
    solver: str
    codes: Filters


@dataclasses.dataclass(frozen=True)
class Limits:
    """The settings on which the compiled code depends besides the shapes.

    Attributes:
      kinds: the kinds that may be drawn; () if the rows only write.
      text: the filters of text ids.
      ids: the room for text tokens.
      images: images, or items of other kinds, drawn at most.
      goes_on: whether anything may follow an image.
    """

    kinds: tuple[KindLimits, ...]
    text: Filters
    ids: int
    images: int
    goes_on: bool


@dataclasses.dataclass(frozen=True)
class Machine:
    """How the loops are compiled for a kind of processor. Results do not depend on it but for rounding.

    Attributes:
      unrolled: trunks of at most so many layers are unrolled in the loops.
      stacked: whether prompts are read by a scan over stacked weights all the same, which compiles quickly but keeps
        the weights of the trunk twice.
      tokens: how many tokens are written between two looks at whether rows have ended.
      together: up to how many rows all prompts that guidance compares are rows of one forward pass, which reads each
        weight once for all of them; of more rows they are read one after another.
    """

    unrolled: int
    stacked: bool
    tokens: int
    together: int


MOST_ROWS = 2**31
# The rows by the platform as JAX names it. On CPUs and GPUs unrolled layers are read where they lie, while a scan
# copies each layer's weights out of their stack in every turn (as XLA compiles it for an H100, too). The cost is
# compiling: 16 layers took twice as long for an H100. XLA:TPU fuses such copies into the products.
# On accelerators the host waits for the answer to whether a loop goes on, about as long as a token takes.
# On a CPU one pass for all prompts takes 0.93 of the time of two for one row of 64 tokens, and 1.10 for eight.
MACHINES = {
    "cpu": Machine(unrolled=16, stacked=True, tokens=1, together=1),
    "gpu": Machine(unrolled=32, stacked=False, tokens=8, together=MOST_ROWS),
    "tpu": Machine(unrolled=0, stacked=True, tokens=8, together=MOST_ROWS),
}


def machine_of(platform: str) -> Machine:
    """Returns the row of a platform; one that has none is treated as a TPU."""
    return MACHINES.get(platform, MACHINES["tpu"])


def limits_of(config: SamplerConfig, sizes: Mapping[str, tuple[int, ...]]) -> Limits:
    """Takes the limits from a config; `sizes` are those of the kinds that may be drawn, by their names."""
    tokens = config.think + config.max_tokens
    kinds = [(kind, size, config.of_kind(kind)) for kind, size in sizes.items()]
    return Limits(
        kinds=tuple(
            KindLimits(kind, size, own.solver, Filters.of(own.code_temperature, own.code_top_k, own.code_top_p))
            for kind, size, own in kinds
        ),
        text=Filters.of(config.temperature, config.top_k, config.top_p),
        ids=bucket(tokens, 16) if tokens else 0,
        images=config.max_images if kinds else 0,
        goes_on=config.goes_on,
    )


def guidance_of(config: SamplerConfig) -> Guidance:
    """Takes the guidance from a config, without the scales of what prompts hold."""
    return Guidance(
        scale=np.float32(config.guidance),
        low=np.float32(config.guidance_low),
        high=np.float32(config.guidance_high),
        least=np.float32(config.renorm_least),
        renorm=config.renorm,
        against=config.image_against,
    )


def settings_of(config: SamplerConfig, schedules: Mapping[str, Any]) -> Settings:
    """Takes the settings from a config; `schedules` are the arrays that the ways of drawing make of it, by kinds."""
    kinds = (KindSettings(schedule, guidance_of(config.of_kind(kind))) for kind, schedule in schedules.items())
    return Settings(
        kinds=tuple(kinds),
        temperature=np.float32(config.temperature),
        top_p=np.float32(config.top_p),
        think=np.int32(config.think),
        max_tokens=np.int32(config.max_tokens),
        min_images=np.int32(config.min_images),
    )
