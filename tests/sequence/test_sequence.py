"""From documents to packed rows."""

import dataclasses

import jax
import numpy as np
import packed
import pytest
import tiny
from closeness import assert_close, trunk_operations
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import BOI, BOS, EOI, EOS

from transfusion import layouts
from transfusion.errors import UsageError
from transfusion.sequence import Run, Segment, SequenceSpec, Stream, text
from transfusion.sequence.batch import batch_spec
from transfusion.sequence.fakes import fake_batch
from transfusion.sequence.masks import metadata, see
from transfusion.sequence.patches import patchify, places, unpatchify
from transfusion.sequence.rows import assemble, expand


def read(document, spec):
    """[(stream, id or None, position)] in reading order."""
    tokens = []
    for stream, piece in expand(document, spec).pieces.items():
        ids = piece.get("tokens", [None] * len(piece["order"]))
        tokens += [
            (order, stream, None if i is None else int(i), tuple(int(p) for p in position))
            for order, i, position in zip(piece["order"], ids, piece["position"], strict=True)
        ]
    assert sorted(t[0] for t in tokens) == list(range(len(tokens)))
    return [token[1:] for token in sorted(tokens)]


IMAGE = tiny.picture(np.random.default_rng(0))
RULES = {
    "transfusion": [(2,), (3,), (4,), (5,), (6,), (7,), (8,)],
    "item": [(2,), (3,), (3,), (3,), (3,), (4,), (5,)],
    "grid": [(2, 2, 2), (3, 3, 3), (3, 3, 4), (3, 4, 3), (3, 4, 4), (5, 5, 5), (6, 6, 6)],
}


@pytest.mark.parametrize("name", RULES)
def test_position_rules(name):
    spec = tiny.SPECS[name]
    got = read((tiny.words(9), IMAGE), spec)
    axes = spec.axes
    wanted = [(0,) * axes, (1,) * axes, *RULES[name]]
    assert [position for *_, position in got] == wanted
    assert [(s, i) for s, i, _ in got] == [
        ("text", BOS), ("text", 9), ("text", BOI), *[("image", None)] * 4, ("text", EOI), ("text", EOS),
    ]  # fmt: skip


def test_a_noised_copy_holds_the_counter():
    got = read((tiny.words(9), IMAGE, tiny.words(8)), tiny.SPECS["bagel"])
    assert [(stream, position[0]) for stream, _, position in got] == [
        ("text", 0), ("text", 1),
        ("text", 2), *[("noised", 2)] * 4, ("text", 2),
        ("text", 2), *[("clean", 2)] * 4, ("text", 2),
        ("text", 3), ("text", 4),
    ]  # fmt: skip
    pieces = expand((tiny.words(9), IMAGE, tiny.words(8)), tiny.SPECS["bagel"]).pieces
    assert pieces["noised"]["private"].all() and not pieces["clean"]["private"].any()
    assert pieces["clean"]["time_low"].tolist() == [1.0]
    assert pieces["clean"]["loss_weight"].sum() == 0
    assert set(pieces["text"]["span"]) == {0, 1, 2}  # openers and closers lie inside


def test_targets_follow_the_reading_order():
    text = expand((tiny.words(9, 8), IMAGE, tiny.words(7)), tiny.spec()).pieces["text"]
    assert text["tokens"].tolist() == [BOS, 9, 8, BOI, EOI, 7, EOS]
    # BOI's successor is an image; nothing predicts EOI, which the decoder appends; nothing follows EOS.
    assert text["loss_weight"].tolist() == [1, 1, 1, 0, 1, 1, 0]
    assert text["targets"].tolist() == [9, 8, BOI, 0, 7, EOS, 0]


def test_the_role_chooses_the_layout():
    context, target = (
        expand((tiny.picture(np.random.default_rng(0), role),), tiny.spec()) for role in ("context", "target")
    )
    assert context.pieces["image"]["time_low"].tolist() == [0.5]
    assert target.pieces["image"]["time_low"].tolist() == [0.0]


