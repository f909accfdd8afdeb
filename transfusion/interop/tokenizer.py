"""The tokenizer that lies beside released weights: it moves into the workdir, and its special tokens are found."""

import dataclasses
import pathlib
import shutil
from typing import Any

from absl import logging

from transfusion.codecs.text import TokenizerConfig, recorded, tokens
from transfusion.config import Experiment
from transfusion.errors import UsageError
from transfusion.interop.family import Family
from transfusion.interop.files import Checkpoint
from transfusion.sequence import TEXT

KINDS = {"tokenizer.json": "huggingface", "tokenizer.model": "sentencepiece"}


def adopt(experiment: Experiment, checkpoint: Checkpoint, family: Family, target: pathlib.Path) -> TokenizerConfig:
    """Copies the checkpoint's tokenizer into the folder `target`, and says how it is opened from there.

    Begin and end of a document are `family.tokens`, or the ids that config.json gives. Where there is no tokenizer, or
    none that can be used, which is logged, the ids of the text stream mean nothing here.
    """
    nothing = TokenizerConfig(fixed=True)
    name = next((name for name in KINDS if (checkpoint.folder / name).is_file()), None)
    if name is None or TEXT not in experiment.streams:
        return nothing
    found = TokenizerConfig(KINDS[name], str(checkpoint.folder / name), fixed=True)
    try:
        known = tokens(found)
        names = {field: token for field, token in family.tokens.items() if token in known.values()}
        for field in {"bos", "eos"} - names.keys():
            number = _number(checkpoint.config, f"{field}_token_id")
            names |= {field: known[number]} if number in known else {}
        found = recorded(dataclasses.replace(found, **names))
        _ = dataclasses.replace(experiment, tokenizer=found).spec  # refuses what does not fit the vocabulary
    except UsageError as error:
        logging.warning("the tokenizer is left behind: %s", error)
        return nothing
    shutil.copyfile(checkpoint.folder / name, target / name)
    return found


def _number(config: dict[str, Any], field: str) -> int | None:
    """An id of config.json, or of the language model that is a part of it; the first, where it lists several."""
    value = config.get(field, (config.get("llm_config") or {}).get(field))
    return next(iter(value), None) if isinstance(value, list) else value
