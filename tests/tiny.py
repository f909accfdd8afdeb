"""Small sequences, models and data that many tests share."""

import io
import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from transfusion.config import EvalConfig, Experiment
from transfusion.data.config import DataConfig, SourceConfig
from transfusion.model.config import TransformerConfig
from transfusion.objectives import ObjectivesConfig
from transfusion.optim import OptimConfig
from transfusion.running.checkpoint import CheckpointConfig
from transfusion.running.jax_setup import compile_quickly, without_ynnpack
from transfusion.sequence import Run, Segment, SequenceSpec, Stream, text
from transfusion.tasks import SequenceTask

# Tests compile far more than they compute: so a train step is ready in a sixth of the time.
# The flags come beside those that are given, as `make portable` gives --xla_cpu_max_isa, which all stand in the keys of
# the programs that are kept on disk: no run gets a program for a processor that it was told not to be.
compile_quickly()
without_ynnpack()  # as in programs, so that they and the tests compute the same

BOS, EOS, BOI, EOI = 11, 12, 13, 14
VOCABULARY = 16


def text_stream(**changes) -> Stream:
    return Stream(**{"vocabulary": VOCABULARY, "budget": 24} | changes)


def image_stream(**changes) -> Stream:
    """Images of 4 x 4 x 1 in four tokens."""
    fields = dict(
        embed="linear", head="linear", objective="continuous", attention="block", time="added",
        channels=1, patch=2, grid=(4, 4), budget=16, weight=5.0, table="sincos",
    )  # fmt: skip
    return Stream(**fields | changes)


def image_run(stream: str = "image", **changes) -> Run:
    return Run(stream, **{"opener": BOI, "closer": EOI} | changes)


def spec(streams=None, layout=None, axes: int = 1) -> SequenceSpec:
    """Transfusion's, unless streams or a layout are given."""
    streams = streams or {"text": text_stream(), "image": image_stream()}
    layout = {"image": (image_run(),), "image/context": (image_run(time_low=0.5),)} if layout is None else layout
    return SequenceSpec(streams, {"text": (Run("text"),)} | layout, BOS, EOS, axes)


def bagel() -> SequenceSpec:
    """Each image twice: noised and private, holding the counter, then clean; text has its own expert."""
    streams = {
        "text": text_stream(budget=32, expert="understanding"),
        "noised": image_stream(expert="generation"),
        "clean": image_stream(expert="generation", objective="none", weight=1.0),
    }
    runs = (
        image_run("noised", private=True, position="hold", boundary="inside"),
        image_run("clean", time_low=1.0, position="item", boundary="inside", loss=False),
    )
    return spec(streams, {"image": runs})


SPECS = {
    "transfusion": spec(),
    "experts": spec({"text": text_stream(expert="a"), "image": image_stream(expert="b")}),
    "item": spec(layout={"image": (image_run(position="item"),)}),
    "grid": spec(layout={"image": (image_run(position="grid"),)}, axes=3),
    "mixed": spec({"text": text_stream(), "image": image_stream(grid=(0, 0), items=3)}),
    "bagel": bagel(),
}


def model(**changes) -> TransformerConfig:
    return TransformerConfig(**{"width": 32, "layers": 2, "heads": 4, "ffn_multiple": 16} | changes)


def task(of: SequenceSpec | None = None, objectives: ObjectivesConfig | None = None, **changes) -> SequenceTask:
    of = of or spec()
    return SequenceTask(model(rope_axes=of.axes, **changes), of, objectives or ObjectivesConfig())


def words(*ids: int) -> Segment:
    return Segment("text", np.array(ids, np.int32))


def picture(rng: np.random.Generator, role: str = "both", side: tuple[int, int] = (4, 4)) -> Segment:
    return Segment("image", rng.standard_normal((*side, 1)).astype(np.float32), role)


def documents(seed: int = 0) -> list[tuple[Segment, ...]]:
    """Four documents: caption and image, image and caption, two images between words, words."""
    rng = np.random.default_rng(seed)
    return [
        (words(1, 2, 3), picture(rng, "target")),
        (picture(rng, "context"), words(4, 5)),
        (words(6), picture(rng), words(7), picture(rng), words(8, 9)),
        (words(10, 1, 4, 1, 5),),
    ]


# --- a user's folder of images, and an experiment on it ---------------------------------------------------------------

CAPTIONS = ("a dark square", "a light square", "something grey")


def write_folder(path, count: int = 24, seed: int = 0) -> str:
    """`count` grey 8 x 8 images with captions.jsonl; returns the path."""
    path.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        Image.fromarray(rng.integers(0, 255, (8, 8), np.uint8)).save(path / f"{i}.png")
        rows.append({"file_name": f"{i}.png", "caption": CAPTIONS[i % 3]})
    (path / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


PROSE = [*CAPTIONS, "na\u00efve caf\u00e9, \u4f60\u597d \U0001f600", "the quick brown fox jumps over the lazy dog"]


def write_tokenizer(kind: str, path: pathlib.Path) -> None:
    """A tokenizer of 300 ids that keeps every character: with '<|start|>' and '<|end|>', or '<s>' and '</s>'."""
    if kind == "sentencepiece":
        library, out = pytest.importorskip("sentencepiece"), io.BytesIO()
        library.SentencePieceTrainer.train(
            sentence_iterator=iter(PROSE), model_writer=out, vocab_size=302, byte_fallback=True, minloglevel=2,
            hard_vocab_limit=False, normalization_rule_name="identity", remove_extra_whitespaces=False,
            add_dummy_prefix=False,
        )  # fmt: skip
        path.write_bytes(out.getvalue())
        return
    library = pytest.importorskip("tokenizers")
    model = library.Tokenizer(library.models.BPE())
    model.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=301, special_tokens=["<|start|>", "<|end|>"], show_progress=False,
        initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    model.train_from_iterator(PROSE, trainer)
    model.save(str(path))


def experiment(folder: str, **changes) -> Experiment:
    """A model of a few thousand parameters on `write_folder`'s images; a step takes milliseconds."""
    fields = dict(
        steps=40, batch_size=4, log_every=7,
        model=TransformerConfig(width=16, layers=2, heads=2, ffn_multiple=16),
        streams={
            "text": Stream(vocabulary=text.VOCABULARY, budget=64),
            "image": image_stream(grid=(8, 8), patch=4, budget=16),
        },
        layout={
            "text": (Run("text"),),
            "image": (Run("image", opener=text.BOI, closer=text.EOI),),
            "image/context": (Run("image", opener=text.BOI, closer=text.EOI, time_low=0.5),),
        },
        data=DataConfig(sources={"mine": SourceConfig(kind="folder", path=folder)}),
        optim=OptimConfig(learning_rate=1e-3, warmup=5),
        checkpoint=CheckpointConfig(every=20, keep=3),
        eval=EvalConfig(every=0),
    )  # fmt: skip
    return Experiment(**fields | changes)