def test_a_part_of_a_document_is_laid_out_alone():
    whole = expand((tiny.words(1), IMAGE), tiny.spec())
    prompt = expand((tiny.words(1),), tiny.spec(), end=False)
    rest = expand((IMAGE,), tiny.spec(), begin=False)
    assert prompt.length + rest.length == whole.length
    np.testing.assert_array_equal(
        np.concatenate([prompt.pieces["text"]["position"], rest.pieces["text"]["position"] + prompt.counter]),
        whole.pieces["text"]["position"],
    )
    np.testing.assert_array_equal(rest.pieces["image"]["position"] + prompt.counter, whole.pieces["image"]["position"])
    assert rest.counter + prompt.counter == whole.counter


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 3), st.integers(1, 4))
def test_patches_and_back(rows, columns, patch, channels):
    latents = np.random.default_rng(0).standard_normal((rows * patch, columns * patch, channels)).astype(np.float32)
    patches = patchify(latents, (patch, patch))
    assert patches.shape == (rows * columns, patch * patch * channels)
    np.testing.assert_array_equal(unpatchify(patches, latents.shape[:2], patch), latents)
    y, x = places((rows, columns))[-1]
    np.testing.assert_array_equal(patches[-1].reshape(patch, patch, channels), latents[y * patch :, x * patch :])


@pytest.mark.parametrize("sides, patch", [((6,), 2), ((4, 6), 2), ((4, 4, 6), (2, 1, 3)), ((2, 3, 2), 1)])
def test_patches_of_series_images_and_clips(sides, patch):
    latents = np.random.default_rng(0).standard_normal((*sides, 3)).astype(np.float32)
    p = (patch,) * len(sides) if isinstance(patch, int) else patch
    patches, counts = patchify(latents, p), [side // one for side, one in zip(sides, p, strict=True)]
    two = patchify(np.stack([latents, -latents]), p)
    np.testing.assert_array_equal(two, np.stack([patches, -patches]))
    np.testing.assert_array_equal(unpatchify(two, sides, patch), np.stack([latents, -latents]))
    for content, place in zip(patches, places(counts), strict=True):
        there = tuple(slice(at * side, (at + 1) * side) for at, side in zip(place, p, strict=True))
        np.testing.assert_array_equal(content.reshape(*p, 3), latents[there])


def clip_spec(attention="frame", **run):
    """Clips of 4 frames of 2 x 4 in 4 tokens, two a frame pair."""
    clip = tiny.image_stream(grid=(4, 2, 4), patch_frames=2, attention=attention, table="none")
    layout = {"video": (tiny.image_run("video", **{"position": "grid"} | run),)}
    return tiny.spec({"text": tiny.text_stream(), "video": clip}, layout, axes=3)


def test_a_clip_has_times_and_places():
    document = expand((tiny.words(1), Segment("video", np.zeros((4, 2, 4, 1), np.float32)), tiny.words(2)), clip_spec())
    piece = document.pieces["video"]
    np.testing.assert_array_equal(piece["place"], [[0, 0, 0], [0, 0, 1], [1, 0, 0], [1, 0, 1]])
    np.testing.assert_array_equal(piece["position"], piece["place"] + 3)  # after begin, word and opener
    np.testing.assert_array_equal(document.pieces["text"]["position"][:, 0], [0, 1, 2, 5, 6, 7])


@pytest.mark.parametrize("boundary", ["outside", "inside"])
def test_frames_see_themselves_and_those_before(boundary):
    spec = clip_spec(boundary=boundary)
    clip = Segment("video", np.zeros((4, 2, 4, 1), np.float32))
    batch = assemble([[expand((tiny.words(1), clip, clip), spec)]], spec)
    m = metadata(batch, spec, ["video"])
    wanted = np.kron(np.tril(np.ones((4, 4))), np.ones((2, 2)))  # four pairs of frames, two tokens each
    np.testing.assert_array_equal(see(m, m)[0][:8, :8], wanted)
    edges = np.asarray(batch["text"].span)[0]
    np.testing.assert_array_equal(edges[:6], [0, 0, *([1, 2, 3, 4] if boundary == "inside" else [0] * 4)])


def test_a_series_moves_on_in_time_only():
    sound = tiny.image_stream(grid=(8,), patch=2, table="none")
    spec = tiny.spec(
        {"text": tiny.text_stream(), "sound": sound}, {"sound": (tiny.image_run("sound", position="grid"),)}, 3
    )
    document = expand((Segment("sound", np.zeros((8, 1), np.float32)),), spec)
    np.testing.assert_array_equal(document.pieces["sound"]["position"], [[2, 2, 2], [3, 2, 2], [4, 2, 2], [5, 2, 2]])
    assert sound.features == 2 and sound.tokens_per_item == 4


def test_a_world_models_frames_see_clean_ones_only():
    streams = {
        "text": tiny.text_stream(),
        "noised": tiny.image_stream(table="none"),
        "clean": tiny.image_stream(table="none"),
    }
    layout = layouts.world()
    spec = SequenceSpec({**streams, "text": tiny.text_stream(vocabulary=264)}, layout, 257, 258, 3)
    frame = tiny.picture(np.random.default_rng(0))
    document = expand((frame, frame), spec)
    noised, clean, words = (document.pieces[name] for name in ("noised", "clean", "text"))
    np.testing.assert_array_equal(noised["position"][:4], [[1, 1, 1], [1, 1, 2], [1, 2, 1], [1, 2, 2]])
    np.testing.assert_array_equal(noised["position"], clean["position"])
    assert (noised["position"][4:] == noised["position"][:4] + 1).all()  # the next frame: the next index in time
    batch = assemble([[document]], spec)
    seen = np.asarray(see(metadata(batch, spec, ["noised"]), metadata(batch, spec, ["clean"])))[0]
    np.testing.assert_array_equal(seen[:8, :8], np.kron([[0, 0], [1, 0]], np.ones((4, 4))))
    own = np.asarray(see(metadata(batch, spec, ["noised"]), metadata(batch, spec, ["noised"])))[0]
    np.testing.assert_array_equal(own[:8, :8], np.kron(np.eye(2), np.ones((4, 4))))
    # EOI of a clean frame is asked for the next frame's opener, then for the end.
    asked = words["targets"][words["loss_weight"] > 0]
    np.testing.assert_array_equal(asked, [text.BOI, text.BOI, 258])


def random_document(rng):
    parts = []
    for _ in range(rng.integers(1, 5)):
        if rng.random() < 0.4:
            parts.append(tiny.picture(rng, str(rng.choice(["both", "context", "target"]))))
        else:
            parts.append(tiny.words(*rng.integers(0, 11, rng.integers(1, 5))))
    return tuple(parts)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(sorted(tiny.SPECS)))
