"""Codes in the text's own vocabulary: how they are spelled, laid out and packed."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfusion import layouts
from transfusion.codecs.levels import LevelsConfig
from transfusion.config import Experiment
from transfusion.errors import UsageError
from transfusion.sampling.choose import emittable
from transfusion.sequence import TEXT, Run, Segment, SequenceSpec, Stream, text
from transfusion.sequence.fakes import fake_batch
from transfusion.sequence.rows import assemble, expand
from transfusion.sequence.spelling import Spelling

CODES, VOCABULARY = 5, text.VOCABULARY + 8
GRIDS = ((2, 3), (3, 2), (12, 1))


def spec(layout, **streams) -> SequenceSpec:
    words = Stream(vocabulary=VOCABULARY, budget=96)
    return SequenceSpec({"text": words} | streams, layout, text.BOS, text.EOS)


def mixture(position="advance") -> SequenceSpec:
    """Codes with an expert of their own."""
    own = Stream(vocabulary=VOCABULARY, parts="text", expert="image", budget=64)
    layout = layouts.chameleon(CODES, (2, 3), "codes")
    return spec(
        {"image": (dataclasses.replace(layout["image"][0], position=position),), "text": layout["text"]}, codes=own
    )


SPECS = {
    "chameleon": spec(layouts.chameleon(CODES, (2, 3))),
    "emu3": spec(layouts.emu3(CODES, GRIDS)),
    "clips": spec(layouts.emu3(CODES, ((2, 1, 2), (3, 1, 2)))),
    "mixture": mixture(),
}


def items(name: str, rng: np.random.Generator, count: int) -> list[Segment]:
    grids = SPECS[name].spelling.grids
    kind = "video" if name == "clips" else "image"
    return [Segment(kind, rng.integers(0, CODES, grids[rng.integers(len(grids))], np.int32)) for _ in range(count)]


def ids(string: str) -> list[int]:
    return text.encode(string).tolist()


def test_an_image_is_its_size_its_rows_and_their_ends():
    codes, first = np.array([[0, 1, 2], [3, 4, 0]]), text.VOCABULARY
    row = lambda *values: [first + v for v in values]  # noqa: E731
    document = expand((Segment("text", text.encode("hi")), Segment("image", codes)), SPECS["emu3"]).pieces[TEXT]
    inside = [*ids("2*3"), text.SEP, *row(0, 1, 2), text.EOL, *row(3, 4, 0), text.EOL, text.EOF]
    wanted = [text.BOS, *ids("hi"), text.BOI, *inside, text.EOI, text.EOS]
    assert document["tokens"].tolist() == wanted
    assert document["targets"].tolist() == [*wanted[1:], 0]
    weights = [0.5 if i >= first else 1.0 for i in wanted[1:]]
    assert document["loss_weight"].tolist() == [*weights, 0.0]
    assert document["item"].tolist() == [-1] * 3 + [1] * (1 + len(inside)) + [-1, -1]
    clip = SPECS["clips"].spelling.spell(np.zeros((2, 1, 2), int))[0].tolist()
    assert clip == [*ids("1*2,2"), text.SEP, *[first, first, text.EOL, text.EOF] * 2]
    sound = Spelling(CODES, first, ((4,),)).spell(np.array([1, 0, 2, 4]))[0]
    assert sound.tolist() == row(1, 0, 2, 4)


def test_an_expert_of_their_own_changes_nothing_but_the_stream():
    document = (Segment("text", text.encode("a")), Segment("image", np.arange(6).reshape(2, 3) % CODES))
    dense, own = (expand(document, SPECS[name]).pieces for name in ("chameleon", "mixture"))
    assert set(own) == {"text", "codes"} and set(own["codes"]["tokens"]) <= set(range(264, 264 + CODES))
    order = np.concatenate([piece["order"] for piece in own.values()])
    for field in ("tokens", "targets", "loss_weight", "position", "item"):
        joined = np.concatenate([piece[field] for piece in own.values()])
        np.testing.assert_array_equal(joined[np.argsort(order)], dense["text"][field])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(sorted(SPECS)))
def test_packed_rows_hold_whole_items_that_can_be_read_back(seed, name):
    spec, rng = SPECS[name], np.random.default_rng(seed)
    row, left, wanted = [], dict(spec.budgets), []
    for _ in range(8):
        words = Segment("text", rng.integers(0, 256, rng.integers(1, 5)).astype(np.int32))
        drawn = items(name, rng, int(rng.integers(0, 3)))
        document = expand((words, *drawn, words), spec)
        assert (document.split({"text": 3}) is None) == bool(drawn)
        if all(count <= left[key] for key, count in document.cost.items()):
            left = {key: room - document.cost.get(key, 0) for key, room in left.items()}
            row.append(document)
            wanted += [segment.value for segment in drawn]
    batch, spelling = assemble([row], spec), spec.spelling
    tokens, item, order = (
        np.concatenate([getattr(part, field)[0] for part in batch.values()]) for field in ("tokens", "item", "order")
    )
    assert item.max() == len(wanted)
    for number, codes in enumerate(wanted, start=1):
        mine = np.flatnonzero(item == number)
        mine = mine[np.argsort(order[mine])]
        assert tokens[mine[0]] == text.BOI
        np.testing.assert_array_equal(spelling.parse(tokens[mine[1:]]), codes)


def test_ids_move_with_the_tokenizer():
    def encode(string):
        return np.array([ord(c) + 100 for c in string], np.int32)

    tokenizer = text.Tokenizer(encode, str, len, size=304, specials={text.BOI: 7}, sha256="0" * 64)
    words = Stream(vocabulary=VOCABULARY, budget=96)
    moved = Experiment(streams={"text": words}, layout=layouts.emu3(CODES, GRIDS)).spec_with(tokenizer)
    (run,) = moved.layout["image"]
    assert (run.opener, run.closer, run.spelling.first) == (7, text.EOI + 48, text.VOCABULARY + 48)
    ends = (run.spelling.size_end, run.spelling.row_end, run.spelling.frame_end)
    assert ends == (text.SEP + 48, text.EOL + 48, text.EOF + 48)
    np.testing.assert_array_equal(run.spelling.spell(np.zeros((2, 3), int))[0][:3], encode("2*3"))
    written = np.flatnonzero(emittable(moved, (run.opener,)))
    assert set(written) == {*range(304), text.EOS + 48}


@pytest.mark.parametrize("name", SPECS)
def test_fakes_hold_items(name):
    batch = fake_batch(SPECS[name], 2)
    assert all((part.document > 0).any() for part in batch.values()) and batch["text"].item.max() > 0


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.zeros((3, 3), int), r"shape \(3, 3\) fit none of the sizes \(2, 3\)"),
        (np.zeros((2, 3)), "reads codes, whole numbers, not float64: set codec.kind"),
        (np.full((2, 3), CODES), "outside of 0 to 4"),
    ],
)
def test_wrong_codes_are_refused(value, message):
    with pytest.raises(UsageError, match=message):
        expand((Segment("image", value),), SPECS["chameleon"])


def test_wrong_tables_and_ids_are_refused():
    for make, message in (
        (lambda: Spelling(5, 0, ()), "grids are one or more"),
        (lambda: Spelling(5, 0, ((2, 2), (4,))), "equally many sides"),
        (lambda: Spelling(5, 0, ((2, 2),), size=(1, 2)), "'0123456789[*],', and size_end"),
        (lambda: spec(layouts.chameleon(50, (2, 2))), "'image': id 313 is outside of a vocabulary of 272"),
        (lambda: mixture("item"), "have the position 'advance'"),
        (lambda: SPECS["emu3"].spelling.parse(np.array([264])), "1 ids that spell no item"),
        (lambda: LevelsConfig(levels=1), "levels must be 2 or more"),
        (lambda: LevelsConfig(patch=3).encode(np.zeros((4, 4, 1))), "patch 3 and channels 1 do not divide"),
    ):
        with pytest.raises(UsageError, match=message):
            make()
    assert Run("text").spelling == Spelling()


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 20), st.integers(1, 3), st.integers(1, 2), st.integers(0, 99))
def test_levels_come_back_as_the_nearest(levels, channels, patch, seed):
    codec = LevelsConfig(levels, channels, patch)
    values = np.random.default_rng(seed).uniform(-1, 1, (2, 3, channels)).astype(np.float32)
    values = values.repeat(patch, 0).repeat(patch, 1)
    codes = codec.encode(values)
    assert codes.shape == (2, 3) and codes.dtype == np.int32 and 0 <= codes.min() <= codes.max() < codec.codes
    back = codec.decode(np.stack([codes] * 2), 2, channels)
    np.testing.assert_allclose(back, np.stack([values] * 2), atol=1.001 / (levels - 1))
    np.testing.assert_array_equal(codec.encode(back[0]), codes)
