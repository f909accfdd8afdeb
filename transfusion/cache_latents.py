r"""Encodes a config's data once: training then reads latents and encodes nothing.

  python -m transfusion.cache_latents --config configs/emoji.py:latents --output latents/emoji --workers 4

Each source of `data.sources` goes to OUTPUT/NAME, each source of `eval.sources` to OUTPUT/eval/NAME. At the end the
program prints the flags with which training reads them. If it is stopped, the same command continues. With --beam an
Apache Beam runner writes the shards; its machines must have the same paths: --beam runner=FlinkRunner --beam ...
"""

import concurrent.futures.process
import dataclasses
import functools
import multiprocessing
import pathlib
import time
from collections.abc import Iterator, Sequence

from absl import flags
from ml_collections import config_flags

from transfusion import programs
from transfusion.codecs import CodecConfig
from transfusion.config import Experiment
from transfusion.data.config import SourceConfig
from transfusion.data.latent_cache import begin_cache, finish_cache, write_shard
from transfusion.data.latent_files import CachePlan, content_of
from transfusion.data.media import kind_of
from transfusion.data.sources import Source, open_source
from transfusion.errors import UsageError, check, require
from transfusion.latents import Codec, open_codec
from transfusion.running.jax_setup import set_up_jax
from transfusion.running.own_files import sole_use


@dataclasses.dataclass(frozen=True)
class CachingJob:
    """Everything that a worker needs to encode a shard of a source, wherever it runs."""

    source: SourceConfig
    codec: CodecConfig
    data_dir: str
    pixel_limit: int
    folder: str
    digest: str
    shard_records: int

    def plan(self, records: int) -> CachePlan:
        return CachePlan(self.digest, content_of(self.source), records, self.shard_records)


@functools.lru_cache(maxsize=1)
def _source(config: SourceConfig, data_dir: str, pixel_limit: int) -> Source:
    return open_source(config, data_dir, pixel_limit)


@functools.lru_cache(maxsize=1)
def _codec(config: CodecConfig) -> Codec:
    return open_codec(config)


def encode_shard(number: int, job: CachingJob) -> int:
    """Writes one shard of a job. Returns how many of its records cannot be used.

    Raises:
      UsageError: if this machine has another codec than the job, or the shard cannot be written.
    """
    source, codec = _source(job.source, job.data_dir, job.pixel_limit), _codec(job.codec)
    if codec.digest != job.digest:
        raise UsageError(f"a worker has the codec {codec.digest[:16]}, and the job is for {job.digest[:16]}")
    return write_shard(pathlib.Path(job.folder), job.plan(len(source)), number, source.__getitem__, codec.encode)


def cache_latents(
    source: SourceConfig,
    experiment: Experiment,
    folder: pathlib.Path,
    workers: int = 1,
    shard_records: int = 1024,
    beam: Sequence[str] = (),
) -> str:
    """Writes the latents of a source to a folder. Returns a line about it. Any workers write the same bytes.

    Args:
      source: the source to encode.
      experiment: its settings of the data, and its codec for the medium of the source.
      folder: where the latents go.
      workers: processes on this machine. They share its cores; an accelerator has room for only one.
      shard_records: records of each file.
      beam: options of an Apache Beam runner ('runner=...'), which then does the work.

    Raises:
      UsageError: if the codec cannot be cached, or the folder holds other latents.
    """
    data = experiment.data
    dataclasses.replace(source, latents=str(folder)).validate("the source", data.pixel_limit)
    source = dataclasses.replace(source, latents="", weight=1.0)
    _source.cache_clear()
    _codec.cache_clear()
    opened = _source(source, data.data_dir, data.pixel_limit)
    codec, records = experiment.codec_of(kind_of(opened)), len(opened)
    folder = folder.expanduser().absolute()
    job = CachingJob(source, codec, data.data_dir, data.pixel_limit, str(folder), _codec(codec).digest, shard_records)
    plan = job.plan(records)
    with sole_use(folder, "--output"):
        missing, start, bad = begin_cache(folder, plan), time.perf_counter(), 0
        run = functools.partial(_with_beam, options=beam) if beam else functools.partial(_here, workers=workers)
        for done, count in enumerate(run(job, missing), start=1):
            bad += count
            print(f"{folder}: {done} of {len(missing)} shards, {time.perf_counter() - start:.0f} s", flush=True)
        size = finish_cache(folder, plan)
    kept = len(plan.shards) - len(missing)
    return f"{folder}: {records} records, {size / 1e6:.1f} MB, {kept} shards kept, {bad} new records unusable"


