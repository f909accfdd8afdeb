"""The interface of a family of released checkpoints: which folders it reads, and what it makes of them."""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from transfusion.config import Experiment
from transfusion.interop.leaves import Leaf
from transfusion.model.parameters import Template
from transfusion.workdir.portable import CODEC


@dataclasses.dataclass(frozen=True, eq=False)
class Imported:
    """How a checkpoint becomes a model of ours.

    Attributes:
      template: the module that takes the parameters.
      leaves: where each of its parameters comes from.
      experiment: the experiment that our programs open; None for a part of a model, such as a vision tower.
      ignore: regular expressions of whole keys whose arrays the model does not read. They are kept, and export writes
        them again.
      computed: values of ignored keys that the model computes itself. A checkpoint with other values is refused.
      codec: the part of the checkpoint that turns images into codes and back. It becomes a workdir inside the other.
    """

    template: Template
    leaves: Sequence[Leaf]
    experiment: Experiment | None = None
    ignore: tuple[str, ...] = ()
    computed: Mapping[str, Callable[[], np.ndarray]] = dataclasses.field(default_factory=dict)
    codec: "Imported | None" = None

    @property
    def whole(self) -> tuple[Sequence[Leaf], Mapping[str, Any]]:
        """The leaves and shapes of the model and of its codec, which are under `CODEC`."""
        if self.codec is None:
            return self.leaves, self.template.shapes
        inner = [dataclasses.replace(leaf, ours=(CODEC, *leaf.ours)) for leaf in self.codec.leaves]
        return [*self.leaves, *inner], {**self.template.shapes, CODEC: self.codec.template.shapes}


@dataclasses.dataclass(frozen=True)
class Family:
    """A family of released checkpoints.

    Attributes:
      name: the family's name.
      classes: the classes that its models have in config.json, for messages.
      claims: `claims(config, keys)` says whether config.json and the weights' keys belong to this family.
      build: `build(config, keys)` reads the config. It raises UsageError, naming the field that it does not understand.
      tokens: special tokens of its tokenizer by the field of `TokenizerConfig`, where config.json does not name them.
    """

    name: str
    classes: tuple[str, ...]
    claims: Callable[[Mapping[str, Any], Collection[str]], bool]
    build: Callable[[Mapping[str, Any], Collection[str]], Imported]
    tokens: Mapping[str, str] = dataclasses.field(default_factory=dict)
