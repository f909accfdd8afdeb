"""Which codes are hidden in training, and how many stay masked while an image is drawn."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from closeness import assert_close

from transfusion.errors import UsageError
from transfusion.objectives import OBJECTIVES
from transfusion.objectives.masked import MASK_SCHEDULES, MaskedConfig, still_masked
from transfusion.sequence import MASKED, Segment, Stream
from transfusion.sequence.rows import assemble, expand


def test_the_cosine_reveals_few_tokens_first():
    assert still_masked(16, 8).tolist() == [15, 14, 13, 11, 8, 6, 3, 0]
    assert still_masked(16, 4, "linear").tolist() == [12, 8, 4, 0]
    assert still_masked(9, 1).tolist() == [0]


@pytest.mark.parametrize("schedule", MASK_SCHEDULES)
@pytest.mark.parametrize(("tokens", "steps"), [(16, 16), (64, 50), (1024, 12), (5, 2)])
def test_every_step_reveals_something(schedule, tokens, steps):
    left = still_masked(tokens, steps, schedule)
    assert left[-1] == 0 and (np.diff(left, prepend=tokens) < 0).all()


@pytest.mark.parametrize(("settings", "message"), [((4, 2, "cosin"), "did you mean 'cosine'?"), ((4, 0), "positive")])
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(UsageError) as error:
        still_masked(*settings)
    assert message in str(error.value)


# --- training ---------------------------------------------------------------------------------------------------------

RUN = tiny.image_run(boundary="inside")
SPEC = tiny.spec(
    {"text": tiny.text_stream(), "image": Stream(vocabulary=7, grid=(3, 3), budget=36, objective="masked")},
    {"image": (RUN,), "image/context": (dataclasses.replace(RUN, time_low=1.0, loss=False),)},
)


# In sequence: exp and a sum over 7 codes, a sum over two rows of 36.
OPERATIONS = 7 + 2 * 36 + 16


@pytest.fixture(scope="module")
def part():
    """Two rows: three images, of which the second is only read; one image, and padding."""
    rng = np.random.default_rng(0)

    def image(role):
        return Segment("image", rng.integers(0, 7, (3, 3)), role)

    first, second = (image("both"), image("context"), image("both")), (image("target"),)
    return assemble([[expand(first, SPEC)], [expand(second, SPEC)]], SPEC)["image"]


def loss(part, draws, logits):
    """Of given logits [B, N, 7]: the scalar that is trained."""
    head = SimpleNamespace(factors=lambda hidden: (hidden, jnp.eye(7)))
    per_token, extra = OBJECTIVES["masked"].loss(head, SimpleNamespace(hidden=logits), part, draws, MaskedConfig())
    return per_token * part.loss_weight, extra["nll"]


def test_masked_loss_is_the_mean_over_hidden_codes(part):
    draws = OBJECTIVES["masked"].draw(jax.random.key(3), part, MaskedConfig())
    hidden = np.asarray(draws["mask"])
    content = np.asarray(OBJECTIVES["masked"].content(part, draws, MaskedConfig()))
    np.testing.assert_array_equal(content, np.where(hidden, MASKED, part.tokens))
    logits = np.random.default_rng(1).standard_normal((2, 36, 7)).astype(np.float32)
    total = sum(
        np.log(np.exp(logits[b, i]).sum()) - logits[b, i, part.tokens[b, i]]
        for b, i in np.argwhere(hidden & (part.loss_weight > 0))
    )
    count = (hidden & (part.loss_weight > 0)).sum()
    assert 0 < count < part.loss_weight.sum()
    per_token, (nll, weight) = loss(part, draws, logits)
    assert_close(per_token.sum() / part.loss_weight.sum(), total / count, OPERATIONS)
    assert_close((nll, weight), (total, count), OPERATIONS)
    # Known codes do not count, and the rows of a batch add up.
    other = np.where(hidden[..., None], logits, 9 * logits)
    np.testing.assert_array_equal(loss(part, draws, other)[0], per_token)
    rows = [jax.tree.map(lambda x, r=r: x[r : r + 1], (part, draws)) for r in (0, 1)]
    parts = sum(loss(*row, logits[r : r + 1])[0].sum() for r, row in enumerate(rows))
    assert_close(parts, per_token.sum(), OPERATIONS)


def test_every_drawn_image_has_a_hidden_code_and_one_that_is_read_has_none(part):
    counts = []
    for seed in range(40):
        draws = OBJECTIVES["masked"].draw(jax.random.key(seed), part, MaskedConfig())
        counts.append(np.asarray(draws["mask"]).reshape(2, 4, 9).sum(-1))
        time, share = draws["time"], np.cos(np.pi / 2 * np.asarray(draws["time"]))
        np.testing.assert_array_equal(counts[-1][time < 1], np.maximum(np.round(9 * share), 1)[time < 1])
    counts = np.stack(counts)
    assert (counts[:, 0, 1] == 0).all() and (counts[:, 1, 1:] == 0).all()  # read; padding
    drawn = counts[:, [0, 0, 1], [0, 2, 0]]
    assert drawn.min() >= 1 and set(drawn.ravel()) >= {1, 5, 9}
    assert not OBJECTIVES["masked"].clean(part)["mask"].any()


def test_the_inverse_weighting_bounds_the_likelihood(part):
    """Of an item: the mean over all of its codes, divided by the share that is hidden (LLaDA, equation 3)."""
    config = MaskedConfig("linear", "inverse")
    draws = OBJECTIVES["masked"].draw(jax.random.key(3), part, config)
    plain = OBJECTIVES["masked"].draw(jax.random.key(3), part, MaskedConfig("linear"))
    np.testing.assert_array_equal(draws["mask"], plain["mask"])
    hidden, weight = (np.asarray(draws[name]).reshape(-1, 9) for name in ("mask", "weight"))
    for item, of_item in zip(hidden, weight, strict=True):
        if item.any():
            np.testing.assert_allclose(of_item, item * 9 / item.sum(), rtol=1e-6)
        else:
            assert not of_item.any()
    assert hidden.any()
