"""What independent implementations compute, and the checks that hold our code against it.

Each module here has `CHECKS`: a regular expression on an oracle's source -> a function of the `Oracle` that returns our
value of every output by name, without the 'out.' of the file.
"""

import dataclasses
import functools
import importlib
import json
import os
import pathlib
import pkgutil
import re
import shutil
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from transfusion.interop.export import export_checkpoint
from transfusion.interop.family import Imported
from transfusion.interop.files import Checkpoint
from transfusion.interop.importing import import_checkpoint, load_params
from transfusion.interop.known import find_family

FOLDER = pathlib.Path(
    os.environ.get("TRANSFUSION_ORACLES") or pathlib.Path(__file__).parents[2].parent / "shared" / "oracles"
)
# Small ones of the repository, which tests/data/make_oracles.py wrote, too.
OURS = pathlib.Path(__file__).parents[1] / "data" / "oracles"


@dataclasses.dataclass(frozen=True)
class Oracle:
    """One JSON file of the folder, with the arrays and weights beside it; or some arrays of an npz file without one.

    Attributes:
      path: of the file; no check may look at its name.
      about: what it holds.
      tmp_path: an empty folder for the check.
    """

    path: pathlib.Path
    about: dict[str, Any]
    tmp_path: pathlib.Path

    @property
    def source(self) -> str:
        return self.about["source"]

    @property
    def config(self) -> dict[str, Any]:
        """The arguments of the reference."""
        return self.about.get("config") or {}

    @property
    def hf_config(self) -> dict[str, Any] | None:
        """The config as its library saves it, if there is one."""
        return self.about.get("hf_config")

    @functools.cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        with np.load(self.path.with_suffix(".npz"), allow_pickle=False) as file:
            return {name: file[name] for name in self.about.get("arrays", file.files)}

    @property
    def inputs(self) -> dict[str, np.ndarray]:
        return {name[3:]: value for name, value in self.arrays.items() if name.startswith("in.")}

    @property
    def outputs(self) -> dict[str, np.ndarray]:
        if "arrays" in self.about:
            return {name: value for name, value in self.arrays.items() if re.search(r"\bmask", name)}
        return {name[4:]: value for name, value in self.arrays.items() if name.startswith("out.")}

    @property
    def weights(self) -> pathlib.Path:
        """Beside the JSON file, or the file that the source names ('weights = NAME.safetensors')."""
        named = re.search(r"weights = (\S+\.safetensors)", self.source)
        return self.path.with_name(named[1]) if named else self.path.with_suffix(".safetensors")

    def folder(self, config: dict[str, Any] | None = None) -> pathlib.Path:
        """The weights as a released folder; `config` replaces what config.json is made of."""
        folder = self.tmp_path / "released"
        folder.mkdir()
        shutil.copy(self.weights, folder / "model.safetensors")
        config = dict(config or self.hf_config or self.config)
        named = re.match(r"(transformers|diffusers) \S+ (\w+)", self.source)
        if named:
            name, value = ("architectures", [named[2]]) if named[1] == "transformers" else ("_class_name", named[2])
            config[name] = config.get(name) or value
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    def load(self, config: dict[str, Any] | None = None) -> tuple[Imported, Any, pathlib.Path]:
        """(how it was imported, parameters, workdir), by way of a checkpoint; export gives the same file back."""
        folder, workdir, back = self.folder(config), self.tmp_path / "imported", self.tmp_path / "exported"
        import_checkpoint(folder, workdir, text_as_bytes=True)
        export_checkpoint(workdir, back)
        assert_same_checkpoint(folder, back)
        _, imported = find_family(Checkpoint(folder))
        return imported, load_params(workdir, imported), workdir


def find_oracles() -> list[tuple[str, pathlib.Path, dict[str, Any]]]:
    """(name for people, path, what it holds) of every oracle of the folder, and of the repository.

    An npz file without a JSON file holds masks, named 'case.array'. It makes one oracle of all cases that have the same
    arrays: their source is 'arrays: ' and these arrays' names, and the masks are to be equal.
    """
    files = [*sorted(FOLDER.glob("*.json")), *sorted(OURS.glob("*.json"))]
    found = [(path.stem, path, json.loads(path.read_text())) for path in files]
    for path in sorted(FOLDER.glob("*.npz")):
        if path.with_suffix(".json").exists():
            continue
        with np.load(path, allow_pickle=False) as file:
            names = [name.partition(".") for name in file.files]
        cases: dict[str, list[str]] = {}
        for case, _, array in names:
            cases.setdefault(case, []).append(array)
        groups: dict[str, list[str]] = {}
        for case, arrays in cases.items():
            groups.setdefault(" ".join(sorted(arrays)), []).extend(f"{case}.{array}" for array in arrays)
        for i, (kind, arrays) in enumerate(groups.items()):
            masks = [name for name in arrays if re.search(r"\bmask", name)]
            found.append((f"{path.stem}-{i}", path, {"source": f"arrays: {kind}", "arrays": arrays, "exact": masks}))
    return found


def assert_same_checkpoint(folder: pathlib.Path, other: pathlib.Path) -> None:
    """Same config, keys, dtypes and bits."""
    one, two = Checkpoint(folder), Checkpoint(other)
    assert one.config == two.config and one.keys() == two.keys()
    for key, entry in one.entries.items():
        assert entry.dtype == two.entry(key).dtype and entry.shape == two.shape(key), key
        assert one.raw(key).tobytes() == two.raw(key).tobytes(), key


def run(imported: Imported, params: Any, call: Callable, *inputs: Any) -> Any:
    """`call(module, *inputs)`, jitted, with the parameters bound."""
    return jax.jit(lambda params, *inputs: call(imported.template.bind(params), *inputs))(params, *inputs)


def checks() -> dict[str, Callable[[Oracle], dict[str, np.ndarray]]]:
    """The checks of all modules of this folder."""
    found = {}
    for module in pkgutil.iter_modules(__path__):
        found |= importlib.import_module(f"{__name__}.{module.name}").CHECKS
    return found
