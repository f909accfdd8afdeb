"""What a family of released checkpoints is: which folders it reads, and how."""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from transfusion.config import Experiment
from transfusion.errors import UsageError, nearest
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
    the config and raises UsageError naming the field that it does not understand. `tokens` names special tokens of its
    tokenizer by the field of `TokenizerConfig`, where config.json does not say them."""

    name: str
    claims: Callable[[Mapping[str, Any], Collection[str]], bool]
    build: Callable[[Mapping[str, Any], Collection[str]], Imported]
    tokens: Mapping[str, str] = dataclasses.field(default_factory=dict)


# Fields that say nothing about the function that a model computes: where it comes from, how training initialised it,
# what a library returns, and the generation settings that older versions of transformers dump into every config.
COMMON = frozenset(
    """
    _class_name _commit_hash _diffusers_version _name_or_path _use_default_values _attn_implementation_autoset
    architectures attn_implementation auto_map dtype model_type name_or_path torch_dtype transformers_version
    initializer_factor initializer_range
    attention_dropout embd_pdrop resid_pdrop hidden_dropout_prob dropout
    chunk_size_feed_forward gradient_checkpointing output_attentions output_hidden_states output_scores
    output_past return_dict return_dict_in_generate return_unused_kwargs torchscript use_cache use_bfloat16
    finetuning_task id2label label2id problem_type task_specific_params tokenizer_class pruned_heads
    bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id prefix
    add_cross_attention cross_attention_hidden_size is_decoder is_encoder_decoder tie_encoder_decoder
    bad_words_ids begin_suppress_tokens diversity_penalty do_sample early_stopping encoder_no_repeat_ngram_size
    exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id length_penalty max_length min_length
    no_repeat_ngram_size num_beam_groups num_beams num_return_sequences remove_invalid_values repetition_penalty
    suppress_tokens temperature tf_legacy_loss top_k top_p typical_p
    """.split()  # noqa: SIM905 - a list would be one name a line
)


def fields(
    config: Mapping[str, Any],
    used: Collection[str],
    harmless: Collection[str] = (),
    fixed: Mapping[str, Any] | None = None,
    where: str = "config.json",
) -> None:
    """Refuses a config with a field that is not understood.

    Args:
      used: fields that the family reads.
      harmless: fields that change nothing here, besides `COMMON`.
      fixed: fields that must have this value (a tuple: one of these) where they are given.
      where: names the table in the error.

    Raises:
      UsageError: naming the field.
    """
    fixed = fixed or {}
    known = {*used, *harmless, *fixed, *COMMON}
    for name, value in config.items():
        if name not in known:
            raise UsageError(f"{where}: the field {name!r} is not understood{nearest(name, known - COMMON)}")
        if name in fixed:
            allowed = fixed[name] if isinstance(fixed[name], tuple) else (fixed[name],)
            if value not in allowed:
                listed = " or ".join(repr(v) for v in allowed)
                raise UsageError(f"{where}: {name} is {value!r}, and only {listed} is understood")


def given(
    config: Mapping[str, Any], name: str, kind: type = int, default: Any = None, where: str = "config.json"
) -> Any:
    """A field of the config, checked for its type; `default` where it is missing or null.

    Raises:
      UsageError: if it is not of type `kind`, or missing without a `default`.
    """
    value = default if config.get(name) is None else config[name]
    if value is None:
        raise UsageError(f"{where}: the field {name!r} is missing")
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind or (kind is int and value < 0):
        raise UsageError(f"{where}: {name} must be of type {kind.__name__}, not {value!r}")
    return value


def class_names(config: Mapping[str, Any]) -> list[str]:
    """The classes that a config names: `architectures` (transformers) or `_class_name` (diffusers)."""
    listed = config.get("architectures")
    names = [*(listed if isinstance(listed, list) else ()), config.get("_class_name")]
    return [name for name in names if isinstance(name, str)]
