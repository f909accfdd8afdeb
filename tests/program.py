"""Runs a program of the library as a user would: in its own process, with its exit code and output."""

import multiprocessing
import os
import pathlib
import runpy
import subprocess
import sys
import warnings
from typing import NamedTuple

TESTS = pathlib.Path(__file__).parent


class Result(NamedTuple):
    code: int
    out: str
    err: str


def _child(module: str, arguments: list[str], folder: str, where: str) -> None:
    os.chdir(where)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(os.path.join(folder, name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    warnings.simplefilter("ignore")  # runpy's, on a module that the server has imported already
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


class Forked:
    """`python -m module arguments`, forked from a server that holds the imports already (seconds each).

    It runs in the folder `where`, the tests' own by default, and writes what it says into `folder`.
    """

    def __init__(self, folder: pathlib.Path, module: str, *arguments: str, where: pathlib.Path | None = None):
        folder.mkdir(exist_ok=True)
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["transfusion.train"])
        given = (module, list(arguments), str(folder), str(where or os.getcwd()))
        self._folder, self.process = folder, context.Process(target=_child, args=given)
        self.process.start()

    def result(self, timeout: float = 300) -> Result:
        """When it has ended."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            raise AssertionError(f"still running: {(self._folder / 'err').read_text()}")
        return Result(self.process.exitcode, *((self._folder / name).read_text() for name in ("out", "err")))


def run_program(folder: pathlib.Path, module: str, *arguments: str) -> Result:
    """`python -m module arguments` to its end."""
    return Forked(folder, module, *arguments).result()


def start_program(module: str, *arguments: str) -> subprocess.Popen:
    """`python -m module arguments`, running."""
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path.rstrip(os.pathsep)}
