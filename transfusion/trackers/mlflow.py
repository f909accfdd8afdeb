"""Shows runs in MLflow: on the server at MLFLOW_TRACKING_URI, or in the workdir.

Without a server the store is mlflow.db in the workdir (`mlflow ui --backend-store-uri sqlite:///runs/x/mlflow.db`), and
pictures lie in the folder mlartifacts beside it. A server's password is that of MLFLOW_TRACKING_PASSWORD or
MLFLOW_TRACKING_TOKEN.
"""

import json
import logging
import os
import pathlib
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from transfusion.storage import is_bucket
from transfusion.trackers.tracker import Numbers, Picture, Tracked

_ID = "transfusion.run"  # the tag by which a run is found again
_LONGEST = 500  # characters of a parameter, in all stores
_AT_ONCE = 100  # parameters of one request


class MLflow:
    """A run of MLflow. Its client is used, and not its global functions: a user's own run stays as it is."""

    def __init__(self):
        self._client: Any = None
        self._id = ""

    def start(self, run: Tracked, at: int) -> None:
        if self._id:
            return  # a run that went back: the same steps come again
        os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
        from mlflow.tracking import MlflowClient

        address, pictures = os.environ.get("MLFLOW_TRACKING_URI"), None
        if not address:
            logging.getLogger("mlflow.store.db").setLevel(logging.WARNING)  # else it tells of each table that it makes
            folder = pathlib.Path(tempfile.mkdtemp() if is_bucket(run.workdir) else run.workdir).absolute()
            address, pictures = f"sqlite:///{folder}/mlflow.db", (folder / "mlartifacts").as_uri()
        self._client = MlflowClient(tracking_uri=address)
        found = self._client.get_experiment_by_name(run.project)
        group = found.experiment_id if found else self._client.create_experiment(run.project, pictures)
        runs = self._client.search_runs([group], f"tags.`{_ID}` = '{run.id}'", max_results=1)
        if runs:
            self._id = runs[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            return
        self._id = self._client.create_run(group, run_name=run.name, tags={_ID: run.id}).info.run_id
        self._parameters(run)

    def _parameters(self, run: Tracked) -> None:
        from mlflow.entities import Param

        params = [Param(name, str(value)[:_LONGEST]) for name, value in run.config.items() if value is not None]
        for first in range(0, len(params), _AT_ONCE):
            self._client.log_batch(self._id, params=params[first : first + _AT_ONCE])

    def scalars(self, step: int, numbers: Numbers) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, float(value), now, step) for name, value in numbers.items() if value is not None]
        self._client.log_batch(self._id, metrics=metrics)

    def media(self, step: int, pictures: Sequence[Picture]) -> None:
        for picture in pictures:
            self._client.log_image(self._id, picture.image, key=f"samples/{picture.name}", step=step)
        captions = {picture.name: picture.caption for picture in pictures}
        self._client.log_text(self._id, json.dumps(captions, indent=1), f"samples/captions-{step:08d}.json")

    def finish(self) -> None:
        run, self._id = self._id, ""
        if run:
            self._client.set_terminated(run)
