"""What one or two failures cost, compared with trying every one of them."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from cluster.losses import losses
from cluster.slot_config import SlotConfig

NAMES = {n: f"n{n}" for n in range(1, 8)}


def test_three_copies_survive_one_node_and_not_two() -> None:
    configs = {SlotConfig(((1, 2, 3),)): 5, SlotConfig(((2, 3, 4),)): 7}
    assert losses(configs, {1, 2, 3, 4}, NAMES) == {
        ("n1", "n2"): 5,
        ("n1", "n3"): 5,
        ("n2", "n3"): 12,
        ("n2", "n4"): 7,
        ("n3", "n4"): 7,
    }


def test_with_a_member_down_the_next_one_is_the_last() -> None:
    configs = {SlotConfig(((1, 2, 3),)): 5, SlotConfig(((1, 4, 5),)): 7}
    assert losses(configs, {1, 2, 4, 5}, NAMES) == {
        ("n1",): 5,
        ("n2",): 5,
        ("n1", "n4"): 7,
        ("n1", "n5"): 7,
        ("n4", "n5"): 7,
    }


def test_a_joint_config_needs_both_of_its_sets() -> None:
    lost_disk = {SlotConfig(((1, 2, 3), (1, 2, 4))): 9}  # 4 takes the place of 3
    assert losses(lost_disk, {1, 2, 4}, NAMES) == {("n1",): 9, ("n2",): 9}


def test_learners_count_for_nothing() -> None:
    assert losses({SlotConfig(((1, 2, 3),), (4,)): 9}, {1, 2, 4}, NAMES) == {
        ("n1",): 9,
        ("n2",): 9,
    }


def test_zones_fail_as_one() -> None:
    zones = {1: "a", 2: "a", 3: "b", 4: "c"}
    configs = {SlotConfig(((1, 2, 3),)): 5, SlotConfig(((1, 3, 4),)): 7}
    assert losses(configs, {1, 2, 3, 4}, zones) == {
        ("a",): 5,
        ("a", "b"): 7,
        ("a", "c"): 7,
        ("b", "c"): 7,
    }


def test_what_has_stopped_already_costs_no_more() -> None:
    assert losses({SlotConfig(((1, 2, 3),)): 5}, {1}, NAMES) == {}


NODES = st.integers(1, 7)
SETS = st.lists(st.lists(NODES, min_size=1, max_size=5, unique=True), min_size=1, max_size=2)


@given(
    st.lists(st.tuples(SETS, st.integers(1, 9)), max_size=5),
    st.sets(NODES),
    st.dictionaries(NODES, st.sampled_from("abcde")),
)
def test_every_failure_tried_says_the_same(
    told: list[tuple[list[list[int]], int]], up: set[int], group_of: dict[int, str]
) -> None:
    slots_of: Counter[SlotConfig] = Counter()
    for sets, slots in told:
        slots_of[SlotConfig(tuple(map(tuple, sets)))] += slots

    def stopped(*failed: str) -> dict[SlotConfig, int]:
        left = {node for node in up if group_of.get(node) not in failed}
        return {
            config: slots
            for config, slots in slots_of.items()
            if any(2 * len(left.intersection(s)) <= len(s) for s in config.sets)
        }

    already, dumb = stopped(), Counter[tuple[str, ...]]()
    for one in "abcde":
        dumb[one,] += sum(n for config, n in stopped(one).items() if config not in already)
    for one, two in combinations("abcde", 2):
        alone = stopped(one) | stopped(two)
        dumb[one, two] += sum(n for c, n in stopped(one, two).items() if c not in alone)
    assert losses(slots_of, up, group_of) == +dumb
