"""Profiles: a window of steps is traced, in the place and the form in which viewers look for it."""

import gzip
import json

import jax
import jax.numpy as jnp
import pytest
from absl import logging

from transfusion.errors import UsageError
from transfusion.running.profile import Profile, parse_window


def test_windows():
    assert parse_window("") is None and parse_window("100:110") == (100, 110)
    for wrong in ("100", "110:100", "5:5", "a:b", "-1:5", "1:2:3"):
        with pytest.raises(UsageError, match=f"--profile={wrong}: give FIRST:LAST, as in --profile=100:110"):
            parse_window(wrong)


def test_the_steps_of_the_window_are_traced_for_tensorboard_and_perfetto(tmp_path):
    step, x = jax.jit(lambda x: x @ x), jnp.eye(8)
    pauses = []

    class Pause:
        def __enter__(self):
            pauses.append(1)

        def __exit__(self, *_):
            pass

    with Profile((2, 4), tmp_path, Pause) as profile:
        for at in range(6):
            with profile.step(at, x):
                x = step(x)
    (folder,) = (tmp_path / "tensorboard" / "plugins" / "profile").iterdir()
    assert len(pauses) == 2 and list(folder.glob("*.xplane.pb"))
    (trace,) = folder.glob("perfetto_trace.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    steps = [event["args"].get("step_num") for event in events if event.get("name") == "train"]
    assert [int(number) for number in steps] == [2, 3]


def test_a_trace_that_cannot_be_written_stops_nothing(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: said.append(text % values))
    monkeypatch.setattr(jax.profiler, "start_trace", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "full")))
    with Profile((0, 2), tmp_path) as profile:
        for at in range(3):
            with profile.step(at, jnp.zeros(())):
                pass
    assert said == ["no trace of these steps: [Errno 28] full"]
