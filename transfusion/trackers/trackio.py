"""Shows runs in Trackio, Hugging Face's local tracker: `trackio show --project transfusion`.

Runs lie in TRACKIO_DIR; TRACKIO_SPACE_ID names a Space to show them in, with the token of HF_TOKEN.
"""

from collections.abc import Sequence
from typing import Any

from transfusion.trackers.tracker import Numbers, Picture, Tracked


class Trackio:
    """A run of Trackio, which is found again by its name, so that the name has the run's id in it."""

    def __init__(self):
        self._trackio: Any = None
        self._run: Any = None

    def start(self, run: Tracked, at: int) -> None:
        if self._run is not None:
            return  # a run that went back: the same steps come again
        import trackio

        self._trackio = trackio
        self._run = trackio.init(
            run.project, name=f"{run.name}-{run.id}", resume="allow", config=dict(run.config), embed=False,
            auto_log_gpu=False, auto_log_cpu=False,
        )  # fmt: skip

    def scalars(self, step: int, numbers: Numbers) -> None:
        self._run.log({name: number for name, number in numbers.items() if number is not None}, step=step)

    def media(self, step: int, pictures: Sequence[Picture]) -> None:
        images = {f"samples/{p.name}": self._trackio.Image(p.image, caption=p.caption) for p in pictures}
        self._run.log(images, step=step)

    def finish(self) -> None:
        run, self._run = self._run, None
        if run is not None:
            run.finish()
