"""The weights of a model as loops without gradients read them: cast once, before the loop, and not in every turn."""

from collections.abc import Mapping

from transfusion.model.block import cast_once
from transfusion.model.config import TransformerConfig
from transfusion.model.parameters import Params
from transfusion.model.transformer import FIRST


def as_computed(params: Params, axes: Params, config: TransformerConfig) -> Params:
    """Casts the matrices that meet tokens to the dtype of the computation, which changes no result.

    A forward pass casts them all the same; but in a loop it would read them in float32, and cast them in every turn.
    These are the matrices that a trunk casts itself (`block.MATRICES`), and the tables and heads of ids. What stays as
    it is meets float32: norms, biases, modulations, noise levels, patches and towers.

    Args:
      params: the parameters of a `transfusion.model.unified.UnifiedModel`.
      axes: their logical axes, see `transfusion.model.parameters.Template`.
      config: the config of the first trunk.
    """
    dtypes = {name: stage.trunk.dtype for name, stage in config.stages.items()}
    result = dict(params)
    result[FIRST] = cast_once(params[FIRST], config.dtype)
    if dtypes:
        result["stages"] = {name: cast_once(x, dtypes[name]) for name, x in params["stages"].items()}
    if {*dtypes.values()} <= {config.dtype}:
        result["parts"] = _cast_of_ids(params["parts"], axes["parts"], config.dtype)
    return result


def _cast_of_ids(params: Params, axes: Params, dtype: str) -> Params:
    """Casts tables of vectors for ids, and matrices that turn vectors into logits."""
    if not isinstance(params, Mapping):
        return params.astype(dtype) if {"vocab", "embed"} <= {*axes} else params
    # The members of a list are numbered, by numbers in a template and by digits in a checkpoint.
    axes = {str(name): part for name, part in axes.items()}
    return {name: _cast_of_ids(part, axes[str(name)], dtype) for name, part in params.items()}
