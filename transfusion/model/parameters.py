"""Parameters are declared here, with shape, logical axes and initializer in one place, and modules become pytrees.

From flax.nnx only `Module`, `Param`, `Rngs`, `List`/`Dict`, `split`, `merge` and `state` are used: a module is
a container of parameters with forward code. Everything that runs is a pure function of a dict of arrays.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

Params = dict[str, Any]
Initializer = Callable[[jax.Array, tuple[int, ...], Any], jax.Array]


def normal(std: float) -> Initializer:
    """A normal initializer, cut off at two standard deviations; `std` is the standard deviation before the cut."""
    return lambda key, shape, dtype: std * jax.random.truncated_normal(key, -2, 2, shape, dtype)


def fan_in(size: int) -> Initializer:
    """A normal initializer of variance 1 / size, for a matrix that sums over `size` inputs."""
    return normal(1 / math.sqrt(size))


def zeros(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    del key
    return jnp.zeros(shape, dtype)


def ones(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    del key
    return jnp.ones(shape, dtype)


def constant(value: float) -> Initializer:
    """An initializer that gives the same number everywhere."""
    return lambda key, shape, dtype: jnp.full(shape, value, dtype)


def param(
    rngs: nnx.Rngs, shape: tuple[int, ...], axes: tuple[str | None, ...], init: Initializer, dtype: Any = jnp.float32
) -> nnx.Param:
    """Declares one parameter; `axes` are its logical axes (see `transfusion.sharding.RULES`), one per dimension."""
    if len(shape) != len(axes):
        raise ValueError(f"a parameter of shape {shape} needs {len(shape)} axes, not {axes}")
    key = rngs.params()
    return nnx.Param(jax.ShapeDtypeStruct(shape, dtype) if key is None else init(key, shape, dtype), logical=axes)


def array(parameter: nnx.Param | None) -> jax.Array | None:
    """The value of a parameter, or None where the module lacks it."""
    return None if parameter is None else parameter[...]


class Keys:
    """Gives the same random keys as `nnx.Rngs(key).params()`, but faster.

    nnx keeps key and count in variables and describes the trace at every use, which took most of the time of building a
    model.
    """

    def __init__(self, key: jax.Array):
        self._key, self._count = key, 0

    def params(self) -> jax.Array:
        key = jax.random.fold_in(self._key, self._count)
        self._count += 1
        return key


class NoKeys:
    """Stands in for `Keys` where only the shapes of parameters are wanted: nothing is drawn and nothing traced."""

    def params(self) -> None:
        return None


class Template:
    """A module without its arrays, from which a jitted function rebuilds the module around a dict of arrays.

    Attributes:
      shapes: a dict of jax.ShapeDtypeStruct, nested as the parameters are.
      axes: a dict of tuples of logical axes, nested as the parameters are.
    """

    def __init__(self, make: Callable[[nnx.Rngs], nnx.Module]):
        self._make = make
        self._graph, self._state = nnx.split(make(NoKeys()))
        leaves = jax.tree.leaves(self._state, is_leaf=lambda x: isinstance(x, nnx.Variable))
        for leaf in leaves:
            if not isinstance(leaf, nnx.Param):
                raise TypeError(f"modules hold nnx.Param only, not {type(leaf).__name__}")
        self.axes = nnx.to_pure_dict(
            jax.tree.map(lambda v: v.logical, self._state, is_leaf=lambda x: isinstance(x, nnx.Variable))
        )
        self.shapes = nnx.to_pure_dict(self._state)

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters, float32, as a dict of arrays."""
        return nnx.to_pure_dict(nnx.state(self._make(Keys(key)), nnx.Param))

    def bind(self, params: Params) -> Any:
        """The module with the given arrays."""
        state = jax.tree.map(lambda x: x, self._state)
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(self._graph, state)


def pure(module: nnx.Module) -> Params:
    """The parameters of a module, as a dict of arrays."""
    return nnx.to_pure_dict(nnx.state(module, nnx.Param))


def bound(module: Any, params: Params) -> Any:
    """The module with other arrays in place of its own, such as one layer's."""
    graph, state = nnx.split(module)
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graph, state)
