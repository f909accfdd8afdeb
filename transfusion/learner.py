"""The learner of a config: its parameters, random draws, loss and FLOPs on packed batches. It reads no data, no files.

Sampling, planning and evaluation take a `Learner`; `transfusion.tasks` adds the data that training needs.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transfusion.errors import UsageError, check
from transfusion.model.attention import backend_in_forward_mode
from transfusion.model.config import TransformerConfig
from transfusion.model.embeds import EMBEDS
from transfusion.model.experts import KINDS, FeedForwardConfig, balanced
from transfusion.model.inputs import Inputs, inputs_of
from transfusion.model.parameters import Params, Template
from transfusion.model.transformer import FIRST, Loads
from transfusion.model.unified import UnifiedModel, model_template, parameter_count
from transfusion.objectives import OBJECTIVES, STATISTICS, Objective, ObjectivesConfig, Sums
from transfusion.sequence import SequenceSpec
from transfusion.sequence.batch import Batch, batch_spec
from transfusion.sequence.fakes import fake_batch
from transfusion.sequence.pairs import allowed_pairs, pairs_of_one_document
from transfusion.sequence.stream import Stream
from transfusion.sequence.text import BYTES, Tokenizer
from transfusion.sequence.wordless import without_words

Draws = dict[str, dict[str, jax.Array]]
Activations = dict[str, tuple[tuple[str, ...], tuple[int, ...]]]


@dataclasses.dataclass(frozen=True, eq=False)
class Learner:
    """A model over packed batches: its template, its random numbers and its loss.

    Attributes:
      model, spec, objectives: the parts of an experiment that give the weights their meaning.
      tokenizer: turns text into ids and back; the arrays do not depend on it.
      template: the parameters' shapes and logical axes, and `init(key)`.

    Raises:
      UsageError: if a stream's objective is not known, or the model does not fit the streams.
    """

    model: TransformerConfig
    spec: SequenceSpec
    objectives: ObjectivesConfig
    tokenizer: Tokenizer = BYTES

    def __post_init__(self):
        for name, stream in self.spec.streams.items():
            check(f"streams.{name}.objective", stream.objective, OBJECTIVES)
            if stream.ahead and not self.spec.streams[stream.parts or name].ahead:
                raise UsageError(f"streams.{name}: the stream {stream.parts!r}, whose parts it has, has no second time")
            objective, config = self._objective(name)
            objective.fits(f"objectives.continuous.{name}", config)
            for other in objective.beside(config):
                _check_apart(name, other, self.spec)
        for trunk in self._trunks.values():
            _check_causal(trunk, self.spec)
        object.__setattr__(self, "template", model_template(self.model, self.spec))

    @property
    def learned(self) -> list[str]:  # the streams that have a loss
        return [name for name, stream in self.spec.streams.items() if stream.objective != "none"]

    def batch_spec(self, rows: int) -> Batch:
        return batch_spec(self.spec, rows)

    def fake_batch(self, rows: int, seed: int = 0) -> Batch:
        return fake_batch(self.spec, rows, seed)

    def _objective(self, name: str) -> tuple[Objective, Any]:
        """Finds a stream's objective and its settings."""
        objective = OBJECTIVES[self.spec.streams[name].objective]
        return objective, objective.config(self.objectives, name)

    def draw(self, batch: Batch, key: jax.Array) -> Draws:
        """Draws the random numbers of one step; each stream's key is folded from its place in the config."""
        result = {}
        for i, name in enumerate(self.spec.streams):
            objective, config = self._objective(name)
            result[name] = objective.draw(jax.random.fold_in(key, i), batch[name], config)
        return result

    def with_targets(self, params: Params, batch: Batch, draws: Draws) -> Draws:
        """Adds the targets that come from the model itself to the draws of a step, for the rows that have some."""
        result = dict(draws)
        for name in self.spec.streams:
            objective, config = self._objective(name)
            if objective.target is None:
                continue
            some, drawn = jax.tree.map(lambda x, n=config.ahead.every: x[::n], (batch, draws))
            predict = self._prediction(name, params, some, drawn)
            found = objective.target(predict, some[name], drawn[name], config)
            target = jnp.zeros(batch[name].values.shape, found.dtype).at[:: config.ahead.every].set(found)
            result[name] = draws[name] | {"target": target}
        return result

    @functools.cached_property
    def _in_forward_mode(self) -> Template:
        """The template of the same model for targets, which have no gradient, and may need derivatives themselves."""
        return model_template(self.model, self.spec, backend_in_forward_mode)

    def _prediction(self, name: str, params: Params, batch: Batch, draws: Draws) -> Callable[..., jax.Array]:
        """Makes `transfusion.objectives.ahead.Predict` of one stream; the other streams are as they are in training."""
        model: UnifiedModel = self._in_forward_mode.bind(params)

        def predict(x: jax.Array, time: jax.Array, ahead: jax.Array, words: bool = True) -> jax.Array:
            rows = batch if words else without_words(batch, self.spec)
            inputs = {other: self.inputs(other, rows, draws) for other in self.spec.streams if other != name}
            inputs[name] = inputs_of(name, rows, self.spec, x, time, ahead)
            return model.head(name, model.encode({other: inputs[other] for other in self.spec.streams})[name])

        return predict

    def totals(self, batch: Batch) -> dict[str, jax.Array]:
        """Sums the loss weights per stream, at least 1e-6, so that a stream without targets in a batch has loss 0."""
        return {name: jnp.maximum(jnp.sum(part.loss_weight), 1e-6) for name, part in batch.items()}

    def loss(self, params: Params, batch: Batch, draws: Draws, totals: dict[str, jax.Array]) -> tuple[jax.Array, Sums]:
        """The loss, summed over streams as weight * (sum of token losses / total), and the sums for the log."""
        model: UnifiedModel = self.template.bind(params)
        inputs = {name: self.inputs(name, batch, draws) for name in self.spec.streams}
        encoded, loads = model.encode_counted(inputs)
        scalar, sums = jnp.zeros(()), _sums_of(loads)
        for name in self.learned:
            (objective, config), part = self._objective(name), batch[name]
            beside = {other: (encoded[other].hidden, batch[other]) for other in objective.beside(config)}
            per_token, extra = objective.loss(model.head_of(name), encoded[name], part, draws[name] | beside, config)
            total = jnp.sum(per_token * part.loss_weight)
            scalar += self.spec.streams[name].weight * total / totals[name]
            sums[f"{name}_loss"] = (total, part.loss_weight.sum())
            sums |= {f"{name}_{key}": pair for key, pair in extra.items()}
        return scalar, sums

    def after_step(self, old: Params, new: Params, statistics: dict[str, jax.Array] | None) -> Params:
        """Moves the biases of routers by the loads of their experts in the whole batch."""
        if not statistics:
            return new

        def move(path, new, old):
            at = "/".join(str(key.key) for key in path)
            return balanced(old, statistics[at], self._routed[at]) if at in statistics else new

        return jax.tree_util.tree_map_with_path(move, new, old)

    @functools.cached_property
    def _routed(self) -> dict[str, FeedForwardConfig]:
        """The routed feed-forward layers of all trunks, by the path of their routers' biases."""
        return {
            _bias_of(where, name): layer
            for where, trunk in self._trunks.items()
            for name, layer in trunk.feed_forwards.items()
        }

    @property
    def _trunks(self) -> dict[str, TransformerConfig]:
        """The trunks' configs by their names."""
        return {FIRST: self.model} | {name: stage.trunk for name, stage in self.model.stages.items()}

    def inputs(self, name: str, batch: Batch, draws: Draws) -> Inputs:
        """Makes the inputs of the forward pass for one stream of a packed batch."""
        part = batch[name]
        objective, config = self._objective(name)
        time = draws[name].get("time", part.time_low)
        content = objective.content(part, draws[name], config)
        return inputs_of(name, batch, self.spec, content, time, draws[name].get("ahead"))

    def activations(self, rows: int) -> Activations:
        """The sizes that decide the memory of activations: tokens per stream, each trunk's heads and hidden width."""
        streams = self.spec.streams.items()
        result = {f"streams.{name}.budget": (("batch", "tokens"), (rows, s.budget)) for name, s in streams}
        stages = {f"model.stages.{name}.trunk": stage.trunk for name, stage in self.model.stages.items()}
        for where, trunk in ({"model": self.model} | stages).items():
            sizes = {"heads": trunk.heads, "kv_heads": trunk.groups}
            result |= {f"{where}.{name}": (("act_heads",), (size,)) for name, size in sizes.items()}
            result[f"{where}.ffn"] = (("act_mlp",), (trunk.hidden,))
        return result

    def tokens(self, rows: int) -> int:
        """The number of token slots in one step, padding included."""
        return rows * sum(stream.budget for stream in self.spec.streams.values())

    def flops(self, batch: Batch) -> np.ndarray:
        """Counts the model FLOPs of one training step on each packed row, without recomputation (PaLM, appendix B).

        They are 6 per weight and token slot that passes it, padding included, and 12 D per layer and pair of tokens of
        this very batch of which one sees the other (see `pairs.allowed_pairs`). `batch` has numpy arrays; the result is
        float64 [B].
        """
        return self._flops(lambda *streams: allowed_pairs(batch, self.spec, *streams))

    def flops_of_one_document(self) -> float:
        """The model FLOPs of a row that is one full document: more than packed rows need (see `pairs`)."""
        return self._flops(lambda *streams: pairs_of_one_document(self.spec, *streams))

    def _flops(self, pairs: Callable[..., Any]) -> Any:
        """The FLOPs of a row, or of several, for which `pairs(queries, keys, causal)` counts a trunk's pairs."""
        total = self._weight_flops
        for config in self._trunks.values():
            inside, changed = self._streams_of(config)
            total = total + 12.0 * config.layers * config.heads * config.size * pairs(changed, inside, config.causal)
        return total

    @property
    def weights_per_token(self) -> float:
        """How many weights a token slot passes, as the mean over slots: a routed token passes few of the experts'."""
        return self._weight_flops / 6 / self.tokens(1)

    @functools.cached_property
    def _weight_flops(self) -> float:
        """The FLOPs of a row's products with weights, which its content does not change."""
        shapes, total = self.template.shapes, 0.0
        for name, stream in self.spec.streams.items():
            parts = shapes["parts"][stream.parts or name]
            head = parts["embed"] if stream.released.tied else parts.get("head", {})
            embed = {n: w for n, w in parts["embed"].items() if n not in EMBEDS[stream.embed].looked_up}
            total += 6.0 * stream.budget * sum(map(parameter_count, (head, embed)))
        trunks = [(self.model, shapes["trunk"])]
        trunks += [(stage.trunk, shapes["stages"][name]) for name, stage in self.model.stages.items()]
        return total + sum(self._trunk_weight_flops(*trunk) for trunk in trunks)

    def _trunk_weight_flops(self, config: TransformerConfig, shapes: dict[str, Any]) -> float:
        inside, changed = self._streams_of(config)
        blocks, first, total = shapes["blocks"], next(iter(changed.values())).expert, 0.0
        for name, stream in changed.items():
            absent = config.absent(stream.expert)
            weights = blocks[first] | blocks.get(stream.expert, {})
            total += 6.0 * stream.budget * parameter_count({n: w for n, w in weights.items() if n not in absent})
            for at, layer in config.feed_forwards.items():
                if name in (layer.streams or changed):
                    sizes = {n: w.size for n, w in shapes["feed_forwards"][at].items()}
                    total += 6.0 * stream.budget * KINDS[layer.kind].weights_per_token(layer, sizes)
            total += 6.0 * stream.max_items * parameter_count(shapes.get("modulation", {}).get(name, {}))
        length = sum(stream.budget for stream in changed.values())
        context = sum(inside[name].budget for name in config.cross)
        for name, weight in shapes.get("cross", {}).items():  # keys and values are the context's, the rest the tokens'
            total += 6.0 * (context if name[0] in "kv" else length) * parameter_count(weight)
        return total

    def _streams_of(self, config: TransformerConfig) -> tuple[dict[str, Stream], dict[str, Stream]]:
        """The streams whose tokens a trunk reads, and those of them that it changes."""
        inside = {n: s for n, s in self.spec.streams.items() if n in (config.streams or self.spec.streams)}
        return inside, {name: stream for name, stream in inside.items() if name not in config.cross}


