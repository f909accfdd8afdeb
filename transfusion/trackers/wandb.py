"""Shows runs in Weights & Biases.

The key is that of WANDB_API_KEY or of the file that `wandb login` writes. Without one, or with WANDB_MODE=offline, the
run is written into the folder wandb/ of the workdir, and `wandb sync` sends it later.
"""

import os
import tempfile
from collections.abc import Sequence
from typing import Any

from absl import logging

from transfusion.storage import is_bucket
from transfusion.trackers.tracker import Numbers, Picture, Tracked


class WandB:
    """A run of W&B. A training that goes on continues it by its id; charts have the step of training on their axis,
    so that steps that are made again after a fault are shown where they belong."""

    def __init__(self):
        self._wandb: Any = None
        self._run: Any = None

    def start(self, run: Tracked, at: int) -> None:
        if self._run is not None:
            return  # a run that went back: the same steps come again
        import wandb

        folder = tempfile.mkdtemp() if is_bucket(run.workdir) else run.workdir
        mode = None
        if not os.environ.get("WANDB_MODE") and not _has_key(wandb):
            mode = "offline"
            logging.info("no W&B key: this run is written to %s; `wandb sync` sends it", os.path.join(folder, "wandb"))
        self._wandb = wandb
        self._run = wandb.init(
            project=run.project, name=run.name, id=run.id, resume="allow", dir=folder, config=dict(run.config),
            mode=mode, settings=wandb.Settings(silent=True, console="off"),
        )  # fmt: skip
        if self._run.url:
            logging.info("W&B shows this run at %s", self._run.url)
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def scalars(self, step: int, numbers: Numbers) -> None:
        self._run.log({"step": step} | {name: number for name, number in numbers.items() if number is not None})

    def media(self, step: int, pictures: Sequence[Picture]) -> None:
        groups: dict[str, list] = {}
        for picture in pictures:
            group = picture.name.split("/")[0]
            groups.setdefault(f"samples/{group}", []).append(self._wandb.Image(picture.image, caption=picture.caption))
        self._run.log({"step": step} | groups)

    def finish(self) -> None:
        run, self._run = self._run, None
        if run is not None:
            run.finish()


def _has_key(wandb: Any) -> bool:
    return bool(os.environ.get("WANDB_API_KEY") or wandb.setup().settings.api_key or _in_netrc())


def _in_netrc() -> bool:
    """Whether `wandb login` has written a key into the file that it shares with others."""
    try:
        with open(os.path.expanduser(os.environ.get("NETRC", "~/.netrc"))) as file:
            return "wandb" in file.read()
    except OSError:
        return False
