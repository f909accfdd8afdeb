"""Compiles a program for a GPU, and says what its own kernels (those written in Pallas) take of the processor."""

import contextlib
import dataclasses
import os
import pathlib
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from transfusion.errors import UsageError
from transfusion.planning.gpus import INSTALL, assembler

# Instructions of the tensor cores: of Hopper, of Blackwell, and of Ampere (which later GPUs execute more slowly).
PRODUCTS = ("wgmma.mma_async", "tcgen05.mma", "mma.sync")
_ENTRY = re.compile(r"\.entry ([\w$]+)")
_TARGET = re.compile(r"^\.target (sm_\w+)", re.MULTILINE)
# In the compiled text a Pallas kernel for Triton is a custom call whose configuration has the kernel's name. The
# compiler numbers kernels of one name. Mosaic gives the names of its kernels an ending.
_TRITON = re.compile(r'custom_call_target="__gpu\$xla\.gpu\.triton".*?\bname = "([\w$]+)"')
_MOSAIC = "_mosaic_gpu_kernel"


@dataclasses.dataclass(frozen=True)
class KernelUse:
    """One kernel of a compiled program.

    Attributes:
      name: as `pallas_call` was told.
      registers: of a thread; there are 255 at most.
      spilled: bytes that a thread stores in memory as registers are short.
      products: how many instructions of the tensor cores the kernel's text has, by their kind (see `PRODUCTS`).
    """

    name: str
    registers: int
    spilled: int
    products: dict[str, int]


def compile_for_gpu(lowered: Any) -> tuple[Any, tuple[KernelUse, ...]]:
    """Compiles what `jax.jit(...).lower(...)` gave for a GPU of `gpus.gpu_devices`.

    Returns:
      The compiled program, and its own kernels in the order of their names.
    """
    with tempfile.TemporaryDirectory() as folder, _uncached(), _mosaic_writes_to(folder):
        # Optimized as in a run, whatever the flags of this process say: tests turn the optimizations off.
        options = {"xla_dump_to": folder, "xla_gpu_dump_llvmir": False, "xla_backend_optimization_level": 3}
        compiled = lowered.compile(compiler_options=options)
        names = set(_TRITON.findall(compiled.as_text()))
        found = [kernel for path in pathlib.Path(folder).glob("*.ptx") for kernel in _kernels(path, names)]
    return compiled, tuple(sorted(found, key=lambda kernel: kernel.name))


@contextlib.contextmanager
def _uncached() -> Iterator[None]:
    """Inside, programs are compiled anew: what comes from the cache on disk has no text of its kernels."""
    if not jax.config.jax_compilation_cache_dir:
        yield
        return
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


@contextlib.contextmanager
def _mosaic_writes_to(folder: str) -> Iterator[None]:
    """Inside, Mosaic's compiler writes the texts of its kernels into a folder; it has no option of its own for that."""
    before = os.environ.get("MOSAIC_GPU_DUMP_TO")
    os.environ["MOSAIC_GPU_DUMP_TO"] = folder
    try:
        yield
    finally:
        os.environ.pop("MOSAIC_GPU_DUMP_TO")
        if before is not None:
            os.environ["MOSAIC_GPU_DUMP_TO"] = before


def _kernels(path: pathlib.Path, names: set[str]) -> Iterator[KernelUse]:
    """The kernels of Mosaic, and those with one of `names`, in an assembly text."""
    text = path.read_text()
    entries = _ENTRY.findall(text)
    inside = [e for e in entries if e.endswith(_MOSAIC) or e in names or re.sub(r"_+\d+$", "", e) in names]
    if not inside:
        return
    # Mosaic writes what the assembler inside the plugin said. Its texts may be too new for the assembler of the wheel.
    written = path.with_suffix(".ptxas")
    report = read_report(written.read_text() if written.exists() else _assemble(path))
    for entry in inside:
        body = text[text.index(f".entry {entry}") :].split("\n.entry", 1)[0]
        counts = {kind: len(re.findall(rf"\b{re.escape(kind)}\.", body)) for kind in PRODUCTS}
        counts = {kind: count for kind, count in counts.items() if count}
        yield KernelUse(entry.removesuffix(_MOSAIC), *report[entry], counts)


def _assemble(path: pathlib.Path) -> str:
    """What NVIDIA's assembler says about the kernels of an assembly text."""
    program = assembler()
    if program is None:
        raise UsageError(f"NVIDIA's assembler (ptxas) is not installed: {INSTALL}")
    target = _TARGET.search(path.read_text())[1]
    command = [str(program), "-v", "--gpu-name", target, str(path), "-o", str(path.with_suffix(".bin"))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def read_report(report: str) -> dict[str, tuple[int, int]]:
    """The registers and the spilled bytes of each kernel, of what `ptxas -v` prints."""
    found = {}
    for part in report.split("Compiling entry function '")[1:]:
        spilled = re.search(r"(\d+) bytes spill stores", part)
        registers = re.search(r"Used (\d+) registers", part)
        found[part.partition("'")[0]] = (int(registers[1]), int(spilled[1]))
    return found


def uses_text(kernels: Sequence[KernelUse]) -> list[str]:
    """A line for each kernel."""
    return [
        f"{kernel.name}: {kernel.registers} registers, {kernel.spilled} B spilled, "
        + (", ".join(f"{count} {kind.partition('.')[0]}" for kind, count in kernel.products.items()) or "no products")
        for kernel in kernels
    ]
