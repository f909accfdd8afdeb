"""Configs that train a tower by contrast and that read images by it, in their debug forms, through the programs."""

import dataclasses

import jax
import numpy as np
import pytest
from closeness import assert_close, trunk_operations
from test_mixture_configs import CONFIGS, draws, experiment

import transfusion
from transfusion.codecs import CodecConfig
from transfusion.config import Experiment
from transfusion.errors import UsageError
from transfusion.evaluate import evaluate
from transfusion.evaluation.measures import Options
from transfusion.initial import InitConfig, from_run
from transfusion.model.inputs import inputs_of
from transfusion.model.names import by_path
from transfusion.programs import load_experiment
from transfusion.running.restore import restore_params
from transfusion.sampling.decoder import generate
from transfusion.sampling.prompts import Prompt
from transfusion.sampling.reference import generate_one
from transfusion.sequence import Segment, SequenceSpec, text
from transfusion.sequence.rows import expand
from transfusion.tasks import make_task
from transfusion.train import train

TOWER = "parts/semantic/embed/tower"


def short(name: str, data_dir: str) -> Experiment:
    return dataclasses.replace(experiment(name, data_dir), steps=3, log_every=3)


@pytest.fixture(scope="module")
def contrastive(data_dir, tmp_path_factory):
    """The workdir of a contrastive run."""
    workdir = tmp_path_factory.mktemp("contrastive")
    train(short("contrastive.py:debug", data_dir), workdir)
    return workdir


@pytest.mark.slow
def test_a_contrastive_run_names_classes_and_writes_nothing(contrastive):
    result = evaluate(contrastive, Options(captions=20))
    assert result["zero_shot_accuracy"]["count"] == 20
    assert "compares" in result["absent"]["caption_accuracy"]
    with pytest.raises(UsageError, match="this model neither writes nor draws"):
        transfusion.load_run(contrastive).caption(np.zeros((8, 8, 1), np.uint8))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["janusflow.py:debug", "bagel.py:debug", "showo2.py:debug", "llava.py:projector_debug"]
)
def test_other_systems_begin_with_its_tower(contrastive, name):
    """As the docstring of the config says."""
    config = load_experiment(CONFIGS / name)
    copy, fresh = (), "trunk|parts/text|parts/semantic/embed/connector"
    if name.startswith("showo2"):
        copy, fresh = (("parts/image/embed/tower", TOWER),), "trunk|parts/text"
    shapes = jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0])),
        make_task(config).template.shapes,
    )
    given = from_run(InitConfig(str(contrastive), copy, fresh), shapes)
    theirs = by_path(restore_params(contrastive, "ema")[1])
    ours = "parts/image/embed/tower" if copy else TOWER
    assert given.keys() == {path for path in by_path(shapes) if path.startswith(ours)}
    for path, leaf in given.items():
        np.testing.assert_array_equal(leaf, theirs[path.replace(ours, TOWER)])


@pytest.mark.slow
def test_llava_trains_its_projector_and_then_its_language_model(contrastive, data_dir, tmp_path):
    debug = short("llava.py:debug", data_dir)
    words = dataclasses.replace(experiment("lmfusion.py:text", data_dir), steps=2, batch_size=4, log_every=2)
    train(dataclasses.replace(words, model=load_experiment(CONFIGS / "digits.py:debug").model), tmp_path / "text")
    whole = load_experiment(CONFIGS / "llava.py:projector").init
    others = {"tower": dataclasses.replace(whole.others["tower"], path=str(contrastive))}
    first = dataclasses.replace(
        short("llava.py:projector_debug", data_dir),
        init=dataclasses.replace(whole, path=str(tmp_path / "text"), others=others),
    )
    projected = by_path(train(first, tmp_path / "projector").params)
    of_text, of_images = (by_path(restore_params(w, "ema")[1]) for w in (tmp_path / "text", contrastive))
    for path, leaf in projected.items():
        if "connector" not in path:
            np.testing.assert_array_equal(leaf, of_images[path] if path.startswith(TOWER) else of_text[path])
    began = by_path(restore_params(tmp_path / "projector", "ema")[1])
    second = by_path(
        train(dataclasses.replace(debug, init=InitConfig(str(tmp_path / "projector"))), tmp_path / "all").params
    )
    for path, leaf in second.items():
        assert np.array_equal(leaf, began[path]) == path.startswith(TOWER)
    assert isinstance(transfusion.load_run(tmp_path / "all").caption(np.zeros((8, 8, 1), np.uint8), max_tokens=2), str)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["debug", "flamingo_debug", "select_debug"])
