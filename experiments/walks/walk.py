"""Walks the path of a kind of user, command by command, and keeps what they saw.

  python experiments/walks/walk.py newcomer

NAME.sh beside this file has the commands of a path, one on each line; lines that begin with '#' say what the user
wants. They run one after the other in a new folder (--folder), as the installed programs, and the first that fails ends
the walk. NAME.txt gets the commands, the last lines that each one printed, and its seconds.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile
import time

from transfusion.running import provenance

HERE = pathlib.Path(__file__).resolve().parent
SHOWN = 12  # lines of each command


def shown(text: str, folder: str) -> list[str]:
    """The last lines of an output as a terminal leaves them, without the place of the folder."""
    lines = [line.rsplit("\r", 1)[-1].rstrip() for line in text.replace(folder, ".").splitlines()]
    lines = [line for line in lines if line]
    return ([f"... {len(lines) - SHOWN} lines"] if len(lines) > SHOWN else []) + lines[-SHOWN:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=sorted(path.stem for path in HERE.glob("*.sh")))
    parser.add_argument("--folder", help="folder of the walk; default: a new one")
    given = parser.parse_args()
    folder = given.folder or tempfile.mkdtemp()
    programs = f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": programs, "CHECKOUT": str(HERE.parents[1])}
    told = [f"{provenance.now()}, {os.cpu_count()} CPU cores that other programs share", ""]
    for line in (HERE / f"{given.name}.sh").read_text().splitlines():
        if not line or line.startswith("#"):
            told.append(line)
            continue
        print(line, flush=True)
        start = time.perf_counter()
        done = subprocess.run(
            ["bash", "-c", line], cwd=folder, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        seconds = time.perf_counter() - start
        told += [f"$ {line}", *shown(done.stdout, folder), f"({seconds:.0f} s, exit status {done.returncode})", ""]
        (HERE / f"{given.name}.txt").write_text("\n".join(told).replace(str(HERE.parents[1]), "$CHECKOUT") + "\n")
        if done.returncode:
            sys.exit(f"{line}\n{done.stdout[-2000:]}\nfailed: {HERE / given.name}.txt")


if __name__ == "__main__":
    main()
