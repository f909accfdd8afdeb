"""Parameters are drawn with the keys of nnx, and their shapes are known without drawing."""

import jax
import jax.numpy as jnp
import numpy as np
from conftest import ROOT, load_config
from flax import nnx

from transfusion.config import from_config
from transfusion.model.parameters import Keys, Template, fan_in, normal, ones, param
from transfusion.model.unified import UnifiedModel


class Layer(nnx.Module):
    def __init__(self, rngs):
        self.first = param(rngs, (3, 4), ("embed", None), normal(0.02))
        self.scale = param(rngs, (4,), (None,), ones)
        self.second = param(rngs, (3, 4), ("embed", None), fan_in(3))


def test_initial_values_are_those_that_nnx_draws():
    key = jax.random.key(7)
    ours = Template(Layer).init(key)
    theirs = nnx.to_pure_dict(nnx.state(Layer(nnx.Rngs(key)), nnx.Param))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_each_parameter_of_the_digits_model_gets_the_key_of_nnx():
    digits = from_config(load_config(ROOT / "configs" / "digits.py"))
    key, pairs = jax.random.key(7), []

    class Both:
        ours, theirs = Keys(key), nnx.Rngs(key)

        def params(self):
            pairs.append((self.ours.params(), self.theirs.params()))

    shapes = nnx.to_pure_dict(nnx.state(UnifiedModel(digits.model, digits.spec, Both())))
    assert len(pairs) == len(jax.tree.leaves(shapes)) >= 20
    ours, theirs = (jax.random.key_data(jnp.stack(keys)) for keys in zip(*pairs, strict=True))
    np.testing.assert_array_equal(ours, theirs)


def test_a_template_knows_shapes_and_axes_without_drawing():
    class Large(nnx.Module):
        def __init__(self, rngs):
            self.table = param(rngs, (1 << 30, 1 << 20), ("vocabulary", "embed"), normal(0.02), jnp.bfloat16)

    template = Template(Large)
    assert template.shapes == {"table": jax.ShapeDtypeStruct((1 << 30, 1 << 20), jnp.bfloat16)}
    assert template.axes == {"table": ("vocabulary", "embed")}
