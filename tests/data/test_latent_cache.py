"""Latents that are written once and read ever after: the same training, whoever wrote them."""

import dataclasses
import pathlib

import jax
import numpy as np
import pytest
import tiny
from interop import released
from program import run_program

from transfusion import latents
from transfusion.cache_latents import cache_latents
from transfusion.codecs import CodecConfig
from transfusion.config import EvalConfig, Experiment, to_json
from transfusion.data.config import DataConfig, SourceConfig
from transfusion.data.latent_files import LATENTS_JSON
from transfusion.data.sources import open_source
from transfusion.errors import UsageError
from transfusion.evaluation.examples import read_examples
from transfusion.interop.importing import import_checkpoint
from transfusion.latents import Codec, open_codec
from transfusion.sequence import Stream
from transfusion.tasks import make_task

ROOT = pathlib.Path(__file__).parents[2]
SHARDS = [f"latents-{i:05}-of-00004.array_record" for i in range(4)]


def write_codec(folder: pathlib.Path, seed: int) -> str:
    """The workdir of an autoencoder with random weights: 2 pixels to a latent of 3 channels."""
    weights = released.weights("autoencoder", released.AUTOENCODER, seed=seed)
    import_checkpoint(
        released.write(folder / f"released{seed}", released.AUTOENCODER, weights), folder / f"codec{seed}"
    )
    return str(folder / f"codec{seed}")


@pytest.fixture(scope="module")
def experiment(tmp_path_factory) -> Experiment:
    """24 images and a broken one, drawn as latents of 4 x 4."""
    root = tmp_path_factory.mktemp("latents")
    folder = pathlib.Path(tiny.write_folder(root / "images"))
    (folder / "broken.png").write_bytes(b"no image")
    with open(folder / "captions.jsonl", "a") as file:
        file.write('{"file_name": "broken.png", "caption": "nothing"}\n')
    source = SourceConfig(kind="folder", path=str(folder), resolution=8, channels=3)
    streams = {"text": Stream(vocabulary=264, budget=64), "image": tiny.image_stream(channels=3)}
    return tiny.experiment(
        str(folder), streams=streams, codec=CodecConfig("autoencoder", write_codec(root, 0)),
        data=DataConfig(sources={"mine": source}, max_bad_share=0.5, prefetch=0),
        eval=EvalConfig(every=0, sources={"mine": source}),
    )  # fmt: skip


def write(experiment: Experiment, folder: pathlib.Path, **options) -> str:
    source = experiment.data.sources["mine"]
    return cache_latents(source, experiment, folder, shard_records=7, **options)


def reading(experiment: Experiment, folder: pathlib.Path, **data) -> Experiment:
    """The experiment with the latents of a folder, in training and held out."""
    source = {"mine": dataclasses.replace(experiment.data.sources["mine"], latents=str(folder))}
    return dataclasses.replace(
        experiment,
        data=dataclasses.replace(experiment.data, sources=source, **data),
        eval=dataclasses.replace(experiment.eval, sources=source),
    )


@pytest.fixture(scope="module")
def cache(experiment, tmp_path_factory) -> pathlib.Path:
    """The latents, written by this process."""
    folder = tmp_path_factory.mktemp("cache") / "mine"
    assert "25 records" in (said := write(experiment, folder)) and "1 new records unusable" in said
    return folder


def same_files(one: pathlib.Path, other: pathlib.Path) -> bool:
    names = [*SHARDS, LATENTS_JSON]
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


def batches(experiment: Experiment) -> list:
    task = make_task(experiment)
    with task.open_data(experiment) as data:
        found = [next(data) for _ in range(8)]
        assert data.stats()["bad"] > 0
    return found + list(task.held_out(experiment))


def test_batches_are_bit_equal_and_nothing_is_encoded(experiment, cache, monkeypatch):
    wanted = batches(experiment)

    def no_encoder(config: CodecConfig) -> Codec:
        return dataclasses.replace(open_codec(config), encode=lambda _: pytest.fail("encoded again"))

    monkeypatch.setattr(latents, "open_codec", no_encoder)
    found = batches(reading(experiment, cache))
    assert len(found) == len(wanted) and any(batch["image"].values.any() for batch in found)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    # Scores compare drawings with the images themselves.
    examples = read_examples(reading(experiment, cache).data.sources, experiment.data)
    assert examples.images.shape == (24, 8, 8, 3) and examples.images.dtype == np.uint8


