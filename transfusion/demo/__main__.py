r"""Serves a page on this machine on which you chat with a trained model and watch it draw.

  python -m transfusion.demo                          # the small model that comes with the package
  python -m transfusion.demo --workdir runs/digits --port 7861
  python -m transfusion.demo --workdir hf://OWNER/NAME

Needs the extra `demo`. The page has no login, and listens on this machine only unless --address says otherwise.
"""

import collections
import contextlib
import importlib.util
import logging
import os
import pathlib
import threading
from collections.abc import Sequence

from absl import flags

import transfusion
from transfusion import programs
from transfusion.api import Trained
from transfusion.demo.answers import WISHES, answer, apart, document_of, usual
from transfusion.errors import UsageError
from transfusion.running.jax_setup import compile_quickly, set_up_jax

PACKAGED = pathlib.Path(transfusion.__file__).parent / "packaged" / "digits"
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def main(argv: Sequence[str]) -> None:
    del argv
    serve(flags.FLAGS.workdir, flags.FLAGS.address, flags.FLAGS.port)


def serve(workdir: str | None, address: str, port: int, *, wait: bool = True) -> str:
    """Serves the page until it is interrupted, or without `wait` beside the caller; returns its address.

    Raises:
      UsageError: if gradio is missing, there is no run, or the port is taken.
    """
    if importlib.util.find_spec("gradio") is None:
        raise UsageError("gradio is not installed: pip install 'transfusion[demo]'")
    if workdir is None and not PACKAGED.is_dir():
        raise UsageError("--workdir is missing: give the folder of a training run, for example --workdir runs/digits")
    if workdir is None:
        compile_quickly()
    set_up_jax()
    logging.getLogger("httpx").setLevel(logging.WARNING)  # gradio asks itself whether it is there
    run = transfusion.load_run(workdir or PACKAGED)
    run.check_writes()
    ready = threading.Thread(target=first_answer, args=(run,), daemon=True)
    ready.start()  # while the page is made: the import of gradio takes as long as to compile a small model
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before gradio is imported
    from transfusion.demo import page

    made = page.Page(run, flags.FLAGS.max_pixels, ready).blocks().queue(max_size=16, default_concurrency_limit=1)
    try:
        _, url, _ = made.launch(
            server_name=address, server_port=port, share=False, quiet=True, prevent_thread_lock=True, ssr_mode=False,
            max_file_size=f"{flags.FLAGS.max_megabytes}mb", inbrowser=flags.FLAGS.open, footer_links=[],
            theme=page.theme(), css=page.CSS, enable_monitoring=False, mcp_server=False,
        )  # fmt: skip
    except OSError as error:
        raise UsageError(f"cannot listen on {address}:{port}: choose another --port ({error})") from error
    if address not in LOOPBACK:
        print(f"warning: everyone who reaches {address} can use this page, it has no login", flush=True)
    print(f"{workdir or 'the packaged model'}: open {url} in a browser; Ctrl-C ends the page", flush=True)
    if wait:
        made.block_thread()
    return url


def first_answer(run: Trained) -> None:
    """Answers a short message as the page would, so that all is compiled when a person writes one."""
    wish = next(iter(WISHES))
    with contextlib.suppress(UsageError):  # a person who asks is told
        said = document_of(run, [("user", ["a picture"])], False)
        collections.deque(answer(run, said, wish, 0, **usual(run), **apart(run)), maxlen=0)


def define_flags() -> None:
    flags.DEFINE_string("workdir", None, "Folder of the training run; default: the small model inside the package.")
    flags.DEFINE_string("address", "127.0.0.1", "Where to listen: 127.0.0.1 is this machine only.")
    flags.DEFINE_integer("port", 7860, "The port.", lower_bound=1, upper_bound=65535)
    flags.DEFINE_integer("max_megabytes", 5, "The largest file that visitors may send.", lower_bound=1)
    flags.DEFINE_integer("max_pixels", 4_000_000, "The most pixels of a picture that they send.", lower_bound=1)
    flags.DEFINE_bool("open", False, "Open the page in this machine's browser.")


if __name__ == "__main__":
    define_flags()
    programs.run(main)
