"""What every program shares: flags, the config file, errors as one line with exit code 2, and how a program ends."""

import contextlib
import contextvars
import os
import runpy
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from absl import app, flags

from transfusion.config import Experiment, from_config
from transfusion.config import help as config_help
from transfusion.config.explain import check_config_file, config_of, explain, load_config, raised_in_config
from transfusion.config.named import with_paths
from transfusion.errors import UsageError, nearest
from transfusion.remote.secrets import check_no_secrets
from transfusion.running import distributed
from transfusion.running.orbax_noise import saves_wait_in_vain


def run(main: Callable[[Sequence[str]], None], files: int | None = 0) -> None:
    """Runs a program with absl's app.run; a mistake of the user is `error: <one line>` on stderr and exit code 2.

    Args:
      main: gets the arguments that are no flags, after the program's name.
      files: how many such arguments there may be; None is any number.
    """
    packages_first()

    def parse(argv: Sequence[str]) -> list[str]:
        try:
            check_no_secrets(argv)
            argv = with_paths(argv)
            check_config_file(argv)
            if asked := config_help.asked(argv):
                say(config_help.help_text(sys.modules["__main__"].__doc__ or "", config_of(argv), asked == "helpfull"))
                sys.exit(0)
            return flags.FLAGS(argv)
        except Exception as error:  # a config file is the user's code, is loaded here and raises what it likes
            _fail(explain(error, argv))
        except BaseException as error:  # SystemExit, KeyboardInterrupt, GeneratorExit, asyncio's CancelledError
            if not raised_in_config(error, argv):  # the end of --help is one of these, too
                raise
            _fail(explain(error, argv))

    def guarded(argv: Sequence[str]) -> None:
        if files is not None and len(argv) > 1 + files:
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


def say(text: str) -> None:
    """Prints a text that may be long; a reader that stops early, as in `| head`, is no error."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python's own flush at the end is silent, too


def packages_first() -> None:
    """Looks for modules among installed packages before the current folder, which `python -m` puts first.

    Otherwise a config emoji.py in that folder would take the place of the package emoji. A config can still import its
    neighbours.
    """
    if sys.path and os.path.realpath(sys.path[0] or ".") == os.path.realpath("."):
        sys.path.append(sys.path.pop(0))


def _fail(error: object) -> None:
    line = " ".join(str(error).split()) or type(error).__name__
    code = error.code if isinstance(error, UsageError) else UsageError.code
    print(f"error: {line}", file=sys.stderr)
    distributed.leave(code)
    _leave(code)
    sys.exit(code)


def _leave(code: int) -> None:
    """Ends the program at once with `code` if Python would wait minutes for a failed save; else it returns."""
    if saves_wait_in_vain():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _interrupted() -> None:
    """Ends the program by the signal of Ctrl-C, without a traceback, so that a shell's loop around it ends too."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.stdout.flush()
    print("\ninterrupted", file=sys.stderr, flush=True)
    distributed.leave(128 + signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)


def experiment_of(config: object) -> Experiment:
    """The experiment in the value of the flag --config.

    Raises:
      UsageError: if the flag is missing, or the config cannot work.
    """
    if config is None and "config" in flags.FLAGS and flags.FLAGS["config"].present:
        raise UsageError("--config: its get_config returns None, and not a config: is a `return` missing?")
    if config is None:
        raise UsageError("--config is missing: give a config file, for example --config configs/digits.py")
    return from_config(config)


# The config files that are read in place of others, by their whole paths; see `in_place_of`.
_INSTEAD: contextvars.ContextVar[Mapping[str, str]] = contextvars.ContextVar("instead")


@contextlib.contextmanager
def in_place_of(files: Mapping[str | os.PathLike, str | os.PathLike]) -> Iterator[None]:
    """Within this context `load_experiment` reads other config files: {file: the one in its place}. It has the form
    that is asked for, and behind it, as in 'unet_debug', its own ('FILE:debug').

    A config that is a small change of another one is so put on another base, with all that lies between them: with
    {'configs/digits.py': 'configs/scenes_dense.py'}, `configs/chameleon.py` is Chameleon on scenes.
    """
    token = _INSTEAD.set({os.path.realpath(file): str(other) for file, other in files.items()})
    try:
        yield
    finally:
        _INSTEAD.reset(token)


def load_experiment(path: str | os.PathLike) -> Experiment:
    """The experiment of a config file; `path` may end in ':form'.

    Raises:
      UsageError: naming the line of the file, or the field that cannot work.
    """
    file, *form = str(path).split(":", 1)
    file, *size = _INSTEAD.get({}).get(os.path.realpath(file), file).split(":", 1)
    forms = "_".join((*form, *size))
    return from_config(load_config(file, forms) if forms else load_config(file))


def call_in_file(path: str | os.PathLike, name: str, what: str = "file") -> Any:
    """Runs a Python file of the user's and returns what its function `name` returns.

    Args:
      path: the file.
      name: a function without arguments.
      what: how the file is called in errors.

    Raises:
      UsageError: if there is no such file or function, or the file fails, which is told in one line.
    """
    if not os.path.isfile(path):
        raise UsageError(f"the {what} {path} does not exist")
    try:
        module = runpy.run_path(os.fspath(path), run_name=name)
        if name not in module:
            raise UsageError(f"{path}: no function {name}{nearest(name, module)}")
        return module[name]()
    except UsageError:
        raise
    except Exception as error:  # the file is the user's code and raises what it likes
        raise UsageError(f"{path}: {type(error).__name__}: {error}") from error
