"""Settings of the decoder."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from transfusion.errors import UsageError, check, nearest, shown
from transfusion.objectives.paths import BASE_TOKENS, SHIFTS, STEPS
from transfusion.sampling.guidance import AGAINST, RENORMS
from transfusion.sampling.solvers import SOLVERS, SPACINGS, time_grid
from transfusion.sequence import text

MOST_STEPS = 100_000
MOST_TOKENS = 2**24
MOST_IMAGES = 4096
LARGE = 1e6  # no setting means anything beyond it, and float32 would soon be infinite
# The least and the largest value of each number; both are allowed unless `OPEN` names them. All other numbers lie in
# [-LARGE, LARGE].
LIMITS: dict[str, tuple[float, float]] = {
    "steps": (1, MOST_STEPS),
    "shift": (0, LARGE),
    "temperature": (0, LARGE),
    "top_k": (0, 2**31 - 1),
    "top_p": (0, 1),
    "code_temperature": (0, LARGE),
    "code_top_k": (0, 2**31 - 1),
    "code_top_p": (0, 1),
    "unmask_noise": (0, LARGE),
    "unmask_blocks": (1, MOST_STEPS),
    "unmask_steps": (0, MOST_STEPS),
    "think": (0, MOST_TOKENS),
    "max_tokens": (0, MOST_TOKENS),
    "max_images": (0, MOST_IMAGES),
    "min_images": (0, MOST_IMAGES),
    "shift_tokens": (1, MOST_TOKENS),
    "terminal": (0, 1),
}
OPEN = {"shift": 0, "top_p": 0, "code_top_p": 0, "terminal": 1}


@dataclasses.dataclass(frozen=True)
class KindConfig:
    """The settings with which one kind of item is drawn, in place of those of `SamplerConfig`; None leaves the common
    one.

    Attributes:
      solver, steps, shift, guidance, guidance_low, guidance_high, code_temperature, code_top_k, code_top_p,
        unmask_noise, unmask_blocks, unmask_steps: the field of this name in `SamplerConfig`.
    """

    solver: str | None = None
    steps: int | None = None
    shift: float | None = None
    guidance: float | None = None
    guidance_low: float | None = None
    guidance_high: float | None = None
    code_temperature: float | None = None
    code_top_k: int | None = None
    code_top_p: float | None = None
    unmask_noise: float | None = None
    unmask_blocks: int | None = None
    unmask_steps: int | None = None


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """How text and images, or items of other kinds, are drawn.

    Attributes:
      solver: a key of `transfusion.sampling.solvers.SOLVERS`.
      steps: number of the solver's steps from noise (t = 0) to data (t = 1).
      shift: shift of the time grid, see `transfusion.objectives.paths.shift_time`.
      guidance: scale s of classifier-free guidance u + s (c - u) (arXiv 2207.12598); 1 is none.
      guidance_low, guidance_high: the interval of t in which guidance applies (arXiv 2404.07724).
      image_guidance: scale of the images of a prompt that has some, or of its sounds, or clips: w + scale (v - w), w
        the prediction without them, v the one guided by the text (BAGEL); 1 is none.
      conditions: that scale for single kinds of what a prompt holds, such as {'sound': 2.0}.
      kinds: other settings for single kinds of what is drawn.
      without_text: what replaces the text in the prediction without it: 'drop', nothing, or 'pad', as much padding,
        which attention sees (Janus, arXiv 2410.13848).
      image_against: what the prediction without images still sees: 'text', the prompt's text alone, or 'nothing'; see
        `transfusion.sampling.guidance.Guidance`.
      negative: a text that replaces the prompt's in the predictions without it (Emu3).
      renorm, renorm_least: see `transfusion.sampling.guidance.Guidance`.
      temperature: temperature of text tokens; 0 is greedy.
      top_k, top_p: filters of text tokens; 0 and 1 keep all.
      code_temperature, code_top_k, code_top_p: the same for the codes of images.
      unmask_noise: factor of the Gumbel noise on the confidence in a code, which decides whether it stays or is hidden
        again; see `transfusion.sampling.codes.unmask_schedule`.
      unmask_blocks: into how many equal blocks the codes of an item are cut, which are unmasked one after the other,
        each in its share of the steps (LLaDA, arXiv 2502.09992, section 2.4).
      unmask_steps: in how many steps hidden patches are drawn, each by the solver with `steps` of its own (MAR, arXiv
        2406.11838); 0: one patch after the other.
      think: text tokens written at most before the image that a prompt asks for; 0 draws at once. The text ends where
        the model ends it, by the end of the document or an image, and then the image is drawn.
      max_tokens: text tokens written at most besides those; openers and closers of images are not counted.
      max_images: images drawn at most.
      min_images: images drawn at least once one is drawn, as far as `max_images` allows: the next opens at once after
        the last (the frames of a world model).
      shift_by: a key of `transfusion.objectives.paths.SHIFTS`: how the shift depends on the size of the image.
      shift_tokens: the number of tokens of an image whose shift is `shift`; as in training, see `ContinuousConfig`.
      spacing, terminal: spacing and last noise level of the time grid, see `transfusion.sampling.solvers.time_grid`.
    """

    solver: str = "euler"
    steps: int = 50
    shift: float = 1.0
    guidance: float = 1.0
    guidance_low: float = 0.0
    guidance_high: float = 1.0
    image_guidance: float = 1.0
    without_text: str = "drop"
    renorm: str = "none"
    renorm_least: float = 0.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    code_temperature: float = 1.0
    code_top_k: int = 0
    code_top_p: float = 1.0
    unmask_noise: float = 1.0
    unmask_blocks: int = 1
    unmask_steps: int = 0
    think: int = 0
    max_tokens: int = 64
    max_images: int = 1
    min_images: int = 0
    shift_by: str = "constant"
    spacing: str = "even"
    terminal: float = 0.0
    image_against: str = "text"
    negative: str = ""
    shift_tokens: int = BASE_TOKENS
    conditions: Mapping[str, float] = dataclasses.field(default_factory=dict)
    kinds: Mapping[str, KindConfig] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if field.type in (str, int, float):
                object.__setattr__(self, field.name, _checked(field, getattr(self, field.name)))
        tables = {
            "solver": SOLVERS,
            "shift_by": SHIFTS,
            "spacing": SPACINGS,
            "renorm": RENORMS,
            "without_text": text.UNSEEN,
            "image_against": AGAINST,
        }
        for field, known in tables.items():
            check(f"sampling.{field}", getattr(self, field), known)
        self._check_tables()
        if self.spacing in ("leading", "trailing") and self.steps > STEPS:
            raise UsageError(f"sampling.steps={self.steps}: {STEPS} steps are the most of {self.spacing!r}")

    def _check_tables(self) -> None:
        """Checks `conditions` and `kinds`, whose rows may be plain tables of fields."""
        scale = next(field for field in dataclasses.fields(self) if field.name == "image_guidance")
        scales = _table("conditions", self.conditions)
        checked = {kind: _checked(scale, value, f"sampling.conditions.{kind}") for kind, value in scales.items()}
        object.__setattr__(self, "conditions", checked)
        rows = {kind: _kind_row(kind, row) for kind, row in _table("kinds", self.kinds).items()}
        object.__setattr__(self, "kinds", rows)
        for kind in rows:
            try:
                self.of_kind(kind)
            except UsageError as error:
                raise UsageError(f"sampling.kinds.{kind}: {error}") from error

    def of_kind(self, kind: str) -> "SamplerConfig":
        """The settings with which items of this kind are drawn."""
        row = self.kinds.get(kind)
        if row is None:
            return self
        named = {name: value for name, value in vars(row).items() if value is not None}
        return dataclasses.replace(self, kinds={}, **named)

    def of_condition(self, kind: str) -> float:
        """The scale of the media of this kind that a prompt holds."""
        return self.conditions.get(kind, self.image_guidance)

    @property
    def goes_on(self) -> bool:
        """Whether something may follow an image."""
        return self.max_tokens > 0 or min(self.max_images, self.min_images) > 1

    def times(self, prediction: str, tokens: int) -> np.ndarray:
        """Makes the time grid float32 [steps + 1] for images of so many tokens."""
        shift = SHIFTS[self.shift_by](self.shift, tokens, self.shift_tokens)
        return time_grid(self.steps, shift, prediction, self.spacing, self.terminal)


def plain_number(value: object) -> object:
    """Turns NumPy's numbers, and arrays of NumPy and JAX without axes, into Python's; other values stay unchanged."""
    # The dtype of a random key of JAX is none of NumPy's: there is no number in it.
    if isinstance(getattr(value, "dtype", None), np.dtype) and getattr(value, "shape", None) == ():
        return value.item()
    return value


def _table(name: str, value: object) -> Mapping[str, Any]:
    """Returns a setting that is a table by kinds.

    Raises:
      UsageError: if it is none.
    """
    if not isinstance(value, Mapping):
        raise UsageError(f"sampling.{name}={shown(repr(value))} must be a table, as in {{'sound': ...}}")
    return value


def _kind_row(kind: str, row: object) -> KindConfig:
    """Returns a row of `kinds`.

    Raises:
      UsageError: if it has other fields than `KindConfig`.
    """
    if isinstance(row, KindConfig):
        return row
    known = [field.name for field in dataclasses.fields(KindConfig)]
    for name in _table(f"kinds.{kind}", row):
        if name not in known:
            raise UsageError(f"sampling.kinds.{kind}: no setting {name!r}{nearest(str(name), known)}")
    return KindConfig(**row)


def _checked(field: dataclasses.Field, value: object, name: str = "") -> object:
    """Checks the type and size of a setting; NumPy's numbers become Python's.

    Raises:
      UsageError: naming the field, its value and what it must be.
    """
    name, value = name or f"sampling.{field.name}", plain_number(value)
    if field.type is str:
        if not isinstance(value, str):
            raise UsageError(f"{name}={shown(repr(value))} must be a string")
        return value
    whole = field.type is int
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        raise UsageError(f"{name}={shown(repr(value))} must be a {'whole ' if whole else ''}number")
    low, high = LIMITS.get(field.name, (-LARGE, LARGE))
    if not low <= value <= high or value == OPEN.get(field.name):  # a NaN is in no range
        edge = OPEN.get(field.name)
        least = f"{'more than' if edge == low else 'at least'} {low:.12g}"
        most = f"{'less than' if edge == high else 'at most'} {high:.12g}"
        raise UsageError(f"{name}={f'{value!r}':.40} must be {least} and {most}")
    return value
