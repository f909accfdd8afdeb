"""Text <-> ids: UTF-8 bytes (nothing to download, no word is unknown) or a tokenizer's file; the only place that knows
special tokens.

Configs count in the ids of bytes: 0..255 are text, then come the special tokens and, from `VOCABULARY` on, what else
the text stream holds (codes of images). `Tokenizer.id` takes such an id to another tokenizer: all that follows the
bytes follows its vocabulary, and a special token that its file has is that of the file. So a config's tokenizer can be
replaced by flags, and nothing has to be read before a run starts.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Mapping

import numpy as np
from etils import epath

from transfusion import storage
from transfusion.errors import UsageError, check, nearest, require
from transfusion.sequence.chat import TEMPLATES, Chat, ChatConfig, make_chat, own_chat

PAD, BOS, EOS, BOI, EOI = range(256, 261)
# Inside an image of codes: ends of a row and of a frame, and what separates its size (Emu3) or its codes (UniToken)
# from what follows.
EOL, EOF, SEP = range(261, 264)
# A multiple of 8, so that the vocabulary axis of the embedding can be split over a mesh axis.
VOCABULARY = 264
NAMES = {"bos": BOS, "eos": EOS, "boi": BOI, "eoi": EOI}  # those that a tokenizer's file may have


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """How text becomes ids.

    Attributes:
      kind: a key of `TOKENIZERS`: 'bytes', 'huggingface' (a tokenizer.json) or 'sentencepiece' (a .model).
      path: the file.
      bos, eos, boi, eoi: the file's own token for the begin and end of a document and of an image, such as '<s>'; '':
        it has none, and the model gets one behind the file's vocabulary.
      fixed: the vocabulary of the config's text stream, and its ids from `VOCABULARY` on, are the model's own, as with
        released weights; only the special tokens are looked up, or take rows that the tokenizer leaves free.
      chat: how conversations are written.
      sha256: of the file that a run was trained with; written by the run, '' in config files.
    """

    kind: str = "bytes"
    path: str = ""
    bos: str = ""
    eos: str = ""
    boi: str = ""
    eoi: str = ""
    fixed: bool = False
    chat: ChatConfig = ChatConfig()
    sha256: str = ""

    def __post_init__(self):
        check("tokenizer.kind", self.kind, TOKENIZERS)
        if self.kind != "bytes" and not self.path:
            raise UsageError(f"tokenizer.path must name the file of the {self.kind} tokenizer")
        if self.kind == "bytes" and self.chat.kind == "own":
            raise UsageError("tokenizer.chat.kind='own' is the template of a tokenizer's file, and bytes have none")


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenizer:
    """A tokenizer that is ready to use.

    Attributes:
      encode: text -> int32 [n], without special tokens; text that reads like one is text.
      decode: ids [n] -> text; special tokens are dropped, bytes that are no UTF-8 become U+FFFD.
      measure: ids [n] -> how many bytes of text they stand for.
      size: ids of text are below it.
      specials: special tokens that are the file's own, byte id -> id.
      named: the special tokens of the file by their texts.
      fixed: see `TokenizerConfig`.
      sha256: of the file; '' without one.
      chat: how conversations are written.
    """

    encode: Callable[[str], np.ndarray]
    decode: Callable[[np.ndarray], str]
    measure: Callable[[np.ndarray], int]
    size: int
    specials: Mapping[int, int] = dataclasses.field(default_factory=dict)
    named: Mapping[str, int] = dataclasses.field(default_factory=dict)
    fixed: bool = False
    sha256: str = ""
    chat: Chat | None = None

    @property
    def shift(self) -> int:
        """What is added to ids behind the bytes; the vocabulary is rounded up as `VOCABULARY` is."""
        return -(-self.size // 8) * 8 - 256

    def id(self, number: int) -> int:
        """The id of a config's `number`, see the top of this file; -1, none, stays. A byte, as in the spelling of an
        image's size, is the id of that character."""
        if number in self.specials:
            return self.specials[number]
        if 0 <= number < PAD and self.sha256 and not self.fixed:
            return int(self.encode(chr(number))[-1])
        moves = number >= VOCABULARY and not self.fixed or PAD <= number < VOCABULARY
        return number + self.shift if moves else number

    def vocabulary(self, configured: int) -> int:
        """Ids of a text stream that the config gives `configured`."""
        return configured if self.fixed else configured + self.shift

    @property
    def words(self) -> int:
        """Ids of text are below it; 0 where that is not known (released weights without their tokenizer)."""
        return 0 if self.fixed and not self.sha256 else self.size


