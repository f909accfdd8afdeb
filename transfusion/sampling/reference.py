"""The decoder written plainly: one prompt, no cache, the whole document through the model for every token and step.

`transfusion.sampling.decoder` must equal it token by token; the tests compare them.
"""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from transfusion.learner import Learner
from transfusion.model.inputs import inputs_of
from transfusion.model.parameters import Params
from transfusion.objectives.paths import PATHS, estimates
from transfusion.sampling import reference_codes
from transfusion.sampling.choose import NEVER, Filters, emittable
from transfusion.sampling.conditions import compared, guiding
from transfusion.sampling.config import SamplerConfig
from transfusion.sampling.drawable import Drawable, chosen, drawables_of
from transfusion.sampling.guidance import Guidance
from transfusion.sampling.parts import PaintedParts, SpelledParts
from transfusion.sampling.prompts import Prompt
from transfusion.sampling.solvers import SOLVERS
from transfusion.sampling.state import first_noise, row_keys, step_noise, text_keys
from transfusion.sampling.ways import Way, sizes_of, ways_of
from transfusion.sequence import TEXT, Document, Run, Segment, SequenceSpec
from transfusion.sequence.patches import patchify, unpatchify
from transfusion.sequence.rows import assemble, expand
from transfusion.sequence.spelling import CODE, Spelling
from transfusion.sequence.times import AHEAD


@partial(jax.jit, static_argnums=0)
def _forward(task: Learner, params: Params, batch, times, aheads=None) -> dict[str, jax.Array]:
    model = task.template.bind(params)
    inputs = {}
    for name, part in batch.items():
        content = part.tokens if part.values is None else part.values
        inputs[name] = inputs_of(name, batch, task.spec, content, times.get(name), (aheads or {}).get(name))
    encoded = model.encode(inputs)
    return {name: model.head(name, encoded[name]) for name in inputs}


