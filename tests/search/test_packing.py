"""What a slice gave travels as bytes and comes back the same; a search goes on from any slices on record."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search import spreading
from search.exact import search
from search.keeping import State
from search.packing import packed, unpacked
from search.store import Remembered
from search.visiting import Task
from tests.search.test_exact import MEMORY, PROBLEM, SPEED, TIME, Toy, points_of, space_of
from tests.search.test_executors import told

MODELS = st.builds(
    Toy,
    seed=st.integers(0, 3),
    limit=st.sampled_from([0.5, 4.0, 9.0]),
    raises=st.sampled_from([frozenset(), frozenset({(2, 2, 2)})]),
    bounds=st.sampled_from([(), ("memory",)]),
)


@given(MODELS, st.integers(5, 60))
@settings(max_examples=20)
def test_a_state_comes_back_the_same(model: Toy, rows: int) -> None:
    space, task = space_of(), Task(model, PROBLEM, (TIME, MEMORY), ())
    none = task.none(space)
    state = State.empty(none, 2, 3, 10)
    for batch in space.batches(rows):
        visit = task.visit(batch, state, None)
        state = state.after(visit, ((batch["devices"] * 0.37 + batch["data"] * 0.11) % 1)[visit.places])
    again = unpacked(packed(state), none)
    assert packed(again) == packed(state)
    assert (again.visited, again.evaluated, again.feasible, again.failed) == (
        state.visited, state.evaluated, state.feasible, state.failed,
    )  # fmt: skip
    assert again.failures == state.failures
    assert again.front.points.metrics.parts.keys() == state.front.points.metrics.parts.keys()


@given(MODELS, st.integers(9, 70), st.integers(9, 70), st.sets(st.integers(0, 16)))
@settings(max_examples=15)
def test_a_search_goes_on_from_any_slices_on_record(model: Toy, before: int, after: int, lost: set[int]) -> None:
    asked = (space_of(), model, PROBLEM, (TIME, MEMORY, SPEED))
    ledger = Remembered()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spreading, "_chunk", lambda _: before)
        first = search(*asked, sample=20, ledger=ledger)
        kept = Remembered()
        for i, (start, n) in enumerate(ledger.slices().items()):
            if i not in lost:
                kept.keep(start, n, *ledger.found(start))
        listed = points_of(space_of())
        known = {listed[o] for start, n in kept.slices().items() for o in range(start, start + n)}
        patch.setattr(spreading, "_chunk", lambda _: after)
        model.calls.clear()
        again = search(*asked, sample=20, ledger=kept)
    assert told(again) == told(first)
    assert sum(kept.slices().values()) == space_of().size()
    if again.feasible:  # else the nearest pruned points are looked at in the end
        assert not known & model.evaluated().keys()