# What stands in place of a text that an image is to be drawn without (guidance's null condition); None: nothing.
UNSEEN: dict[str, Callable[[np.ndarray], np.ndarray | None]] = {
    "drop": lambda ids: None,
    "pad": lambda ids: np.full_like(ids, PAD),
}


def encode(text: str) -> np.ndarray:
    """Returns the int32 [n] UTF-8 bytes of `text`, without special tokens.

    Raises:
      UsageError: if `text` is not Unicode text: JSON can hold halves of a character (lone surrogates).
    """
    try:
        data = text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = ascii(text[error.start])
        raise UsageError(f"not Unicode text: character {error.start} is {half}, half of a character") from error
    return np.frombuffer(data, np.uint8).astype(np.int32)


def decode(ids: np.ndarray) -> str:
    """Returns the text of int ids [n]; special tokens are dropped, broken UTF-8 is replaced."""
    ids = np.asarray(ids).reshape(-1)
    return bytes(ids[(ids >= 0) & (ids < 256)].astype(np.uint8)).decode("utf-8", errors="replace")


def _with_chat(tokenizer: Tokenizer, chat: ChatConfig, path: str = "") -> Tokenizer:
    """The tokenizer with a chat template; `path` is its file. Raises UsageError if the file lacks its tokens."""
    chat = own_chat(*_own_template(path)) if chat.kind == "own" else chat
    texts = (chat.system, chat.user, chat.assistant) if chat.kind == "text" else TEMPLATES[chat.kind].texts
    named = {f"<|{name}|>": tokenizer.id(number) for name, number in NAMES.items()} | dict(tokenizer.named)
    return dataclasses.replace(tokenizer, chat=make_chat(chat.kind, texts, tokenizer.encode, named, tokenizer.id(EOS)))


