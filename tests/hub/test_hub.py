"""Published runs: a folder or a hub gives back the weights to the bit and the same draws."""

import json
import os
import pathlib
import shutil

import jax
import numpy as np
import pytest
from etils import epath
from fake_hub import used_hub
from safetensors.numpy import load_file, save_file

import transfusion
from transfusion.codecs import CodecConfig
from transfusion.config import Experiment
from transfusion.errors import UsageError
from transfusion.hub.publish import publish, publish_on_hub
from transfusion.interop.files import Checkpoint
from transfusion.remote import hub as remote
from transfusion.running.restore import find_newest, restore_params, saved_shapes
from transfusion.storage import StorageError
from transfusion.workdir import portable


@pytest.fixture(scope="module")
def published(tiny_run, tmp_path_factory) -> pathlib.Path:
    """The tiny run as a folder, with an evaluation."""
    copy = tmp_path_factory.mktemp("evaluated") / "run"
    shutil.copytree(tiny_run, copy)
    score = {"value": 0.25, "low": 0.125, "high": 0.5, "count": 64}
    found = {"generation_accuracy": score, "step": 20, "config": {"data_dir": str(tiny_run)}, "absent": {}}
    (copy / "evaluation.json").write_text(json.dumps(found))
    (copy / "samples").mkdir(exist_ok=True)
    (copy / "samples" / "generated.png").write_bytes(b"\x89PNG")
    return publish(copy, tmp_path_factory.mktemp("published") / "mine", "cc-by-4.0")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with used_hub(monkeypatch, tmp_path) as found:
        yield found


def same(a, b) -> bool:
    """Whether two trees are equal to the bit."""
    return all(
        x.dtype == y.dtype and np.array_equal(np.asarray(x), np.asarray(y))
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def test_a_folder_gives_back_the_weights_to_the_bit_and_the_same_draws(tiny_run, published):
    first, second = transfusion.load_run(tiny_run), transfusion.load_run(published)
    assert (first.step, first.draws) == (second.step, second.draws) and same(first.params, second.params)
    drawn = [run.draw("a handwritten seven", steps=2, seed=5) for run in (first, second)]
    assert np.array_equal(*drawn)
    again = publish(published, published.parent / "again")
    assert (again / "model.safetensors").read_bytes() == (published / "model.safetensors").read_bytes()


def test_the_folder_names_no_folder_of_the_machine_and_holds_no_program(tiny_run, published):
    names = sorted(str(path.relative_to(published)) for path in published.rglob("*") if path.is_file())
    assert names == ["README.md", "config.json", "evaluation.json", "model.safetensors", "pictures/generated.png"]
    for name in names[:3]:
        assert "/" + str(tiny_run).split("/")[1] not in (published / name).read_text()
    card = (published / "README.md").read_text()
    for part in ('license: "cc-by-4.0"', "| generation accuracy | 25.0% | 12.5% to 50.0% | 64 |", "CC BY 4.0",
                 "![generated](pictures/generated.png)", "transfusion.load_run('./mine')"):  # fmt: skip
        assert part in card


def test_every_program_reads_it_and_nobody_trains_in_it(published):
    step, params, _ = restore_params(published, "params")
    assert step == 20 and same(params, restore_params(published, "ema")[1])
    assert saved_shapes(published)[0] == 20
    with pytest.raises(UsageError, match="published run, which nobody trains in: give a new --workdir, and"):
        find_newest(published)
    with pytest.raises(UsageError, match="mine exists already"):
        publish(published, published)


def test_a_codec_that_was_published_is_kept_inside_of_the_run_that_uses_it(published, tmp_path):
    run, codec = epath.Path(tmp_path) / "run", CodecConfig("autoencoder", str(published))
    for _ in range(2):  # the second time nothing is to be done
        portable.bring_in(Experiment(codec=codec), run)
    assert same(restore_params(run / "codec")[1], restore_params(published)[1])
    assert not portable.differing_codecs(*[Experiment(codec=codec)] * 2, run)


def test_a_hub_takes_it_and_gives_it_back(tiny_run, hub, monkeypatch, capfd):
    assert publish_on_hub(tiny_run, "me/digits", private=True) == f"{hub.address}/me/digits"
    assert hub.private == {"me/digits"} and hub.large == {"model.safetensors"}
    assert {"README.md", "config.json"} <= hub.models["me/digits"].keys()
    hub.models["me/digits"]["evil.pkl"] = b"cos\nsystem"
    run = transfusion.load_run("hf://me/digits")
    assert same(run.params, transfusion.load_run(tiny_run).params)
    assert not any("evil.pkl" in request for request in hub.requests if "/resolve/" in request)
    hub.requests.clear()
    transfusion.load_run("hf://me/digits")  # in the same program the same revision, without asking again
    assert not hub.requests
    remote._fetched.cache_clear()
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 30)
    with pytest.raises(UsageError, match="cannot fetch hf://me/other: there is no such model, or it is not yours"):
        transfusion.load_run("hf://me/other")
    with pytest.raises(UsageError, match="cannot publish me/digits: it is not allowed with this token"):
        publish_on_hub(tiny_run, "me/digits")
    assert "x" * 30 not in capfd.readouterr().err


