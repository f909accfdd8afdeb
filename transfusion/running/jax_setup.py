"""How every program sets JAX up, and the memory of the process."""

import ctypes
import logging as standard_logging
import os

import jax
import jaxlib.version
from absl import logging

CACHE_VARIABLE = "TRANSFUSION_CACHE"
YNNPACK = "--xla_cpu_experimental_ynn_fusion_type"


def set_up_jax() -> None:
    """Sets JAX, its logs and the memory up; programs call it before JAX starts, see the functions below."""
    without_ynnpack()
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


def without_ynnpack() -> None:
    """Tells XLA of jaxlib 0.10 to compile its own code for a CPU, unless $XLA_FLAGS says what goes to YNNPACK.

    By default it gives products, sums and the arithmetic around them to YNNPACK, with which a training step takes 1.13
    times as long, and drawing up to 1.19 times (experiments/peer_speed/README.md). Later versions are as fast with it.
    Without effect once JAX has started.
    """
    if jaxlib.version.__version_info__ < (0, 11):
        _add_flags(f"{YNNPACK}=")


def compile_quickly() -> None:
    """Tells XLA to make programs for a CPU soon rather than fast, unless $XLA_FLAGS says how.

    For small models that are used for moments, such as the packaged one in `transfusion demo`: its decoder is ready in
    a quarter of the time. Without effect once JAX has started.
    """
    # Beside LLVM's optimizations, the older emitters of fused loops take less than half of the newer ones' time.
    # jaxlib 0.11.1 is without them, and XLA ends a process at a flag that it does not know.
    older = ("--xla_cpu_use_fusion_emitters=false",) if jaxlib.version.__version_info__ < (0, 11, 1) else ()
    _add_flags("--xla_backend_optimization_level=0", *older)


def _add_flags(*flags: str) -> None:
    """Adds flags to $XLA_FLAGS beside those that it has; those that it names keep their values."""
    given = os.environ.get("XLA_FLAGS", "").split()
    names = {flag.partition("=")[0] for flag in given}
    os.environ["XLA_FLAGS"] = " ".join([*given, *(flag for flag in flags if flag.partition("=")[0] not in names)])


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
