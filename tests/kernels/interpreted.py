"""Kernels that run in an interpreter, on any machine, as backends of the model."""

import dataclasses
from functools import partial

import jax

from transfusion.kernels import mosaic, triton
from transfusion.kernels.kernel import Kernel
from transfusion.model import attention


def interpreted(kernel: Kernel) -> Kernel:
    """The same kernel, for the platform of this machine."""
    attend, read = partial(kernel.attend, interpret=True), partial(kernel.read, interpret=True)
    return dataclasses.replace(kernel, platform=jax.default_backend(), attend=attend, read=read)


TRITON, MOSAIC = interpreted(triton.KERNEL), interpreted(mosaic.KERNEL)
BACKENDS = {"triton": attention.of_kernel(TRITON), "mosaic": attention.of_kernel(MOSAIC)}
