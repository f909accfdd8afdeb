"""A model that draws several kinds of items: latents of three shapes, codes of a stream, and codes spelled as text.

What a row gives depends on no other row, whatever these draw, and equals what the plain decoder gives.
"""

import dataclasses
import wave
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from closeness import assert_same, drawing_operations

from transfusion import sample
from transfusion.api import Trained
from transfusion.config import Experiment
from transfusion.errors import UsageError
from transfusion.latents import Codec, Codecs
from transfusion.sampling.conditions import conditions_of
from transfusion.sampling.config import KindConfig, SamplerConfig
from transfusion.sampling.conversation import reply
from transfusion.sampling.decoder import Prompt, decoder_of, generate
from transfusion.sampling.drawable import drawables_of
from transfusion.sampling.reference import generate_one
from transfusion.sampling.trajectory import trajectory
from transfusion.sequence import Run, Segment, SequenceSpec, Stream
from transfusion.sequence.spelling import Spelling

# The ids of the text: words below 11, begin and end, an opener and a closer of each kind, and eight codes.
IDS, FIRST_CODE = 40, 32
OPENERS = {"image": 13, "sound": 15, "video": 17, "sign": 19, "note": 21}
SHAPES = {"image": (4, 4, 1), "sound": (6, 2), "video": (2, 2, 4, 1), "sign": (1, 3), "note": (2, 2)}


def make_task(**image):
    codes = {"embed": "token", "head": "token", "objective": "masked", "attention": "block", "vocabulary": 7}
    streams = {
        "text": tiny.text_stream(vocabulary=IDS, budget=64),
        "image": tiny.image_stream(budget=16, **image),
        "sound": tiny.image_stream(grid=(6,), channels=2, budget=12, table="none"),
        "video": tiny.image_stream(grid=(2, 2, 4), budget=16, table="none"),
        "sign": Stream(grid=(1, 3), budget=12, table="sincos", **codes),
    }
    spelling = Spelling(8, FIRST_CODE, ((2, 2),))
    runs = {
        kind: (
            Run(
                "text" if kind == "note" else kind, opener=opener, closer=opener + 1,
                spelling=spelling if kind == "note" else Spelling(),
                boundary="inside" if kind == "video" else "outside", time_low=0.0,
            ),
        )
        for kind, opener in OPENERS.items()
    }  # fmt: skip
    read = {f"{kind}/context": (dataclasses.replace(run, time_low=1.0),) for kind, (run,) in runs.items()}
    spec = SequenceSpec(streams, {"text": (Run("text"),)} | runs | read, tiny.BOS, tiny.EOS, 1)
    return tiny.task(spec, width=16, layers=1, heads=2)


def make_params(task):
    """Random weights under which openers are likely."""
    params = task.template.init(jax.random.key(1))
    for number, (_, part) in enumerate(sorted(params["parts"].items())):
        if "kernel" in part.get("head", {}):
            kernel = part["head"]["kernel"]
            part["head"]["kernel"] = jax.random.normal(jax.random.key(number), kernel.shape) / 3
    head = params["parts"]["text"]["head"]
    head["kernel"] = head["kernel"].at[:, jnp.array(list(OPENERS.values()))].multiply(4.0)
    return params


@pytest.fixture(scope="module")
def model():
    task = make_task()
    return task, make_params(task)


def medium(kind, seed=0):
    rng = np.random.default_rng(seed)
    if kind in ("sign", "note"):
        return Segment(kind, rng.integers(0, 7, SHAPES[kind]).astype(np.int32), "context")
    return Segment(kind, rng.standard_normal(SHAPES[kind]).astype(np.float32), "context")


PROMPTS = [
    *(Prompt((tiny.words(1 + i),), draw=True, kind=kind) for i, kind in enumerate(OPENERS)),
    Prompt((tiny.words(1, 2, 3),)),
    Prompt((medium("sound"), tiny.words(4))),
    Prompt((tiny.words(9), medium("image"), medium("sign")), draw=True, kind="video"),
]
CONFIG = SamplerConfig(
    steps=2, max_tokens=5, max_images=3, kinds={"sound": {"steps": 3, "solver": "ddpm", "shift": 2.0}}
)


@pytest.fixture(scope="module")
def mixed(model):
    return generate(*model, PROMPTS, 3, CONFIG)


def kinds(result):
    return [segment.kind for segment in result]


def test_each_kind_is_drawn_as_the_plain_decoder_draws_it(model, mixed):
    task, params = model
    assert {kind for result in mixed for kind in kinds(result)} == {"text", *OPENERS}
    assert [kinds(result)[0] for result in mixed[:5]] == list(OPENERS)
    drawn = [[kind for kind in kinds(result) if kind != "text"] for result in mixed]
    assert any(len(set(row)) > 1 for row in drawn) and max(map(len, drawn)) == CONFIG.max_images
    for number, (prompt, result) in enumerate(zip(PROMPTS, mixed, strict=True)):
        assert all(segment.value.shape == SHAPES[segment.kind] for segment in result if segment.kind != "text")
        plain = generate_one(task, params, prompt, 3, CONFIG, number)
        assert_same(result, plain, drawing_operations(task, CONFIG))