def _check_apart(name: str, other: str, spec: SequenceSpec) -> None:
    """Refuses a stream that is compared with another one if one of the two sees the other."""
    if other not in spec.streams:
        raise UsageError(f"objectives: there is no stream {other!r} to compare {name!r} with")
    for seen, by in ((name, other), (other, name)):
        if not spec.streams[seen].visible_to or by in spec.streams[seen].visible_to:
            raise UsageError(
                f"streams.{seen}.visible_to: {name!r} and {other!r} are compared and must not see each other; leave "
                f"out {by!r}, such as visible_to=({seen!r},)"
            )


def _check_causal(trunk: TransformerConfig, spec: SequenceSpec) -> None:
    """Refuses streams to read causally whose spans have tokens of text, too.

    These would still see the whole span, in which other tokens then lie, so that `masks.intervals` would not be exact.
    """
    for runs in spec.layout.values():
        for run in runs:
            if run.stream in trunk.causal and run.boundary == "inside" and max(run.opener, run.closer) >= 0:
                raise UsageError(
                    f"model.causal names {run.stream!r}, whose openers and closers lie inside of its spans: set the "
                    f"boundary of its runs in the layout to 'outside'"
                )


def _bias_of(where: str, name: str) -> str:
    """The path of the biases of a routed feed-forward layer's router, in the trunk `where`."""
    return f"{where if where == FIRST else f'stages/{where}'}/feed_forwards/{name}/router_bias"


def _sums_of(loads: dict[str, Loads]) -> Sums:
    """The share of each stream's tokens that each routed expert had, over all layers; and the loads for the balance."""
    sums: Sums = {}
    statistics = {}
    for where, layers in loads.items():
        for name, of_stream in layers.items():
            statistics[_bias_of(where, name)] = sum(of_stream.values())
            for stream, counts in of_stream.items():
                total = counts.sum(0)
                at = stream if where == FIRST else f"{stream}_{where}"
                sums[f"{at}_{name}_load"] = (total, jnp.full_like(total, total.sum()))
    return sums | ({STATISTICS: statistics} if statistics else {})
