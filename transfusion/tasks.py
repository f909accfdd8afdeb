"""What can be trained: a task turns a config into parameters, a loss and a count of FLOPs. The loop knows no objective.

A task has
  template: `Template`, the parameters' shapes and logical axes, and `init(key)`
  batch_spec(rows), fake_batch(rows)
  draw(batch, key): the step's random numbers, for the whole batch
  totals(batch): the weight of each term of the loss, from the data alone
  loss(params, batch, draws, totals): the scalar, already divided by the totals, and Sums for the log; an entry
    `STATISTICS` of them is for the next function only
  after_step(old, new, statistics): the trained parameters `new` that the optimizer made of `old`, with what statistics
    of the whole batch change and no gradient does
  activations(rows): logical axes and shapes of what is split over devices, by the field of the config
  tokens(rows), flops(rows): of one step
  open_data(experiment, rows), held_out(experiment): batches of numpy arrays
  start(experiment, given): the parameters to start from, by path, with those that are measured on the data
so that gradients of parts of a batch (microbatches, devices) add up to the gradient of the whole.
"""

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transfusion import initial
from transfusion.batch import Batch, batch_spec
from transfusion.codecs import losses, quantizers, semantic
from transfusion.codecs.kl_autoencoder import AutoencoderConfig
from transfusion.codecs.text import BYTES, Tokenizer, open_tokenizer
from transfusion.codecs.vq_autoencoder import autoencoder_template
from transfusion.config import Experiment
from transfusion.data.check import check_data
from transfusion.data.config import DataConfig
from transfusion.data.image_batches import ImageBatches, image_epoch, usable_image
from transfusion.data.latent_cache import check_latents
from transfusion.data.pipeline import Pipeline, epoch_batches
from transfusion.data.sources import open_source
from transfusion.errors import UsageError, check
from transfusion.evaluation.features import lpips
from transfusion.fakes import fake_batch
from transfusion.latents import Codec, open_codec
from transfusion.masks import visible_pairs
from transfusion.model.config import TransformerConfig
from transfusion.model.parameters import Params
from transfusion.model.unified import Inputs, UnifiedModel, inputs_of, model_template, parameter_count
from transfusion.objectives import OBJECTIVES, ObjectivesConfig, Sums, config_of
from transfusion.sequence import SequenceSpec

Draws = dict[str, dict[str, jax.Array]]
Activations = dict[str, tuple[tuple[str, ...], tuple[int, ...]]]
LOOKED_UP = ("table", "quantizer", "level", "token")  # parameters of embeds of ids that multiply nothing


