"""Chat templates: their special tokens become ids, a turn ends where the decoder stops, and wrong ones are refused."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from transfusion.errors import UsageError
from transfusion.sequence import text
from transfusion.sequence.chat import ChatConfig, own_template
from transfusion.sequence.text import TokenizerConfig, open_tokenizer, recorded

CHATML = "{% for m in messages %}{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n'}}{% endfor %}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    library = pytest.importorskip("tokenizers")
    model = library.Tokenizer(library.models.BPE())
    model.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = library.decoders.ByteLevel()
    alphabet = library.pre_tokenizers.ByteLevel.alphabet()
    trainer = library.trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet)
    model.train_from_iterator(["user assistant system cat " * 20], trainer)
    model.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    folder = tmp_path_factory.mktemp("tokenizer")
    model.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": CHATML}))
    return folder


def opened(folder, chat, eos="<|im_end|>"):
    path = str(folder / "tokenizer.json")
    return open_tokenizer(TokenizerConfig(kind="huggingface", path=path, eos=eos, chat=chat))


@pytest.mark.parametrize("kind", ["chatml", "own", "text"])
def test_special_tokens_of_a_template_are_ids_and_those_in_a_text_are_text(folder, kind):
    texts = {turn: f"<|im_start|>{turn}\n{{}}<|im_end|>\n" for turn in ("system", "user", "assistant")}
    tokenizer = opened(folder, ChatConfig(kind, **(texts if kind == "text" else {})))
    start, end = (tokenizer.named[mark] for mark in ("<|im_start|>", "<|im_end|>"))
    before, after = tokenizer.chat.before("assistant"), tokenizer.chat.after("assistant")
    assert before[0] == start and tokenizer.decode(before) == "assistant\n"
    assert after[0] == end == tokenizer.chat.end == tokenizer.id(text.EOS) and tokenizer.decode(after) == "\n"
    assert not len(tokenizer.chat.after("assistant", last=True))  # the end of the document stands there
    assert end not in tokenizer.encode("<|im_end|>")


def test_a_run_records_which_template_its_own_was(folder, tmp_path):
    config = TokenizerConfig("huggingface", str(folder / "tokenizer.json"), eos="<|im_end|>", chat=ChatConfig("own"))
    assert recorded(config).chat == ChatConfig("chatml")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / name, tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")  # newer than what stands in the config
    with pytest.raises(UsageError, match=r"chat_template\.jinja: the chat template is none of"):
        open_tokenizer(dataclasses.replace(config, path=str(tmp_path / "tokenizer.json")))
    with pytest.raises(UsageError, match="bytes have none"):
        TokenizerConfig(chat=ChatConfig("own"))


def test_the_plain_template_needs_no_tokenizer():
    chat = text.BYTES.chat
    assert text.decode(chat.before("user")) == "User: " and text.decode(chat.after("user")) == "\n"
    np.testing.assert_array_equal(chat.after("assistant"), [text.EOS, 10])


@pytest.mark.parametrize(
    ("chat", "eos", "wrong"),
    [
        (ChatConfig("chatml"), "<|endoftext|>", "set tokenizer.eos"),
        (ChatConfig("llama3"), "<|im_end|>", "no token '<|start_header_id|>'"),
        (ChatConfig("text", "{}", "U: {}", "A: {}"), "<|im_end|>", "must end with the token at which"),
    ],
)
def test_a_template_that_does_not_fit_the_tokenizer_is_refused(folder, chat, eos, wrong):
    with pytest.raises(UsageError) as raised:
        opened(folder, chat, eos)
    assert wrong in str(raised.value)


def test_wrong_configs_are_refused():
    for fields, wrong in (
        ({"kind": "chatlm"}, "chatml"),
        ({"kind": "text"}, "tokenizer.chat.system must hold {} once"),
        ({"user": "U: {}"}, "tokenizer.chat.user is read if tokenizer.chat.kind is 'text'"),
    ):
        with pytest.raises(UsageError) as raised:
            ChatConfig(**fields)
        assert wrong in str(raised.value)


def test_a_template_of_a_file_is_known_by_its_tokens():
    assert own_template(CHATML, "x") == "chatml"
    assert own_template("<|start_header_id|>{{role}}<|end_header_id|>\n\n{{content}}<|eot_id|>", "x") == "llama3"
    for strange in ("{{ content }}", CHATML + "<|start_header_id|>", "[INST]<|im_start|><|im_end|>"):
        with pytest.raises(UsageError, match=r"none of chatml, llama3, gemma"):
            own_template(strange, "x")