def test_a_packed_row_holds_every_document_unchanged(seed, name):
    spec = tiny.SPECS[name]
    rng = np.random.default_rng(seed)
    row, left = [], dict(spec.budgets)
    for _ in range(6):
        new = expand(random_document(rng), spec)
        assert sum(len(piece["order"]) for piece in new.pieces.values()) == new.length
        if all(count <= left[key] for key, count in new.cost.items()):
            row.append(new)
            left = {key: room - new.cost.get(key, 0) for key, room in left.items()}
    batch = assemble([row, []], spec)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), batch) == jax.tree.map(
        lambda a: (a.shape, a.dtype), batch_spec(spec, 2)
    )
    orders, spans = [], set()
    for number, document in enumerate(row, start=1):
        own = set()
        for stream, piece in document.pieces.items():
            part = batch[stream]
            where = part.document[0] == number
            for field in ("tokens", "targets", "loss_weight", "private", "position", "values", "place"):
                if field in piece:
                    np.testing.assert_array_equal(getattr(part, field)[0, where], piece[field])
            orders += part.order[0, where].tolist()
            own |= set(part.span[0, where].tolist()) - {0}
            if "time_low" in piece:
                items = part.item[0, where]
                np.testing.assert_array_equal(part.time_low[0, np.unique(items)], piece["time_low"])
        assert not own & spans  # no two documents share a block
        spans |= own
    assert sorted(orders) == list(range(sum(document.length for document in row)))
    for part in batch.values():
        assert not part.document[1].any() and not part.loss_weight[1].any()
        assert not part.loss_weight[0][part.document[0] == 0].any()


def test_the_loss_and_its_gradient_do_not_depend_on_the_packing():
    task = tiny.task(tiny.SPECS["experts"])
    params = task.template.init(jax.random.key(0))
    documents = tiny.documents()
    noise = packed.noise_of(documents)
    function = jax.jit(jax.value_and_grad(task.loss, has_aux=True))
    results, operations = [], trunk_operations(task.model, sum(s.budget for s in task.spec.streams.values()))
    for rows in ([[0, 3], [2], [1]], [[1, 0, 3], [], [2]], [[2], [3, 1], [0]]):
        batch, draws = packed.pack(rows, documents, noise, task.spec)
        results.append(function(params, batch, draws, task.totals(batch)))
    for other in results[1:]:
        (loss, sums), gradient = other
        assert_close(loss, results[0][0][0], operations)
        for name in ("text_loss", "image_loss", "image_by_time"):
            assert_close(sums[name], results[0][0][1][name], operations, note=name)
        assert_close(gradient, results[0][1], 3 * operations)


