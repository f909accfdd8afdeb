"""How long after `transfusion demo` is started does the packaged model draw its first picture?

    python experiments/speed/first_draw.py [--rounds 3]

Each round starts the page in a process of its own with an empty folder of compiled programs, as on the day of the
installation, and gives the page one message as soon as it can be reached. Times begin with the start of the process:
the page is reached, the picture is finished (all its moments, as the page shows them).
"""

import argparse
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
MESSAGE = "a handwritten seven"


def first(started: float) -> dict[str, float]:
    """Seconds since `started`, of a page that this process serves."""
    from absl import flags

    from transfusion.demo import __main__ as demo
    from transfusion.demo import page
    from transfusion.demo.answers import usual

    pages = []
    whole = page.Page.blocks
    page.Page.blocks = lambda self: pages.append(self) or whole(self)
    demo.define_flags()
    flags.FLAGS(sys.argv[:1])
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    demo.serve(None, "127.0.0.1", port, wait=False)
    reached = time.time() - started
    settings, seen = usual(pages[0]._run).values(), []
    for _ in range(2):
        begun = time.time()
        *_, last = pages[0].reply({"text": MESSAGE}, [], [], False, False, "the model decides", *settings, 0, True)
        assert last[3] is not None, last[5]
        seen.append(time.time() - begun)
    return {"reached": reached, "first picture": reached + seen[0], "answer": seen[0], "second answer": seen[1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    for number in range(given.rounds):
        with tempfile.TemporaryDirectory() as folder:
            environment = os.environ | {"TRANSFUSION_CACHE": folder, "JAX_PLATFORMS": "cpu"}
            environment.pop("JAX_COMPILATION_CACHE_DIR", None)
            environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
            command = [sys.executable, __file__, "--started", str(time.time())]
            said = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
        seconds = json.loads(said.splitlines()[-1])
        print(f"{number + 1}: " + ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items()), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--started"]:
        print(json.dumps(first(float(sys.argv[2]))), flush=True)
        os._exit(0)  # the page's threads would go on
    main()
