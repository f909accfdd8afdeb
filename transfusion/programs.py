"""What every program shares: flags, the config file, errors as one line with exit code 2, and JAX's set-up."""

import contextlib
import ctypes
import fcntl
import logging as standard_logging
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence

import jax
from absl import app, flags, logging
from etils import epath

from transfusion import storage
from transfusion.config import Experiment, from_config, from_json
from transfusion.config.explain import check_config_file, explain, load_config, raised_in_config
from transfusion.errors import UsageError, require
from transfusion.running import distributed, own_files
from transfusion.running.orbax_noise import saves_wait_in_vain
from transfusion.workdir import portable

CONFIG_BYTES = 16 << 20  # no config is as large
CACHE_VARIABLE = "TRANSFUSION_CACHE"
BUCKETS = {"gs": ("gcsfs", "gcs")}  # what checkpoints can be written to: scheme, the module for it and its extra


def run(main: Callable[[Sequence[str]], None], files: int = 0) -> None:
    """absl's app.run, with a mistake of the user's as `error: <one line>` on stderr and exit code 2.

    `files` is the number of arguments that may stand without a flag's name.
    """
    packages_first()

    def parse(argv: Sequence[str]) -> list[str]:
        try:
            check_config_file(argv)
            return flags.FLAGS(list(argv))
        except Exception as error:  # a config file is the user's code, is loaded here and raises what it likes
            _fail(explain(error, argv))
        except BaseException as error:  # SystemExit, KeyboardInterrupt, GeneratorExit, asyncio's CancelledError
            if not raised_in_config(error, argv):  # --help ends so, too
                raise
            _fail(explain(error, argv))

    def guarded(argv: Sequence[str]) -> None:
        if len(argv) > 1 + files:
            _fail(f"unexpected argument {argv[1 + files]!r}: flags have the form --name=value")
        try:
            main(argv)
        except UsageError as error:
            _fail(error)
        except Exception:
            # The usual way out waits for the other processes, and they for this one; or for a failed save.
            if jax.distributed.is_initialized() or saves_wait_in_vain():
                traceback.print_exc()
                distributed.leave(1)
                _leave(1)
            raise
        _leave(0)

    try:
        app.run(guarded, flags_parser=parse)
    except KeyboardInterrupt:
        _interrupted()


def packages_first() -> None:
    """What is installed goes before files of the current folder, which `python -m` puts first: otherwise a config
    emoji.py there takes the place of the package emoji. A config still imports its neighbours."""
    if sys.path and os.path.realpath(sys.path[0] or ".") == os.path.realpath("."):
        sys.path.append(sys.path.pop(0))


def check_workdir(workdir: str) -> None:
    """Refuses a --workdir that is missing, that no file system could have, or a URL that nothing here can write.

    Raises:
      UsageError: saying what is.
    """
    if not workdir:
        raise UsageError("--workdir is missing: a folder for checkpoints and metrics, for example runs/digits")
    if workdir.startswith("~"):  # of which a part of the run would lie in a folder of that name
        raise UsageError(f"--workdir={workdir}: the shell has left ~ as it is: write $HOME, or a space for the '='")
    # A byte that is not UTF-8 stands in an argument as a surrogate, and the checkpoints' storage cannot name it.
    if any(ord(letter) < 32 or 0xD800 <= ord(letter) < 0xE000 for letter in workdir):
        raise UsageError(f"--workdir={ascii(workdir)}: the name holds a control character, or is not UTF-8")
    # One slash after the colon is a URL that was shortened as paths are, and would become a folder named 'gs:'.
    if url := re.match(r"([A-Za-z][A-Za-z0-9+.-]*):/", workdir):
        scheme = url[1]
        if scheme not in BUCKETS:
            known = " or ".join(f"{name}://BUCKET/FOLDER" for name in BUCKETS)
            raise UsageError(f"--workdir={workdir}: buckets are {known} only, other storage is mounted as a folder")
        if not re.match(rf"{scheme}://[A-Za-z0-9]", workdir):
            raise UsageError(f"--workdir={workdir} is not of the form {scheme}://BUCKET/FOLDER")
        require(*BUCKETS[scheme])