@pytest.mark.parametrize("name", tiny.SPECS)
def test_fakes_look_like_batches_and_use_every_stream(name):
    spec = tiny.SPECS[name]
    fake, again, other = (fake_batch(spec, 3, seed) for seed in (0, 0, 1))
    assert jax.tree.map(lambda a: (a.shape, a.dtype), fake) == jax.tree.map(
        lambda a: (a.shape, a.dtype), batch_spec(spec, 3)
    )
    jax.tree.map(np.testing.assert_array_equal, fake, again)
    assert any((a != b).any() for a, b in zip(jax.tree.leaves(fake), jax.tree.leaves(other), strict=True))
    assert all((part.document > 0).any() for part in fake.values())


def test_causal_text_can_be_cut_and_nothing_else():
    text = expand((tiny.words(*range(10)),), tiny.spec())
    head, tail = text.split({"text": 5})
    assert (head.length, tail.length) == (5, 7)
    np.testing.assert_array_equal(
        np.concatenate([head.pieces["text"]["tokens"], tail.pieces["text"]["tokens"]]), text.pieces["text"]["tokens"]
    )
    assert tail.pieces["text"]["position"][:, 0].tolist() == list(range(7))
    assert head.pieces["text"]["targets"][-1] == tail.pieces["text"]["tokens"][0]  # still predicted
    assert text.split({"text": 1}) is None and text.split({"text": 12}) is None
    assert expand((tiny.words(1), IMAGE), tiny.spec()).split({"text": 3, "image": 4}) is None


def test_too_much_for_a_row_is_refused():
    document = expand((tiny.words(*range(10)),), tiny.spec())
    with pytest.raises(UsageError, match="row 0: more than 24 tokens of stream 'text'"):
        assemble([[document] * 3], tiny.spec())


@pytest.mark.parametrize(
    "value, message",
    [
        (np.zeros((4, 4, 3), np.float32), "does not fit patches of 2 and 1 channels"),
        (np.zeros((5, 4, 1), np.float32), "does not fit patches"),
        (np.zeros((8, 4, 1), np.float32), r"does not fit the stream's grid \(4, 4\)"),
        (np.zeros((4, 4), np.float32), "does not fit patches"),
    ],
)
def test_an_image_of_the_wrong_size_is_refused(value, message):
    with pytest.raises(UsageError, match=message):
        expand((Segment("image", value),), tiny.spec())


def test_tables_that_cannot_work_are_refused():
    streams = {"text": tiny.text_stream(), "image": tiny.image_stream()}
    for make, message in (
        (
            lambda: SequenceSpec(streams, {"image": (Run("imag"),)}, BOS, EOS),
            r"no stream 'imag' \(did you mean 'image'",
        ),
        (lambda: SequenceSpec(streams, {"image": (Run("image", position="grid"),)}, BOS, EOS), "needs 2 or 3 rotary"),
        (lambda: tiny.spec({"text": tiny.text_stream(visible_to=("txt",))}, {}), "did you mean 'text'"),
        (lambda: Stream(vocabulary=4, budget=0), "budget must be positive"),
        (lambda: tiny.image_stream(attention="blocks"), "did you mean 'block'"),
        (lambda: tiny.image_stream(patch=3), "patch 3 does not divide"),
        (lambda: tiny.image_stream(budget=10), "no multiple of an item.s 4 tokens"),
        (lambda: tiny.image_stream(grid=(0, 0)), "needs `items`"),
        (lambda: tiny.image_stream(grid=(0, 4, 4)), "all positive or all 0"),
        (lambda: tiny.image_stream(attention="frame"), "an image is one 'block'"),
        (lambda: dataclasses.replace(clip_spec(), axes=2), "needs 3 rotary axes"),
        (lambda: expand((Segment("imge", IMAGE.value),), tiny.spec()), "no entry for 'imge' .did you mean 'image'"),
    ):
        with pytest.raises(UsageError, match=message):
            make()
