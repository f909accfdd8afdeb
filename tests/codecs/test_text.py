"""Tokenizers of each kind: from captions to ids, to a trained run, and back to what is printed."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

import transfusion
from transfusion import layouts
from transfusion.config import Experiment
from transfusion.data.pipeline import epoch_batches
from transfusion.data.sources import open_source
from transfusion.errors import UsageError
from transfusion.evaluation.losses import document_bits
from transfusion.model.config import TransformerConfig
from transfusion.sampling.choose import emittable
from transfusion.sequence import Stream, text
from transfusion.sequence.text import BOI, BOS, EOI, EOS, TokenizerConfig, open_tokenizer
from transfusion.tasks import make_task
from transfusion.train import train

KINDS = ("bytes", "huggingface", "sentencepiece")
NAMED = {"huggingface": {"bos": "<|start|>", "eos": "<|end|>"}, "sentencepiece": {"bos": "<s>", "eos": "</s>"}}


@pytest.fixture(scope="module")
def configs(tmp_path_factory) -> dict[str, TokenizerConfig]:
    folder = tmp_path_factory.mktemp("tokenizers")
    paths = {"huggingface": folder / "tokenizer.json", "sentencepiece": folder / "tokenizer.model"}
    for kind, path in paths.items():
        tiny.write_tokenizer(kind, path)
    return {"bytes": TokenizerConfig()} | {
        kind: TokenizerConfig(kind, str(path), **NAMED[kind]) for kind, path in paths.items()
    }


# SentencePiece writes a space as U+2581, and reads it as one.
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581\0"), min_size=1)


@pytest.mark.parametrize("kind", KINDS)
def test_text_comes_back_and_no_prefix_of_it_fails(kind, configs):
    tokenizer = open_tokenizer(configs[kind])

    @settings(max_examples=100, deadline=None, database=None)
    @given(TEXTS)
    def check(written):
        ids = tokenizer.encode(written)
        assert ids.dtype == np.int32 and ids.min() >= 0 and ids.max() < tokenizer.size
        assert tokenizer.decode(ids) == written
        assert tokenizer.measure(ids) == len(written.encode())
        for stop in range(len(ids)):  # a reader prints what is there; characters come in several ids
            assert isinstance(tokenizer.decode(ids[:stop]), str)

    check()
    special = [tokenizer.id(number) for number in (BOS, EOS, BOI, EOI)]
    assert len(set(special)) == 4 and tokenizer.decode(np.array(special + [-1, 10**6])) == ""
    # What looks like a special token is text: it cannot end a document.
    said = f"{configs[kind].eos or 'x'} and more"
    assert not set(tokenizer.encode(said)) & set(special) and tokenizer.decode(tokenizer.encode(said)) == said


def test_ids_behind_the_bytes_move_behind_the_vocabulary(configs):
    config = configs["huggingface"]
    tokenizer = open_tokenizer(config)
    assert tokenizer.size == 301 and tokenizer.id(-1) == -1 and tokenizer.decode([tokenizer.id(ord("7"))]) == "7"
    assert (tokenizer.id(BOS), tokenizer.id(EOS)) == (0, 1)  # the file's own
    assert (tokenizer.id(BOI), tokenizer.id(EOI)) == (304 + 3, 304 + 4)
    assert tokenizer.id(text.VOCABULARY + 7) == 312 + 7 == tokenizer.vocabulary(text.VOCABULARY) + 7
    streams = {"text": Stream(vocabulary=text.VOCABULARY, budget=64), "image": tiny.image_stream()}
    experiment = Experiment(streams=streams, layout=layouts.transfusion(), tokenizer=config)
    spec = experiment.spec
    assert spec.streams["text"].vocabulary == 312 and (spec.bos, spec.eos) == (0, 1)
    assert [(run.opener, run.closer) for run in spec.layout["image"]] == [(307, 308)]
    assert set(np.flatnonzero(emittable(spec, (307,)))) == {*range(1, 301), 307}
    # The rows of a released model stay, and so do ids of its own; special tokens take rows that are free.
    fixed = dataclasses.replace(config, fixed=True)
    large = dataclasses.replace(streams["text"], vocabulary=500)
    model = dataclasses.replace(experiment, tokenizer=fixed, streams=streams | {"text": large}).spec
    assert model.streams["text"].vocabulary == 500 and model.layout["image"][0].opener == 307
    assert open_tokenizer(fixed).id(400) == 400
    with pytest.raises(UsageError, match="text.vocabulary: 264 ids are too few for .* whose highest is 308"):
        _ = dataclasses.replace(experiment, tokenizer=fixed).spec


@pytest.mark.parametrize("kind", KINDS)
def test_captions_of_a_folder_are_packed_and_counted(kind, configs, tmp_path):
    experiment = dataclasses.replace(tiny.experiment(tiny.write_folder(tmp_path)), tokenizer=configs[kind])
    task = make_task(experiment)
    data = dataclasses.replace(experiment.data, drop_caption=0.0)
    records = open_source(data.sources["mine"])
    batch = next(epoch_batches(records, data, task.spec, 4, 0, tokenizer=task.tokenizer))
    bits = document_bits(batch, np.zeros(batch["text"].tokens.shape), task.tokenizer)
    assert set(bits.bytes) == {len(caption) for caption in tiny.CAPTIONS}
    assert task.tokenizer.decode(batch["text"].tokens[0][batch["text"].document[0] == 1]) == tiny.CAPTIONS[0]


def test_a_run_keeps_to_its_tokenizer(configs, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(pathlib.Path(configs["huggingface"].path).read_bytes())
    config = dataclasses.replace(configs["huggingface"], path=str(path))
    small = TransformerConfig(width=16, layers=1, heads=2, ffn_multiple=16)
    experiment = tiny.experiment(tiny.write_folder(tmp_path / "images"), tokenizer=config, steps=1, model=small)
    train(experiment, tmp_path / "run")
    saved = json.loads((tmp_path / "run" / "config.json").read_text())["tokenizer"]
    assert len(saved["sha256"]) == 64 and saved["path"] == "tokenizer.json"  # a copy, beside config.json
    assert (tmp_path / "run" / "tokenizer.json").read_bytes() == path.read_bytes()
    run = transfusion.load_run(tmp_path / "run")
    assert run.task.tokenizer.decode(run.segments("a dark square")[0].value) == "a dark square"
    [written] = run.caption([np.zeros((8, 8, 1), np.uint8)], max_tokens=4)
    assert isinstance(written, str) and "<|" not in written

    other = dataclasses.replace(config, eos="")
    with pytest.raises(UsageError, match='tokenizer.eos: "<|end|>" -> ""'.replace("|", r"\|")):
        train(dataclasses.replace(experiment, tokenizer=other, steps=2), tmp_path / "run")
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(UsageError, match=f'tokenizer.sha256: "{saved["sha256"][:20]}.* -> '):
        train(dataclasses.replace(experiment, steps=2), tmp_path / "run")
    (tmp_path / "run" / "tokenizer.json").write_bytes(path.read_bytes())
    with pytest.raises(UsageError, match=r"the tokenizer .* has changed: its SHA-256 is .* put the file back"):
        transfusion.load_run(tmp_path / "run")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "hugginface"}, "tokenizer.kind: 'hugginface' is none of .*did you mean 'huggingface'"),
        ({"kind": "sentencepiece"}, "tokenizer.path must name the file"),
        ({"kind": "huggingface", "path": "nowhere.json"}, "cannot read nowhere.json: No such file"),
        ({"kind": "huggingface", "path": __file__}, "is no tokenizer.json"),
        ({"kind": "sentencepiece", "path": __file__}, "is no SentencePiece model"),
    ],
)
def test_what_cannot_be_opened_is_named(fields, message):
    if fields.get("path") == __file__:
        pytest.importorskip({"huggingface": "tokenizers"}.get(fields["kind"], fields["kind"]))
    with pytest.raises(UsageError, match=message) as error:
        open_tokenizer(TokenizerConfig(**fields))
    assert "\n" not in str(error.value)


def test_a_wrong_special_token_is_named(configs):
    with pytest.raises(UsageError, match=r"tokenizer.boi: .* has no token '<\|stat\|>' \(did you mean '<\|start\|>'"):
        open_tokenizer(dataclasses.replace(configs["huggingface"], boi="<|stat|>"))
