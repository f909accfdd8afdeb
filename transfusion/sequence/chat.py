"""Chat templates: what stands before and after the content of a turn, so that a model knows whose turn it is."""

import dataclasses
import re
from collections.abc import Callable, Mapping

import numpy as np

from transfusion.errors import UsageError, check, nearest
from transfusion.sequence.chat_template import template_texts

TURNS = ("system", "user", "assistant")
_CONTENT = "{}"


@dataclasses.dataclass(frozen=True)
class ChatConfig:
    """The chat template of conversations.

    In the texts `{}` stands for the content of a turn. Special tokens of the tokenizer's file are written as they are
    (`<|im_end|>`); `<|bos|>`, `<|eos|>`, `<|boi|>` and `<|eoi|>` are those of the config, whatever the file calls them.

    Attributes:
      kind: 'text' (the three texts below), a key of `TEMPLATES`, or 'own': the template beside the tokenizer's file
        (`chat_template.jinja`, or in `tokenizer_config.json`). One that is none of `TEMPLATES` is read with jinja2
        (`chat_template`). A run keeps what it was found to be, a key or three texts.
      system, user, assistant: the texts of the kind 'text'. The assistant's must hold the token that ends a document:
        there the decoder stops. An empty `system` means that conversations have no such turn.
    """

    kind: str = "plain"
    system: str = ""
    user: str = ""
    assistant: str = ""

    def __post_init__(self):
        check("tokenizer.chat.kind", self.kind, ("text", "own", *TEMPLATES))
        texts = {turn: getattr(self, turn) for turn in TURNS}
        for turn, text in texts.items():
            if self.kind != "text" and text:
                raise UsageError(f"tokenizer.chat.{turn} is read if tokenizer.chat.kind is 'text', not {self.kind!r}")
            if self.kind == "text" and text.count(_CONTENT) != 1 and (text or turn != "system"):
                raise UsageError(f"tokenizer.chat.{turn} must hold {{}} once, where the content of a turn stands")


@dataclasses.dataclass(frozen=True)
class Template:
    """A known template: its texts in the order of `TURNS`, and by what a tokenizer's own template is recognised.

    Attributes:
      marks: these all occur in such a template, and nothing of `others` does.
      others: special tokens of other templates.
    """

    texts: tuple[str, str, str]
    marks: tuple[str, ...] = ()
    others: str = r"<\|im_start\|>|<\|im_end\|>|<\|start_header_id\|>|<\|eot_id\|>|<start_of_turn>|\[INST\]|<\|user\|>"


TEMPLATES: dict[str, Template] = {
    "plain": Template(("{}\n", "User: {}\n", "Assistant: {}<|eos|>\n")),
    # Qwen, SmolLM, Yi, InternLM and others
    "chatml": Template(
        ("<|im_start|>system\n{}<|im_end|>\n", "<|im_start|>user\n{}<|im_end|>\n")
        + ("<|im_start|>assistant\n{}<|im_end|>\n",),
        ("<|im_start|>", "<|im_end|>"),
    ),
    "llama3": Template(
        ("<|start_header_id|>system<|end_header_id|>\n\n{}<|eot_id|>",)
        + ("<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>",)
        + ("<|start_header_id|>assistant<|end_header_id|>\n\n{}<|eot_id|>",),
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    ),
    # Gemma has no system turn: its content stands as a turn of the user.
    "gemma": Template(
        ("<start_of_turn>user\n{}<end_of_turn>\n", "<start_of_turn>user\n{}<end_of_turn>\n")
        + ("<start_of_turn>model\n{}<end_of_turn>\n",),
        ("<start_of_turn>", "<end_of_turn>"),
    ),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Chat:
    """A chat template that is ready to use: for each turn that it has the ids before and after its content, int32 [n]
    each, and the id `end` of the token that ends an assistant's turn."""

    around: Mapping[str, tuple[np.ndarray, np.ndarray]]
    end: int

    def before(self, turn: str) -> np.ndarray:
        """The ids before a turn; raises UsageError if the template does not have it."""
        if turn not in self.around:
            raise UsageError(f"the chat template has no turn of the {turn}: leave it out, or set tokenizer.chat.{turn}")
        return self.around[turn][0]

    def after(self, turn: str, last: bool = False) -> np.ndarray:
        """The ids behind a turn; behind the `last` one only those before the end of the document, if it is among them,
        because the document's own end follows."""
        ids = self.around[turn][1]
        ends = np.flatnonzero(ids == self.end)
        return ids[: ends[0]] if last and len(ends) else ids


def own_chat(text: str, tokens: Mapping[str, str], where: str) -> ChatConfig:
    """The template of a tokenizer's file: the one of `TEMPLATES` whose tokens it has, else its own texts.

    Args:
      text: the template.
      tokens: see `template_texts`.
      where: names its file in errors.

    Raises:
      UsageError: if it is none of `TEMPLATES`, and `template_texts` cannot read it.
    """
    for kind, template in TEMPLATES.items():
        strange = [mark for mark in re.findall(template.others, text) if mark not in template.marks]
        if template.marks and all(mark in text for mark in template.marks) and not strange:
            return ChatConfig(kind)
    return ChatConfig("text", *template_texts(text, tokens, where))


def make_chat(kind: str, texts: tuple[str, ...], encode: Callable, named: Mapping[str, int], end: int) -> Chat:
    """Makes a template's texts ids.

    Args:
      kind: names the template in errors.
      texts: one for each of `TURNS`, '' for one that there is not.
      encode: text -> ids.
      named: the special tokens that the texts may hold.
      end: the id that ends a document.

    Raises:
      UsageError: if a special token is not the tokenizer's, or the assistant's turn does not end.
    """
    pattern = re.compile("|".join(map(re.escape, sorted(named, key=len, reverse=True))))

    def ids(text: str) -> np.ndarray:
        found, at = [], 0
        for match in pattern.finditer(text):
            found += [encode(text[at : match.start()]), np.array([named[match[0]]], np.int32)]
            at = match.end()
        whole = np.concatenate([*found, encode(text[at:])]).astype(np.int32)
        unknown = next((mark for mark in re.findall(r"<\|\w+\|>|<\w+_of_turn>", text) if mark not in named), None)
        if unknown:
            raise UsageError(f"tokenizer.chat: the tokenizer has no token {unknown!r}{nearest(unknown, named)}")
        return whole

    around = {}
    for turn, text in zip(TURNS, texts, strict=True):
        before, found, after = text.partition(_CONTENT)
        around |= {turn: (ids(before), ids(after))} if found else {}
    if end not in around["assistant"][1]:
        raise UsageError(
            f"tokenizer.chat ({kind}): an assistant's turn must end with the token at which the decoder stops: set "
            "tokenizer.eos to the token behind {} in its template, or write <|eos|> there"
        )
    return Chat(around, end)