def _own_template(tokenizer: str) -> tuple[str, dict[str, str], str]:
    """The chat template beside a tokenizer's file, the special tokens that it may name, and the path of its own file.

    Raises:
      UsageError: if there is none.
    """
    folder = epath.Path(tokenizer).parent
    alone, within = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    try:
        fields = json.loads(within.read_text()) if within.exists() or not alone.exists() else {}
        tokens = {name: value.get("content") if isinstance(value, dict) else value for name, value in fields.items()}
        tokens = {name: value for name, value in tokens.items() if name.endswith("_token") and isinstance(value, str)}
        if alone.exists():
            return alone.read_text(), tokens, str(alone)
        found = fields["chat_template"]
        if isinstance(found, list):  # several with names
            found = next(one["template"] for one in found if one["name"] == "default")
    except OSError as error:
        raise UsageError(f"tokenizer.chat.kind: cannot read {within}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration) as error:
        raise UsageError(f"tokenizer.chat.kind: {within} has no chat_template") from error
    return str(found), tokens, str(within)


BYTES = _with_chat(Tokenizer(encode, decode, len, 256), ChatConfig())


def open_tokenizer(config: TokenizerConfig) -> Tokenizer:
    """The tokenizer that a config names.

    Raises:
      UsageError: if its file does not exist, cannot be read or is not that of `config.sha256`, if it lacks a special
        token, or its library is not installed.
    """
    if config.kind == "bytes":
        return _with_chat(dataclasses.replace(BYTES, fixed=config.fixed), config.chat, config.path)
    data, found = _read(config)
    if config.sha256 and config.sha256 != found:
        raise UsageError(
            f"the tokenizer {config.path} has changed: its SHA-256 is {found[:16]}..., that of the run "
            f"{config.sha256[:16]}...; put the file back"
        )
    parts, lookup = TOKENIZERS[config.kind](config, data)
    specials = {}
    for name, number in NAMES.items():
        if token := getattr(config, name):
            if token not in lookup:
                raise UsageError(f"tokenizer.{name}: {config.path} has no token {token!r}{nearest(token, lookup)}")
            specials[number] = lookup[token]
    whole = dataclasses.replace(parts, specials=specials, fixed=config.fixed, sha256=found)
    return _with_chat(whole, config.chat, config.path)


def tokens(config: TokenizerConfig) -> dict[int, str]:
    """All tokens of a tokenizer's file by their ids; raises UsageError as `open_tokenizer` does."""
    return {number: token for token, number in TOKENIZERS[config.kind](config, _read(config)[0])[1].items()}


def recorded(config: TokenizerConfig) -> TokenizerConfig:
    """The config with the hash of its file, and what the template beside it was found to be, which a copy of the run
    may not have; raises UsageError if it cannot be read."""
    if config.kind == "bytes":
        return config
    chat = own_chat(*_own_template(config.path)) if config.chat.kind == "own" else config.chat
    return dataclasses.replace(config, sha256=_read(config)[1], chat=chat)


def _read(config: TokenizerConfig) -> tuple[bytes, str]:
    """The file and its SHA-256."""
    path = epath.Path(config.path)  # in a bucket, too
    if "://" not in config.path and path.exists() and not os.path.isfile(path):  # a pipe would be waited for
        raise UsageError(f"tokenizer.path: {config.path} is no file")
    try:
        data = storage.insist(f"tokenizer.path: cannot read {config.path}", path.read_bytes)
    except OSError as error:
        raise UsageError(f"tokenizer.path: cannot read {config.path}: {error.strerror or error}") from error
    return data, hashlib.sha256(data).hexdigest()


Opened = tuple[Tokenizer, Mapping[str, int]]
"""A tokenizer without its special tokens, and the ids of all its tokens."""


def _open_huggingface(config: TokenizerConfig, data: bytes) -> Opened:
    library = require("tokenizers", "tokenizers")
    try:
        model = library.Tokenizer.from_buffer(data)
    except Exception as error:  # the library raises no narrower class
        raise _unreadable(config, "tokenizer.json", error) from error
    # A caption that holds '<|im_end|>' must not end its document.
    model.encode_special_tokens = True
    model.no_padding()
    model.no_truncation()
    lookup = model.get_vocab(with_added_tokens=True)
    named = {token.content: number for number, token in model.get_added_tokens_decoder().items()}
    size = 1 + max(lookup.values())

    def encode_one(text: str) -> list[int]:
        return model.encode(text, add_special_tokens=False).ids

    made = _from(encode_one, lambda ids: model.decode(ids, skip_special_tokens=True), size)
    return dataclasses.replace(made, named=named), lookup


def _open_sentencepiece(config: TokenizerConfig, data: bytes) -> Opened:
    library = require("sentencepiece", "tokenizers")
    try:
        model = library.SentencePieceProcessor(model_proto=data)
    except (RuntimeError, OSError, ValueError) as error:
        raise _unreadable(config, "SentencePiece model", error) from error
    size = model.get_piece_size()
    lookup = {model.id_to_piece(i): i for i in range(size)}
    named = {token: number for token, number in lookup.items() if model.is_control(number)}
    made = _from(model.encode, lambda ids: model.decode(ids) if ids else "", size)
    return dataclasses.replace(made, named=named), lookup


def _from(encode_one: Callable[[str], list[int]], decode_ids: Callable[[list[int]], str], size: int) -> Tokenizer:
    def decode_text(ids: np.ndarray) -> str:
        ids = np.asarray(ids).reshape(-1)
        return decode_ids(ids[(ids >= 0) & (ids < size)].tolist())

    def encode_text(text: str) -> np.ndarray:
        encode(text)  # says what is wrong with text that is not Unicode
        try:
            ids = encode_one(text)
        except MemoryError:
            raise
        except Exception as error:  # the libraries raise no narrower class
            raise UsageError(f"the tokenizer cannot encode it ({' '.join(str(error).split())[:160]})") from error
        return np.array(ids, np.int32)

    return Tokenizer(
        encode=encode_text,
        decode=decode_text,
        measure=lambda ids: len(decode_text(ids).encode("utf-8")),
        size=size,
    )


def _unreadable(config: TokenizerConfig, what: str, error: Exception) -> UsageError:
    return UsageError(f"tokenizer.path: {config.path} is no {what} ({' '.join(str(error).split())[:160]})")


TOKENIZERS: dict[str, Callable[[TokenizerConfig, bytes], Opened]] = {
    "bytes": lambda config, data: (BYTES, {}),
    "huggingface": _open_huggingface,
    "sentencepiece": _open_sentencepiece,
}
