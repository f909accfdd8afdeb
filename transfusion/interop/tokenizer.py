"""Keeps the files beside released weights, mostly the tokenizer's: import copies them, and export writes them again.

A workdir has them in the folder `FILES`, under their own names and unchanged. No code in them is run, but for a chat
template that is none of those known: that is run in the sandbox of jinja2, where it is installed.
"""

import dataclasses
import os
import pathlib
import re
import shutil

from transfusion.config import Experiment
from transfusion.errors import UsageError
from transfusion.interop.family import Family
from transfusion.interop.files import Checkpoint
from transfusion.interop.opening import Folder
from transfusion.sequence import TEXT
from transfusion.sequence.chat import ChatConfig
from transfusion.sequence.text import TokenizerConfig, open_tokenizer, recorded, tokens

FILES = "tokenizer"
TOKENIZER_FILES = {"tokenizer.json": "huggingface", "tokenizer.model": "sentencepiece"}
_BYTES = ", or give --bytes: text is then bytes, whose ids mean nothing to released weights"
LARGEST_FILE = 200_000_000  # bytes; the largest tokenizer.json that is published has 35 million
# The files that AutoTokenizer, AutoProcessor and generate() look for, and the licence of the weights.
_NAMES = re.compile(
    r"tokenizer\.json|tokenizer_config\.json|special_tokens_map\.json|added_tokens\.json|generation_config\.json"
    r"|vocab\.(json|txt)|merges\.txt|[\w.-]+\.(model|tiktoken)|\w+_tokens\.txt|chat_template\.\w+"
    r"|(pre)?processor_config\.json|image_processor_config\.json|tokenization_\w+\.py|(LICENSE|NOTICE|USE_POLICY)[\w.-]*"
)


def names_beside(folder: Folder) -> list[str]:
    """The names of the files that go with the weights."""
    return [name for name in folder.names() if _NAMES.fullmatch(name)]


def keep(checkpoint: Checkpoint, target: pathlib.Path) -> None:
    """Copies the files that go with the weights into the folder `FILES` of the workdir `target`.

    Raises:
      UsageError: if one cannot be read, leads out of the folder, or is too large.
    """
    names = names_beside(checkpoint.files)
    for name in names:
        (target / FILES).mkdir(exist_ok=True)
        with checkpoint.files.open(name) as file, open(target / FILES / name, "wb") as out:
            if (size := os.fstat(file.fileno()).st_size) > LARGEST_FILE:
                raise UsageError(
                    f"{checkpoint.folder / name} has {size:,} bytes, more than {LARGEST_FILE:,}: is it a tokenizer's?"
                )
            shutil.copyfileobj(file, out)


def kept(workdir: pathlib.Path) -> list[pathlib.Path]:
    """The files that are exported with the weights of an imported workdir. Old workdirs hold only the tokenizer."""
    inside = workdir / FILES
    if inside.is_dir():
        return [inside / name for name in names_beside(Folder(inside))]
    return [workdir / name for name in TOKENIZER_FILES if (workdir / name).is_file()]


def adopt(experiment: Experiment, checkpoint: Checkpoint, family: Family, target: pathlib.Path) -> TokenizerConfig:
    """The config of the checkpoint's tokenizer, whose files are in the workdir `target`. Its path is relative to it.

    The tokens that begin and end a document are those of `family.tokens`, or have the ids that config.json gives. If
    its chat template can be read, conversations are written in it.

    Raises:
      UsageError: if there is no tokenizer, or it cannot be used.
    """
    name = next((name for name in TOKENIZER_FILES if (target / FILES / name).is_file()), None)
    if name is None:
        raise UsageError(
            f"{checkpoint.folder} has no tokenizer: put the model's {' or '.join(TOKENIZER_FILES)} there{_BYTES}"
        )
    found = TokenizerConfig(TOKENIZER_FILES[name], str(target / FILES / name), fixed=True)
    try:
        known = tokens(found)
        names = {field: token for field, token in family.tokens.items() if token in known.values()}
        for field in {"bos", "eos"} - names.keys():
            number = _number(checkpoint, f"{field}_token_id")
            names |= {field: known[number]} if number in known else {}
        found = recorded(dataclasses.replace(found, **names))
        _ = dataclasses.replace(experiment, tokenizer=found).spec  # refuses one that does not fit the vocabulary
        found = _with_own_chat(found)
    except UsageError as error:
        said = str(error).replace(found.path, str(checkpoint.folder / name))
        raise UsageError(f"{said}{_BYTES}") from error
    return dataclasses.replace(found, path=f"{FILES}/{name}")


def _with_own_chat(config: TokenizerConfig) -> TokenizerConfig:
    try:
        own = recorded(dataclasses.replace(config, chat=ChatConfig("own")))
        open_tokenizer(own)
        return own
    except UsageError:  # it has no template, or one that cannot be read: turns are written in plain words
        return config


def has_text(experiment: Experiment | None) -> bool:
    """Whether a model reads or writes text."""
    return experiment is not None and TEXT in experiment.streams


def _number(checkpoint: Checkpoint, field: str) -> int | None:
    """An id in config.json, or in the text model's part of it; the first one if it lists several."""
    parts = (checkpoint.config.get(name) for name in ("llm_config", "text_config"))
    for table in (checkpoint.config, *parts):
        value = table.get(field) if isinstance(table, dict) else None
        value = next(iter(value), None) if isinstance(value, list) else value
        if type(value) is int:
            return value
    return None