@dataclasses.dataclass
class _Row:
    """One document while it is written and drawn."""

    task: Learner
    params: Params
    config: SamplerConfig
    ways: dict[int, Way]  # by the opener of what they draw
    way: Way | None  # in which an item is drawn just now
    key: jax.Array
    prompt: Prompt
    document: Document

    @property
    def drawable(self) -> Drawable:
        """The kind of the item that is drawn just now."""
        return self.way.parts.drawable

    def drawing(self, opener: int) -> "_Row":
        """The row while it draws what this id opens."""
        way = self.ways[opener]
        config = self.config.of_kind(way.parts.drawable.kind)
        return dataclasses.replace(self, way=way, config=config)

    @property
    def parts(self) -> PaintedParts | SpelledParts:
        """The parts of an item, which tell its size."""
        return self.way.parts

    def outputs(
        self,
        document: Document,
        last_time: float = 1.0,
        hidden: np.ndarray | None = None,
        spec: SequenceSpec | None = None,
        ahead: float = 0.0,
    ) -> tuple[dict[str, np.ndarray], dict[str, int]]:
        """Runs the model: the heads' outputs for each stream's tokens, and the number of tokens.

        The last image has the time `last_time`, and is asked for its mean velocity so far `ahead`, or those of its
        codes or patches that are `hidden`, bool [n], are masked."""
        spec = spec or self.task.spec
        part = expand(document, spec, end=False)
        batch = assemble([[part]], spec)
        times = {n: np.ones_like(s.time_low) for n, s in batch.items() if s.time_low is not None}
        aheads = {name: np.zeros_like(time) for name, time in times.items()}
        if last_time != 1.0:
            name = self.drawable.run.stream
            times[name][0, part.items[name] - 1] = last_time
            aheads[name][0, part.items[name] - 1] = ahead
        if hidden is not None:
            name = self.drawable.run.stream
            last = slice(part.cost[name] - len(hidden), part.cost[name])
            content = spec.streams[name].content
            getattr(batch[name], content.field)[0, last][hidden] = content.nothing
        out = _forward(self.task, self.params, batch, times, aheads)
        return {name: np.asarray(value[0]) for name, value in out.items()}, part.cost

    def token(self, count: int, drawn: int) -> int:
        """Chooses the next id."""
        out, cost = self.outputs(self.document)
        may = drawn < self.config.max_images
        allowed = emittable(self.task.spec, tuple(self.ways) if may else ())
        how = (self.config.temperature, self.config.top_k, self.config.top_p)
        return self.choose(np.where(allowed, out[TEXT][cost[TEXT] - 1], NEVER), count, *how)

    def choose(self, logits: np.ndarray, count: int, temperature: float, top_k: int, top_p: float) -> int:
        """Chooses an id from logits [V], after `count` ids."""
        filters = Filters.of(temperature, top_k, top_p)
        key = text_keys(self.key, jnp.array([count]))
        return int(filters.choose(logits[None], key, temperature, top_p)[0])

    def spelled(self, count: int) -> tuple[np.ndarray, int]:
        """One image of codes [*grid], id by id from the first of those that fit, and the number of ids put out before
        it and in it, its closer included."""
        config, run = self.config, self.drawable.run
        versions = compared([self.drawn_prompt], config, self.task.spec)
        documents = [self.document, *(version.segments for (version,) in versions)]
        fitting = [(*run.spelling.template(grid), run.closer) for grid in self.parts.grids]
        written: list[int] = []
        while not written or written[-1] != run.closer:
            spans = [_span(template[len(written)], run.spelling) for template in fitting]
            logits = self.guided_logits([self.after(document, written) for document in documents])
            allowed = np.zeros(len(logits), bool)
            for span in spans:
                allowed[span.start : span.stop] = True
            how = (config.code_temperature, config.code_top_k, config.code_top_p)
            written.append(self.choose(np.where(allowed, logits, NEVER), count + len(written), *how))
            fitting = [template for template, span in zip(fitting, spans, strict=True) if written[-1] in span]
        return run.spelling.parse(written[:-1]), count + len(written)

    def after(self, document: Document, written: list[int]) -> np.ndarray:
        """Computes the logits [V] after the opener and the ids of an image that has begun."""
        run, spec = self.drawable.run, self.task.spec
        spec = dataclasses.replace(spec, layout={**spec.layout, "written": (Run(run.stream),)})
        opened = Segment(TEXT, np.array([run.opener], np.int32))
        rest = (Segment("written", np.array(written, np.int32)),) if written else ()
        out, cost = self.outputs((*document, opened, *rest), spec=spec)
        name = run.stream if written else TEXT
        return out[name][cost[name] - 1]

    @property
    def drawn_prompt(self) -> Prompt:
        """The prompt, about to draw."""
        return dataclasses.replace(self.prompt, draw=True, kind=self.drawable.kind)

    def guided_logits(self, logits: list[np.ndarray]) -> np.ndarray:
        """Guides the logits [V] of the prompt by those without its text, and without each kind of its media."""
        config, (c, *others) = self.config, logits
        if not others:
            return c
        u, *without = others
        v = u + config.guidance * (c - u)
        guides = v if config.image_against == "text" else u
        scales = [config.of_condition(kind) for kind in guiding([self.prompt], config)]
        return v + sum((scale - 1) * (guides - w) for scale, w in zip(scales, without, strict=True))

    def predicted(self, prompt: Prompt, x: jax.Array, t: jax.Array, ahead: float = 0.0) -> jax.Array:
        latents = np.asarray(unpatchify(x, self.parts.shape[:-1], self.drawable.stream.patch_sides))[0]
        drawn = Segment(self.drawable.kind, latents, "target", prompt.label, pooled=prompt.pooled)
        out, cost = self.outputs((*prompt.segments, drawn), float(t), ahead=float(ahead))
        name, n = self.drawable.run.stream, x.shape[1]
        return jnp.asarray(out[name][cost[name] - n : cost[name]])[None]

    def guided(self, t: float, predict: Callable[[Prompt], jax.Array], ramp: float = 1.0) -> jax.Array:
        """Guides the result of `predict` after the document, at the time t, by `ramp` times the guidance."""
        config, v = self.config, predict(dataclasses.replace(self.prompt, segments=self.document))
        scales = [config.of_condition(kind) for kind in guiding([self.prompt], config)]
        guidance = Guidance(
            scale=1 + ramp * (config.guidance - 1),
            low=config.guidance_low,
            high=config.guidance_high,
            media=tuple(scales),
            least=config.renorm_least,
            renorm=config.renorm,
            against=config.image_against,
        )
        versions = compared([self.drawn_prompt], config, self.task.spec)
        if not versions or not guidance.applies(t):
            return v
        return guidance.combine(v, *(predict(version) for (version,) in versions))

    def image(self, drawn: int) -> np.ndarray:
        """Draws one image [h, w, C], or its codes."""
        return PAINTERS[self.drawable.stream.objective](self, drawn)

    def solved(self, drawn: int) -> np.ndarray:
        """Draws one image [h, w, C] by a solver."""
        config, continuous = self.config, self.task.objectives.of_continuous(self.drawable.run.stream)
        path = PATHS[continuous.path]

        def field(x, t, ahead=0.0):
            v = self.guided(t, lambda prompt: self.predicted(prompt, x, t, ahead))
            return estimates(path, continuous.prediction, t, x, v)

        stream, solver = self.drawable.stream, SOLVERS[config.solver]
        n, features = patchify(np.zeros(self.parts.shape), stream.patch_sides).shape
        number, extra = jnp.array([drawn]), stream.content.lead
        shape = (extra + n, features)  # noise falls on a time token too, where there is one
        x = first_noise(self.key, number, shape)[:, extra:]
        times, memory = config.times(continuous.prediction, n), solver.first_memory(x)
        for i, (t, s) in enumerate(zip(times[:-1], times[1:], strict=True)):
            noise = lambda i=i: step_noise(self.key, number, i, shape)[:, extra:]  # noqa: E731
            x, _, memory = solver.step(field, path, x, t, s, noise, memory)
        return np.asarray(unpatchify(x, self.parts.shape[:-1], stream.patch_sides))[0]


