from __future__ import annotations

from itertools import islice
from statistics import fmean, pvariance

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.ring import TOKEN_BITS, Ring, clock_times

NODE_IDS = st.integers(1, 2**48 - 1)
WEIGHTS = st.dictionaries(NODE_IDS, st.floats(0.01, 10.0), min_size=1, max_size=12)
SLOT_COUNTS = st.sampled_from([1, 2, 4, 16, 256])


def ring_of(weights: dict[int, float], slot_count: int = 256, reach: float = 1.0) -> Ring:
    ring = Ring(slot_count, reach)
    ring.update(weights)
    return ring


def spread(count: int) -> dict[int, float]:
    """Node ids as a generator would draw them."""
    return {(number * 0x9E3779B97F4A7C15 >> 7) % 2**48 | 1: 1.0 for number in range(1, count + 1)}


def test_tokens_never_change() -> None:
    # Written down once: another release that computes others would move everybody's data.
    ring = ring_of({1: 1.0, 2: 1.0, 3: 2.0}, 4)
    assert list(ring.walk(0)) == [1, 3, 2]
    assert ring.arcs() == [
        [(0x12DB8DDA54C38D00, 1)],
        [(0x726D402B4030180, 1), (0x101BEBFA500BC600, 3), (0x16277DCFAFC40100, 2)],
        [(0x89449E73A5E6700, 3), (0xB16B1864DD1DC00, 2)],
        [(0x16633EB1F7D0CB0, 3)],
    ]


@given(WEIGHTS, SLOT_COUNTS, st.floats(0.01, 20.0))
def test_invariants(weights: dict[int, float], slot_count: int, reach: float) -> None:
    ring = ring_of(weights, slot_count, reach)
    ring.check()
    assert ring.nodes == weights


@given(WEIGHTS, SLOT_COUNTS, st.data())
def test_one_by_one_in_any_order_is_the_same_ring(
    weights: dict[int, float], slot_count: int, data: st.DataObject
) -> None:
    ring = Ring(slot_count, 1.0)
    for node in data.draw(st.permutations(sorted(weights))):
        ring.add(node, weights[node])
    ring.check()
    assert ring.arcs() == ring_of(weights, slot_count).arcs()


@given(WEIGHTS, NODE_IDS, SLOT_COUNTS)
def test_a_node_that_comes_and_goes_leaves_no_trace(
    weights: dict[int, float], node: int, slot_count: int
) -> None:
    weights.pop(node, None)
    ring = ring_of(weights, slot_count)
    before = ring.arcs()
    ring.add(node, 0.7)
    with_node = [[point for point in arc if point[1] != node] for arc in ring.arcs()]
    assert with_node == before, "it takes places for itself and moves nobody's"
    ring.remove(node)
    ring.check()
    assert ring.arcs() == before


@given(WEIGHTS, st.integers(0, 2**TOKEN_BITS - 1))
def test_a_walk_meets_every_node_once_in_token_order(weights: dict[int, float], token: int) -> None:
    ring = ring_of(weights, 64)
    arc_tokens = 2**TOKEN_BITS // 64
    points = sorted(
        (slot * arc_tokens + distance, node)
        for slot, arc in enumerate(ring.arcs())
        for distance, node in arc
    )
    clockwise = [p for p in points if p[0] >= token] + [p for p in points if p[0] < token]
    plain = list(dict.fromkeys(node for _, node in clockwise))
    assert list(ring.walk(token)) == plain
    assert set(plain) == set(weights)


def test_an_empty_ring_leads_nowhere() -> None:
    assert list(Ring(4, 1.0).walk(0)) == []


def test_a_node_is_on_the_ring_once() -> None:
    ring = ring_of({5: 1.0})
    with pytest.raises(AssertionError, match="already"):
        ring.add(5, 2.0)


def test_arcs_are_the_beginnings_of_the_slots_walks() -> None:
    ring = ring_of(spread(20), 256, 0.5)
    for slot, arc in enumerate(ring.arcs()):
        nodes = [node for _, node in arc]
        assert list(islice(ring.walk(ring.token_of(slot)), len(nodes))) == nodes


def test_first_met_is_in_proportion_to_weight() -> None:
    nodes = list(spread(4))
    weights = {node: float(1 + index) for index, node in enumerate(nodes)}
    ring = ring_of(weights, 16_384, 2.0)
    firsts = [next(ring.walk(ring.token_of(slot))) for slot in range(16_384)]
    for node, weight in weights.items():
        assert firsts.count(node) / 16_384 == pytest.approx(weight / 10, rel=0.03)


def test_variance_is_a_third_of_that_of_chance() -> None:
    weights = spread(200)
    ring = ring_of(weights, 4_096, 14 / 200)
    loads = dict.fromkeys(weights, 0)
    for slot in range(4_096):
        for node in islice(ring.walk(ring.token_of(slot)), 3):
            loads[node] += 1
    assert pvariance(loads.values()) < 0.45 * fmean(loads.values())


@given(st.integers(0, 14))
def test_clock_times_rise_to_the_harmonic_number(bits: int) -> None:
    times = clock_times(2**bits)
    assert len(times) == 2**bits
    assert times == sorted(times)
    assert times[-1] == pytest.approx(sum(1 / k for k in range(1, 2**bits + 1)))