def test_two_processes_and_a_run_that_was_killed_write_the_same_bytes(experiment, cache, tmp_path, monkeypatch):
    write(experiment, tmp_path / "two", workers=2)
    assert same_files(tmp_path / "two", cache)

    killed, source, count = tmp_path / "killed", "transfusion.cache_latents", 0

    def dies(config: CodecConfig) -> Codec:
        codec = open_codec(config)

        def encode(image):
            nonlocal count
            count += 1
            if count == 17:
                raise KeyboardInterrupt
            return codec.encode(image)

        return dataclasses.replace(codec, encode=encode)

    monkeypatch.setattr(f"{source}.open_codec", dies)
    with pytest.raises(KeyboardInterrupt):
        write(experiment, killed)
    monkeypatch.undo()
    assert sorted(path.name for path in killed.glob("latents-*")) == SHARDS[:2]
    with pytest.raises(UsageError, match="are not complete"):
        open_source(reading(experiment, killed).data.sources["mine"])
    kept = (killed / SHARDS[0]).stat().st_mtime_ns
    assert "2 shards kept" in write(experiment, killed)
    assert same_files(killed, cache) and (killed / SHARDS[0]).stat().st_mtime_ns == kept
    assert not list(killed.glob(".*.tmp"))


def test_a_beam_runner_writes_the_same_bytes(experiment, cache, tmp_path):
    pytest.importorskip("apache_beam")
    write(experiment, tmp_path / "beam", beam=["runner=DirectRunner"])
    assert same_files(tmp_path / "beam", cache)


def test_what_is_not_the_same_is_refused(experiment, cache, tmp_path):
    other = dataclasses.replace(experiment, codec=CodecConfig("autoencoder", write_codec(tmp_path, 1)))
    digests = [open_codec(e.codec).digest[:16] for e in (experiment, other)]
    stale = reading(other, cache)
    both = f"codec {digests[0]}, and this config's codec is {digests[1]}"
    with pytest.raises(UsageError, match=both):
        make_task(stale).open_data(stale)
    with pytest.raises(UsageError, match=both):
        next(make_task(stale).held_out(stale))
    with pytest.raises(UsageError, match=both):
        write(other, cache)
    for field, value in {"flip": 0.5, "shift": 1, "edit": 0.5}.items():
        mirrored = reading(experiment, cache, **{field: value})
        with pytest.raises(UsageError, match=f"sources.mine.latents: data.{field} needs pixels"):
            make_task(mirrored).open_data(mirrored)
    config = reading(experiment, cache).data.sources["mine"]
    with pytest.raises(UsageError, match="a source with resolution=8, not 4"):
        open_source(dataclasses.replace(config, resolution=4))
    with pytest.raises(UsageError, match="no latents in .*nowhere: write them with"):
        open_source(dataclasses.replace(config, latents="nowhere"))
    with pytest.raises(UsageError, match="an autoencoder is trained on pixels"):
        make_task(dataclasses.replace(reading(experiment, cache), task="autoencoder"))


def test_a_cut_file_is_named_and_made_again(experiment, tmp_path):
    folder = tmp_path / "mine"
    write(experiment, folder)
    whole = (folder / SHARDS[2]).read_bytes()
    (folder / SHARDS[2]).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UsageError, match=f"{SHARDS[2]} has {len(whole) // 2} bytes instead of {len(whole)}"):
        open_source(reading(experiment, folder).data.sources["mine"])
    assert "3 shards kept" in write(experiment, folder)
    assert (folder / SHARDS[2]).read_bytes() == whole


def test_the_program_says_which_flags_read_its_latents(experiment, cache, tmp_path):
    (tmp_path / "config.json").write_text(to_json(experiment))
    config = f"{ROOT}/transfusion/workdir/json_file.py:{tmp_path}/config.json"
    arguments = [f"--config={config}", f"--output={tmp_path}/latents", "--shard_records=7"]
    done = run_program(tmp_path, "transfusion.cache_latents", *arguments, "--sources=mine,eval/mine")
    assert done.code == 0, done.err
    flags = " ".join(f"--config.{field}.sources.mine.latents={tmp_path}/latents/{name}"
                     for field, name in (("data", "mine"), ("eval", "eval/mine")))  # fmt: skip
    assert done.out.splitlines()[-1] == f"train with {flags}"
    assert all(same_files(tmp_path / "latents" / name, cache) for name in ("mine", "eval/mine"))
    done = run_program(tmp_path, "transfusion.cache_latents", *arguments, "--sources=yours")
    assert done.code == 2 and done.err.strip().endswith("--sources: 'yours' is none of mine, eval/mine")