def test_rows_do_not_depend_on_the_kinds_of_others(model, mixed):
    one_by_one = generate(*model, PROMPTS, 3, CONFIG, batch=1)
    for result, alone in zip(mixed, one_by_one, strict=True):
        assert_same(result, alone, drawing_operations(model[0], CONFIG))


def test_only_the_kinds_that_are_asked_for_are_compiled_where_nothing_is_written(model):
    only = dataclasses.replace(CONFIG, max_tokens=0)
    made, settings = decoder_of(model[0], only, (0, 0), [PROMPTS[1]])
    assert [drawn.kind for drawn in made.drawables] == ["sound"] and len(settings.kinds[0].schedule) == 4
    sound, image, again = generate(*model, [PROMPTS[1], PROMPTS[0], PROMPTS[1]], 3, only)
    assert [kinds(result) for result in (sound, image, again)] == [["sound"], ["image"], ["sound"]]
    assert_same(again, generate(*model, [PROMPTS[1]], 3, only, first=2)[0], drawing_operations(model[0], only))
    path = trajectory(*model, PROMPTS[1], 3, CONFIG)
    assert path.x.shape == (4, 6, 2)
    np.testing.assert_allclose(path.x[-1], sound[0].value, atol=1e-5)


def test_what_must_come_after_a_text_is_the_kind_that_was_asked_for(model):
    config = dataclasses.replace(CONFIG, think=3, max_tokens=0, max_images=2, min_images=2)
    prompts = [Prompt((tiny.words(1),), draw=True, kind=kind) for kind in ("sound", "note")]
    for number, (prompt, result) in enumerate(zip(prompts, generate(*model, prompts, 3, config), strict=True)):
        assert [kind for kind in kinds(result) if kind != "text"] == [prompt.kind] * 2
        assert_same(result, generate_one(*model, prompt, 3, config, number), drawing_operations(model[0], config))


def test_turns_are_answered_by_the_kinds_that_are_asked_for(model):
    config, operations = SamplerConfig(steps=2, max_tokens=0), drawing_operations(model[0], SamplerConfig(steps=2))
    first = Prompt((tiny.words(1),), draw=True, kind="sound")
    answer, kept = reply(*model, first, first.segments, None, 3, config)
    assert_same(answer, generate(*model, [first], 3, config)[0], operations)
    second = Prompt((*first.segments, *answer, tiny.words(4)), draw=True, kind="note")
    again, _ = reply(*model, second, second.segments[1:], kept, 3, config, number=1)
    assert_same(again, generate(*model, [second], 3, config, first=1)[0], operations)
    assert kinds((*answer, *again)) == ["sound", "note"]


GUIDED = SamplerConfig(steps=2, max_tokens=0, guidance=1.5, image_guidance=2.0, conditions={"sound": 3.0, "sign": 1.0})


@pytest.mark.parametrize("against", ["text", "nothing"])
def test_each_kind_of_condition_guides(model, against):
    """A prompt with an image and a sound is compared without its text, without the image and without the sound."""
    task, config = model[0], dataclasses.replace(GUIDED, image_against=against)
    several = (tiny.words(3), medium("image"), medium("sound"), medium("sign"))
    prompts = [Prompt(several[:count], draw=True, kind="video") for count in (1, 2, 4)]
    (conditions,) = conditions_of(prompts, task.spec, drawables_of(task.spec)[2:3], config)
    assert [scale.tolist() for scale in conditions.scales] == [[1, 2, 2], [1, 1, 3]]
    results = generate(*model, prompts, 3, config)
    for number, (prompt, result) in enumerate(zip(prompts, results, strict=True)):
        assert_same(result, generate_one(*model, prompt, 3, config, number), drawing_operations(task, config))
    other = generate(*model, prompts, 3, dataclasses.replace(config, conditions={"sound": 1.5, "sign": 1.0}))
    change = [float(np.abs(a[0].value - b[0].value).max()) for a, b in zip(results, other, strict=True)]
    assert max(change[:2]) < 1e-5 and change[2] > 1e-3