def _here(job: CachingJob, numbers: Sequence[int], workers: int) -> Iterator[int]:
    """Encodes shards in this process, or in several processes. Yields how many records of each cannot be used."""
    if workers == 1:
        yield from (encode_shard(number, job) for number in numbers)
        return
    context = multiprocessing.get_context("forkserver")  # a fork of a process that has used JAX may hang
    context.set_forkserver_preload([__name__])
    with concurrent.futures.ProcessPoolExecutor(workers, context, set_up_jax) as pool:
        try:
            futures = [pool.submit(encode_shard, number, job) for number in numbers]
            for future in concurrent.futures.as_completed(futures):
                yield future.result()
        except concurrent.futures.process.BrokenProcessPool as error:
            raise UsageError(
                "the system ended a worker: run the same command again, with fewer --workers, to continue"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _with_beam(job: CachingJob, numbers: Sequence[int], options: Sequence[str]) -> Iterator[int]:
    """Encodes shards on a Beam runner, which does not report how many records cannot be used."""
    beam = require("apache_beam", "beam")
    settings = require("apache_beam.options.pipeline_options", "beam")
    flags_of_beam = settings.PipelineOptions([f"--{option}" for option in options])
    with beam.Pipeline(options=flags_of_beam) as pipeline:
        _ = pipeline | beam.Create(list(numbers)) | beam.Reshuffle() | beam.Map(encode_shard, job)
    yield from (0 for _ in numbers)


def chosen(experiment: Experiment, names: Sequence[str]) -> dict[str, tuple[str, SourceConfig]]:
    """The sources to encode by their names below --output, as (the config's field, the source). No `names` take all."""
    known = {name: (f"data.sources.{name}", source) for name, source in experiment.data.sources.items()}
    known |= {f"eval/{name}": (f"eval.sources.{name}", s) for name, s in experiment.eval.sources.items()}
    for name in names:
        check("--sources", name, known)
    return {name: known[name] for name in names or known}


def main(argv: Sequence[str]) -> None:
    del argv
    set_up_jax()
    experiment = programs.experiment_of(FLAGS.config)
    if not FLAGS.output:
        raise UsageError("--output is missing: a folder for the latents, for example --output latents/emoji")
    if FLAGS.beam and FLAGS.workers > 1:
        raise UsageError("--workers are processes of this machine: with --beam the runner decides how many there are")
    arguments = []
    for name, (field, source) in chosen(experiment, FLAGS.sources).items():
        folder = pathlib.Path(FLAGS.output) / name
        print(cache_latents(source, experiment, folder, FLAGS.workers, FLAGS.shard_records, FLAGS.beam))
        arguments.append(f"--config.{field}.latents={folder}")
    print("train with", " ".join(arguments))


FLAGS = flags.FLAGS


def define_flags() -> None:
    config_flags.DEFINE_config_file("config", None, "Config file; fields are overridden by --config.a.b=c.")
    flags.DEFINE_string("output", None, "Folder of the latents.")
    flags.DEFINE_list("sources", [], "Sources to encode, such as emoji,eval/emoji; all by default.")
    flags.DEFINE_integer("workers", 1, "Processes of this machine.", lower_bound=1)
    flags.DEFINE_integer("shard_records", 1024, "Records of a file.", lower_bound=1)
    flags.DEFINE_multi_string("beam", [], "An option of the Apache Beam runner that does the work: runner=NAME.")


if __name__ == "__main__":
    from transfusion import cache_latents as module

    module.define_flags()
    programs.run(module.main)
