"""Kernels that run in an interpreter, on any machine, as backends of the model."""

import dataclasses
from functools import partial

import jax

from transfusion.kernels import mosaic, triton
from transfusion.kernels.kernel import Kernel
from transfusion.model import attention


def interpreted(kernel: Kernel) -> Kernel:
    """The same kernel, for the platform of this machine."""
    runs = {name: partial(getattr(kernel, name), interpret=True) for name in ("attend", "forward_mode", "read")}
    return dataclasses.replace(kernel, platform=jax.default_backend(), **runs)


TRITON, MOSAIC = interpreted(triton.KERNEL), interpreted(mosaic.KERNEL)
BACKENDS = {"triton": attention.of_kernel(TRITON), "mosaic": attention.of_kernel(MOSAIC)}