@dataclasses.dataclass(frozen=True, eq=False)
class SequenceTask:
    """Training a unified model on packed rows of documents."""

    model: TransformerConfig
    spec: SequenceSpec
    objectives: ObjectivesConfig
    tokenizer: Tokenizer = BYTES

    def __post_init__(self):
        for name, stream in self.spec.streams.items():
            check(f"streams.{name}.objective", stream.objective, OBJECTIVES)
        object.__setattr__(self, "template", model_template(self.model, self.spec))

    def batch_spec(self, rows: int) -> Batch:
        return batch_spec(self.spec, rows)

    def fake_batch(self, rows: int, seed: int = 0) -> Batch:
        return fake_batch(self.spec, rows, seed)

    def _objective(self, name: str):
        objective = self.spec.streams[name].objective
        return OBJECTIVES[objective], config_of(name, objective, self.objectives)

    def draw(self, batch: Batch, key: jax.Array) -> Draws:
        """Per stream the random numbers of one step; a key per stream, folded from its place in the config."""
        result = {}
        for i, name in enumerate(self.spec.streams):
            objective, config = self._objective(name)
            result[name] = objective.draw(jax.random.fold_in(key, i), batch[name], config)
        return result

    def totals(self, batch: Batch) -> dict[str, jax.Array]:
        """Sum of the loss weights per stream, at least 1e-6: a batch without a stream's targets gives its loss 0."""
        return {name: jnp.maximum(jnp.sum(part.loss_weight), 1e-6) for name, part in batch.items()}

    def loss(self, params: Params, batch: Batch, draws: Draws, totals: dict[str, jax.Array]) -> tuple[jax.Array, Sums]:
        """Sum over streams of weight * (sum of token losses / total), and the reductions for the log."""
        model: UnifiedModel = self.template.bind(params)
        inputs = {name: self.inputs(name, batch, draws) for name in self.spec.streams}
        encoded, _ = model.encode(inputs)
        scalar, sums = jnp.zeros(()), {}
        for name, stream in self.spec.streams.items():
            objective, config = self._objective(name)
            if stream.objective == "none":
                continue
            part = batch[name]
            per_token, extra = objective.loss(model.head_of(name), encoded[name], part, draws[name], config)
            total = jnp.sum(per_token * part.loss_weight)
            scalar += stream.weight * total / totals[name]
            sums[f"{name}_loss"] = (total, part.loss_weight.sum())
            sums |= {f"{name}_{key}": pair for key, pair in extra.items()}
        return scalar, sums

    def after_step(self, old: Params, new: Params, statistics: None) -> Params:
        return new

    def inputs(self, name: str, batch: Batch, draws: Draws) -> Inputs:
        """The forward pass' inputs of one stream of a packed batch."""
        part = batch[name]
        objective, config = self._objective(name)
        time = draws[name].get("time", part.time_low)
        return inputs_of(name, batch, self.spec, objective.content(part, draws[name], config), time)

    def activations(self, rows: int) -> Activations:
        """The tokens of every stream, and every trunk's heads and hidden width."""
        streams = self.spec.streams.items()
        result = {f"streams.{name}.budget": (("batch", "tokens"), (rows, s.budget)) for name, s in streams}
        stages = {f"model.stages.{name}.trunk": stage.trunk for name, stage in self.model.stages.items()}
        for where, trunk in ({"model": self.model} | stages).items():
            sizes = {"heads": trunk.heads, "kv_heads": trunk.groups}
            result |= {f"{where}.{name}": (("act_heads",), (size,)) for name, size in sizes.items()}
            result[f"{where}.ffn"] = (("act_mlp",), (trunk.hidden,))
        return result

    def tokens(self, rows: int) -> int:
        """Slots of one step, padding included."""
        return rows * sum(stream.budget for stream in self.spec.streams.values())

    def open_data(self, experiment: Experiment, rows: Sequence[int] | None = None) -> contextlib.AbstractContextManager:
        """The given `rows` of the endless training batches, with `state`, `restore`, `stats` and `fingerprint`.

        Raises:
          UsageError: if the data cannot be used, held-out data included; see `check_data`.
        """
        codec = open_codec(experiment.codec)
        self._check_resolutions(experiment, codec.down)
        self._check_latents(experiment.data, codec)
        data = Pipeline(
            experiment.data, self.spec, experiment.batch_size, experiment.seed, rows, codec.encode,
            tokenizer=self.tokenizer,
        )  # fmt: skip
        check_data(experiment, data.sources, data.example_of)
        return data

    def _check_resolutions(self, experiment: Experiment, down: int) -> None:
        """A source that is resized to what no stream holds would give bad records only."""
        # Series have no pixels; of clips the last two sides count.
        drawn = (s for s in self.spec.streams.values() if s.aligned and s.source == "value" and len(s.grid) > 1)
        grids = {s.grid[-2:] for s in drawn}
        if self.spec.spelling:
            grids |= {grid[-2:] for grid in self.spec.spelling.grids if len(grid) > 1}
        mixed = any(s.mixed_sizes for s in self.spec.streams.values())
        for name, source in experiment.data.sources.items():
            side = source.resolution // down
            if source.resolution and grids and not mixed and (side, side) not in grids:
                wanted = " or ".join(f"{h * down}x{w * down}" for h, w in sorted(grids))
                raise UsageError(
                    f"data.sources.{name}.resolution: {source.resolution} does not fit the streams' images of {wanted}"
                )

    def start(self, experiment: Experiment, given: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """As given: nothing is measured."""
        return given

    def _check_latents(self, data: DataConfig, codec: Codec) -> None:
        check_latents(data.sources, data, self.spec.reads_pixels, lambda: codec.digest)

    def held_out(self, experiment: Experiment) -> Iterator[Batch]:
        """Every held-out record once."""
        codec = open_codec(experiment.codec)
        nothing_dropped = {"drop_caption": 0.0, "drop_conditions": {}}
        data = dataclasses.replace(experiment.data, sources=experiment.eval.sources, **nothing_dropped)
        self._check_latents(data, codec)
        for name, source in experiment.eval.sources.items():
            source.validate(f"eval.sources.{name}", data.pixel_limit)
            records = open_source(source, data.data_dir, data.pixel_limit)
            yield from epoch_batches(
                records, data, self.spec, experiment.batch_size, experiment.seed, codec.encode, self.tokenizer
            )

    def flops(self, rows: int) -> float:
        """Model FLOPs of one training step: 6 per weight that a token meets, and 12 D per layer and pair of tokens of
        which one sees the other (see `masks.visible_pairs`); recomputation is not counted (PaLM, appendix B)."""
        shapes, total = self.template.shapes, 0.0
        for name, stream in self.spec.streams.items():
            parts = shapes["parts"][stream.parts or name]
            head = parts["embed"] if stream.tied else parts.get("head", {})
            embed = {n: w for n, w in parts["embed"].items() if not (stream.discrete and n in LOOKED_UP)}
            total += 6.0 * stream.budget * sum(map(parameter_count, (head, embed)))
        trunks = [(self.model, shapes["trunk"])]
        trunks += [(stage.trunk, shapes["stages"][name]) for name, stage in self.model.stages.items()]
        return rows * (total + sum(self._trunk_flops(*trunk) for trunk in trunks))

    def _trunk_flops(self, config: TransformerConfig, shapes: dict[str, Any]) -> float:
        """Of one trunk and one row."""
        inside = {n: s for n, s in self.spec.streams.items() if n in (config.streams or self.spec.streams)}
        changed = {name: stream for name, stream in inside.items() if name not in config.cross}
        blocks, first, total = shapes["blocks"], next(iter(changed.values())).expert, 0.0
        for name, stream in changed.items():
            total += 6.0 * stream.budget * parameter_count(blocks[first] | blocks.get(stream.expert, {}))
            total += 6.0 * stream.max_items * parameter_count(shapes.get("modulation", {}).get(name, {}))
        length = sum(stream.budget for stream in changed.values())
        context = sum(inside[name].budget for name in config.cross)
        for name, weight in shapes.get("cross", {}).items():  # keys and values are the context's, the rest the tokens'
            total += 6.0 * (context if name[0] in "kv" else length) * parameter_count(weight)
        pairs = visible_pairs(self.spec, changed, inside, config.causal)
        return total + 12.0 * config.layers * pairs * config.heads * config.size


@dataclasses.dataclass(frozen=True, eq=False)
class AutoencoderTask:
    """Training a codec; a batch is float32 images [B, H, W, C] in [-1, 1] with a weight [B].

    `sides` are (height, width), of clips (frames, height, width).
    """

    config: AutoencoderConfig
    sides: tuple[int, ...]

    def __post_init__(self):
        object.__setattr__(self, "template", autoencoder_template(self.config))
        self.static.code_shape(*self.sides)  # refuses what the codec cannot represent
        weight, layers = self.config.perceptual_weight, self.config.perceptual_layers
        object.__setattr__(self, "perceptual", lpips(layers, min(self.sides[-2:])) if weight else None)

    @property
    def static(self) -> Any:
        """The codec without its arrays."""
        return self.template.bind(self.template.shapes)

    def batch_spec(self, rows: int) -> dict[str, Any]:
        shape = (rows, *self.sides, self.config.image_channels)
        return {
            "images": jax.ShapeDtypeStruct(shape, jnp.float32),
            "weight": jax.ShapeDtypeStruct((rows,), jnp.float32),
        }

    def fake_batch(self, rows: int, seed: int = 0) -> dict[str, np.ndarray]:
        spec = self.batch_spec(rows)["images"]
        images = np.random.default_rng(seed).uniform(-1, 1, spec.shape).astype(np.float32)
        return {"images": images, "weight": np.ones(rows, np.float32)}

    def draw(self, batch: dict[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        return self.static.draw(key, batch["weight"].shape[0], self.sides)

    def totals(self, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return {"images": jnp.maximum(jnp.sum(batch["weight"]), 1e-6)}

    def loss(self, params: Params, batch, draws, totals) -> tuple[jax.Array, Sums]:
        """The mean over the images of all terms (see `codecs.losses.loss`), and the reductions for the log."""
        model = self.template.bind(params)
        total, sums = losses.loss(model, batch["images"], draws, batch["weight"], self.perceptual)
        return total / totals["images"], sums

    def after_step(self, old: Params, new: Params, statistics: quantizers.Statistics | None) -> Params:
        """With the codebook's averages and revived codes, and the discriminator a step older."""
        result = dict(new)
        if statistics is not None and "codebook" in new.get("quantizer", {}):
            update = quantizers.update(self.config.quantizer, old["quantizer"], new["quantizer"], statistics)
            result["quantizer"] = update
        if "age" in new.get("discriminator", {}):
            result["discriminator"] = new["discriminator"] | {"age": old["discriminator"]["age"] + 1}
        return result

    def activations(self, rows: int) -> Activations:
        """Images. There are no tokens that a context could split."""
        return {"task 'autoencoder'": (("batch", "tokens"), (rows, 1))}

    def tokens(self, rows: int) -> int:
        """Pixels of one step."""
        return rows * math.prod(self.sides)

    def flops(self, rows: int) -> float:
        """3 x encoding and decoding as the compiler counts it (of a frozen tower one layer), without the
        networks that only judge."""
        batch = self.batch_spec(rows)

        def forward(params, images):
            model = self.template.bind(params)
            return model.decode(model.encode(images))

        return 3.0 * jax.jit(forward).lower(self.template.shapes, batch["images"]).cost_analysis()["flops"]

    @property
    def medium(self) -> str:
        """Which key of a record it reads."""
        return "video" if self.config.frames else "image"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an image, or a clip, that it reads."""
        return (*self.sides, self.config.image_channels)

    def open_data(self, experiment: Experiment, rows: Sequence[int] | None = None) -> contextlib.AbstractContextManager:
        medium, shape = self.medium, self.shape
        data = ImageBatches(experiment.data, experiment.batch_size, experiment.seed, rows, medium, shape)
        check_data(experiment, data.sources, lambda record: usable_image(record, medium, shape))
        return data

    def start(self, experiment: Experiment, given: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """With the mean and deviation of a tower's features over the first training images, if there is a tower."""
        if self.config.tower is None:
            return given
        fresh = self.template.init
        tower = jax.jit(lambda given: initial.replace(fresh(jax.random.key(experiment.seed)), given)["tower"])(given)
        with ImageBatches(experiment.data, semantic.BATCH, experiment.seed, shape=self.shape) as batches:
            images = (batch["images"] for batch in itertools.islice(batches, semantic.BATCHES))
            return given | semantic.statistics(self.template, tower, images)

    def held_out(self, experiment: Experiment) -> Iterator[dict[str, np.ndarray]]:
        data = dataclasses.replace(experiment.data, sources=experiment.eval.sources)
        for name, source in experiment.eval.sources.items():
            source.validate(f"eval.sources.{name}", data.pixel_limit)
            records = open_source(source, data.data_dir, data.pixel_limit)
            yield from image_epoch(records, experiment.batch_size, self.medium, self.shape)


Task = SequenceTask | AutoencoderTask


def make_task(experiment: Experiment) -> Task:
    """The task of an experiment.

    Raises:
      UsageError: if its parts do not fit each other.
    """
    if experiment.task == "sequence":
        if not experiment.streams or "text" not in experiment.streams:
            raise UsageError("streams: a sequence needs at least the stream 'text'")
        tokenizer = open_tokenizer(experiment.tokenizer)
        return SequenceTask(experiment.model, experiment.spec_with(tokenizer), experiment.objectives, tokenizer)
    cached = [name for name, s in (experiment.data.sources | experiment.eval.sources).items() if s.latents]
    if cached:
        raise UsageError(f"sources.{cached[0]}.latents: an autoencoder is trained on pixels")
    config = experiment.autoencoder
    sides = {(source.length, source.resolution) for source in experiment.data.sources.values()}
    if len(sides) != 1 or 0 in {side for _, side in sides}:
        raise UsageError("data.sources: an autoencoder needs one resolution, the same for all sources")
    frames, side = sides.pop()
    if config.frames and not frames:
        raise UsageError("data.sources: an autoencoder of clips needs one length, the same for all sources")
    return AutoencoderTask(config, (frames, side, side) if config.frames else (side, side))