def test_few_tokens_are_read(form, data_dir, tmp_path):
    config = short(f"resampler.py:{form}", data_dir)
    assert config.streams["semantic"].tokens_per_item == 4
    before = by_path(jax.jit(make_task(config).template.init)(jax.random.key(config.seed)))
    after = by_path(train(config, tmp_path).params)
    moved = {path for path in after if not np.array_equal(after[path], before[path])}
    learned = {"debug": "parts/semantic/embed/", "flamingo_debug": ("parts/semantic/embed/", "trunk/cross/")}
    if form in learned:
        assert {path for path in moved if not path.startswith(learned[form])} == set()
        assert not any(path.startswith(TOWER) for path in moved)
    else:
        assert {"parts/semantic/embed/score", f"{TOWER}/kernel", "parts/semantic/embed/pixels"} <= moved
    run = transfusion.load_run(tmp_path)
    assert isinstance(run.caption(np.zeros((8, 8, 1), np.uint8), max_tokens=2), str)


def test_a_closed_gate_leaves_the_language_model_as_it_was():
    """To the bit, and only until it opens."""
    config = load_experiment(CONFIGS / "resampler.py:flamingo_debug")
    task = make_task(config)
    params, batch = task.template.init(jax.random.key(0)), task.fake_batch(2)
    draws = task.draw(batch, jax.random.key(1))

    def text(params):
        inputs = {name: task.inputs(name, batch, draws) for name in task.spec.streams}
        return np.asarray(task.template.bind(params).encode(inputs)["text"].hidden)

    spec = task.spec
    alone = SequenceSpec({"text": spec.streams["text"]}, {"text": spec.layout["text"]}, spec.bos, spec.eos)
    language = dataclasses.replace(task, spec=alone, model=dataclasses.replace(task.model, cross=(), towers={}))
    trunk = {name: part for name, part in params["trunk"].items() if name != "cross"}
    own = params | {"parts": {"text": params["parts"]["text"]}, "trunk": trunk}
    given = inputs_of("text", batch, alone, batch["text"].tokens, None)
    before = np.asarray(language.template.bind(own).encode({"text": given})["text"].hidden)
    np.testing.assert_array_equal(text(params), before)
    params["trunk"]["cross"]["gate"] = params["trunk"]["cross"]["gate"] + 1.0
    assert np.abs(text(params) - before).max() > 0.01


