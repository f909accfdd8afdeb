"""A sublayer that computes nothing for the tokens, and measures them: telemetry puts it behind the others."""

import dataclasses

import jax.numpy as jnp

from transfusion.model.sublayers import ExpertTokens, Layer, Pass

OUTPUT, QUERY, KEY = SEEN = ("seen_output", "seen_query", "seen_key")


@dataclasses.dataclass(frozen=True)
class Observe:
    """Measures, for each stream, the tokens as they leave a layer and the queries and keys of its self-attention.

    The layer's `loads` get an entry for each of `SEEN`: per stream the squared lengths of these vectors, as the mean
    over heads, summed over all tokens that are no padding, and how many these are, float32 [2]."""

    def shared(self, run: Pass) -> Pass:
        return run

    def apply(self, x: ExpertTokens, layer: Layer, shared: Pass) -> tuple[ExpertTokens, Layer]:
        run, seen = shared, {name: {} for name in SEEN}
        for expert, block in layer.blocks.items():
            # As attention has computed them: the compiler does so once.
            q, k, _ = block.queries_keys_values(layer.start[expert], run.turn[expert], layer.modulations[expert])
            for name, vectors in zip(SEEN, (x[expert][:, :, None], q, k), strict=True):
                squares = jnp.square(vectors.astype(jnp.float32)).sum(-1).mean(-1)
                for stream, of_stream in run.by_stream(expert, squares).items():
                    real = run.metadata[stream].document != 0
                    seen[name][stream] = jnp.stack([jnp.sum(jnp.where(real, of_stream, 0)), jnp.sum(real * 1.0)])
        return x, dataclasses.replace(layer, loads=layer.loads | seen)
