"""How many tokens stay masked."""

import numpy as np
import pytest

from transfusion.errors import UsageError
from transfusion.objectives.masked import MASK_SCHEDULES, still_masked


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
