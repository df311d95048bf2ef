"""The checker against histories with a known verdict, and against a dumb twin."""

from __future__ import annotations

from itertools import permutations
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.simulation.checkers import (
    Action,
    Batch,
    Checker,
    Condition,
    Conflicted,
    Delete,
    Event,
    Get,
    Held,
    Incr,
    Mistyped,
    Put,
    Touch,
    groups_of,
    step,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

OPEN = object()


def history(*rows: tuple[Any, ...], key: str = "k") -> list[Event]:
    """Rows of (begin, end, action, answer); an end of None leaves the operation open."""
    return [
        Event(f"c{at}", key, action, begin, float(begin), end, float("inf") if end is None else end)
        if answer is OPEN
        else Event(f"c{at}", key, action, begin, float(begin), end, float(end), answer)
        for at, (begin, end, action, answer) in enumerate(rows)
    ]


GOOD: dict[str, list[Event]] = {
    "nothing": [],
    "a put is read": history((1, 2, Put("a"), "v1"), (3, 4, Get(), ("a", "v1"))),
    "beside each other, either may be first": history(
        (1, 4, Put("a"), "v1"), (2, 5, Put("b"), "v2"), (6, 7, Get(), ("a", "v1"))
    ),
    "an open put may have happened": history((1, None, Put("a"), OPEN), (2, 3, Get(), ("a", "v1"))),
    "an open put may happen late": history(
        (1, None, Put("a"), OPEN), (2, 3, Get(), None), (4, 5, Get(), ("a", "v1"))
    ),
    "an open put may never happen": history((1, None, Put("a"), OPEN), (2, 3, Get(), None)),
    "increments add up": history(
        (1, 2, Incr(1), 1), (3, 4, Incr(10), 11), (5, 6, Get(), (11, "x"))
    ),
    "a conflict names what stands": history(
        (1, 2, Put("a"), "v1"), (3, 4, Put("b", Condition(absent=True)), Conflicted("v1"))
    ),
    "text is no number": history((1, 2, Put("a"), "v1"), (3, 4, Incr(1), Mistyped())),
    "a delete says whether there was anything": history(
        (1, 2, Delete(), False), (3, 4, Put("a"), "v1"), (5, 6, Delete(), True)
    ),
    "a record may be gone when its time is over": history(
        (1, 2, Put("a", None, 3.0), "v1"), (3, 4, Get(), ("a", "v1")), (7, 8, Get(), None)
    ),
    "a touch takes the time away": history(
        (1, 2, Put("a", None, 3.0), "v1"), (3, 4, Touch(None), True), (20, 21, Get(), ("a", "v2"))
    ),
}

BAD: dict[str, list[Event]] = {
    "a lost write": history((1, 2, Put("a"), "v1"), (3, 4, Get(), None)),
    "a stale read": history(
        (1, 2, Put("a"), "v1"), (3, 4, Put("b"), "v2"), (5, 6, Get(), ("a", "v1"))
    ),
    "two readers see it come and go": history(
        (1, 10, Put("a"), "v1"), (2, 3, Get(), ("a", "v1")), (4, 5, Get(), None)
    ),
    "an increment that counted twice": history((1, 2, Incr(1), 1), (3, 4, Get(), (2, "x"))),
    "an increment that was lost": history((1, 2, Incr(1), 1), (3, 4, Incr(1), 1)),
    "two winners of one condition": history(
        (1, 4, Put("a", Condition(absent=True)), "v1"),
        (2, 5, Put("b", Condition(absent=True)), "v2"),
    ),
    "a conflict about nothing": history((1, 2, Put("a", Condition(absent=True)), Conflicted("v9"))),
    "a value of no write": history((1, 2, Get(), ("a", "v1"))),
    "a deleted key comes back": history(
        (1, 2, Put("a"), "v1"), (3, 4, Delete(), True), (5, 6, Get(), ("a", "v1"))
    ),
    "a record outlives its time": history(
        (1, 2, Put("a", None, 3.0), "v1"), (20, 21, Get(), ("a", "v1"))
    ),
    "a record dies before its time": history(
        (1, 2, Put("a", None, 30.0), "v1"), (3, 4, Get(), None)
    ),
    "another version than was acknowledged": history(
        (1, 2, Put("a"), "v1"), (3, 4, Get(), ("a", "v2"))
    ),
}


@pytest.mark.parametrize("name", GOOD)
def test_what_is_right_is_let_through(name: str) -> None:
    assert Checker(skew=0.5).is_linearizable(GOOD[name])


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_found(name: str) -> None:
    assert not Checker(skew=0.5).is_linearizable(BAD[name])


def test_what_was_refused_may_not_have_happened() -> None:
    events = history((1, None, Put("a"), OPEN), (2, 3, Get(), ("a", "v1")))
    assert Checker().is_linearizable(events)
    events[0].refused = True
    assert not Checker().is_linearizable(events)


def test_a_batch_is_one_moment() -> None:
    both = Batch((("a", Put(1)), ("b", Put(1))))
    batch = Event("c", "a", both, 1, 1.0, 10, 10.0, "v1")
    seen_a = Event("c", "a", Get(), 2, 2.0, 3, 3.0, (1, "v1"))
    unseen_b = Event("c", "b", Get(), 4, 4.0, 5, 5.0, None)
    assert Checker().is_linearizable([batch, seen_a])
    assert Checker().is_linearizable([batch, unseen_b])
    assert not Checker().is_linearizable([batch, seen_a, unseen_b])
    assert len(groups_of([batch, seen_a, unseen_b])) == 1


def test_keys_are_checked_apart() -> None:
    events = [*BAD["a lost write"], *history((1, 2, Put("a"), "v1"), key="other")]
    (fault,) = Checker().faults(events)
    assert {event.key for event in fault} == {"k"}


def brute_force(events: Sequence[Event]) -> bool:
    """Every order of every choice of the open operations that took effect."""
    must = [event for event in events if event.ended is not None]
    maybe = [event for event in events if event.ended is None]
    for chosen in range(1 << len(maybe)):
        ops = must + [event for at, event in enumerate(maybe) if chosen >> at & 1]
        for order in permutations(ops):
            in_time = all(
                after.ended is None or before.began < after.ended
                for at, before in enumerate(order)
                for after in order[at + 1 :]
            )
            if in_time and _explains(order):
                return True
    return False


def _explains(order: Sequence[Event]) -> bool:
    states: list[Held | None] = [None]
    for event in order:
        states = [after for held in states for after in step(event, event.action, held)]
    return bool(states)


ACTIONS: list[tuple[Action, list[Any]]] = [
    (Put("a"), ["v1", "v2"]),
    (Put("b", Condition(absent=True)), ["v3", Conflicted("v1"), Conflicted(None)]),
    (Put("c", Condition(version="v1")), ["v4", Conflicted("v2"), Conflicted(None)]),
    (Get(), [None, ("a", "v1"), ("a", "v2"), ("b", "v3"), ("c", "v4"), (1, None)]),
    (Incr(1), [1, 2, Mistyped()]),
    (Delete(), [True, False]),
]


@st.composite
def small_histories(draw: st.DrawFn) -> list[Event]:
    count = draw(st.integers(1, 5))
    moments = draw(st.permutations(range(2 * count)))
    events = []
    for at in range(count):
        begin, end = sorted(moments[2 * at : 2 * at + 2])
        action, answers = draw(st.sampled_from(ACTIONS))
        if draw(st.integers(0, 4)):
            answer = draw(st.sampled_from(answers))
            events.append(Event("c", "k", action, begin, begin, end, end, answer))
        else:
            events.append(Event("c", "k", action, begin, begin))
    return events


@settings(max_examples=400, deadline=None)
@given(small_histories())
def test_the_search_agrees_with_every_order_tried(events: list[Event]) -> None:
    assert Checker().is_linearizable(events) == brute_force(events)