@contextlib.contextmanager
def sole_use(workdir: epath.Path, flag: str = "--workdir") -> Iterator[None]:
    """Keeps a second program, of this machine, out of a workdir: one would remove the other's unfinished files.

    The system gives the lock up when the process ends, however that happens. Storage without a file system, such as a
    bucket, has no locks that do so, and nothing is kept out there.

    Raises:
      UsageError: if another program has it (`flag` is what names the folder), or it cannot be written.
    """
    if "://" in str(workdir):
        yield
        return
    what = f"{flag}: cannot write to {workdir}"
    try:
        storage.insist(what, lambda: workdir.mkdir(parents=True, exist_ok=True))
    except FileExistsError:
        raise UsageError(f"{flag}: {workdir} is there already, and is no folder") from None
    except OSError as error:
        raise storage.lasting(what, error) from error
    with open(own_files.open_own(workdir / ".lock", os.O_RDWR), "rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"another program is at work in {workdir}: wait, or give another {flag}") from None
        except OSError as error:  # a network file system without locks
            raise UsageError(f"cannot lock {workdir / '.lock'}: {error.strerror}") from error
        yield


def _fail(error: object) -> None:
    line = " ".join(str(error).split()) or type(error).__name__
    code = error.code if isinstance(error, UsageError) else UsageError.code
    print(f"error: {line}", file=sys.stderr)
    distributed.leave(code)
    _leave(code)
    sys.exit(code)


def _leave(code: int) -> None:
    """Ends the program at once with `code` if Python would wait minutes for a failed save; returns otherwise."""
    if saves_wait_in_vain():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _interrupted() -> None:
    """Ends by the signal, as Ctrl-C ends programs, so that a shell's loop around this one ends too. No traceback."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.stdout.flush()
    print("\ninterrupted", file=sys.stderr, flush=True)
    distributed.leave(128 + signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)


def set_up_jax() -> None:
    """Compiled programs are kept on disk between runs, below $TRANSFUSION_CACHE or ~/.cache/transfusion."""
    folder = os.environ.get(CACHE_VARIABLE) or os.path.join(os.path.expanduser("~"), ".cache", "transfusion")
    jax.config.update("jax_compilation_cache_dir", os.path.join(folder, "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    _keep_memory()
    logging.get_absl_handler().setFormatter(None)
    # 'Unable to initialize backend' on every machine without that hardware: no news for the user.
    standard_logging.getLogger("jax").setLevel(standard_logging.WARNING)


def _keep_memory() -> None:
    """Tells glibc's malloc to keep what is freed: XLA on CPUs takes its arrays anew in every call, and otherwise each
    large one is mapped, zeroed page by page and given back. Does nothing where malloc is another."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    trim_threshold, mmap_threshold, most = -1, -3, 2**31 - 1
    mallopt(mmap_threshold, most)
    mallopt(trim_threshold, most)


def experiment_of(config: object) -> Experiment:
    """The experiment of a --config flag's value.

    Raises:
      UsageError: if the flag is missing, or the config cannot work.
    """
    if config is None and "config" in flags.FLAGS and flags.FLAGS["config"].present:
        raise UsageError("--config: its get_config returns None, and not a config: is a `return` missing?")
    if config is None:
        raise UsageError("--config is missing: give a config file, for example --config configs/digits.py")
    return from_config(config)


def load_experiment(path: str | os.PathLike) -> Experiment:
    """The experiment of a config file; `path` may end in ':form'.

    Raises:
      UsageError: naming the line of the file, or the field that cannot work.
    """
    return from_config(load_config(*str(path).split(":", 1)))


def read_experiment(workdir: str | os.PathLike) -> Experiment:
    """The experiment in a workdir's config.json; its tokenizer and codec are found there, see `workdir.portable`.

    What the weights were trained with is in their checkpoint: see `transfusion.workdir.resume.as_trained`.

    Raises:
      UsageError: if there is none, or it is damaged.
    """
    path = epath.Path(workdir) / portable.CONFIG
    if not path.exists():
        raise UsageError(f"{path} does not exist: {workdir} is not the workdir of a training run")
    return read_config_file(path)


def read_config_file(path: str | os.PathLike) -> Experiment:
    """The experiment in a JSON file, such as a workdir's config.json; raises UsageError naming the file."""
    path = epath.Path(path)
    if "://" not in str(path) and not os.path.isfile(path):  # opening a pipe would wait for ever
        raise UsageError(f"{path} is no file")
    try:
        with path.open("rb") as file:
            data = storage.insist(f"cannot read {path}", lambda: file.read(CONFIG_BYTES + 1))
    except OSError as error:
        raise storage.lasting(f"cannot read {path}", error) from error
    if len(data) > CONFIG_BYTES:
        raise UsageError(f"{path} has more than {CONFIG_BYTES >> 20} MiB: it is no config")
    try:
        return portable.resolved(from_json(data), path.parent)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
