"""Reads the fields of a released config.json: a field is checked and used, known to change nothing, or refused."""

import math
import re
from collections.abc import Collection, Mapping
from typing import Any

from transfusion.errors import UsageError
from transfusion.interop.opening import near, short

LARGEST_SIZE = 2**31 - 1  # no model has a larger size

# Fields that do not change the function that a model computes. They say where it comes from, how it was trained and
# initialised, and what a library returns, or are settings of generation, which older versions of transformers write
# into every config.
COMMON = frozenset(
    """
    architectures attn_implementation auto_map dtype model_type name_or_path torch_dtype transformers_version
    embd_pdrop resid_pdrop classifier_dropout chunk_size_feed_forward
    output_attentions output_hidden_states output_scores output_past output_router_logits
    return_dict return_dict_in_generate return_unused_kwargs torchscript use_cache cache_implementation use_bfloat16
    finetuning_task id2label label2id problem_type task_specific_params tokenizer_class pruned_heads prefix
    add_cross_attention cross_attention_hidden_size is_decoder is_encoder_decoder tie_encoder_decoder
    bad_words_ids begin_suppress_tokens diversity_penalty do_sample early_stopping encoder_no_repeat_ngram_size
    exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id length_penalty max_length min_length
    no_repeat_ngram_size num_beam_groups num_beams num_return_sequences remove_invalid_values repetition_penalty
    suppress_tokens temperature tf_legacy_loss top_k top_p typical_p ignore_index
    is_llama_config transformers.js_config max_sequence_length max_seq_len max_seq_length model_max_length seq_length
    pad_token bos_token eos_token unk_token chat_template max_new_tokens keys_to_ignore_at_inference logits_to_keep
    num_logits_to_keep kv_cache_dtype trust_remote_code use_safetensors license language model_name description
    base_model fp16 bf16 tf32
    """.split()  # noqa: SIM905 - a list would be one name a line
)
# Further such fields, by the form of their whole names. A leading underscore marks a library's own fields.
_HARMLESS = re.compile(
    r"""
    _\w+ | unsloth_\w+ | neftune_\w+ | initializer_\w+ | gradient_checkpointing\w* | use_gradient_checkpointing
    | (attention|attn|hidden|embed|mlp|ffn|residual|projection)?_?(dropout|dropout_prob|dropout_rate)
    | \w*_token_ids? | \w*_token_index | use_flash_attn\w* | use_flash_attention\w* | flash_attn\w*
    | \w+_loss_coef(ficient)? | onnx\w* | tokenizer_\w+ | summary_\w+
    """,
    re.VERBOSE,
)
# Names of things that all families have. False in such a field does not mean that an extra is absent: it means another
# model.
_ALWAYS = re.compile(
    r"(use_|apply_|with_|has_|enable_|add_|is_|do_)*"
    r"(rope|rotary\w*|rotary|causal\w*|(pos|position|positional)_emb\w*|(rms|layer|pre|final|input)_?norm\w*|norm"
    r"|scale_attn\w*|attn_scale\w*|swiglu|gated\w*|residual\w*|affine|\w+_affine|softmax\w*|ffn|mlp|attention)"
)


def fields(
    config: Mapping[str, Any],
    used: Collection[str],
    harmless: Collection[str] = (),
    fixed: Mapping[str, Any] | None = None,
    where: str = "config.json",
) -> None:
    """Refuses a config with a field that is not understood.

    A field that is null counts as missing. A field that is false or empty means that an extra is absent
    (`rope_interleaved`, `use_mrope`) and is passed over, unless all families have the thing that it names (`use_rope`).

    Args:
      used: fields that the family reads.
      harmless: fields that change nothing in this family, besides `COMMON` and the forms of `_HARMLESS`.
      fixed: fields that may have only this value (or one of a tuple of values).
      where: names the table in errors.

    Raises:
      UsageError: naming the field.
    """
    fixed = fixed or {}
    known = {*used, *harmless, *fixed, *COMMON}
    for name, value in config.items():
        if value is None:
            continue
        if name in fixed:
            allowed = fixed[name] if isinstance(fixed[name], tuple) else (fixed[name],)
            if value not in allowed:
                listed = " or ".join(repr(v) for v in allowed if v is not None)
                raise UsageError(f"{where}: {name} is {short(value)}, and only {listed} is understood")
        elif name not in known and not _says_nothing(name, value):
            _refuse(name, value, where, near(name, known - COMMON))


