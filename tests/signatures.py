"""Arrays are what signatures say: jaxtyping has every call of the modules below checked, in tests alone."""

import sys

import beartype
import jaxtyping

MODULES = (
    "sequence.batch",
    "sequence.masks",
    "sequence.rows",
    "objectives",
    "model.attention",
    "model.heads",
    "sampling.solvers",
)


def check() -> None:
    """Checks the functions of `MODULES` from here on; a module that is imported already would not be checked."""
    modules = [f"transfusion.{name}" for name in MODULES]
    assert not sys.modules.keys() & set(modules)
    jaxtyping.install_import_hook(modules, "signatures.checked")


def checked(function):
    """Not the `__init__` of a dataclass: JAX makes those that are pytrees anew with whatever stands for an array."""
    return function if function.__name__ == "__init__" else beartype.beartype(function)
