"""What tests of whole programs share: one tiny trained run per session, on data made in the session's folder."""

import ctypes
import dataclasses
import gc
import importlib.util
import os
import pathlib
import resource
import shutil

ROOT = pathlib.Path(__file__).parents[1]

# Before the first import of jax. What one session compiled, the next need not.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TRANSFUSION_CACHE", str(ROOT / ".jax_cache"))
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".jax_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

import jax  # noqa: E402
import pytest  # noqa: E402
import signatures  # noqa: E402

# A bias or a mask that is given fewer axes than what it meets may meet the wrong ones.
jax.config.update("jax_numpy_rank_promotion", "raise")
signatures.check()
import tiny  # noqa: E402, F401 - sets XLA's flags for quick compilation, before jax starts

# The most that one test process may ever take, in GB: four of them fit a machine of 16 GB that does other things too.
MEMORY = 2.5


def load_config(path: pathlib.Path, form: str = ""):
    """`get_config(form)` of a config file."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(form)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Where everything is said to be there (TRANSFUSION_REQUIRE_OPTIONAL=1, as in CI), a skip is a failure.

    An expected failure is reported as a skip too, and is none.
    """
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("TRANSFUSION_REQUIRE_OPTIONAL") == "1":
        report.outcome, report.longrepr = "failed", f"skipped where nothing may be missing: {report.longrepr}"
    return report


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def _memory_ends_with_the_file(request):
    """Frees what a file compiled, and what its functions cached: over all files it piles up to 5 GB in a process.

    Not below 0.8 GB, as the next file may use some of it, and freeing takes a second.
    """
    yield
    peaks = request.config.stash[PEAKS]
    if (peak := resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6) > peaks[-1][0]:
        peaks.append((peak, request.node.nodeid))
    _free_above(0.8, request.module)


@pytest.fixture(autouse=True)
def _memory_is_bounded_within_a_file(request):
    """Some files compile more than a process may take, and compile a part of it anew rather than that."""
    yield
    _free_above(1.5, request.module)


def _free_above(gigabytes: float, module) -> None:
    if int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() < gigabytes * 1e9:
        return
    for value in vars(module).values():
        if getattr(value, "__module__", None) == module.__name__ and hasattr(value, "cache_clear"):
            value.cache_clear()
    jax.clear_caches()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # malloc keeps what is freed, above all where `set_up_jax` told it to


PEAKS = pytest.StashKey[list[tuple[float, str]]]()  # of this process, or of all its workers: GB, and the file then


def pytest_configure(config):
    config.stash[PEAKS] = [(0.0, "")]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    node.config.stash[PEAKS].append(getattr(node, "workeroutput", {}).get("peak", (0.0, "")))


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session):
    """Fails a session of which a process took too much, whatever its tests say."""
    largest = max(session.config.stash[PEAKS])
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["peak"] = largest
    elif largest[0] > MEMORY and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter, config):
    gigabytes, path = max(config.stash[PEAKS])
    line = f"largest test process: {gigabytes:.1f} GB, in {path}"
    if gigabytes > MEMORY:
        terminalreporter.write_line(f"ERROR: {line}; {MEMORY} are allowed", red=True, bold=True)
    elif path:
        terminalreporter.write_line(line)


# --- runs and data ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory) -> str:
    """A folder with the prepared digits."""
    from transfusion.data import builders

    folder = str(tmp_path_factory.mktemp("data"))
    builders.prepare("digits", folder)
    return folder


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory, data_dir) -> pathlib.Path:
    """The workdir of the digits config's debug form, trained. Tests read it only; to write, they take a copy."""
    from transfusion.config import from_config
    from transfusion.running import provenance
    from transfusion.train import train

    experiment = from_config(load_config(ROOT / "configs" / "digits.py", "debug"))
    experiment = dataclasses.replace(
        experiment,
        data=dataclasses.replace(experiment.data, data_dir=data_dir),
        eval=dataclasses.replace(experiment.eval, guidances=(1.0, 2.0)),
        sampling=dataclasses.replace(experiment.sampling, steps=3, max_tokens=8),
    )
    workdir = tmp_path_factory.mktemp("runs") / "tiny <run>"
    train(experiment, workdir)
    provenance.record_command(workdir)
    return workdir


@pytest.fixture(scope="session")
def evaluated_run(tmp_path_factory, tiny_run) -> pathlib.Path:
    """A copy of the tiny run with its evaluation.json and report.html."""
    from transfusion.evaluate import Options, evaluate
    from transfusion.report import write_report

    workdir = tmp_path_factory.mktemp("evaluated") / tiny_run.name
    shutil.copytree(tiny_run, workdir)
    evaluate(workdir, Options(samples=20, captions=15, judge_steps=20))
    write_report(workdir)
    return workdir