PAINTERS = dict.fromkeys(("continuous", *AHEAD), _Row.solved) | reference_codes.CODE_PAINTERS


def _span(symbol: int, spelling: Spelling) -> range:
    """The ids that may stand where a template has this symbol."""
    return range(spelling.first, spelling.first + spelling.codes) if symbol == CODE else range(symbol, symbol + 1)


def generate_one(
    task: Learner, params: Params, prompt: Prompt, seed: int, config: SamplerConfig, number: int = 0
) -> Document:
    """Gives the result of `generate` for the prompt with this number; the document must fit one packed row."""
    spec = task.spec
    asked = [chosen(drawables_of(spec), prompt.kind)] if prompt.draw else []
    kinds = [drawn.kind for drawn in asked]
    sizes = sizes_of(spec, prompt.size or (0, 0), kinds, config.max_tokens > 0) if config.max_images else {}
    by_opener = {way.parts.drawable.opener: way for way in ways_of(spec, sizes, config.goes_on)}
    key = row_keys(seed, np.array([number]))
    row = _Row(task, params, config, by_opener, None, key, prompt, prompt.segments)
    made: list[Segment] = []
    count = written = drawn = 0
    opener = asked[0].opener if asked else -1  # of what must come, or came last
    thinks, opened = prompt.draw and config.think > 0, prompt.draw and not config.think
    least = min(config.min_images, config.max_images)
    while opened or thinks or written < config.max_tokens or 0 < drawn < least:
        opened |= 0 < drawn < least
        if not opened:
            token = spec.eos if thinks and written == config.think else row.token(count, drawn)
            if token == spec.eos and not thinks:
                break
            opened = token in (*by_opener, spec.eos)
            opener = token if opened and not thinks else opener
        count += 1
        if opened:
            drawing = row.drawing(opener)
            if drawing.drawable.spelled:
                content, count = drawing.spelled(count)
            else:
                content = drawing.image(drawn)
            new = Segment(drawing.drawable.kind, content, "context", prompt.label, pooled=prompt.pooled)
            drawn += 1
            if (not config.max_tokens and drawn >= least) or not drawing.way.goes_on:
                return (*made, new)
            thinks, written = False, 0 if thinks else written
        else:
            new = Segment(TEXT, np.array([token], np.int32))
            written += 1
        opened = False
        row.document = (*row.document, new)
        if made and made[-1].kind == new.kind == TEXT:
            made[-1] = Segment(TEXT, np.append(made[-1].value, new.value))
        else:
            made.append(new)
    return tuple(made)
