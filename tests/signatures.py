"""Arrays are what signatures say: jaxtyping has every call of the modules below checked, in tests alone."""

import beartype
import jaxtyping

MODULES = ("sequence.masks", "objectives", "model.attention", "sampling.solvers")


def check() -> None:
    """Checks the functions of `MODULES`, which must not be imported yet."""
    jaxtyping.install_import_hook([f"transfusion.{name}" for name in MODULES], "signatures.checked")


def checked(function):
    """Not the `__init__` of a dataclass: JAX makes those that are pytrees anew with whatever stands for an array."""
    return function if function.__name__ == "__init__" else beartype.beartype(function)
