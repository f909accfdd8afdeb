"""What a family of released checkpoints is: which folders it reads, and how."""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from transfusion.config import Experiment
from transfusion.interop.leaves import Leaf
from transfusion.model.parameters import Template

CODEC = "codec"


@dataclasses.dataclass(frozen=True, eq=False)
class Imported:
    """How a checkpoint becomes ours.

    Attributes:
      template: the module that takes the parameters.
      leaves: where each of them comes from.
      experiment: what our programs open; None for a part, such as a vision tower.
      ignore: regular expressions (of whole keys) of arrays that the model does not read; they are kept aside, and
        export writes them again.
      computed: values of ignored keys that the model computes itself; a checkpoint with others is refused.
      codec: the part of the checkpoint that turns images into codes and back; it becomes a workdir of its own inside
        the other.
    """

    template: Template
    leaves: Sequence[Leaf]
    experiment: Experiment | None = None
    ignore: tuple[str, ...] = ()
    computed: Mapping[str, Callable[[], np.ndarray]] = dataclasses.field(default_factory=dict)
    codec: "Imported | None" = None

    @property
    def whole(self) -> tuple[Sequence[Leaf], Mapping[str, Any]]:
        """The leaves and shapes of both parts, the codec's under `CODEC`."""
        if self.codec is None:
            return self.leaves, self.template.shapes
        inner = [dataclasses.replace(leaf, ours=(CODEC, *leaf.ours)) for leaf in self.codec.leaves]
        return [*self.leaves, *inner], {**self.template.shapes, CODEC: self.codec.template.shapes}


@dataclasses.dataclass(frozen=True)
class Family:
    """`claims(config, keys)`: whether config.json and the weights' keys are of this family; `build(config, keys)` reads
    the config and raises UsageError naming the field that it does not understand. `classes` are the names of its models
    in config.json, for people. `tokens` names special tokens of its tokenizer by the field of `TokenizerConfig`, where
    config.json does not say them."""

    name: str
    classes: tuple[str, ...]
    claims: Callable[[Mapping[str, Any], Collection[str]], bool]
    build: Callable[[Mapping[str, Any], Collection[str]], Imported]
    tokens: Mapping[str, str] = dataclasses.field(default_factory=dict)
