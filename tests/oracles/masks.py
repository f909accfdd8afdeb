"""The attention rule against dense masks of packed layouts."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from oracles import Oracle
from transfusion.masks import Metadata, see

CAUSAL, NOISE = 0, 2  # the mode of a split; 1: bidirectional and seen by all later tokens


def splits(oracle: Oracle) -> dict[str, np.ndarray]:
    """BAGEL's packed rows: documents of splits, each causal, bidirectional, or noised and seen by itself only."""
    longest = max(len(mask) for mask in oracle.outputs.values())
    rows: dict[str, list[np.ndarray]] = {field.name: [] for field in dataclasses.fields(Metadata)}
    for name in oracle.outputs:
        row = name.removesuffix(".mask")
        lengths, modes, documents = (oracle.arrays[f"{row}.{part}"] for part in ("split", "mode", "docs"))
        mode, number = np.repeat(modes, lengths), np.repeat(np.arange(len(lengths)) + 1, lengths)
        tokens = {
            "document": np.repeat(np.arange(len(documents)) + 1, documents),
            "order": np.arange(lengths.sum()),
            "span": np.where(mode == CAUSAL, 0, number),
            "private": np.where(mode == NOISE, number, 0),
            "stream": np.zeros(lengths.sum(), int),
        }
        for field, value in tokens.items():
            rows[field].append(np.pad(value, (0, longest - len(value))).astype(np.int32))
    tokens = Metadata(**{field: jnp.stack(values) for field, values in rows.items()})
    ours = zip(oracle.outputs.items(), np.asarray(see(tokens, tokens)), strict=True)
    return {name: mask[: len(value), : len(value)].astype(value.dtype) for (name, value), mask in ours}


CHECKS = {r"arrays: docs mask mode split$": splits}
