"""A released language model is read and written with the tokenizer that lies beside it."""

import json
import sys

import pytest
import released
import tiny

import transfusion
from transfusion.errors import UsageError
from transfusion.interop.export import export_checkpoint
from transfusion.interop.importing import import_checkpoint
from transfusion.sequence.text import TokenizerConfig
from transfusion.workdir.config_file import read_experiment

QWEN2 = {
    "architectures": ["Qwen2ForCausalLM"], "vocab_size": 320, "hidden_size": 16, "intermediate_size": 24,
    "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "bos_token_id": 0, "eos_token_id": [1],
}  # fmt: skip


def test_an_imported_language_model_writes_its_own_tokens(tmp_path):
    folder = released.write(tmp_path / "qwen", QWEN2, released.weights("language", QWEN2))
    tiny.write_tokenizer("huggingface", folder / "tokenizer.json")
    import_checkpoint(folder, tmp_path / "run")
    (folder / "tokenizer.json").unlink()
    kept = read_experiment(tmp_path / "run").tokenizer
    assert kept.path == str(tmp_path / "run" / "tokenizer" / "tokenizer.json")
    assert (kept.bos, kept.eos) == ("<|start|>", "<|end|>")
    run = transfusion.load_run(tmp_path / "run")
    assert (run.spec.bos, run.spec.eos, run.spec.streams["text"].vocabulary) == (0, 1, 320)
    ids = run.segments("the quick brown fox")[0].value
    assert len(ids) < 15 and run.task.tokenizer.decode(ids) == "the quick brown fox"
    [[written]] = run.generate([["the quick"]], max_tokens=4, temperature=0.0)
    assert isinstance(written, str) and "<|" not in written


def test_a_tokenizer_that_does_not_fit_is_refused_unless_text_is_bytes(tmp_path):
    for size, message in ((264, "264 ids are too few for the tokenizer.*give --bytes"), (320, None)):
        config = QWEN2 | {"vocab_size": size, "bos_token_id": 1, "eos_token_id": 2}
        folder = released.write(tmp_path / f"{size}", config, released.weights("language", config))
        tiny.write_tokenizer("sentencepiece", folder / "tokenizer.model")
        if message:
            with pytest.raises(UsageError, match=message):
                import_checkpoint(folder, tmp_path / f"run{size}")
            assert not (tmp_path / f"run{size}").exists()
        import_checkpoint(folder, tmp_path / f"run{size}", text_as_bytes=message is not None)
        found = read_experiment(tmp_path / f"run{size}").tokenizer
        assert not message or found == TokenizerConfig(fixed=True)
        assert (tmp_path / f"run{size}" / "tokenizer" / "tokenizer.model").is_file()  # kept for export
    assert (found.kind, found.bos, found.eos, len(found.sha256)) == ("sentencepiece", "<s>", "</s>", 64)


BESIDE = {
    "tokenizer_config.json": b'{"tokenizer_class": "Qwen2Tokenizer"}', "special_tokens_map.json": b"{ }",
    "generation_config.json": b'{"eos_token_id": 1}\n', "chat_template.jinja": "{{ 'é' }}".encode(),
    "merges.txt": b"a b\r\n", "vocab.json": b"{}", "LICENSE": b"free",
}  # fmt: skip


def test_the_files_of_the_tokenizer_go_out_with_the_weights(tmp_path):
    folder = released.write(tmp_path / "qwen", QWEN2, released.weights("language", QWEN2))
    tiny.write_tokenizer("huggingface", folder / "tokenizer.json")
    for name, data in BESIDE.items():
        (folder / name).write_bytes(data)
    (folder / "modeling_evil.py").write_text("raise SystemExit")  # not the tokenizer's, and left behind
    import_checkpoint(folder, tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "moved")
    assert export_checkpoint(tmp_path / "moved", tmp_path / "back") == []
    names = {path.name for path in folder.iterdir()} - {"modeling_evil.py"}
    assert {path.name for path in (tmp_path / "back").iterdir()} == names
    for name in names - {"config.json"}:
        assert (tmp_path / "back" / name).read_bytes() == (folder / name).read_bytes(), name
    inside = tmp_path / "moved" / "tokenizer" / "tokenizer.json"
    assert read_experiment(tmp_path / "moved").tokenizer.path == str(inside)


def test_text_without_a_tokenizer_is_refused_unless_it_is_asked_for(tmp_path):
    folder = released.write(tmp_path / "qwen", QWEN2, released.weights("language", QWEN2))
    (folder / "vocab.json").write_text("{}")
    with pytest.raises(UsageError, match="has no tokenizer: put the model's tokenizer.json or tokenizer.model there"):
        import_checkpoint(folder, tmp_path / "run")
    import_checkpoint(folder, tmp_path / "run", text_as_bytes=True)
    assert read_experiment(tmp_path / "run").tokenizer == TokenizerConfig(fixed=True)


def test_a_tokenizer_without_its_library_is_refused(tmp_path, monkeypatch):
    folder = released.write(tmp_path / "qwen", QWEN2, released.weights("language", QWEN2))
    tiny.write_tokenizer("huggingface", folder / "tokenizer.json")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UsageError, match=r"pip install 'transfusion\[tokenizers\]', or give --bytes"):
        import_checkpoint(folder, tmp_path / "run")


def test_workdirs_of_earlier_versions_still_give_their_tokenizer(tmp_path):
    """It lay beside config.json, under an absolute path."""
    folder = released.write(tmp_path / "qwen", QWEN2, released.weights("language", QWEN2))
    tiny.write_tokenizer("huggingface", folder / "tokenizer.json")
    import_checkpoint(folder, tmp_path / "run")
    (tmp_path / "run" / "tokenizer" / "tokenizer.json").rename(tmp_path / "run" / "tokenizer.json")
    (tmp_path / "run" / "tokenizer").rmdir()
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    config["tokenizer"]["path"] = str(tmp_path / "run" / "tokenizer.json")
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    source = json.loads((tmp_path / "run" / "source.json").read_text())
    del source["ignore_fields"]
    (tmp_path / "run" / "source.json").write_text(json.dumps(source))
    export_checkpoint(tmp_path / "run", tmp_path / "back")
    assert (tmp_path / "back" / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
