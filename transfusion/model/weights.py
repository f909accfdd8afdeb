"""The weights of a model as loops without gradients read them: cast once, before the loop, and not in every turn."""

from collections.abc import Callable, Mapping

from transfusion.model.config import TransformerConfig
from transfusion.model.parameters import Params
from transfusion.model.transformer import FIRST

Axes = tuple[str | None, ...]


def as_computed(params: Params, axes: Params, config: TransformerConfig) -> Params:
    """Casts the matrices that meet tokens to the dtype of the computation, which changes no result.

    A forward pass casts them all the same; but in a loop it would read them in float32, and cast them in every turn.
    These are the matrices of the trunks, and the tables and heads of ids. What stays as it is meets float32: norms,
    biases, modulations, noise levels, patches and towers.

    Args:
      params: the parameters of a `transfusion.model.unified.UnifiedModel`.
      axes: their logical axes, see `transfusion.model.parameters.Template`.
      config: the config of the first trunk.
    """
    dtypes = {name: stage.trunk.dtype for name, stage in config.stages.items()}
    result = dict(params)
    result[FIRST] = _cast(params[FIRST], axes[FIRST], config.dtype, _is_matrix)
    if dtypes:
        stages = params["stages"].items()
        result["stages"] = {name: _cast(x, axes["stages"][name], dtypes[name], _is_matrix) for name, x in stages}
    if {*dtypes.values()} <= {config.dtype}:
        result["parts"] = _cast(params["parts"], axes["parts"], config.dtype, _is_of_ids)
    return result


def _cast(params: Params, axes: Params, dtype: str, chosen: Callable[[Axes], bool]) -> Params:
    if not isinstance(params, Mapping):
        return params.astype(dtype) if chosen(axes) else params
    # The members of a list are numbered, by numbers in a template and by digits in a checkpoint.
    axes = {str(name): part for name, part in axes.items()}
    return {name: _cast(part, axes[str(name)], dtype, chosen) for name, part in params.items()}


def _is_matrix(axes: Axes) -> bool:
    """Whether a parameter of a trunk is a matrix between two named axes, stacked over the layers."""
    return len({*axes} - {None, "layers"}) > 1


def _is_of_ids(axes: Axes) -> bool:
    """Whether a parameter is a table of vectors for ids, or a matrix that turns vectors into logits."""
    return {"vocab", "embed"} <= {*axes}
