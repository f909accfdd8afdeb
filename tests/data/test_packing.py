"""Packing: budgets hold, nothing is lost or doubled, images stay whole, the state is exact, hosts do not matter."""

import dataclasses
import json

from hypothesis import given, settings
from hypothesis import strategies as st

from transfusion.data.packing import Bad, Lane

BUDGETS = {"text": 40, "image": 24}


@dataclasses.dataclass(frozen=True)
class Fake:
    """Units (name, number) of an item; text-only ones can be cut."""

    name: int
    start: int
    stop: int
    image: int = 0

    @property
    def cost(self):
        return {"text": self.stop - self.start} | ({"image": self.image} if self.image else {})

    @property
    def units(self):
        return [(self.name, place) for place in range(self.start, self.stop)]

    def split(self, budget):
        room = budget.get("text", 0)
        if self.image or not 1 < room < self.stop - self.start:
            return None
        cut = self.start + room
        return dataclasses.replace(self, stop=cut), dataclasses.replace(self, start=cut)


class Examples:
    """An endless sequence that repeats the drawn items; None is a bad one."""

    def __init__(self, drawn):
        self.drawn = drawn

    def __call__(self, index):
        drawn = self.drawn[index % len(self.drawn)]
        if drawn is None:
            return Bad(f"record {index}", "broken")
        return Fake(index, 0, *drawn)


text = st.tuples(st.integers(1, 100), st.just(0))
image = st.tuples(st.integers(1, 45), st.sampled_from([4, 8, 16, 28]))
drawn_items = st.lists(st.one_of(text, image, st.none()), min_size=1, max_size=30).filter(
    lambda items: any(item and item[0] <= 40 and item[1] <= 24 for item in items)
)
options = st.fixed_dictionaries(
    {"open_rows": st.integers(1, 5), "split": st.booleans(), "min_piece": st.integers(1, 20)}
)


def cost_of(row):
    return {name: sum(piece.item.cost.get(name, 0) for piece in row) for name in BUDGETS}


def usable(item, split):
    return item is not None and (
        (item[0] <= BUDGETS["text"] and item[1] <= BUDGETS["image"]) or (split and not item[1])
    )


@given(drawn_items, options)
@settings(max_examples=100, deadline=None)
def test_budgets_hold_and_every_document_is_packed_once_and_whole(drawn, option):
    examples, bad, rows = Examples(drawn), [], []
    count = 3 * len(drawn)

    class End(Exception):
        pass

    def example(index):
        if index >= count:
            raise End
        return examples(index)

    lane = Lane(example, BUDGETS, on_bad=bad.append, **option)
    try:
        while True:
            rows.append(lane.next_row())
    except End:
        while (row := lane.drain()) is not None:
            rows.append(row)
    for row in rows:
        assert row
        assert all(cost_of(row)[name] <= budget for name, budget in BUDGETS.items())
    units = [unit for row in rows for piece in row for unit in piece.item.units]
    good = [i for i in range(count) if usable(examples.drawn[i % len(drawn)], option["split"])]
    assert sorted(units) == [(i, place) for i in good for place in range(drawn[i % len(drawn)][0])]
    images = [piece.item.name for row in rows for piece in row if piece.item.image]
    assert sorted(images) == [i for i in good if drawn[i % len(drawn)][1]]
    assert len(bad) == count - len(good)


@given(drawn_items, options, st.integers(0, 12))
@settings(max_examples=100, deadline=None)
def test_a_restored_lane_goes_on_with_the_same_rows(drawn, option, stop):
    def new():  # 31 is prime to every length of the drawn list, so that the lane meets all of it
        return Lane(Examples(drawn), BUDGETS, first=1, stride=31, **option)

    lane = new()
    for _ in range(stop):
        lane.next_row()
    state = json.loads(json.dumps(lane.snapshot().to_json()))
    restored = new()
    restored.restore(state)
    for _ in range(8):
        assert restored.next_row() == lane.next_row()
    assert restored.snapshot().to_json() == lane.snapshot().to_json()


def test_a_snapshot_does_not_change_when_the_lane_goes_on():
    lane = Lane(Examples([(30, 8), (90, 0), (10, 4)]), BUDGETS)
    lane.next_row()
    snapshot = lane.snapshot()
    before = json.dumps(snapshot.to_json())
    for _ in range(5):
        lane.next_row()
    assert json.dumps(snapshot.to_json()) == before


def test_text_fills_what_captioned_images_leave():
    # Six images of 4 slots fill the image budget and leave 40 - 6 * 3 = 22 slots of text.
    lane = Lane(Examples([(3, 4)] * 6 + [(22, 0)]), BUDGETS)
    for _ in range(20):
        assert cost_of(lane.next_row()) == BUDGETS


def test_text_alone_is_cut_without_gaps():
    lane = Lane(Examples([(33, 0), (7, 0), (90, 0)]), {"text": 40}, min_piece=1)
    rows = [lane.next_row() for _ in range(50)]
    assert sum(cost_of(row)["text"] for row in rows) >= 0.97 * 50 * 40


def test_too_much_text_does_not_pile_up():
    lane = Lane(Examples([(60, 0)] * 30 + [(3, 4)]), BUDGETS, open_rows=4)
    for _ in range(60):
        lane.next_row()
        assert sum(piece.item.cost["text"] for piece in lane.snapshot().waiting) <= 4 * 40 / 2 + 60


def test_what_fits_nowhere_is_named_with_its_cost():
    bad = []
    lane = Lane(Examples([(5, 28), (50, 4), (3, 4)]), BUDGETS, open_rows=1, on_bad=bad.append)
    lane.next_row()
    assert [b.name for b in bad[:2]] == ["example 0", "example 1"]
    assert "28" in bad[0].error


def test_a_record_that_vanished_since_the_state_was_saved_is_named_and_left_out():
    state = {"cursor": 9, "waiting": [], "bins": [[[0, [], False], [1, [], False]], [[2, [], False]]]}
    broken = Lane(Examples([(3, 4), None, None]), BUDGETS)
    lost = broken.restore(state)
    assert len(lost) == 2 and lost[0].startswith("record")
    assert broken.snapshot().to_json() == {"cursor": 9, "waiting": [], "bins": [[[0, [], False]]]}