def _says_nothing(name: str, value: Any) -> bool:
    if _HARMLESS.fullmatch(name) or (isinstance(value, list | dict | str) and not value):
        return True
    return value is False and not _ALWAYS.fullmatch(name)


def _refuse(name: str, value: Any, where: str, hint: str) -> None:
    name = name if len(name) < 80 else f"{name[:80]}..."
    if name == "quantization_config":
        raise UsageError(f"{where}: quantization_config says that the weights are quantised: import the original ones")
    if value is False:
        raise UsageError(f"{where}: {name} is False, and only True is understood")
    raise UsageError(
        f"{where}: the field {name!r} is not understood{hint}; if it changes nothing, pass over it with "
        f"--ignore_field {name}"
    )


def ignoring(config: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """The config without the fields of these names, in all of its tables; this is --ignore_field.

    Raises:
      UsageError: if a name is nowhere in it.
    """
    seen: set[str] = set()

    def of(table: Mapping[str, Any]) -> dict[str, Any]:
        seen.update(table)
        kept = {name: value for name, value in table.items() if name not in names}
        return {name: of(value) if isinstance(value, Mapping) else value for name, value in kept.items()}

    result = of(config)
    for name in names:
        if name not in seen:
            raise UsageError(f"--ignore_field={name}: config.json has no such field{near(name, seen)}")
    return result


def given(
    config: Mapping[str, Any], name: str, kind: type = int, default: Any = None, where: str = "config.json"
) -> Any:
    """A field of the config, checked for its type, or `default` if the field is missing or null.

    Whole numbers must be positive, other numbers finite.

    Raises:
      UsageError: if it is not of type `kind`, out of range, or missing without a `default`.
    """
    value = default if config.get(name) is None else config[name]
    if value is None:
        raise UsageError(f"{where}: the field {name!r} is missing")
    if kind is float and type(value) is int and abs(value) <= LARGEST_SIZE:
        value = float(value)
    if type(value) is not kind:
        raise UsageError(f"{where}: {name} must be of type {kind.__name__}, not {short(value)}")
    if kind is int and not 1 <= value <= LARGEST_SIZE:
        raise UsageError(
            f"{where}: {name} must be {'positive' if value < 1 else f'at most {LARGEST_SIZE}'}, not {short(value)}"
        )
    if kind is float and not math.isfinite(value):
        raise UsageError(f"{where}: {name} must be finite, not {value}")
    return value


def positive(config: Mapping[str, Any], name: str, default: float | None = None, where: str = "config.json") -> float:
    """A number above 0, such as an epsilon.

    Raises:
      UsageError: as `given` does, or if it is not above 0.
    """
    value = given(config, name, float, default, where)
    if value <= 0:
        raise UsageError(f"{where}: {name} must be positive, not {value}")
    return value


def whole_numbers(config: Mapping[str, Any], name: str, where: str = "config.json", least: int = 1) -> tuple[int, ...]:
    """A list of whole numbers of at least `least`; () if the field is missing or null.

    Raises:
      UsageError: if it is anything else.
    """
    values = given(config, name, list, [], where)
    if any(type(value) is not int or not least <= value <= LARGEST_SIZE for value in values):
        raise UsageError(f"{where}: {name} {short(values)} must be whole numbers of at least {least}")
    return tuple(values)


def class_names(config: Mapping[str, Any]) -> list[str]:
    """The classes that a config names: `architectures` (transformers) or `_class_name` (diffusers)."""
    listed = config.get("architectures")
    names = [*(listed if isinstance(listed, list) else ()), config.get("_class_name")]
    return [name for name in names if isinstance(name, str)]
