"""Array types that name their axes, as in `Int[Array, "B L"]`, for the signatures of public functions.

Tests check them at every call (tests/conftest.py) with jaxtyping, which comes with the extra `dev`. Where it is not
installed, such a type is that of an array of any shape.
"""

import jax
import numpy as np

try:
    from jaxtyping import Bool, Float, Int, Shaped
except ImportError:

    class Shaped:
        def __class_getitem__(cls, described):
            return described[0]

    Bool = Float = Int = Shaped

__all__ = ["Array", "Bool", "Float", "Int", "Shaped"]

Array = jax.Array | np.ndarray
