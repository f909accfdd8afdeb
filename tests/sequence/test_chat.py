"""Chat templates: their special tokens become ids, a turn ends where the decoder stops, and wrong ones are refused."""

import dataclasses
import json
import shutil
import sys

import numpy as np
import pytest

from transfusion.errors import UsageError
from transfusion.sequence import text
from transfusion.sequence.chat import ChatConfig, own_chat
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
    (tmp_path / "chat_template.jinja").write_text("<start_of_turn><end_of_turn>")  # newer than that in the config
    with pytest.raises(UsageError, match="no token '<start_of_turn>'"):
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
        ({"kind": "text"}, "tokenizer.chat.user must hold {} once"),
        ({"kind": "text", "system": "S"}, "tokenizer.chat.system must hold {} once"),
        ({"user": "U: {}"}, "tokenizer.chat.user is read if tokenizer.chat.kind is 'text'"),
    ):
        with pytest.raises(UsageError) as raised:
            ChatConfig(**fields)
        assert wrong in str(raised.value)


def test_a_template_of_a_file_is_known_by_its_tokens():
    assert own_chat(CHATML, {}, "x") == ChatConfig("chatml")
    llama = "<|start_header_id|>{{role}}<|end_header_id|>\n\n{{content}}<|eot_id|>"
    assert own_chat(llama, {}, "x") == ChatConfig("llama3")


# --- templates that are run -------------------------------------------------------------------------------------------

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
ZEPHYR = (
    "{% for m in messages %}\n{% if m['role'] == 'user' %}\n{{ '<|user|>\n' + m['content'] + eos_token }}\n"
    "{% else %}\n{{ '<|' + m['role'] + '|>\n' + m['content'] | trim + eos_token }}\n{% endif %}\n{% endfor %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ m['content'] + eos_token }}{% else %}"
    "{{ raise_exception('no such role') }}{% endif %}{% endfor %}"
)


def test_other_templates_are_run_once():
    pytest.importorskip("jinja2")
    turns = [f"<|{turn}|>\n{{}}</s>\n" for turn in ("system", "user", "assistant")]
    assert own_chat(ZEPHYR, TOKENS, "x") == ChatConfig("text", *turns)
    assert own_chat(MISTRAL, TOKENS, "x") == ChatConfig("text", "", "[INST] {} [/INST]", "{}</s>")


@pytest.mark.parametrize(
    ("template", "wrong"),
    [
        ("{{ messages }}", "depend on more than whose turn it is: turn 1"),
        ("Be kind. " + MISTRAL.replace("{{ bos_token }}", ""), "turn 2 of user, assistant, user"),
        (MISTRAL.replace("[/INST]", "[/INST]{{ strftime_now('%d') }}").replace("'[INST] ' + m", "m"), "fails"),
        ("{{ ''.__class__.__mro__ }}", "fails .*unsafe"),
        ("{{ 'a' * 9999999 }}", r"fails .\* is not run"),
        ("{{ messages.append(1) }}", "fails .*unsafe"),
        ("{% if %}", "fails"),
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", "the content of a turn 0 times"),
    ],
)
def test_templates_that_cannot_be_cut_into_turns_are_refused(template, wrong):
    pytest.importorskip("jinja2")
    with pytest.raises(UsageError, match=f"x: .*{wrong}"):
        own_chat(template, TOKENS, "x")


def test_without_jinja_another_template_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(UsageError, match="jinja2 is not installed: pip install"):
        own_chat(ZEPHYR, TOKENS, "x")


def test_a_template_of_a_file_becomes_ids_and_its_run_needs_the_file_no_longer(folder, tmp_path):
    pytest.importorskip("jinja2")
    shutil.copy(folder / "tokenizer.json", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<|endoftext|>"}}))
    (tmp_path / "chat_template.jinja").write_text(MISTRAL.replace("{{ bos_token }}", ""))
    path = str(tmp_path / "tokenizer.json")
    config = recorded(TokenizerConfig("huggingface", path, eos="<|endoftext|>", chat=ChatConfig("own")))
    (tmp_path / "chat_template.jinja").unlink()
    chat = open_tokenizer(config).chat
    assert chat.after("assistant")[0] == chat.end and not len(chat.before("assistant"))
    with pytest.raises(UsageError, match="no turn of the system"):
        chat.before("system")
