"""The parameters as the decoder reads them, and the two forms of the model that read them."""

import dataclasses

import jax

from transfusion.model.parameters import Params
from transfusion.model.unified import UnifiedModel


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Weights:
    """The parameters as the decoder reads them, see `transfusion.model.weights`.

    Attributes:
      params: all parameters, for reading prompts.
      trunk: those of the trunk for all behind them, layer by layer; None if they are the same.
    """

    params: Params
    trunk: Params | None


@dataclasses.dataclass(frozen=True)
class Models:
    """The model with its parameters in two forms: quick to compile, to read prompts, and fast, for all behind them."""

    once: UnifiedModel
    often: UnifiedModel
