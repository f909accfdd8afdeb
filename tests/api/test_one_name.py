"""One name in, one thing out: what stands alone gives one result, a list gives several, and media are fitted to the
model as its training data were."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from absl import logging
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from transfusion.api import Trained, load_run
from transfusion.api.fitting import Fitter
from transfusion.api.prompts import Given, as_labels, as_prompts
from transfusion.config import Experiment
from transfusion.data import clips, images, sounds
from transfusion.errors import UsageError
from transfusion.latents import Codec, Codecs, Form, forms_of, open_codecs
from transfusion.sampling.config import SamplerConfig
from transfusion.sequence import Run as Tokens
from transfusion.sequence import SequenceSpec

QUICK = {"steps": 2}
WORDS = {"max_images": 0, "max_tokens": 4, "temperature": 0.0}


@pytest.fixture(scope="module")
def run(tiny_run) -> Trained:
    return load_run(tiny_run)


@pytest.fixture
def notes(monkeypatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(logging, "warning", lambda line, *values: said.append(line % values))
    return said


def still(channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (137, 160, channels), np.uint8)


def test_a_loaded_run_keeps_what_it_compiles_unless_jax_was_told_where(tiny_run, monkeypatch, tmp_path):
    told = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("TRANSFUSION_CACHE", str(tmp_path))
    load_run(tiny_run)
    assert jax.config.jax_compilation_cache_dir == told
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        load_run(tiny_run)
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "jax")
    finally:
        jax.config.update("jax_compilation_cache_dir", told)


# --- one and several --------------------------------------------------------------------------------------------------


def test_a_text_is_one_prompt_and_not_its_letters(run):
    one, several = run.draw("seven", **QUICK), run.draw(["seven"], **QUICK)
    assert one.shape == (8, 8, 1) and several.shape == (1, 8, 8, 1)
    np.testing.assert_array_equal(one, several[0])
    np.testing.assert_array_equal(one, run.draw(np.array(["seven"]), **QUICK)[0])
    written = run.generate("seven", **WORDS)
    assert [written] == run.generate(["seven"], **WORDS) == run.generate([["seven"]], **WORDS)
    assert all(isinstance(part, str) for part in written)


def test_all_names_of_a_picture_have_one_caption(run, tmp_path):
    grey = np.random.default_rng(0).integers(0, 256, (8, 8, 1), np.uint8)
    path = tmp_path / "a.png"
    path.write_bytes(images.encode_png(grey))
    caption = run.caption(grey, max_tokens=4)
    assert isinstance(caption, str)
    for name in (grey[..., 0], Image.fromarray(grey[..., 0]), str(path), path, np.repeat(grey, 3, -1)):
        assert run.caption(name, max_tokens=4) == caption
        assert run.caption([name], max_tokens=4) == [caption]
    assert run.caption(np.stack([grey] * 2), max_tokens=4) == [caption] * 2  # what draw returns of several prompts
    drawn = run.draw([[grey, "x"], [path, "x"]], **QUICK)
    assert drawn.shape == (2, 8, 8, 1)


@pytest.mark.parametrize(
    ("value", "prompts", "one"),
    [
        ("seven", [("seven",)], True),
        (["a", "b"], [("a",), ("b",)], False),
        (("a", "b"), [("a",), ("b",)], False),
        ([["a", "b"]], [("a", "b")], False),
        ([("a", "b"), "c", []], [("a", "b"), ("c",), ()], False),
        (np.array(["a", "b"]), [("a",), ("b",)], False),
        (np.array("a"), [("a",)], True),
        (pathlib.Path("a.png"), [(pathlib.Path("a.png"),)], True),
    ],
)
def test_lists_are_prompts_and_lists_in_them_are_parts(value, prompts, one):
    assert as_prompts(value) == Given(prompts, one)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda run: run.draw([]), "no prompts: the list is empty"),
        (lambda run: run.draw({"seven": 1}), "not dict"),
        (lambda run: run.draw(None), "not NoneType"),
        (lambda run: run.draw(b"seven"), "not bytes"),
        (lambda run: run.draw(x for x in "ab"), "not generator"),
        (lambda run: run.draw([7]), "not int"),
        (lambda run: run.draw([["a", ["b"]]]), "not list"),
        (lambda run: run.draw(["x"], steps=10.0), "sampling.steps=10.0 must be a whole number"),
        (lambda run: run.draw(["x"], seed=None), "seed=None must be a whole number"),
        (lambda run: run.draw("x", seed=True), "seed=True"),
        (lambda run: run.draw("x", seed=-1), "seed=-1"),
        (lambda run: run.draw("x", seed=10**19), "seed=1000.* must be between 0 and 4294967295"),
        (lambda run: run.draw("x", guidance=float("nan")), "sampling.guidance=nan"),
        (lambda run: run.draw("x", guidence=2), "guidence.*did you mean 'guidance'"),
        (lambda run: run.draw("x", size=8), "size=8"),
        (lambda run: run.draw("x", size=(10**6, 10**6)), "size=.*at most"),
        (lambda run: run.draw("cut emoji \ud83d"), "not Unicode text: its character 11"),
        (lambda run: run.draw("x", negative="\udcff"), "not Unicode text"),
        (lambda run: run.draw("x" * 2_000_000), "2,000,000 characters"),
        (lambda run: run.draw("x", label=1), "no classes"),
        (lambda run: run.caption("a handwritten seven"), "cannot read a handwritten seven"),
        (lambda run: run.caption([["a.png", "b"]]), "use generate"),
        (lambda run: run.caption(np.zeros((8, 8, 1))), "a picture is uint8 .*, not float64"),
        (lambda run: run.caption(np.zeros((5,), np.uint8)), r"a picture is uint8 .*, not uint8 \[5\]"),
        (lambda run: run.caption(np.zeros((0, 8, 4), np.uint8)), "a picture is uint8"),
        (lambda run: run.caption(Image.new("F", (8, 8))), "mode F"),
        (lambda run: run.caption("a\0b"), r"cannot read a\\x00b"),
        (lambda run: run.caption(""), "the path of a file is empty"),
        (lambda run: run.caption(["https://host/a.png"]), "cannot read https://host/a.png: only files of this machine"),
        (lambda run: run.caption("x" * 5000), r"cannot read x{300}\.\.\."),
        (lambda run: run.generate("x", draw=None), "draw=None must be True or False"),
        (lambda run: run.draw("x", seed=jax.random.key(0)), "seed=Array.* must be a whole number"),
        (lambda run: run.draw("x", guidance=np.zeros((3, 3))), "sampling.guidance=array.* must be a number"),
    ],
)
def test_what_is_no_prompt_is_told_in_one_line(run, call, message):
    with pytest.raises(UsageError, match=message) as told:
        call(run)
    assert "\n" not in str(told.value)


def test_arrays_without_axes_are_numbers(run):
    """`for scale in jnp.linspace(1, 3, 5)` gives arrays of JAX."""
    numbers = {"seed": np.array(3), "first": jnp.asarray(1), "guidance": jnp.float32(2), "size": np.array([8, 8])}
    plain = run.draw("x", seed=3, first=1, guidance=2.0, size=(8, 8), **QUICK)
    np.testing.assert_array_equal(run.draw("x", **numbers, **QUICK), plain)


NAMES = st.recursive(
    st.one_of(st.none(), st.integers(), st.floats(), st.text(max_size=3), st.binary(max_size=3), st.just(still(1))),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.tuples(inner), st.dictionaries(st.text(), inner)),
    max_leaves=6,
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(NAMES)
def test_anything_is_prompts_or_is_refused_in_one_line(value):
    try:
        given_ = as_prompts(value, 4)
    except UsageError as error:
        assert "\n" not in str(error)
        return
    assert given_.one == (not isinstance(value, list | tuple)) and len(given_.prompts) >= 1
    assert all(isinstance(part, str | np.ndarray) for parts in given_.prompts for part in parts)


def test_classes_are_one_for_all_or_one_for_each():
    one, two = Given([("a",)], True), Given([("a",), ("b",)], False)
    assert as_labels(None, two) == (two, [-1, -1])
    assert as_labels(3, two) == (two, [3, 3])
    assert as_labels(np.array([1, 2]), two) == (two, [1, 2])
    assert as_labels(np.int32(3), one) == (one, [3])
    assert as_labels([1, 2, 3], one) == (Given([("a",)] * 3, False), [1, 2, 3])
    for wrong in ([1], [], "a", 1.5, -1, [1, True], [None, 1]):
        with pytest.raises(UsageError, match="label"):
            as_labels(wrong, two)


def test_a_class_is_drawn_by_its_number():
    """Of a stream with classes, with or without a prompt; another class is another drawing."""
    streams = {
        "text": tiny.text_stream(vocabulary=264),
        "image": tiny.image_stream(time="adaln", head="adaln", labels=3),
    }
    spec = tiny.spec(streams)
    task, rng = tiny.task(dataclasses.replace(spec, bos=257, eos=258), head_size=8), np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: x + 0.2 * rng.standard_normal(x.shape).astype(np.float32), task.template.init(jax.random.key(0))
    )
    experiment = Experiment(sampling=SamplerConfig(steps=2))
    run = Trained(experiment, task, params, open_codecs(experiment), 0)
    three = run.draw(label=[0, 1, 2])
    assert three.shape == (3, 4, 4, 1) and run.draw(label=2).shape == (4, 4, 1)
    np.testing.assert_array_equal(run.draw(["", "", ""], label=[0, 1, 2]), three)
    other = run.draw(["", "", ""], label=[0, 2, 2])
    assert (other[[0, 2]] == three[[0, 2]]).all() and (other[1] != three[1]).any()
    with pytest.raises(UsageError, match="class 3: its classes are 0 to 2"):
        run.draw("x", label=3)
    assert "3 classes" in repr(run)


# --- fitted as in training --------------------------------------------------------------------------------------------


def test_pictures_are_fitted_as_in_training_with_one_note(run, tmp_path, notes):
    picture, path = still(), tmp_path / "a.png"
    path.write_bytes(images.encode_png(picture))
    wanted = images.fit(picture, [(8, 8)], 1)
    for name in (picture, jax.numpy.asarray(picture), Image.fromarray(picture), path, str(path)):
        np.testing.assert_array_equal(run.fitted(name), wanted)
    assert notes == ["a picture of 160x137 is cropped and resized to 8x8, in grey, as in training"] * 5
    notes.clear()
    run.caption([picture] + [still(1)[: 8 + i] for i in range(3)], max_tokens=4)
    assert len(notes) == 1 and "and 3 more" in notes[0]
    notes.clear()
    run.caption(wanted, max_tokens=4)
    assert not notes  # nothing was changed


def pillow(mode: str) -> Image.Image:
    """A picture whose left half is black and whose right half is white, or transparent where the mode can say so."""
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 255))
    image.paste((9, 9, 9, 0) if mode in ("RGBA", "LA", "PA", "La", "RGBa") else (255, 255, 255, 255), (4, 0, 8, 8))
    if mode in ("P", "1", "CMYK", "YCbCr", "HSV", "LAB", "L", "RGB"):
        return image.convert("RGB").convert(mode)
    return image.convert("LA").convert(mode) if mode in ("LA", "La") else image.convert(mode)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV"])
def test_pillow_pictures_of_any_mode_lie_on_white(run, mode):
    fitted = run.fitted(pillow(mode))
    assert fitted.shape == (8, 8, 1) and fitted.dtype == np.uint8
    assert (fitted[:, :4] <= 2).all() and (fitted[:, 4:] >= 250).all()


def test_pillow_pictures_of_16_bits_are_those_of_their_file(run):
    levels = (np.arange(64).reshape(8, 8) * 1000).astype(np.uint16)
    pictures = [Image.fromarray(levels), Image.frombytes("I;16B", (8, 8), levels.astype(">u2").tobytes())]
    for picture in pictures:
        np.testing.assert_array_equal(run.fitted(picture)[..., 0], (levels >> 8).astype(np.uint8))


@pytest.mark.parametrize("channels", [2, 4])
def test_arrays_with_an_alpha_channel_lie_on_white(run, channels):
    array = np.zeros((8, 8, channels), np.uint8)
    array[:, :4, -1] = 255
    fitted = run.fitted(array)
    assert (fitted[:, :4] == 0).all() and (fitted[:, 4:] == 255).all()


def test_a_picture_that_lies_on_its_side_is_turned(run, tmp_path):
    picture = Image.fromarray(np.repeat(np.arange(0, 64, dtype=np.uint8).reshape(8, 8)[..., None], 3, -1))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "a.png", exif=exif)
    turned = run.fitted(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as opened:
        np.testing.assert_array_equal(run.fitted(opened), turned)
    np.testing.assert_array_equal(turned[..., 0], np.rot90(np.asarray(picture)[..., 0], -1))


def fitter(**forms: Form) -> Fitter:
    return Fitter(forms)


def test_the_nearest_of_several_sizes_is_taken(notes):
    wide = fitter(image=Form(((8, 8), (4, 8), (8, 4)), channels=3))
    assert wide.fit(np.zeros((100, 210, 3), np.uint8)).shape == (4, 8, 3)
    assert wide.fit(np.zeros((90, 100), np.uint8)).shape == (8, 8, 3)
    assert wide.notes[0] == "a picture of 210x100 is cropped and resized to 8x4"
    assert fitter(image=Form(((8, 8),), channels=3)).fit(np.zeros((16, 16, 3), np.uint8)).shape == (8, 8, 3)


def test_models_of_any_size_keep_it():
    free = fitter(image=Form(multiple=4, channels=1))
    assert free.fit(np.zeros((12, 8), np.uint8)).shape == (12, 8, 1) and not free.notes
    with pytest.raises(UsageError, match="10x12 pixels: .* multiples of 4"):
        free.fit(np.zeros((12, 10), np.uint8))


def test_clips_have_the_models_frames(tmp_path):
    some = fitter(video=Form(((4, 4),), channels=3, length=4))
    clip = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3), np.uint8)
    fitted = some.fit(clip)
    np.testing.assert_array_equal(fitted, clips.fit(clip, [(4, 4)], 3, 4))
    assert len(some.notes) == 2  # its size and its length
    (tmp_path / "a.webp").write_bytes(clips.encode_clip(clip, ".webp"))
    np.testing.assert_array_equal(some.fit(tmp_path / "a.webp"), fitted)
    with Image.open(tmp_path / "a.webp") as opened:
        np.testing.assert_array_equal(some.fit(opened), fitted)
    assert some.fit(clip[0]).shape == (4, 4, 4, 3)  # a picture in which nothing moves
    assert some.fit(clip[..., 0]).shape == (4, 4, 4, 3)  # a grey clip
    assert fitter(image=Form(((4, 4),), channels=3)).fit(clip).shape == (10, 4, 4, 3)  # whose frames are the images


def test_sounds_have_the_models_rate_and_length(tmp_path):
    some = fitter(sound=Form(length=100, rate=8000))
    sound = np.round(9000 * np.sin(np.arange(300) * 0.1)).astype(np.int16)
    np.testing.assert_array_equal(some.fit(sound), sound[:100])
    np.testing.assert_array_equal(some.fit(sound[:60]), np.pad(sound[:60], (0, 40)))
    assert some.fit(np.float32(sound) / 32768).dtype == np.int16
    (tmp_path / "a.wav").write_bytes(sounds.encode_wav(sound, 16000))
    np.testing.assert_array_equal(some.fit(tmp_path / "a.wav"), sounds.resample(sound, 16000, 8000)[:100])
    assert len(some.notes) == 4 and "cut after 100" in some.notes[0] and "silence" in some.notes[1]
    (tmp_path / "slow.wav").write_bytes(sounds.encode_wav(np.zeros(6000, np.int16), 1))
    with pytest.raises(UsageError, match="60,000,000 samples at 10000 a second"):
        fitter(sound=Form(rate=10_000)).fit(tmp_path / "slow.wav")  # 12 kB that would become 60 million samples
    for wrong in (np.zeros((100, 2), np.int16), np.zeros(100, np.uint8), np.zeros((8, 8, 3), np.uint8)):
        with pytest.raises(UsageError, match="a sound is int16 or float"):
            some.fit(wrong)
    with pytest.raises(UsageError, match="reads sounds, not a picture"):
        some.fit(Image.new("RGB", (8, 8)))


def test_media_of_ones_own_reach_their_codec_as_they_are():
    spec = SequenceSpec(
        {"text": tiny.text_stream(), "arm": tiny.image_stream(grid=(8,), table="none")}, {"arm": (Tokens("arm"),)}, 0, 0
    )
    forms = forms_of(spec, Codecs(Codec(np.asarray, np.asarray)))
    array = np.zeros((8, 3), np.float64)
    assert not forms and Fitter(forms).fit(array) is array


# --- shown ------------------------------------------------------------------------------------------------------------


def test_a_run_fits_a_screen(run):
    lines = repr(run).splitlines()
    assert 5 <= len(lines) <= 10 and max(map(len, lines)) <= 100
    assert "at step 20" in lines[0] and "parameters" in lines[0]
    assert any("image" in line and "8 x 8" in line for line in lines)
    assert str(run) == repr(run)
    many = {f"stream{i}": tiny.image_stream() for i in range(20)} | {"text": tiny.text_stream()}
    task = tiny.task(tiny.spec(many, {"image": (tiny.image_run("stream0"),)}))
    crowd = Trained(Experiment(), task, {}, open_codecs(Experiment()), 0, "x" * 500)
    assert len(repr(crowd).splitlines()) <= 10 and max(map(len, repr(crowd).splitlines())) <= 100
