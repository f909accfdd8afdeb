import numpy as np
import pytest
from closeness import assert_close

from transfusion.codecs import features
from transfusion.errors import UsageError
from transfusion.evaluation.retrieval import distances, ranks, retrieval, squared_distances

RNG = np.random.default_rng(0)
GALLERY = RNG.uniform(-1, 1, (12, 4, 4, 3)).astype(np.float32)


def test_squared_distances_match_the_definition():
    a, b = RNG.normal(size=(3, 5)), RNG.normal(size=(4, 5))
    expected = ((a[:, None] - b[None]) ** 2).sum(-1)
    assert_close(squared_distances(a, b), expected, 5 + 5)
    assert (squared_distances(a, a) >= 0).all()


def test_chunks_do_not_matter():
    whole = distances(GALLERY[:3], GALLERY, features.pixel_vectors)
    assert_close(distances(GALLERY[:3], GALLERY, features.pixel_vectors, chunk=5), whole, 4 * 4 * 3)
    assert whole.shape == (3, 12)


def test_rank_counts_the_nearer_and_ties_count_against():
    distance = np.array([[0.3, 0.1, 0.2], [0.3, 0.1, 0.2], [0.5, 0.5, 0.5], [0.1, np.nan, 0.2]])
    np.testing.assert_array_equal(ranks(distance, np.array([1, 0, 2, 0])), [1, 3, 3, 3])


def test_near_copies_score_one_and_shuffled_prompts_score_chance():
    asked = np.arange(12)
    close = GALLERY + 0.05 * RNG.normal(size=GALLERY.shape)
    scores = retrieval(close, asked, GALLERY)["pixels"]
    assert scores["top1"]["value"] == scores["top5"]["value"] == 1 and scores["top1"]["count"] == 12
    assert scores["top1"]["low"] < 1
    shuffled = retrieval(close, np.roll(asked, 1), GALLERY)["pixels"]
    assert shuffled["top1"]["value"] == 0 and shuffled["top5"]["value"] < 1


def test_a_constant_image_cannot_score():
    constant = np.zeros((12, 4, 4, 3), np.float32)
    blind = retrieval(constant, np.arange(12), GALLERY, {"nothing": lambda images: np.zeros((len(images), 2))})
    assert blind["nothing"]["top5"]["value"] == 0
    assert retrieval(constant, np.arange(12), GALLERY)["pixels"]["top1"]["value"] <= 1 / 12


def test_embeddings_are_reported_by_name():
    first_pixel = lambda images: images[:, 0, 0]  # noqa: E731
    scores = retrieval(
        GALLERY[2:4], np.array([2, 3]), GALLERY, {"pixels": features.pixel_vectors, "corner": first_pixel}
    )
    assert scores["pixels"]["top1"]["value"] == scores["corner"]["top1"]["value"] == 1


def test_wrong_shapes_are_refused():
    with pytest.raises(UsageError, match="differ"):
        retrieval(GALLERY[:, :2], np.arange(12), GALLERY)
    with pytest.raises(UsageError, match=r"0\.\.11"):
        retrieval(GALLERY[:1], np.array([12]), GALLERY)
