import jax
import numpy as np
import pytest
from closeness import assert_close

from transfusion.errors import UsageError
from transfusion.evaluation import judge as judges
from transfusion.evaluation.judge import Judge, JudgeConfig, shifted, train_judge

CONFIG = JudgeConfig(
    height=5, width=6, channels=2, classes=3, features=16, base=8, steps=40, batch_size=16, learning_rate=5e-3
)
# In sequence: two convolutions of 3 x 3, each with a norm over the image, and two dense layers.
OPERATIONS = 2 * (3 * 3 * 8 + 5 * 6 * 8) + 5 * 6 * 8 + 16


def patterns(count, seed):
    """Three classes that differ in the direction of their stripes, anywhere in the image, under noise."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    y, x = np.mgrid[:5, :6]
    stripes = np.stack([y % 2, x % 2, (x + y) % 2])[labels] * 1.6 - 0.8
    images = stripes[..., None] + 0.3 * rng.normal(size=(count, 5, 6, 2))
    return images.clip(-1, 1).astype(np.float32), labels


@pytest.fixture(scope="module")
def judge():
    return train_judge(*patterns(90, 0), CONFIG)


def test_learns_and_counts_held_out_images(judge):
    images, labels = patterns(60, 1)
    score = judge.accuracy(images, labels)
    assert score["value"] > 0.9 and score["count"] == 60 and score["low"] < score["value"]
    assert judge.accuracy(images, (labels + 1) % 3)["value"] < 0.1


def test_broken_images_are_never_right(judge):
    images, labels = patterns(12, 2)
    images[:6, 0, 0, 0] = np.nan
    assert judge.accuracy(images, judge.predict(np.nan_to_num(images)))["value"] == 0.5


def test_same_seed_same_judge(judge):
    again = train_judge(*patterns(90, 0), CONFIG)
    for first, second in zip(jax.tree.leaves(judge.params), jax.tree.leaves(again.params), strict=True):
        np.testing.assert_array_equal(first, second)


def test_features_are_the_layer_before_the_logits(judge):
    images, _ = patterns(5, 3)
    features = judge.features(images)
    assert features.shape == (5, 16)
    out = judge.params["out"]
    assert_close(features @ out["kernel"] + out["bias"][None], judge.logits(images), OPERATIONS)
    assert_close(judge._apply("features", images, batch=2), features, OPERATIONS)


def test_saved_judge_gives_the_same_answers(judge, tmp_path):
    judge.save(tmp_path / "judge.safetensors")
    loaded = judges.load_judge(tmp_path / "judge.safetensors")
    assert loaded.config == CONFIG
    images, _ = patterns(5, 4)
    np.testing.assert_array_equal(loaded.logits(images), judge.logits(images))


def test_missing_and_damaged_files_are_one_clear_line(judge, tmp_path):
    path = tmp_path / "judge.safetensors"
    with pytest.raises(UsageError, match="no judge at"):
        judges.load_judge(path)
    judge.save(path)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"not safetensors", b""):
        path.write_bytes(content)
        with pytest.raises(UsageError, match="damaged") as error:
            judges.load_judge(path)
        assert "\n" not in str(error.value)
    other = dict(judge.params) | {"out": {"kernel": np.zeros((2, 2), np.float32), "bias": np.zeros(2, np.float32)}}
    Judge(CONFIG, other).save(path)
    with pytest.raises(UsageError, match="other weights"):
        judges.load_judge(path)


def test_shifts_move_whole_images_and_repeat_the_border():
    images = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4, 1)
    assert shifted(images, np.random.default_rng(0), 0) is images
    seen = set()
    for seed in range(60):
        moved = shifted(images, np.random.default_rng(seed), 1)[1, ..., 0]
        rows, columns = moved[1, 1] // 4 - 3 - 1, moved[1, 1] % 4 - 1
        expected = np.pad(images[1, ..., 0], 1, mode="edge")[int(1 + rows) :, int(1 + columns) :][:3, :4]
        np.testing.assert_array_equal(moved, expected)
        seen.add((rows, columns))
    assert len(seen) == 9


def test_wrong_inputs_are_refused(judge):
    images, labels = patterns(4, 0)
    for wrong in (images[:, :3], images[..., :1], images[:0]):
        with pytest.raises(UsageError, match="expected"):
            judge.logits(wrong)
    with pytest.raises(UsageError, match=r"0\.\.2"):
        train_judge(images, labels + 3, CONFIG)
    with pytest.raises(UsageError, match="multiple of 8"):
        JudgeConfig(base=12)


def test_image_size_sets_the_number_of_halvings():
    widths = [JudgeConfig(height=side, width=side).widths for side in (4, 8, 28, 64)]
    assert [len(w) for w in widths] == [1, 2, 4, 5] and widths[-1] == (16, 32, 64, 64, 64)


@pytest.mark.slow
def test_recognises_held_out_digits_after_a_short_training():
    digits = pytest.importorskip("sklearn.datasets", reason="needs scikit-learn (extra 'demo')").load_digits()
    images, labels = digits.images[..., None] / 8 - 1, digits.target
    judge = train_judge(images[:1500], labels[:1500], JudgeConfig(steps=150))
    assert judge.accuracy(images[1500:], labels[1500:])["value"] > 0.9
