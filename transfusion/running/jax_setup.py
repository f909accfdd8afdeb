"""How every program sets JAX up, and the memory of the process."""

import ctypes
import logging as standard_logging
import os

import jax
from absl import logging

CACHE_VARIABLE = "TRANSFUSION_CACHE"


def set_up_jax() -> None:
    """Sets JAX, its logs and the memory up; programs call it first, see `keep_programs` and `_keep_memory`."""
    keep_programs()
    _keep_memory()
    logging.get_absl_handler().setFormatter(None)
    # Without this, jax says 'Unable to initialize backend' on every machine that lacks some hardware.
    standard_logging.getLogger("jax").setLevel(standard_logging.WARNING)


def keep_programs() -> None:
    """Keeps compiled programs on disk between runs, below $TRANSFUSION_CACHE or ~/.cache/transfusion."""
    folder = os.environ.get(CACHE_VARIABLE) or os.path.join(os.path.expanduser("~"), ".cache", "transfusion")
    jax.config.update("jax_compilation_cache_dir", os.path.join(folder, "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def _keep_memory() -> None:
    """Tells glibc's malloc to keep freed memory; does nothing where malloc is another.

    XLA on CPUs allocates its arrays anew in every call. By default malloc maps each large array, the system zeroes it
    page by page, and malloc unmaps it again.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    trim_threshold, mmap_threshold, most = -1, -3, 2**31 - 1
    mallopt(mmap_threshold, most)
    mallopt(trim_threshold, most)
