"""A released language model is read and written with the tokenizer that lies beside it."""

import released
import tiny

import transfusion
from transfusion.codecs.text import TokenizerConfig
from transfusion.interop.workdir import import_checkpoint
from transfusion.programs import read_experiment

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
    assert kept.path == str(tmp_path / "run" / "tokenizer.json") and (kept.bos, kept.eos) == ("<|start|>", "<|end|>")
    run = transfusion.load_run(tmp_path / "run")
    assert (run.spec.bos, run.spec.eos, run.spec.streams["text"].vocabulary) == (0, 1, 320)
    ids = run.segments("the quick brown fox")[0].value
    assert len(ids) < 15 and run.task.tokenizer.decode(ids) == "the quick brown fox"
    [[written]] = run.generate([["the quick"]], max_tokens=4, temperature=0.0)
    assert isinstance(written, str) and "<|" not in written


def test_a_tokenizer_that_does_not_fit_is_left_behind(tmp_path):
    for size, kept in ((264, TokenizerConfig(fixed=True)), (320, None)):
        config = QWEN2 | {"vocab_size": size, "bos_token_id": 1, "eos_token_id": 2}
        folder = released.write(tmp_path / f"{size}", config, released.weights("language", config))
        tiny.write_tokenizer("sentencepiece", folder / "tokenizer.model")
        import_checkpoint(folder, tmp_path / f"run{size}")
        found = read_experiment(tmp_path / f"run{size}").tokenizer
        assert kept in (None, found) and (tmp_path / f"run{size}" / "tokenizer.model").exists() == (size == 320)
    assert (found.kind, found.bos, found.eos, len(found.sha256)) == ("sentencepiece", "<s>", "</s>", 64)