def test_a_selection_keeps_the_best_in_their_order():
    config = load_experiment(CONFIGS / "resampler.py:select_debug")
    task = make_task(config)
    params, batch = task.template.init(jax.random.key(0)), task.fake_batch(2)
    inputs = task.inputs("semantic", batch, task.draw(batch, jax.random.key(1)))
    embed = task.template.bind(params).parts["semantic"].embed
    (tokens, score), (kept, _) = embed.candidates(inputs.content), embed(inputs, None)
    n, k = embed.patches, config.streams["semantic"].tokens_per_item
    kept = np.asarray(kept).reshape(len(tokens), k, -1)
    for item in range(len(tokens)):
        best = sorted(np.argsort(-np.asarray(score[item]))[:k], key=lambda i: (i % n, i // n))
        weighted = np.asarray(tokens[item] * jax.nn.sigmoid(score[item])[:, None])
        np.testing.assert_allclose(kept[item], weighted[best], rtol=1e-6)


@pytest.mark.slow
def test_llada_draws_its_answers_in_blocks(data_dir, tmp_path):
    """As the plain decoder does; what stands behind the first end of the document is no text."""
    train(short("llada.py:debug", data_dir), tmp_path)
    run = transfusion.load_run(tmp_path)
    pictures = [np.full((8, 8, 1), grey, np.uint8) for grey in (0, 255)]
    captions = run.caption(pictures)
    config = run.sampler(max_images=1, max_tokens=0)
    for number, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        (plain,) = generate_one(run.task, run.params, Prompt(run.segments(picture), draw=True), 0, config, number)
        ids = plain.value.tolist() + [text.EOS]
        assert caption == run.task.tokenizer.decode(np.array(ids[: ids.index(text.EOS)]))
    with pytest.raises(UsageError, match="this model draws no images"):
        run.draw("a handwritten one")
    result = evaluate(tmp_path, Options(captions=5))
    assert result["caption_accuracy"]["count"] == 5 and result["generation_accuracy"] is None


@pytest.mark.slow
def test_dimoo_unmasks_answers_and_images(data_dir, tmp_path):
    train(short("llada.py:dimoo_debug", data_dir), tmp_path)
    run = transfusion.load_run(tmp_path)
    image = run.draw("a handwritten one", kind="image", steps=2)
    assert image.shape == (8, 8, 1)
    assert isinstance(run.caption(image), str) and run.draws == ("image",)


def test_an_answer_fills_its_places_and_is_the_only_loss():
    spec = load_experiment(CONFIGS / "llada.py").spec
    pixels = np.zeros((8, 8, 1), np.float32)
    words = np.array([97, 98], np.int32)
    document = (Segment("image", pixels, "context"), Segment("text", words, "target"))
    pieces = expand(document, spec).pieces
    assert pieces["answer"]["tokens"].tolist() == [97, 98, *[text.EOS] * 30]
    np.testing.assert_array_equal(pieces["answer"]["loss_weight"], np.ones(32))
    # Begin, EOI, which predicts what opens the answer, and that; the end of the document.
    assert text.SEP in pieces["text"]["targets"][pieces["text"]["loss_weight"] > 0]
    with pytest.raises(UsageError, match="40 ids do not fit the 32 places"):
        expand((Segment("text", np.zeros(40, np.int32), "target"),), spec)


@pytest.mark.slow
def test_tuna2_draws_and_reads_pixels(data_dir, tmp_path):
    config = short("tuna2.py:debug", data_dir)
    assert not config.model.towers and config.codec.kind == "pixels"
    train(config, tmp_path)
    draws(tmp_path)
    assert isinstance(transfusion.load_run(tmp_path).caption(np.zeros((8, 8, 1), np.uint8), max_tokens=2), str)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["debug", "mar_debug"])
def test_nextstep_and_mar_draw_as_the_plain_decoder_and_read(form, data_dir, tmp_path):
    train(short(f"nextstep.py:{form}", data_dir), tmp_path)
    run = transfusion.load_run(tmp_path)
    # So large that a patch depends on those before it, and on the words.
    parts = jax.tree.map(lambda x: x, run.params["parts"])
    parts["image"]["head"] = {n: x if n == "time" else 3 * x for n, x in parts["image"]["head"].items()}
    head = parts["image"]["head"]
    head["kernel"] = 0.3 * jax.random.normal(jax.random.key(1), head["kernel"].shape)
    head["modulation"] = 0.1 * jax.random.normal(jax.random.key(2), head["modulation"].shape)
    config = run.sampler(steps=2, guidance=2.0, max_tokens=2, max_images=1, unmask_steps=5)
    prompts = [Prompt(run.segments(caption), draw=True) for caption in ("a one", "nine")]
    results = generate(run.task, run.params | {"parts": parts}, prompts, 0, config)
    for number, (prompt, result) in enumerate(zip(prompts, results, strict=True)):
        plain = generate_one(run.task, run.params | {"parts": parts}, prompt, 0, config, number)
        assert [s.kind for s in result] == [s.kind for s in plain]
        assert_close(result[0].value, plain[0].value, 2 * 16 * trunk_operations(run.experiment.model, 40))
    assert np.abs(results[0][0].value - results[1][0].value).max() > 0.1
    assert isinstance(run.caption(np.zeros((8, 8, 1), np.uint8), max_tokens=2), str)


@pytest.mark.slow
def test_rae_draws_and_reads_the_features_of_a_tower(data_dir, tmp_path):
    train(short("autoencoder_semantic.py:debug", data_dir), tmp_path / "codec")
    config = short("rae.py:debug", data_dir)
    train(dataclasses.replace(config, codec=CodecConfig("autoencoder", str(tmp_path / "codec"))), tmp_path / "run")
    draws(tmp_path / "run")
    run = transfusion.load_run(tmp_path / "run")
    assert isinstance(run.caption(np.zeros((8, 8, 1), np.uint8), max_tokens=2), str)