def test_a_copy_serves_when_the_hub_is_away(tiny_run, hub, monkeypatch):
    publish_on_hub(tiny_run, "me/digits")
    remote.local_copy("hf://me/digits")
    remote._fetched.cache_clear()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert pathlib.Path(remote.local_copy("hf://me/digits"), "model.safetensors").is_file()
    with pytest.raises(StorageError, match="cannot fetch hf://me/never"):
        remote.local_copy("hf://me/never")
    for wrong in ("hf://digits", "hf://a/b/c", "hf://../x", "hf://a/b@"):
        with pytest.raises(UsageError, match="not of the form hf://OWNER/NAME"):
            remote.local_copy(wrong)


def test_a_released_model_of_a_hub_is_read_through_the_links_of_its_copy(hub, tmp_path):
    save_file({"a": np.arange(3.0)}, tmp_path / "model.safetensors", {"format": "pt"})
    hub.models["they/vae"] = {
        "config.json": b'{"_class_name": "AutoencoderKL"}',
        "model.safetensors": (tmp_path / "model.safetensors").read_bytes(),
    }
    found = Checkpoint(remote.local_copy("hf://they/vae"))
    assert found.config == {"_class_name": "AutoencoderKL"} and found.raw("a").tolist() == [0, 1, 2]


@pytest.mark.parametrize("fault", ("shape", "missing", "foreign", "truncated", "step", "pipe"))
def test_damaged_and_foreign_weights_are_one_line(published, tmp_path, fault):
    folder = tmp_path / "copy"
    shutil.copytree(published, folder)
    path, about = folder / "model.safetensors", {"format": "transfusion", "step": "20", "weights": "ema"}
    arrays = load_file(path)
    name = next(iter(arrays))
    message = {
        "shape": f"the parameter {name} is ", "missing": f"the parameter {name} is missing", "step": "give no step",
        "foreign": "was not published by this program", "truncated": "cannot read .*model.safetensors",
        "pipe": "model.safetensors is no file",
    }[fault]  # fmt: skip
    if fault == "shape":
        arrays[name] = np.concatenate([arrays[name]] * 2)
    elif fault == "missing":
        del arrays[name]
    elif fault == "step":
        about["step"] = "-1"
    elif fault == "foreign":
        about["format"] = "pt"
    save_file(arrays, path, about)
    if fault == "truncated":
        path.write_bytes(path.read_bytes()[:-3])
    elif fault == "pipe":
        path.unlink()
        os.mkfifo(path)
    with pytest.raises(UsageError, match=message):
        transfusion.load_run(folder)


def test_the_packaged_run_can_be_opened():
    folder = pathlib.Path(transfusion.__file__).parent / "packaged" / "digits"
    assert sum(path.stat().st_size for path in folder.rglob("*")) < 5_000_000
    run = transfusion.load_run(folder)
    assert run.step == 850 and run.draws == ("image",)


@pytest.mark.parametrize("target", ["published", "mine.v2"])
def test_a_name_alone_is_no_place_and_the_folder_is_told(target):
    """Only OWNER/NAME is on a hub, and only what begins like a path is a folder."""
    from transfusion.hub.__main__ import main

    with pytest.raises(UsageError, match=f"for a folder give ./{target}$"):
        main(["hub", "publish", "runs/small", target])