def test_each_prompt_has_its_size():
    task = make_task(grid=(0, 0), items=4)
    params = make_params(task)
    config = dataclasses.replace(CONFIG, max_tokens=0)
    prompts = [Prompt((tiny.words(1),), draw=True, kind="image", size=size) for size in ((4, 4), (2, 6), (4, 4))]
    results = generate(task, params, prompts, 3, config)
    assert [result[0].value.shape for result in results] == [(4, 4, 1), (2, 6, 1), (4, 4, 1)]
    for number, (prompt, result) in enumerate(zip(prompts, results, strict=True)):
        assert_same(result, generate_one(task, params, prompt, 3, config, number), drawing_operations(task, config))
    with pytest.raises(UsageError, match="draws no image of 3 x 4 latents: it draws any size of height and width that"):
        generate(task, params, [dataclasses.replace(prompts[0], size=(3, 4))], 3, config)
    with pytest.raises(UsageError, match="draws images of any size: say which"):
        generate(task, params, [dataclasses.replace(prompts[0], size=())], 3, config)
    with pytest.raises(UsageError, match="draws no sound of 3 latents or codes: it draws 6"):
        generate(task, params, [Prompt(draw=True, kind="sound", size=(3,))], 3, config)
    # A text may open all kinds of known size.
    written = decoder_of(task, CONFIG, (0, 0), [Prompt((tiny.words(1),))])[0]
    assert [drawn.kind for drawn in written.drawables] == ["sound", "video", "sign", "note"]


# --- a run of it -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(model):
    """Its media are its latents; those of sounds are twice as many samples."""
    same = Codec(lambda x: np.asarray(x, np.float32), np.asarray)
    sounds = Codec(lambda x: np.reshape(x, (6, 2)).astype(np.float32), lambda x: np.asarray(x).reshape(-1), rate=8000)
    codes = Codec(lambda x: np.asarray(x, np.int32), np.asarray)
    experiment = Experiment(sampling=SamplerConfig(steps=2, max_tokens=0))
    return Trained(experiment, *model, Codecs(same, {"sound": sounds, "sign": codes, "note": codes}), 0)


def test_a_run_draws_the_kind_that_is_asked_for(run):
    assert run.draws == tuple(OPENERS) and run.shows == "image" and run.sides == 2
    assert all(f"{kind}: " in repr(run) or "..." in repr(run) for kind in OPENERS)
    sound = run.draw("\x01", kind="sound")
    assert sound.shape == (12,) and run.draw(["\x01", "\x02"], kind="image").shape == (2, 4, 4, 1)
    several = run.draw(["\x01", "\x02"], kind=["sound", "image"])
    np.testing.assert_allclose(several[0], sound, atol=1e-5)
    assert [one.shape for one in several] == [(12,), (4, 4, 1)]
    assert run.generate("\x01", kind="sound")[0].shape == (12,)
    for call, message in (
        (lambda: run.draw("\x01"), "draws image, sound, video, sign, note: say which, as in kind='image'"),
        (lambda: run.draw("\x01", kind="sond"), "draws no sond: it draws .*did you mean 'sound'"),
        (lambda: run.draw("\x01", kind="text"), "kind='text': a text is written"),
        (lambda: run.draw("\x01", kind=3), "kind=3 must be the name of what is drawn"),
        (lambda: run.draw(["\x01"], kind=["sound", "image"]), "2 kinds for 1 prompts"),
        (lambda: run.draw(["\x01"], kind=[]), "kind is an empty list"),
        (
            lambda: run.draw("\x01", kind="image", size=(8, 8)),
            "draws no image of 8 x 8 latents or codes: it draws 4 x 4",
        ),
        (lambda: run.draw("\x01", kind="image", size=[(4, 4), 3]), "size=3 must be one to three whole numbers"),
    ):
        with pytest.raises(UsageError, match=message):
            call()


def test_a_sound_is_saved_at_its_own_rate(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sample, "FLAGS", SimpleNamespace(num=1, seed=0))
    sample.draw(run, ["\x01"], tmp_path / "out", {"kind": "sound"})
    with wave.open(str(tmp_path / "out.wav")) as file:
        assert file.getframerate() == 8000
    assert sample.read_size("8, 4") == (8, 4)
    with pytest.raises(UsageError, match="--size=8x4: give one to three whole numbers"):
        sample.read_size("8x4")


def test_settings_of_kinds_are_checked():
    assert SamplerConfig(kinds={"sound": KindConfig(steps=3)}).of_kind("sound").steps == 3
    assert SamplerConfig(steps=7, kinds={"sound": {"guidance": 2}}).of_kind("sound") == SamplerConfig(
        steps=7, guidance=2
    )
    for fields, message in (
        ({"kinds": {"sound": {"stps": 3}}}, "sampling.kinds.sound: no setting 'stps' .did you mean 'steps'"),
        ({"kinds": {"sound": {"steps": 0}}}, "sampling.kinds.sound: sampling.steps=0 must be at least 1"),
        ({"kinds": {"sound": {"solver": "eulr"}}}, "sampling.kinds.sound: sampling.solver: 'eulr' is none of"),
        ({"kinds": 3}, "sampling.kinds=3 must be a table"),
        ({"conditions": {"sound": "x"}}, "sampling.conditions.sound='x' must be a number"),
        ({"conditions": {"sound": float("nan")}}, "sampling.conditions.sound=nan must be at least"),
    ):
        with pytest.raises(UsageError, match=message):
            SamplerConfig(**fields)
