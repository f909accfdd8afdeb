"""Gates on the kernels for TPUs: they are compiled for chips that are not here. Skipped without the compiler."""

import importlib.util
import pathlib

import jax
import pytest

from transfusion.planning import compiled
from transfusion.running.chips import parse_topology

MISSING = compiled.can_compile(parse_topology("v5e:2x2"))
pytestmark = [pytest.mark.gates, pytest.mark.skipif(bool(MISSING), reason=MISSING or "nothing missing")]
PROGRAM = pathlib.Path(__file__).parents[2] / "experiments" / "speed" / "tpu_memory.py"


@pytest.fixture(scope="module", autouse=True)
def _programs_are_not_kept():
    """JAX cannot read a program for a chip that is not here from its cache, and warns of it."""
    kept = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    yield
    jax.config.update("jax_enable_compilation_cache", kept)


@pytest.fixture(scope="module")
def program():
    spec = importlib.util.spec_from_file_location(PROGRAM.stem, PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def temporary(made: jax.stages.Compiled) -> int:
    return made.memory_analysis().temp_size_in_bytes


def test_64k_tokens_fit_where_dense_attention_fails_at_16k(program):
    """The kernel's temporaries are linear in the tokens: less than one array of all heads, 3,072 bytes a token."""
    with pytest.raises(jax.errors.JaxRuntimeError, match="Ran out of memory|Used .* of"):
        program.compiled("v5e", "dense", 16384)
    for length in (4096, 16384, 65536):
        assert temporary(program.compiled("v5e", "kernel", length)) <= 3072 * length


@pytest.mark.parametrize("chip", ["v5p", "v6e"])
def test_the_kernels_compile_for_other_chips(program, chip):
    assert temporary(program.compiled(chip, "kernel", 4096)) <= 4 * 3072 * 4096


@pytest.mark.parametrize("size", [64, 72, 80, 96, 256])
def test_every_head_size_compiles(program, size):
    assert temporary(program.compiled("v5e", "kernel", 1024, heads=2, size=size)) >= 0


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_tangents_compile(program, dtype):
    assert temporary(program.compiled("v5e", "kernel", 4096, "forward", heads=2, dtype=dtype)) >= 0
