"""Reads the weights of a published run: safetensors files in a folder, in place of checkpoints.

`transfusion.hub` writes such folders. Programs read them as they read any workdir; nobody trains in one. The headers
of the files are compared with the files' sizes before memory is taken for an array, and nothing in them can run code.
"""

import functools
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from transfusion import storage
from transfusion.errors import UsageError
from transfusion.remote.hub import local_copy
from transfusion.sharding import PyTree

FORM = "transfusion"  # the value of `format` in the metadata of each file
PATTERN = "model*.safetensors"
_DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "I32": np.int32}
_DTYPES |= {"I64": np.int64, "I16": np.int16, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_, "U32": np.uint32}


class Published:
    """The weights in a published folder; arrays are read when they are asked for.

    Attributes:
      folder: where the files are.
      step: the number of training steps that the weights have seen.
      part: 'ema' if they are the average that the run kept, else 'params'.
      forms: shape and dtype of each parameter by its path.
    """

    def __init__(self, files: list[pathlib.Path]):
        self.folder = files[0].parent
        self.forms: dict[str, jax.ShapeDtypeStruct] = {}
        self._files: dict[str, pathlib.Path] = {}
        for path in files:
            self._add(path)

    def _add(self, path: pathlib.Path) -> None:
        if not path.is_file():
            raise UsageError(f"{path} is no file")
        try:
            with safe_open(path, framework="np") as file:
                about = file.metadata() or {}
                if about.get("format") != FORM:
                    raise UsageError(
                        f"{path} was not published by this program: `python -m transfusion.interop import` reads the "
                        "weights of others"
                    )
                self.step, self.part = _whole(path, about.get("step")), about.get("weights", "params")
                for name in file.keys():  # noqa: SIM118 - the file is no mapping
                    array = file.get_slice(name)
                    if name in self._files or array.get_dtype() not in _DTYPES:
                        raise UsageError(f"{path}: {name[:200]!r} is there twice, or of the dtype {array.get_dtype()}")
                    self._files[name] = path
                    self.forms[name] = jax.ShapeDtypeStruct(tuple(array.get_shape()), _DTYPES[array.get_dtype()])
        except (SafetensorError, OSError) as error:
            raise UsageError(f"cannot read {path}: {storage.one_line(error)}") from error

    @property
    def shapes(self) -> PyTree:
        """The forms of all parameters as nested dicts."""
        return _nested(self.forms)

    def read(self, wanted: PyTree) -> PyTree:
        """Arrays in the form of `wanted`, nested dicts of ShapeDtypeStructs; with a sharding, each is placed so.

        Raises:
          UsageError: if there is no such parameter, or it has another shape.
        """
        return jax.tree_util.tree_map_with_path(self._array, wanted)

    def _array(self, path: tuple, form: jax.ShapeDtypeStruct) -> jax.Array:
        name = "/".join(str(key.key) for key in path)
        if name not in self.forms or self.forms[name].shape != tuple(form.shape):
            held = f"it is {list(self.forms[name].shape)} there" if name in self.forms else "it is not there"
            raise UsageError(f"{self.folder}: {name} should be {list(form.shape)}, and {held}")
        try:
            with safe_open(self._files[name], framework="np") as file:
                value = file.get_tensor(name).astype(form.dtype, copy=False)
        except (SafetensorError, OSError) as error:
            raise UsageError(f"cannot read {self._files[name]}: {storage.one_line(error)}") from error
        on = getattr(form, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        return jax.make_array_from_callback(value.shape, on, lambda index: value[index])


def open_published(workdir: str | os.PathLike) -> Published | None:
    """The weights in a published folder, or in `hf://OWNER/NAME`; None if the workdir is no such folder.

    Raises:
      UsageError: if it cannot be read.
    """
    workdir = local_copy(workdir)
    if storage.is_bucket(workdir):
        return None
    folder = pathlib.Path(workdir).expanduser()
    if not folder.is_dir() or (folder / "checkpoints").exists():
        return None
    files = sorted(folder.glob(PATTERN))
    return Published(files) if files else None


def part_of(tree: PyTree, names: list[str], folder: Any) -> PyTree:
    """What lies at the path `names` in nested dicts; raises UsageError if nothing does."""
    try:
        return functools.reduce(lambda node, name: node[name], names, tree)
    except (KeyError, TypeError):
        raise UsageError(f"{folder} has no {'/'.join(names)!r}") from None


def _whole(path: pathlib.Path, text: str | None) -> int:
    if text is None or not text.isascii() or not text.isdigit() or len(text) > 18:
        raise UsageError(f"{path}: its metadata give no step")
    return int(text)


def _nested(flat: Mapping[str, Any]) -> PyTree:
    tree: dict = {}
    for path, value in flat.items():
        *above, last = path.split("/")
        node = tree
        for name in above:
            node = node.setdefault(name, {})
            if not isinstance(node, dict):
                raise UsageError(f"{path[:200]!r} is a parameter inside of another one")
        if last in node:
            raise UsageError(f"{path[:200]!r} is a parameter and a table of parameters")
        node[last] = value
    return tree
