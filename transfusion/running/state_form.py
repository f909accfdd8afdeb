"""Checks that the state of a checkpoint has the leaves, shapes and dtypes that a run needs."""

from typing import Any

import jax
import numpy as np

from transfusion.errors import UsageError, nearest
from transfusion.sharding import PyTree


def check_fits(step: int, saved: PyTree, wanted: PyTree) -> None:
    """Raises UsageError naming the first leaf that differs. Orbax would cast another dtype without a word."""
    have = {_name(path): (tuple(x.shape), np.dtype(x.dtype)) for path, x in jax.tree_util.tree_leaves_with_path(saved)}
    want = {_name(path): _stored_form(x) for path, x in jax.tree_util.tree_leaves_with_path(wanted)}
    wrong = []
    for name, form in want.items():
        if name not in have:
            wrong.append(f"{name} is not in the checkpoint{nearest(name, have.keys() - want.keys())}")
        elif have[name] != form:
            wrong.append(f"{name} is {_show(have[name])} in the checkpoint and {_show(form)} in this run")
    wrong += [f"{name} is in the checkpoint only" for name in sorted(have.keys() - want.keys())]
    if wrong:
        more = f" (and {len(wrong) - 1} more such leaves)" if len(wrong) > 1 else ""
        raise UsageError(f"checkpoint {step} does not fit this config: {wrong[0]}{more}")


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _show(form: tuple[tuple[int, ...], np.dtype]) -> str:
    return f"{form[1]}{list(form[0])}"


def _stored_form(leaf: Any) -> tuple[tuple[int, ...], np.dtype]:
    if hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
    return tuple(np.shape(leaf)), np.dtype(getattr(leaf, "dtype", None) or np.asarray(leaf).dtype)
